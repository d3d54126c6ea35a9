"""Images as they go to a server: encoded, with their media type."""

from __future__ import annotations

import os
import secrets
import struct
import sys
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from piggyback.errors import DataError, InputError

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


def encoded(image: Any) -> tuple[str, bytes]:
    """Return media type and bytes of an image.

    It may be a path, an encoded image, a PIL image, a uint8 array (h, w, 3) or (h, w), or a uint8
    tensor (3, h, w). What the network sees is what it would see of the same object in this process.

    Raises DataError for a file that cannot be read or is no image, InputError for other things.

    >>> kind, data = encoded(b"BM and so on")
    >>> kind
    'image/bmp'
    """
    if isinstance(image, (str, os.PathLike)):
        try:
            data = Path(image).read_bytes()
        except OSError as error:
            raise DataError(
                f"image {os.fspath(image)!r}: cannot be read ({error.strerror}); check the path"
            ) from error
        return _kind_of(data, repr(os.fspath(image))), data
    if isinstance(image, (bytes, bytearray, memoryview)):
        data = bytes(image)
        return _kind_of(data, f"of {len(data)} bytes"), data
    # Whoever holds one of these has imported its package: this needs none of them.
    if isinstance(image, _class("PIL.Image", "Image")):
        return "image/png", _png_of_pil(image)
    if isinstance(image, _class("torch", "Tensor")):
        if str(image.dtype) == "torch.uint8" and image.ndim == 3:
            image = image.detach().cpu().permute(1, 2, 0).contiguous().numpy()
        else:
            raise _refused(f"a tensor of {str(image.dtype)[6:]}, shape {tuple(image.shape)}")
    if isinstance(image, _class("numpy", "ndarray")):
        grey = image.ndim == 2
        if str(image.dtype) != "uint8" or not (grey or image.shape[2:] == (3,)) or not image.size:
            raise _refused(f"an array of {image.dtype}, shape {image.shape}")
        return "image/png", _png(image.shape[1], image.shape[0], grey, image.tobytes())
    raise _refused(type(image).__name__)


def multipart(images: Sequence[tuple[str, bytes]]) -> tuple[str, bytes]:
    """Return content type and body of a form that holds ``images``, each a part called ``image``."""
    boundary = secrets.token_hex(16)
    parts = []
    for number, (kind, data) in enumerate(images):
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{number}"\r\n'
            f"Content-Type: {kind}\r\n\r\n"
        )
        parts += [head.encode(), data, b"\r\n"]
    return f"multipart/form-data; boundary={boundary}", b"".join(
        [*parts, f"--{boundary}--\r\n".encode()]
    )


def _kind_of(data: bytes, name: str) -> str:
    for start, kind in _KINDS:
        if data.startswith(start):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    found = f"bytes that begin with {data[:8]!r}" if data else "nothing in it"
    raise DataError(f"image {name}: expected JPEG, PNG, WebP, BMP or GIF, found {found}")


def _class(module: str, name: str) -> Any:
    """A class of a package if that has been imported, else what nothing is an instance of."""
    return getattr(sys.modules.get(module), name, ())


def _png_of_pil(image: Any) -> bytes:
    data = BytesIO()
    try:
        image.load()  # from the file that it was opened on
        exif = image.info.get("exif", b"")  # the camera's orientation travels along
        _as_png_holds_it(image).save(data, "PNG", compress_level=1, exif=exif)
    except (OSError, ValueError, SyntaxError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"image of mode {image.mode!r}: cannot be read ({error})") from error
    return data.getvalue()


def _as_png_holds_it(image: Any) -> Any:
    if image.mode == "F":
        raise DataError("image: expected 8 or 16 bits a channel, found float pixels")
    if image.mode == "I":
        low, high = image.getextrema()
        if low < 0 or high > 65535:
            raise DataError(
                f"image: expected 8 or 16 bits a channel, found values from {low} to {high}"
            )
        return image.convert("I;16")
    if image.mode in _AS_PNG:
        return image
    return image.convert("RGBA" if image.mode in ("PA", "RGBa") else "RGB")


def _png(width: int, height: int, grey: bool, pixels: bytes) -> bytes:
    """A PNG of grey or RGB ``pixels``, row by row."""
    row = width if grey else 3 * width
    # Each row begins with its filter: 0, none.
    rows = b"".join(b"\0" + pixels[at * row : (at + 1) * row] for at in range(height))
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0 if grey else 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, 1)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def _refused(found: str) -> InputError:
    return InputError(
        "image: expected a path, bytes of an image file, a PIL image, a uint8 array (h, w, 3) or "
        f"(h, w) or a uint8 tensor (3, h, w), found {found}"
    )
