"""Val, and test where there is none, cut from train: class by class, by a seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from piggyback.errors import DataError
from piggyback.train.data.sets import ImageData, ImageSet
from piggyback.train.hashing import uniforms

_VAL_STREAM, _TEST_STREAM = 1, 2


def from_tensors(
    name: str,
    classes: Sequence[str],
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor] | None = None,
    val: tuple[Tensor, Tensor] | None = None,
    *,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> ImageData:
    """Return ImageData from pairs of images, uint8 (n, 3, h, w), and labels, int64 (n,).

    Missing splits are cut from train.

    >>> images, labels = torch.zeros(20, 3, 8, 8, dtype=torch.uint8), torch.arange(20) % 2
    >>> data = from_tensors("toy", ["a", "b"], (images, labels), (images, labels))
    >>> len(data.train), len(data.val), len(data.test)
    (18, 2, 20)
    """

    def as_set(pair: tuple[Tensor, Tensor] | None) -> ImageSet | None:
        return None if pair is None else ImageSet(tuple(classes), pair[1], pair[0])

    return cut(
        name,
        ImageSet(tuple(classes), train[1], train[0]),
        as_set(val),
        as_set(test),
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        seed=seed,
    )


def cut(
    name: str,
    train: ImageSet,
    val: ImageSet | None,
    test: ImageSet | None,
    *,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
    skipped: tuple[str, ...] = (),
) -> ImageData:
    """Return ImageData whose missing splits are cut from train, class by class, by ``seed``."""
    taken = []
    if test is None:
        train, test = _take(train, test_fraction, seed, _TEST_STREAM, f"{name}: test")
        taken.append(f"test {test_fraction}")
    if val is None:
        train, val = _take(train, val_fraction, seed, _VAL_STREAM, f"{name}: val")
        taken.append(f"val {val_fraction}")
    return ImageData(name, train, val, test, skipped=skipped, cut=tuple(taken))


def _take(
    images: ImageSet, fraction: float, seed: int, stream: int, what: str
) -> tuple[ImageSet, ImageSet]:
    """Return (rest, taken): of each class the fraction, at least one while one is left."""
    if not 0 < fraction < 1:
        raise DataError(f"{what} fraction {fraction}: expected a number between 0 and 1")
    key = torch.from_numpy(uniforms(seed, stream, torch.arange(len(images)).numpy(), 1)[:, 0])
    chosen = torch.zeros(len(images), dtype=torch.bool)
    for label in range(len(images.classes)):
        members = (images.labels == label).nonzero()[:, 0]
        n = min(max(1, round(fraction * len(members))), len(members) - 1)
        if n > 0:
            chosen[members[key[members].argsort()[:n]]] = True
    if not chosen.any():
        raise DataError(
            f"{what} cannot be cut from train: every class has one image; add images or a split"
        )
    return images.subset((~chosen).nonzero()[:, 0]), images.subset(chosen.nonzero()[:, 0])
