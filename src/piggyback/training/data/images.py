"""Image files to tensors: whatever the file holds comes out as upright 8-bit RGB.

    file -> decode, turn upright, RGB -> (centre square) -> resize -> uint8 (3, s, s) -> normalise
    -> float (3, s, s)

Training, evaluation and prediction all go through these three functions, so they see the same
pixels.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from piggyback.backbones.preprocessing import Preprocessing
from piggyback.errors import DataError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".tif", ".tiff", ".webp"}
)
"""File name endings, in lower case, that count as images; other files are passed over."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom lie just outside the part that is meant."""

DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises on damaged files, by format."""

_END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_TAIL = 4096
_ORIENTATION = 0x0112
_SIDEWAYS = 5
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_INTERPOLATION = {
    "nearest": InterpolationMode.NEAREST_EXACT,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
}


def is_image_name(path: Path) -> bool:
    """Return whether ``path`` is named like an image and is not hidden.

    >>> is_image_name(Path("a/photo.JPG")), is_image_name(Path("a/._photo.jpg"))
    (True, False)
    """
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def clip_box(box: Box, size: tuple[int, int], what: object) -> Box:
    """Return the part of ``box`` inside an image of ``size`` (width, height).

    Raises DataError, naming ``what``, where nothing is left.

    >>> clip_box((-3, 2, 99, 8), (20, 10), "photo.jpg")
    (0, 2, 20, 8)
    """
    left, top = max(box[0], 0), max(box[1], 0)
    right, bottom = min(box[2], size[0]), min(box[3], size[1])
    if left >= right or top >= bottom:
        raise DataError(
            f"image {str(what)!r}: box {tuple(box)} holds none of its {size[0]} x {size[1]} "
            "pixels: expected left, top, right, bottom within them; check its annotation"
        )
    return left, top, right, bottom


def as_box(row: Tensor) -> Box:
    """Return a row of ``ImageSet.boxes``, int64 (4,), as a box.

    >>> as_box(torch.tensor([1, 2, 8, 9]))
    (1, 2, 8, 9)
    """
    left, top, right, bottom = row.tolist()
    return left, top, right, bottom


def crop(image: Tensor, box: Box, what: object) -> Tensor:
    """Return the part of ``image``, uint8 (c, h, w), in ``box``; DataError, naming ``what``, for none.

    >>> crop(torch.zeros(3, 10, 20, dtype=torch.uint8), (-3, 2, 99, 8), "photo.jpg").shape
    torch.Size([3, 6, 20])
    """
    left, top, right, bottom = clip_box(box, (image.shape[-1], image.shape[-2]), what)
    return image[:, top:bottom, left:right]


def read_image(path: Path, *, at_least: int | None = None, box: Box | None = None) -> Tensor:
    """Return the image in ``path`` as RGB, uint8 (3, h, w), turned upright by its EXIF tag.

    Grey, palette and CMYK become RGB; 16 bits are scaled to 8; transparency is laid on white.
    ``at_least``: a JPEG may come out smaller (by 2, 4 or 8) while both sides stay at least this
    long: faster. ``box``: only this part, in pixels of the file as it is stored, before it is
    turned. Raises DataError, naming the file.
    """
    try:
        with Image.open(path) as image:
            stored = image.size
            if box is not None:
                box = clip_box(box, stored, path)
            if at_least is not None:
                image.draft(None, _draft_size(stored, at_least, box))
            image.load()
            part = image if box is None else image.crop(_scaled(box, stored, image.size))
            rgb = _to_rgb(ImageOps.exif_transpose(part), path)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"image {str(path)!r}: no such file") from None
    except DECODE_ERRORS as error:
        raise DataError(f"image {str(path)!r} cannot be decoded: {_one_line(error)}") from error
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def check_image(path: Path, *, thorough: bool = False, box: Box | None = None) -> None:
    """Return if ``path`` looks like a whole image that ``box`` meets; raise DataError otherwise.

    Reads the header and looks for the format's end mark near the end of the file, which finds
    truncated files without decoding; decodes where a format has no such mark, where it is missing,
    or if ``thorough``.
    """
    try:
        with Image.open(path) as image:
            mark = _END_MARKS.get(image.format or "")
            if box is not None:
                clip_box(box, image.size, path)
        if mark is not None and not thorough:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - _TAIL))
                if mark in file.read():
                    return
    except DataError:
        raise
    except DECODE_ERRORS as error:
        raise DataError(f"image {str(path)!r} cannot be read: {_one_line(error)}") from error
    read_image(path, at_least=1)


def upright_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of the image in ``path``, turned upright, from its header alone.

    Raises DataError, naming the file.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            sideways = image.getexif().get(_ORIENTATION, 1) >= _SIDEWAYS
    except DECODE_ERRORS as error:
        raise DataError(f"image {str(path)!r} cannot be read: {_one_line(error)}") from error
    return (height, width) if sideways else (width, height)


def fit(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return ``image``, uint8 (3, h, w), as the square (3, s, s) that the network sees.

    ``crop_pct`` below 1 keeps that part of the shorter side, from the centre, before resizing.

    >>> fit(torch.zeros(3, 20, 30, dtype=torch.uint8), Preprocessing(8)).shape
    torch.Size([3, 8, 8])
    """
    if preprocessing.crop_pct < 1:
        # Cutting before resizing gives the same view as the usual order, with work that stays
        # small for very long images.
        side = max(1, round(min(image.shape[-2:]) * preprocessing.crop_pct))
        image = F.center_crop(image, [side, side])
    size = preprocessing.image_size
    if tuple(image.shape[-2:]) == (size, size):
        return image
    mode = _INTERPOLATION[preprocessing.interpolation]
    resized: Tensor = F.resize(image, [size, size], interpolation=mode, antialias=True)
    return resized


def load_fitted(path: Path, preprocessing: Preprocessing, box: Box | None = None) -> Tensor:
    """Return the file's image, or its part in ``box``, as the network sees it, uint8 (3, s, s).

    Raises DataError, naming the file.
    """
    # Twice the target keeps the antialiased resize in charge of what the picture looks like.
    at_least = round(2 * preprocessing.image_size / preprocessing.crop_pct)
    return fit(read_image(path, at_least=at_least, box=box), preprocessing).contiguous()


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return (x / 255 - mean) / std as float32, for uint8 ``images`` (n, 3, h, w), on their device.

    >>> half = Preprocessing(1, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    >>> normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8), half).flatten()
    tensor([1., 1., 1.])
    """
    mean = torch.tensor(preprocessing.mean, device=images.device).view(-1, 1, 1)
    std = torch.tensor(preprocessing.std, device=images.device).view(-1, 1, 1)
    return images.float().div_(255).sub_(mean).div_(std)


def _draft_size(size: tuple[int, int], at_least: int, box: Box | None) -> tuple[int, int]:
    """The smallest size to decode a JPEG to, such that what is used of it stays long enough."""
    if box is None:
        return at_least, at_least
    side = min(box[2] - box[0], box[3] - box[1])
    return -(-size[0] * at_least // side), -(-size[1] * at_least // side)


def _scaled(box: Box, size: tuple[int, int], decoded: tuple[int, int]) -> Box:
    """``box`` in pixels of an image that was decoded smaller, never empty."""
    across, down = decoded[0] / size[0], decoded[1] / size[1]
    left, top = int(box[0] * across), int(box[1] * down)
    return (
        left,
        top,
        max(left + 1, round(box[2] * across)),
        max(top + 1, round(box[3] * down)),
    )


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "F":
        raise DataError(f"image {str(path)!r} holds float pixels: expected 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(
                f"image {str(path)!r} holds values from {values.min()} to {values.max()}: "
                "expected 8 or 16 bits a channel"
            )
        # Pillow's own conversion clips at 255, which turns most 16-bit images white.
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        image = Image.alpha_composite(white, layer)
    return image if image.mode == "RGB" else image.convert("RGB")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
