"""Image files of a data set: which files count, whether they are whole, and what they hold."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor

from piggyback.errors import DataError
from piggyback.images.preprocessing import Preprocessing
from piggyback.images.tensors import DECODE_ERRORS, draft_side, fit, one_line, orientation, to_rgb

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".tif", ".tiff", ".webp"}
)
"""File name endings, in lower case, that count as images; other files are passed over."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom lie just outside the part that is meant."""

_END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_TAIL = 4096
_SIDEWAYS = 5


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

    >>> import torch
    >>> as_box(torch.tensor([1, 2, 8, 9]))
    (1, 2, 8, 9)
    """
    left, top, right, bottom = row.tolist()
    return left, top, right, bottom


def crop(image: Tensor, box: Box, what: object) -> Tensor:
    """Return the part of ``image``, uint8 (c, h, w), in ``box``; DataError, naming ``what``, for none.

    >>> import torch
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
            return to_rgb(part, f"image {str(path)!r}", orientation(image.info.get("exif")))
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"image {str(path)!r}: no such file") from None
    except DECODE_ERRORS as error:
        raise DataError(f"image {str(path)!r} cannot be decoded: {one_line(error)}") from error


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
        raise DataError(f"image {str(path)!r} cannot be read: {one_line(error)}") from error
    read_image(path, at_least=1)


def upright_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of the image in ``path``, turned upright.

    From its header where that says it. Raises DataError, naming the file.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if image.format == "PNG" and "exif" not in image.info:
                image.load()  # it may follow the pixels
            sideways = orientation(image.info.get("exif")) >= _SIDEWAYS
    except DECODE_ERRORS as error:
        raise DataError(f"image {str(path)!r} cannot be read: {one_line(error)}") from error
    return (height, width) if sideways else (width, height)


def stored_size(path: Path) -> tuple[int, int]:
    """Return (width, height) as ``path`` stores them, from its header; DataError, naming the file."""
    try:
        with Image.open(path) as image:
            width, height = image.size
    except DECODE_ERRORS as error:
        raise DataError(f"image {str(path)!r} cannot be read: {one_line(error)}") from error
    return width, height


def load_fitted(path: Path, preprocessing: Preprocessing, box: Box | None = None) -> Tensor:
    """Return the file's image, or its part in ``box``, as the network sees it, uint8 (3, s, s).

    Raises DataError, naming the file.
    """
    image = read_image(path, at_least=draft_side(preprocessing), box=box)
    return fit(image, preprocessing).contiguous()


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
