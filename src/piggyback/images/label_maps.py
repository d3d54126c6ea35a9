"""Images whose every pixel has a class: a split for segmentation, in memory or in files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from piggyback.errors import DataError
from piggyback.images.decode import (
    content_keys,
    decoding,
    fit,
    in_threads,
    load_fitted,
    stored_size,
)
from piggyback.images.preprocessing import Preprocessing

VOID = 255
"""The value of pixels that belong to no class; they count neither in the loss nor in a score."""


@dataclass(frozen=True, eq=False)
class SegmentationSet:
    """Images of one split with a label map each, in memory (``images``) or on disk (``files``).

    >>> images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    >>> SegmentationSet(("sky", "road"), images, torch.zeros(2, 8, 8, dtype=torch.uint8))
    SegmentationSet(2 images of 2 classes, in memory)
    """

    kind: ClassVar[str] = "segmentation"

    classes: tuple[str, ...]
    """Class names; a pixel's label is an index into them, or ``VOID``."""
    images: Tensor | None = None
    """uint8, (n, 3, height, width)."""
    maps: Tensor | None = None
    """uint8, (n, height, width), when ``images`` is there."""
    files: tuple[Path, ...] = ()
    """Image files, when ``images`` is None."""
    map_files: tuple[Path, ...] = ()
    """A label map for each of ``files``, of the same size: grey or palette PNG."""
    void: int = VOID
    """The value of void pixels in ``map_files``."""
    fitted: bool = False
    """Whether ``images`` and ``maps`` are cropped as the network sees them."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= VOID:
            raise DataError(f"{len(self.classes)} classes: expected 1 to {VOID} for label maps")
        if self.images is None:
            if len(self.files) != len(self.map_files):
                raise DataError(
                    f"{len(self.files)} image files and {len(self.map_files)} label maps: "
                    "expected one for each image"
                )
            return
        maps, shape = self.maps, tuple(self.images.shape)
        if self.images.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3:
            raise DataError(
                f"images {self.images.dtype} {shape}: expected uint8 (n, 3, height, width)"
            )
        wanted = (shape[0], *shape[2:])
        if maps is None or maps.dtype != torch.uint8 or tuple(maps.shape) != wanted:
            found = "none" if maps is None else f"{maps.dtype} {tuple(maps.shape)}"
            raise DataError(f"label maps {found}: expected uint8 {wanted}, the images' size")
        _check_values(maps, self.classes, "label maps")

    what: ClassVar[str] = "images"

    def __len__(self) -> int:
        return len(self.files) if self.images is None else len(self.images)

    def __repr__(self) -> str:
        where = "in files" if self.images is None else "in memory"
        return f"SegmentationSet({len(self)} images of {len(self.classes)} classes, {where})"

    def load(self, index: int, preprocessing: Preprocessing) -> Tensor:
        """Return image ``index`` as the network sees it, uint8 (3, s, s); raises DataError."""
        if self.images is None:
            return load_fitted(self.files[index], preprocessing)
        return fit(self.images[index], self._view(preprocessing))

    def _view(self, preprocessing: Preprocessing) -> Preprocessing:
        return replace(preprocessing, crop_pct=1.0) if self.fitted else preprocessing

    def shorter_side(self, index: int) -> int:
        """Return the shorter side of image ``index``, in pixels; nothing is decoded."""
        if self.images is not None:
            return min(self.images.shape[-2:])
        return min(stored_size(self.files[index]))

    def content_keys(self) -> NDArray[np.uint64]:
        """Return a number for each image that follows from its bytes alone: uint64 (n,)."""
        return content_keys(self.files if self.images is None else self.images)

    def load_map(self, index: int, preprocessing: Preprocessing) -> Tensor:
        """Return the label map of image ``index``, uint8 (s, s): cut as its image, nearest pixels."""
        found = self.whole_map(index)
        view = replace(self._view(preprocessing), interpolation="nearest")
        return fit(found[None], view)[0]

    def whole_map(self, index: int) -> Tensor:
        """Return the label map of image ``index`` at its own size, uint8 (h, w), void 255."""
        if self.maps is not None:
            return self.maps[index]
        return read_map(self.map_files[index], self.classes, self.void)

    def targets(self, indices: Tensor, preprocessing: Preprocessing) -> Tensor:
        """Return the label maps at ``indices``, uint8 (n, s, s)."""
        side = preprocessing.image_size
        maps = torch.empty(len(indices), side, side, dtype=torch.uint8)
        for place, index in enumerate(indices.tolist()):
            maps[place] = self.load_map(index, preprocessing)
        return maps

    def counts(self) -> list[int]:
        """Return the number of images in which each class has a pixel."""
        counted = torch.zeros(len(self.classes), dtype=torch.int64)
        for index in range(len(self)):
            pixels = torch.bincount(self.whole_map(index).flatten(), minlength=VOID + 1)
            counted += pixels[: len(self.classes)] > 0
        found: list[int] = counted.tolist()
        return found

    def subset(self, indices: Tensor) -> SegmentationSet:
        """Return the set with only the images at ``indices``, in that order."""
        at = indices.tolist()
        if self.images is None or self.maps is None:
            files, maps = (tuple(part[i] for i in at) for part in (self.files, self.map_files))
            return replace(self, files=files, map_files=maps)
        return replace(self, images=self.images[indices], maps=self.maps[indices])

    def in_memory(self, preprocessing: Preprocessing) -> SegmentationSet:
        """Return the set decoded and resized, uint8 (n, 3, s, s) and (n, s, s).

        Raises DataError for a bad file.
        """
        side = preprocessing.image_size
        ready = self.images is not None and tuple(self.images.shape[1:]) == (3, side, side)
        if ready and (preprocessing.crop_pct == 1 or self.fitted):
            return self
        images = torch.empty(len(self), 3, side, side, dtype=torch.uint8)
        maps = torch.empty(len(self), side, side, dtype=torch.uint8)

        def fill(index: int) -> None:
            images[index] = self.load(index, preprocessing)
            maps[index] = self.load_map(index, preprocessing)

        for _ in in_threads(fill, range(len(self))):
            pass
        return SegmentationSet(self.classes, images, maps, fitted=True)

    def digest(self) -> str:
        """Return a SHA-256 (hex) over images and maps; of files, over names and sizes only."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for tensor in (self.images, self.maps):
            if tensor is not None:
                digest.update(tensor.contiguous().numpy().tobytes())
        for file in (*self.files, *self.map_files):
            name = "/".join(file.parts[-2:]).encode(errors="surrogateescape")
            digest.update(b"%b\0%d\n" % (name, file.stat().st_size))
        return digest.hexdigest()


def class_of_each(labels: Tensor) -> Tensor:
    """Return labels as int64; of label maps, uint8, with void as -100, which losses leave out.

    >>> class_of_each(torch.tensor([3, 255], dtype=torch.uint8)), class_of_each(torch.tensor([255]))
    (tensor([   3, -100]), tensor([255]))
    """
    if labels.dtype != torch.uint8:
        return labels
    return labels.long().masked_fill_(labels == VOID, -100)


def read_map(path: Path, classes: Sequence[str], void: int = VOID) -> Tensor:
    """Return the label map in ``path``, uint8 (h, w), its ``void`` value turned into 255.

    Raises DataError, naming the file, where it cannot be decoded, is not of 8 bits, grey or
    palette, or holds a value that is neither a class nor void.
    """
    with decoding(f"label map {str(path)!r}", "; replace it"), Image.open(path) as image:
        mode, values = image.mode, np.array(image)
    if mode not in ("L", "P"):
        raise DataError(
            f"label map {str(path)!r} has pixels of mode {mode!r}: expected one class number per "
            "pixel, an 8-bit grey or palette PNG"
        )
    found = torch.from_numpy(values)
    if void != VOID:
        found = found.masked_fill(found == void, VOID)
    _check_values(found, classes, f"label map {str(path)!r}")
    return found


def _check_values(maps: Tensor, classes: Sequence[str], what: str) -> None:
    counted = torch.bincount(maps.flatten(), minlength=VOID + 1)
    wrong = counted[len(classes) : VOID].nonzero()
    if len(wrong):
        value = len(classes) + int(wrong[0])
        raise DataError(
            f"{what}: value {value} found: expected 0 to {len(classes) - 1}, one per class, or the "
            "value of void pixels"
        )
