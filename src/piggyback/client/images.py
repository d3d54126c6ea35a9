"""Images and texts as they go to a server: encoded, with their media type."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from piggyback.errors import DataError, InputError
from piggyback.texts.preprocessing import Text, utf8

TEXT = "text/plain"
_KINDS = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
)
_AS_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
"""Modes of Pillow that PNG holds as they are; others are converted as the server would do it."""


def is_batch(images: Any) -> bool:
    """Return whether ``images`` are several: a list, a tuple, or an array of four dimensions."""
    return isinstance(images, (list, tuple)) or getattr(images, "ndim", 3) == 4


def encode(image: Any) -> tuple[str, bytes]:
    """Return media type and bytes of an image, or of a ``Text``.

    It may be a path, an encoded image, a PIL image, a uint8 array (h, w, 3) or (h, w), or a uint8
    tensor (3, h, w). What the network sees is what it would see of the same object in this process.

    Raises DataError for a file that cannot be read or is not an image, and for half a character in a text; InputError
    for other things.

    >>> kind, data = encode(b"BM and so on")
    >>> kind
    'image/bmp'
    """
    if isinstance(image, Text):
        return TEXT, utf8(image)
    if isinstance(image, (str, os.PathLike)):
        name = repr(os.fspath(image))
        try:
            data = Path(image).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: of a path with a zero byte
            why = getattr(error, "strerror", None) or error
            hint = (
                "; a text goes in as Text(...)" if isinstance(image, str) and " " in image else ""
            )
            raise DataError(
                f"image {name:.200}: cannot be read ({why}); check the path{hint}"
            ) from error
        return _kind_of(data, name), data
    if isinstance(image, (bytes, bytearray, memoryview)):
        data = bytes(image)
        return _kind_of(data, f"of {len(data)} bytes"), data
    if not isinstance(image, Image.Image):
        image = _from_array(image)
    return "image/png", _as_png(image)


def _kind_of(data: bytes, name: str) -> str:
    for start, kind in _KINDS:
        if data.startswith(start):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    found = f"bytes that begin with {data[:8]!r}" if data else "nothing in it"
    raise DataError(f"image {name}: expected JPEG, PNG, WebP, BMP or GIF, found {found}")


def _from_array(image: Any) -> Image.Image:
    """A PIL image of a NumPy array or a torch tensor, known by what they offer: this imports neither package."""
    found = type(image).__name__
    if hasattr(image, "dtype") and hasattr(image, "shape"):
        tensor = hasattr(image, "permute")
        dtype, shape = str(image.dtype).removeprefix("torch."), tuple(image.shape)
        found = f"{'a tensor' if tensor else 'an array'} of {dtype}, shape {shape}"
        fits = shape[:1] == (3,) and len(shape) == 3 if tensor else shape[2:] in ((), (3,))
        if dtype == "uint8" and len(shape) in (2, 3) and fits and 0 not in shape:
            if tensor:
                image = image.detach().cpu().permute(1, 2, 0).contiguous().numpy()
            return Image.fromarray(image)
    raise InputError(
        "image: expected a path, bytes of an image file, a PIL image, a uint8 array (h, w, 3) or "
        f"(h, w) or a uint8 tensor (3, h, w), found {found}"
    )


def _as_png(image: Image.Image) -> bytes:
    data = BytesIO()
    try:
        image.load()  # from the file that it was opened on
        exif = image.info.get("exif", b"")  # the camera's orientation travels along
        _in_png_mode(image).save(data, "PNG", compress_level=1, exif=exif)
    except (OSError, ValueError, SyntaxError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"image of mode {image.mode!r}: cannot be read ({error})") from error
    return data.getvalue()


def _in_png_mode(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise DataError("image: expected 8 or 16 bits per channel, found float pixels")
    if image.mode == "I":
        low, high = image.getextrema()
        if low < 0 or high > 65535:  # type: ignore[operator]
            raise DataError(
                f"image: expected 8 or 16 bits per channel, found values from {low} to {high}"
            )
        return image.convert("I;16")
    if image.mode in _AS_PNG:
        return image
    return image.convert("RGBA" if image.mode in ("PA", "RGBa") else "RGB")
