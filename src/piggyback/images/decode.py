"""Every image of the project is read here, so training, evaluation and serving see the same pixels.

    file, bytes -> RGB, upright, 8 bits -> (box) -> (centre square) -> resize -> uint8 (3, s, s)
                -> normalise -> float (3, s, s)

Files of the user's own may be of any format in ``find.SUFFIXES``. Encoded bytes come from strangers:
five formats, whose headers are read by ``images.headers`` before anything is allocated.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from piggyback.errors import DataError, InputError, TooLargeError
from piggyback.images.headers import read_header
from piggyback.images.paths import PathList
from piggyback.images.preprocessing import Preprocessing

T = TypeVar("T")
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom lie just outside the part that is meant."""

# Image.open would also warn by Pillow's own limit on pixels, which cannot be held back in one
# thread only; these do not.
_OPENERS: dict[str, Any] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "BMP": BmpImageFile,
    "GIF": GifImageFile,
}
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
)
"""What Pillow raises on damaged files, by format."""

_LONGEST = 65_535
"""Pixels a side, as in a JPEG; Pillow takes memory for every row, however short."""

_END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_TAIL = 4096

_ORIENTATION, _SHORT, _SIDEWAYS = 0x0112, 3, 5
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


# -- what headers say ------------------------------------------------------------------------------


def in_threads(call: Callable[..., T], *columns: Iterable[Any]) -> Iterator[T]:
    """Yield what ``call`` returns for each row of ``columns``, in order; several run at a time.

    Reading and decoding run outside Python's lock. A pool holds all that it was asked for, so it is asked in parts; to
    hand out a row costs it more than a look at a small file, so of many rows it takes several at a time.

    >>> list(in_threads(max, [1, 5], [4, 2]))
    [4, 5]
    """
    pool, rows = ThreadPoolExecutor(), zip(*columns, strict=True)

    def several(group: Sequence[tuple[Any, ...]]) -> list[T]:
        return [call(*row) for row in group]

    try:
        while part := list(islice(rows, 4096)):
            size = 1 + len(part) // 256
            groups = [part[at : at + size] for at in range(0, len(part), size)]
            yield from chain.from_iterable(pool.map(several, groups))
    finally:  # also where the caller has seen enough
        pool.shutdown(wait=False, cancel_futures=True)


def content_keys(images: Sequence[Path] | Tensor) -> NDArray[np.uint64]:
    """Return a number for each file, or each row of a tensor, that follows from its bytes alone: uint64 (n,)."""
    if isinstance(images, PathList):  # a table may name a file in many rows
        files, places = images.distinct()
        return np.fromiter(in_threads(content_key, files), np.uint64, len(files))[places]
    return np.fromiter(in_threads(content_key, images), np.uint64, len(images))


def content_key(source: Path | bytes | Tensor) -> int:
    """Return a number below 2**64 that follows from the bytes of a file, of an encoded image or of a tensor alone."""
    if isinstance(source, Path):
        status = source.stat()
        return _file_key(source, status.st_size, status.st_mtime_ns)
    data = source if isinstance(source, bytes) else source.contiguous().numpy().data
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")


@lru_cache(maxsize=1 << 18)  # one training asks for the keys of its files several times
def _file_key(path: Path, size: int, modified: int) -> int:
    with path.open("rb") as file:
        return int.from_bytes(hashlib.file_digest(file, "sha256").digest()[:8], "little")


def check_image(source: Path | bytes, *, thorough: bool = False, box: Box | None = None) -> None:
    """Raise DataError unless a file, or encoded bytes, look like a whole image that ``box`` meets.

    Reads the header and looks for the format's end mark near the end of the file, which finds
    truncated files without decoding; decodes where a format has no such mark, where it is missing,
    or if ``thorough``.
    """
    with _opened(source) as image:
        mark = _END_MARKS.get(image.format or "")
        if box is not None:
            clip_box(box, image.size, source)
        if mark is not None and not thorough and mark in _tail(source):
            return
    read_image(source, at_least=1)


def _tail(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[-_TAIL:]
    with source.open("rb") as file:
        file.seek(max(0, source.stat().st_size - _TAIL))
        return file.read()


def stored_size(source: Path | bytes | Image.Image | Tensor) -> tuple[int, int]:
    """Return (width, height) as a file, or encoded bytes, store them, from the header; DataError, naming the file."""
    if isinstance(source, Tensor):
        return source.shape[-1], source.shape[-2]
    with nullcontext(source) if isinstance(source, Image.Image) else _opened(source) as image:
        return image.size


def upright_size(source: Path | bytes | Image.Image) -> tuple[int, int]:
    """Return (width, height) of an image, turned upright; DataError, naming the file."""
    with nullcontext(source) if isinstance(source, Image.Image) else _opened(source) as image:
        width, height = image.size
        if image.format == "PNG" and "exif" not in image.info:
            image.load()  # it may follow the pixels
        sideways = orientation(image.info.get("exif")) >= _SIDEWAYS
    return (height, width) if sideways else (width, height)


def check_size(size: tuple[int, int], max_pixels: int, what: str = "image") -> None:
    """Raise DataError for a picture without pixels, TooLargeError for one of too many."""
    width, height = size
    if width < 1 or height < 1:
        raise DataError(f"{what} of {width} x {height} pixels: expected one or more")
    if width * height > max_pixels or max(size) > _LONGEST:
        raise TooLargeError(
            f"{what} of {width} x {height} pixels: expected at most {max_pixels} in all and "
            f"{_LONGEST} a side; make it smaller"
        )


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


# -- pixels ----------------------------------------------------------------------------------------


def read_image(
    source: Path | bytes,
    *,
    at_least: int | None = None,
    box: Box | None = None,
    max_pixels: int | None = None,
) -> Tensor:
    """Return an image as RGB, uint8 (3, h, w), turned upright by its EXIF tag.

    ``source``: a file, or the bytes of a JPEG, PNG, WebP, BMP or GIF (its first frame). Grey,
    palette and CMYK become RGB; 16 bits are scaled to 8; transparency is laid on white.

    ``at_least``: a JPEG may come out smaller (by 2, 4 or 8) while both sides stay at least this
    long: faster. ``box``: only this part, in pixels of the image as it is stored, before it is
    turned. ``max_pixels``: of the image as it is stored, looked up before any is decoded.

    Raises DataError, naming the file, TooLargeError for one of too many pixels.
    """
    with _opened(source, max_pixels) as image:
        stored: tuple[int, int] = image.size
        if box is not None:
            box = clip_box(box, stored, source)
        if at_least is not None:
            image.draft(None, _draft_size(stored, at_least, box))
        image.load()
        part = image if box is None else image.crop(_scaled(box, stored, image.size))
        return to_rgb(part, _name(source), orientation(image.info.get("exif")))


def load_fitted(source: object, preprocessing: Preprocessing, box: Box | None = None) -> Tensor:
    """Return the image that ``pixels_of`` takes as the network sees it, uint8 (3, s, s); DataError, naming a file."""
    image = pixels_of(source, at_least=draft_side(preprocessing), box=box)
    return fit(image, preprocessing).contiguous()


def to_rgb(image: Image.Image, what: str, turned: int = 1) -> Tensor:
    """Return a decoded image as RGB, uint8 (3, h, w), with the orientation ``turned`` undone.

    Raises DataError, naming ``what``, for pixels that are not of 8 or 16 bits.

    >>> to_rgb(Image.new("CMYK", (3, 2)), "white")[:, 0, 0]
    tensor([255, 255, 255], dtype=torch.uint8)
    """
    if turned in _TURNS:
        image = image.transpose(_TURNS[turned])
    if image.mode == "F":
        raise DataError(f"{what} holds float pixels: expected 8 or 16 bits per channel")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(
                f"{what} holds values from {values.min()} to {values.max()}: "
                "expected 8 or 16 bits per channel"
            )
        # Pillow's own conversion clips at 255, which turns most 16-bit images white.
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        image = Image.alpha_composite(white, layer)
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


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


def draft_side(preprocessing: Preprocessing) -> int:
    """Return how long both sides of a JPEG must stay when it is decoded smaller than it is.

    Twice the target keeps the antialiased resize in charge of what the picture looks like.

    >>> draft_side(Preprocessing(64))
    128
    """
    return round(2 * preprocessing.image_size / preprocessing.crop_pct)


# -- boxes -----------------------------------------------------------------------------------------


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
            f"image {str(what)!r}: box {tuple(box)} covers none of its {size[0]} x {size[1]} "
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


# -- opening ---------------------------------------------------------------------------------------


@contextmanager
def decoding(what: str, hint: str = "") -> Iterator[None]:
    """Turn whatever Pillow raises on a bad file into a DataError of one line that names ``what``."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{what}: no such file") from None
    except UnidentifiedImageError as error:
        found = "it is empty, damaged, or of another format than those that can be read"
        raise DataError(f"{what} cannot be decoded: {found}{hint}") from error
    except Image.DecompressionBombError as error:
        size = str(error).partition(", could")[0]  # of an attack, which a file of one's own is not
        raise DataError(f"{what} cannot be decoded: {size}; make it smaller") from error
    except _DECODE_ERRORS as error:
        reason = " ".join(str(error).split())
        if type(error) is not ValueError:
            reason = f"{type(error).__name__}: {reason}".removesuffix(": ")
        raise DataError(f"{what} cannot be decoded: {reason}{hint}") from error


@contextmanager
def _opened(source: Path | bytes, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """The image, opened but not decoded; what goes wrong inside is a DataError that names it."""
    if isinstance(source, Path):
        with decoding(_name(source)), Image.open(source) as image:
            if max_pixels is not None:
                check_size(image.size, max_pixels, _name(source))
            yield image
        return
    hint = ": expected a whole JPEG, PNG, WebP, BMP or GIF file"
    with decoding(f"image of {len(source)} bytes", hint):
        found = read_header(source)
        if max_pixels is not None:
            check_size(found.size, max_pixels)
        with _OPENERS[found.format](BytesIO(found.data)) as image:
            if image.size != found.size:
                raise ValueError(f"its header gives two sizes, {found.size} and {image.size}")
            image.info["exif"] = found.exif
            yield image


def _name(source: Path | bytes) -> str:
    return f"image {str(source)!r}" if isinstance(source, Path) else "image"


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


def prepare(image: object, preprocessing: Preprocessing) -> Tensor:
    """Return a path, encoded bytes, PIL image or uint8 tensor (3, h, w) as the network takes it, float32 (3, s, s)."""
    pixels = pixels_of(image, at_least=draft_side(preprocessing))
    return normalise(fit(pixels, preprocessing)[None], preprocessing)[0]


def pixels_of(image: object, *, at_least: int | None = None, box: Box | None = None) -> Tensor:
    """Return a path, encoded bytes, PIL image or uint8 tensor as RGB, uint8 (3, h, w); InputError for anything else.

    ``at_least`` and ``box``, of paths and bytes, as for ``read_image``, which says what else is raised.
    """
    if isinstance(image, Image.Image):
        with decoding("image"):
            image.load()  # a PNG's orientation may follow its pixels
            return to_rgb(image, "image", orientation(image.info.get("exif")))
    if isinstance(image, (str, Path, bytes)):
        source = Path(image) if isinstance(image, str) else image
        return read_image(source, at_least=at_least, box=box)
    if (
        isinstance(image, Tensor)
        and image.dtype == torch.uint8
        and image.ndim == 3
        and len(image) in (1, 3)
        and image.numel()
    ):
        return image.expand(3, -1, -1)
    found = type(image).__name__
    if isinstance(image, Tensor):
        found = f"tensor {image.dtype} {tuple(image.shape)}"
    raise InputError(
        f"image {found}: expected a path, bytes, a PIL image, or a uint8 tensor (3, h, w) or (1, h, w)"
    )
