"""Whatever a caller has of an image to the network's input: encoded bytes, a file, a picture, pixels.

What comes out are the numbers that ``train.evaluate.predict`` gives the network for the same file:
``images.decode`` reads for both. Everything here runs in the caller's own thread: no operation is
large enough, or of a kind, for torch to start a team of threads for it.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from piggyback.errors import InputError
from piggyback.images.decode import (
    check_size,
    decoding,
    draft_side,
    fit,
    orientation,
    read_image,
    to_rgb,
    upright_size,
)
from piggyback.images.map_pictures import Frame
from piggyback.images.preprocessing import Preprocessing
from piggyback.texts.preprocessing import Prepares, Text, TextPreprocessing

_LAZY = threading.Lock()
"""Held while a picture that Pillow has opened and not read yet is read: two threads may have it."""


def samples(image_or_batch: Any) -> tuple[list[Any], bool]:
    """Return the single images in what a caller gave, and whether it was a batch.

    A list, a tuple, and a tensor or array of four dimensions are batches.

    >>> samples(torch.zeros(2, 3, 8, 8))[1], samples("photo.jpg")
    (True, (['photo.jpg'], False))
    """
    if isinstance(image_or_batch, (list, tuple)):
        return list(image_or_batch), True
    if isinstance(image_or_batch, (Tensor, np.ndarray)) and image_or_batch.ndim == 4:
        return list(image_or_batch), True
    return [image_or_batch], False


def prepare(source: Any, preprocessing: Prepares | None, *, max_pixels: int) -> Tensor:
    """Return one image or text as the network's input on the CPU: float32 (3, s, s), or tokens, int64 (length,).

    ``source``: an encoded image (bytes; JPEG, PNG, WebP, BMP, GIF, of which the first frame), the
    path of an image file, a PIL image, or pixels: a uint8 tensor (3, h, w) or array (h, w, 3) or
    (h, w); for a task on texts a text. A floating tensor or array is taken as the network's input
    and returned as float32.
    ``max_pixels``: of an image as it is stored, looked up before any is decoded.

    Raises DataError for an image that cannot be decoded, TooLargeError for one of too many pixels,
    InputError for another kind of thing and where the task has no ``preprocessing``.

    >>> prepare(torch.zeros(3, 20, 30, dtype=torch.uint8), Preprocessing(8), max_pixels=10**6).shape
    torch.Size([3, 8, 8])
    """
    if isinstance(preprocessing, TextPreprocessing):
        return preprocessing(source)
    if isinstance(source, Text):
        raise InputError("the task sees images: expected an image, found a text")
    if isinstance(source, (Tensor, np.ndarray)):
        tensor = source.detach().cpu() if isinstance(source, Tensor) else _tensor(source)
        if tensor.is_floating_point():
            planes = tensor.ndim == 3 and len(tensor) == 3 and tensor.numel() > 0
            if isinstance(preprocessing, Preprocessing) and not planes:
                raise InputError(
                    f"image {_kind(source)}: expected floats (3, h, w), as the network takes them"
                )
            # A copy: it waits in a queue, and the caller's may change.
            return tensor.to(torch.float32, copy=True)
    if preprocessing is None:
        raise InputError(
            "the task's file names no preprocessing: expected the network's input, a floating "
            f"tensor; found {_kind(source)}"
        )
    if isinstance(source, (Tensor, np.ndarray)):
        pixels = _pixels(source, tensor)
    elif isinstance(source, (bytes, bytearray, memoryview, str, Path)):
        file = Path(source) if isinstance(source, (str, Path)) else bytes(source)
        pixels = read_image(file, at_least=draft_side(preprocessing), max_pixels=max_pixels)
    elif isinstance(source, Image.Image):
        pixels = _picture(source, max_pixels)
    else:
        raise InputError(
            f"image of type {_kind(source)}: expected an encoded image (bytes), a path, a PIL "
            "image, a uint8 tensor (3, h, w) or array (h, w, 3), or a floating tensor"
        )
    return _normalised(fit(pixels, preprocessing), preprocessing)


def frame_of(source: Any, preprocessing: Prepares | None) -> Frame:
    """Return the image that ``prepare`` made the network's input from; of a floating tensor, that input itself.

    >>> frame_of(torch.zeros(3, 20, 30, dtype=torch.uint8), Preprocessing(8))
    Frame(width=30, height=20, seen=1.0)
    """
    seen = preprocessing.crop_pct if isinstance(preprocessing, Preprocessing) else 1.0
    if isinstance(source, (Tensor, np.ndarray)):
        floating = "float" in str(source.dtype)
        rows_first = isinstance(source, np.ndarray) and not floating
        height, width = source.shape[:2] if rows_first else source.shape[-2:]
        return Frame(width, height, 1.0 if floating else seen)
    if not isinstance(source, Image.Image):
        source = Path(source) if isinstance(source, (str, Path)) else bytes(source)
    return Frame(*upright_size(source), seen)


def _picture(image: Image.Image, max_pixels: int) -> Tensor:
    check_size(image.size, max_pixels)
    with decoding("image"):
        with _LAZY:
            image.load()
        return to_rgb(image, "image", orientation(image.info.get("exif")))


def _tensor(array: NDArray[Any]) -> Tensor:
    """An array as a tensor, uint8 or float32; one that torch could not share is copied."""
    if array.dtype.kind == "f":
        array = array.astype(np.float32, copy=False)
    elif array.dtype != np.uint8:
        raise InputError(
            f"image {_kind(array)}: expected uint8 pixels, or floats as the network takes them"
        )
    if not array.flags.writeable or min(array.strides, default=0) < 0:
        array = array.copy()
    return torch.from_numpy(array)


def _pixels(source: Tensor | NDArray[Any], tensor: Tensor) -> Tensor:
    """Pixels, ``source`` as a tensor, as uint8 (3, h, w)."""
    pixels, wanted = tensor, "(3, h, w)"
    if isinstance(source, np.ndarray):
        wanted = "(h, w, 3) or (h, w)"
        if tensor.ndim == 2:
            pixels = tensor.expand(3, -1, -1)
        elif tensor.ndim == 3:
            pixels = tensor.permute(2, 0, 1)
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or len(pixels) != 3 or not pixels.numel():
        raise InputError(
            f"image {_kind(source)}: expected uint8 {wanted}, or floats as the network takes them"
        )
    return pixels


def _normalised(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """``images.decode.normalise`` of one image, to the bit, in NumPy, which uses one thread."""
    mean, std = _constants(preprocessing.mean, preprocessing.std)
    x = np.ascontiguousarray(pixels.numpy()).astype(np.float32)
    x /= np.float32(255)
    x -= mean
    x /= std
    return torch.from_numpy(x)


@lru_cache(maxsize=256)
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    first, second = (np.array(v, dtype=np.float32).reshape(3, 1, 1) for v in (mean, std))
    return first, second


def _kind(source: Any) -> str:
    if isinstance(source, (Tensor, np.ndarray)):
        return f"{type(source).__name__} {source.dtype} {tuple(source.shape)}"
    return type(source).__name__
