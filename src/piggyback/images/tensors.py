"""A decoded image to the network's input: whatever it held comes out as upright 8-bit RGB, then as floats.

    image -> RGB, upright -> (centre square) -> resize -> uint8 (3, s, s) -> normalise -> float (3, s, s)

Training, evaluation, prediction and serving all go through these functions, so they see the same
pixels.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from piggyback.errors import DataError
from piggyback.images.preprocessing import Preprocessing

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

_ORIENTATION = 0x0112
_SHORT = 3
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes an EXIF orientation; 1 is upright."""
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_INTERPOLATION = {
    "nearest": InterpolationMode.NEAREST_EXACT,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
}


def orientation(exif: bytes | None) -> int:
    r"""Return the orientation, 1 (upright) to 8, that an EXIF block gives; 1 where it gives none.

    Read here and not by Pillow, which parses the whole block and warns of what else is wrong in it.

    >>> orientation(b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0")
    6
    """
    block = (exif or b"").removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None or len(block) < 8:
        return 1
    (start,) = struct.unpack_from(order + "I", block, 4)
    if start + 2 > len(block):
        return 1
    (entries,) = struct.unpack_from(order + "H", block, start)
    for at in range(start + 2, min(start + 2 + 12 * entries, len(block) - 11), 12):
        tag, kind, _, value = struct.unpack_from(order + "HHIH", block, at)
        if tag == _ORIENTATION:
            return value if kind == _SHORT and value in _TURNS else 1
    return 1


def to_rgb(image: Image.Image, what: str, turned: int = 1) -> Tensor:
    """Return a decoded image as RGB, uint8 (3, h, w), with the orientation ``turned`` undone.

    Grey, palette and CMYK become RGB; 16 bits are scaled to 8; transparency is laid on white.
    Raises DataError, naming ``what``, for pixels of other kinds.

    >>> to_rgb(Image.new("CMYK", (3, 2)), "white")[:, 0, 0]
    tensor([255, 255, 255], dtype=torch.uint8)
    """
    if turned in _TURNS:
        image = image.transpose(_TURNS[turned])
    return torch.from_numpy(np.array(_flat(image, what))).permute(2, 0, 1)


def draft_side(preprocessing: Preprocessing) -> int:
    """Return how long both sides of a JPEG must stay when it is decoded smaller than it is.

    Twice the target keeps the antialiased resize in charge of what the picture looks like.

    >>> draft_side(Preprocessing(64))
    128
    """
    return round(2 * preprocessing.image_size / preprocessing.crop_pct)


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


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return (x / 255 - mean) / std as float32, for uint8 ``images`` (n, 3, h, w), on their device.

    >>> half = Preprocessing(1, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    >>> normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8), half).flatten()
    tensor([1., 1., 1.])
    """
    mean = torch.tensor(preprocessing.mean, device=images.device).view(-1, 1, 1)
    std = torch.tensor(preprocessing.std, device=images.device).view(-1, 1, 1)
    return images.float().div_(255).sub_(mean).div_(std)


def _flat(image: Image.Image, what: str) -> Image.Image:
    if image.mode == "F":
        raise DataError(f"{what} holds float pixels: expected 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(
                f"{what} holds values from {values.min()} to {values.max()}: "
                "expected 8 or 16 bits a channel"
            )
        # Pillow's own conversion clips at 255, which turns most 16-bit images white.
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        image = Image.alpha_composite(white, layer)
    return image if image.mode == "RGB" else image.convert("RGB")


def one_line(error: BaseException) -> str:
    """Return an exception as one line of text: its kind, and what it says."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
