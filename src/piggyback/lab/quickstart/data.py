"""The images of the quickstart, which come with installed packages.

Handwritten digits of 8 x 8 pixels, from scikit-learn (Alpaydin and Kaynak, 1998); letters rendered from the fonts that
matplotlib installs, those to test on from other fonts.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from piggyback.errors import DataError, require
from piggyback.train.data.sets import ImageData, from_tensors

Array = NDArray[Any]

LETTERS = tuple(string.ascii_uppercase)
"""An image shows its class in upper or lower case."""
LAST_DIGITS = 400
"""These are for testing: they were collected in order, so other hands wrote them."""

_STYLES = ("", "-Bold", "-BoldOblique", "-Oblique")
TRAIN_FONTS = (
    *(f"DejaVuSans{style}" for style in _STYLES),
    *(f"DejaVuSansMono{style}" for style in _STYLES),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic", "DejaVuSerif-Italic"),
    *("cmr10", "cmb10", "cmti10", "cmmi10"),
)
TEST_FONTS = (
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta", "STIXGeneralItalic"),
    *("cmss10", "cmtt10"),
)
"""Typefaces that no training image shows: a serif in four styles, a sans serif, a typewriter."""

_TURN = 20.0  # degrees, either way


def digits(train: int = 1000, *, size: int = 64) -> ImageData:
    """Return the first ``train`` digits and the last 400, enlarged to uint8 (n, 3, size, size).

    >>> data = digits(train=200, size=16)
    >>> len(data.train) + len(data.val), len(data.test), data.train.images.shape[1:]
    (200, 400, torch.Size([3, 16, 16]))
    """
    source = require("sklearn.datasets", "quickstart").load_digits()
    labels = torch.from_numpy(source.target).long()
    pixels = torch.from_numpy(source.images)
    first, last = slice(0, train), slice(-LAST_DIGITS, None)
    return from_tensors(
        "digits",
        tuple(string.digits),
        (_enlarge(pixels[first], size), labels[first]),
        (_enlarge(pixels[last], size), labels[last]),
    )


def letters(train: int = 50, test: int = 20, *, size: int = 64, seed: int = 0) -> ImageData:
    """Return ``train`` and ``test`` images of each letter, turned, in any two colours.

    They are uint8 (n, 3, size, size).

    >>> data = letters(train=4, test=1, size=16)
    >>> len(data.train) + len(data.val), len(data.test), data.classes[:3]
    (104, 26, ('A', 'B', 'C'))
    """
    rng = np.random.default_rng(seed)
    return from_tensors(
        "letters",
        LETTERS,
        _render(TRAIN_FONTS, train, size, rng),
        _render(TEST_FONTS, test, size, rng),
    )


def _render(
    fonts: tuple[str, ...], each: int, size: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Images and labels: ``each`` pictures of every letter, the fonts and the two cases in turn."""
    images = np.empty((len(LETTERS) * each, size, size, 3), dtype=np.uint8)
    labels = torch.arange(len(LETTERS)).repeat_interleave(each)
    for at, label in enumerate(labels.tolist()):
        turn = at % each
        letter = LETTERS[label] if (turn // len(fonts) + turn) % 2 else LETTERS[label].lower()
        images[at] = _letter(letter, fonts[turn % len(fonts)], size, rng)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels


def _letter(letter: str, font: str, size: int, rng: np.random.Generator) -> Array:
    """One letter, uint8 (size, size, 3): drawn at twice the size, turned, then made smaller."""
    side = 2 * size
    face = _font(font, round(side * rng.uniform(0.5, 0.85)))
    ink = Image.new("L", (side, side))
    left, top, right, bottom = face.getbbox(letter)
    x = (side - left - right) / 2 + rng.uniform(-0.06, 0.06) * side
    y = (side - top - bottom) / 2 + rng.uniform(-0.06, 0.06) * side
    ImageDraw.Draw(ink).text((x, y), letter, fill=255, font=face)
    turned = ink.rotate(rng.uniform(-_TURN, _TURN), resample=Image.Resampling.BILINEAR)
    cover = np.asarray(turned.resize((size, size), Image.Resampling.BOX), dtype=np.float32) / 255
    front, back = _colours(rng)
    picture = cover[:, :, None] * front + (1 - cover[:, :, None]) * back
    noise: Array = rng.normal(0, 6, picture.shape)
    pixels: Array = (picture + noise).clip(0, 255).round().astype(np.uint8)
    return pixels


def _colours(rng: np.random.Generator) -> tuple[Array, Array]:
    """Two colours that can be told apart: their brightness differs by a third at least."""
    while True:
        front, back = rng.uniform(0, 255, (2, 3))
        if abs(front.mean() - back.mean()) > 85:
            return front, back


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    try:
        return ImageFont.truetype(str(path), size)
    except OSError as error:
        raise DataError(
            f"font {str(path)!r} cannot be read ({error}): expected it with matplotlib "
            f"{matplotlib.__version__}; reinstall matplotlib"
        ) from error


def _enlarge(pixels: Tensor, size: int) -> Tensor:
    """Values 0 to 16 as grey images, uint8 (n, 3, size, size)."""
    grey = (pixels * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    large: Tensor = F.resize(grey, [size, size])
    return large.repeat(1, 3, 1, 1)
