"""Encoded images of every kind that a server may be sent."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image


def photo(width: int = 40, height: int = 24, seed: int = 0) -> Image.Image:
    """A smooth RGB picture, so that a lossy format keeps it."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def noise(seed: int, side: int = 8) -> Image.Image:
    """An RGB picture unlike every other one."""
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The image in a format, as the bytes of a file."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(seed: int) -> bytes:
    """A small picture's file, unlike every other one."""
    return encoded(noise(seed), "PNG")


def turned(value: int) -> Image.Exif:
    """EXIF that says how a camera was held."""
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def kinds() -> dict[str, bytes]:
    """A file of each kind, by a name that ends as the file's would."""
    rgb, wide = photo(), photo(400, 300)
    clear = rgb.copy()
    clear.putalpha(Image.linear_gradient("L").resize(rgb.size))
    deep = Image.fromarray(np.asarray(rgb)[:, :, 0].astype(np.uint16) * 257)
    more = {"save_all": True, "append_images": [rgb.rotate(180), rgb.rotate(90)]}
    ink = Image.fromarray(255 - np.asarray(rgb.convert("CMYK")), "CMYK")
    return {
        "rgb.jpg": encoded(rgb, "JPEG"),
        "large.jpg": encoded(wide, "JPEG", quality=90),
        "progressive.jpg": encoded(wide, "JPEG", progressive=True),
        "grey.jpg": encoded(rgb.convert("L"), "JPEG"),
        "cmyk.jpg": encoded(rgb.convert("CMYK"), "JPEG"),
        "inverted.jpg": encoded(ink, "JPEG"),
        "turned.jpg": encoded(rgb, "JPEG", exif=turned(6)),
        "profiled.jpg": encoded(rgb, "JPEG", icc_profile=b"p" * 90_000, comment=b"c" * 900),
        "rgb.png": encoded(rgb, "PNG"),
        "grey.png": encoded(rgb.convert("L"), "PNG"),
        "one-bit.png": encoded(rgb.convert("1"), "PNG"),
        "palette.png": encoded(rgb.convert("P"), "PNG"),
        "see-through.png": encoded(rgb.convert("P"), "PNG", transparency=7),
        "alpha.png": encoded(clear, "PNG"),
        "grey-alpha.png": encoded(clear.convert("LA"), "PNG"),
        "deep.png": encoded(deep, "PNG"),
        "turned.png": encoded(rgb, "PNG", exif=turned(3)),
        "profiled.png": encoded(rgb, "PNG", icc_profile=b"p" * 9_000),
        "moving.png": encoded(rgb, "PNG", **more),
        "lossy.webp": encoded(rgb, "WEBP"),
        "exact.webp": encoded(rgb, "WEBP", lossless=True),
        "alpha.webp": encoded(clear, "WEBP"),
        "turned.webp": encoded(rgb, "WEBP", exif=turned(8)),
        "moving.webp": encoded(rgb, "WEBP", **more),
        "rgb.bmp": encoded(rgb, "BMP"),
        "grey.bmp": encoded(rgb.convert("L"), "BMP"),
        "palette.bmp": encoded(rgb.convert("P"), "BMP"),
        "one-bit.bmp": encoded(rgb.convert("1"), "BMP"),
        "still.gif": encoded(rgb, "GIF"),
        "moving.gif": encoded(rgb, "GIF", transparency=3, disposal=2, comment=b"c" * 900, **more),
    }


KINDS = kinds()
