"""Data sets in torch's way, an item is (image, label): anybody's own, and torchvision's by name.

dataset -> each item is looked at once: image, label, content -> ImageSet, which asks again when it needs one
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from piggyback.errors import DataError, InputError, first_line, near_misses
from piggyback.images.decode import check_image, content_key, decoding, pixels_of
from piggyback.images.pictures import Pictures
from piggyback.model.heads import class_names
from piggyback.train.data.sets import CACHE_BYTES, ImageData, ImageSet, cut

MOST_HELD = 1_000_000
"""Images of an iterable data set, which is held in memory; of their bytes there may be ``CACHE_BYTES``."""
TORCHVISION = "torchvision:"
_SPLITS = {
    "train": ("train", "trainval", "train-standard"), "val": ("val", "valid"), "test": ("test",),
}  # fmt: skip
"""What torchvision's sets call a split; of several words the first that a set knows."""


def from_datasets(
    name: str,
    train: Dataset[Any],
    test: Dataset[Any] | None = None,
    val: Dataset[Any] | None = None,
    *,
    classes: Sequence[str] | None = None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> ImageData:
    """Return ImageData from data sets of pairs (image, label); missing splits are cut from train.

    An image is a PIL image, a path, encoded bytes or a uint8 tensor (3, h, w), and the same whenever it is asked for:
    augmentation is the recipe's. A label is an index into the classes; for several labels a row of bools, for numbers
    a row of floats. ``classes`` are by default what ``train`` has as ``classes`` or ``class_to_idx``, else numbers.

    Every item is read once before training. An iterable data set is then held in memory, its images as bytes, paths
    or pixels; it has to end within ``MOST_HELD`` images and ``CACHE_BYTES``. Raises DataError with the split and the
    item.

    >>> from torch.utils.data import TensorDataset
    >>> pixels = torch.arange(20, dtype=torch.uint8).view(-1, 1, 1, 1).expand(20, 3, 8, 8)
    >>> data = from_datasets("toy", TensorDataset(pixels, torch.arange(20) % 2), classes=["a", "b"])
    >>> data.kind, sum(len(part) for part in data.splits().values())
    ('classification', 20)
    """
    looked = {
        split: _looked(given, f"{name}: {split}")
        for split, given in (("train", train), ("val", val), ("test", test))
        if given is not None
    }
    names = class_names(_names(train, looked) if classes is None else classes)
    for split, (_, labels) in looked.items():
        if labels.ndim == 1 and bool((strange := (labels < 0) | (labels >= len(names))).any()):
            item = int(strange.nonzero()[0])
            raise DataError(
                f"{name}: {split}, item {item}: label {int(labels[item])}: expected 0 to {len(names) - 1}, an index "
                f"into the {len(names)} classes"
            )
    parts = {split: ImageSet(names, labels, files=held) for split, (held, labels) in looked.items()}
    return cut(
        name,
        parts["train"],
        parts.get("val"),
        parts.get("test"),
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        seed=seed,
    )


def as_data(given: ImageData | Dataset[Any] | Mapping[str, Dataset[Any]], name: str) -> ImageData:
    """Return what ``train`` was given as ImageData: itself, a data set, or data sets by split; raises DataError."""
    if isinstance(given, ImageData):
        return given
    parts = dict(given) if isinstance(given, Mapping) else {"train": given}
    if "train" not in parts or not parts.keys() <= _SPLITS.keys():
        raise DataError(
            f"{name}: data sets {', '.join(map(repr, parts))}: expected 'train', and 'val' and 'test' if there are any"
        )
    return from_datasets(name, parts["train"], parts.get("test"), parts.get("val"))


def torchvision_data(spec: str) -> ImageData:
    """Return the set of torchvision's that ``torchvision:CLASS:ROOT`` names; ROOT is by default "data".

    Splits that the set does not have are cut from train. Nothing is downloaded. Raises DataError for a set that
    torchvision or ROOT does not have, or that has no class for each image.
    """
    from torchvision import datasets

    called, _, root = spec.removeprefix(TORCHVISION).partition(":")
    # LSUN unpickles what lies there; CIFAR does too, but only files of its publisher's digest.
    known = [name for name in datasets.__all__ if "root" in _options(getattr(datasets, name))]
    known = [name for name in known if not name.startswith("LSUN")]
    if called not in known:
        raise DataError(
            f"set {spec!r}: torchvision has no {called!r}{near_misses(called, known)}; expected "
            "torchvision:CLASS:ROOT, such as torchvision:CIFAR10:data"
        )
    made, place = getattr(datasets, called), root or "data"
    options = _options(made)
    asked: dict[str, list[dict[str, Any]]]
    if "train" in options:
        asked = {"train": [{"train": True}], "test": [{"train": False}]}
    elif "split" in options:
        asked = {split: [{"split": w} for w in words] for split, words in _SPLITS.items()}
    else:
        asked = {"train": [{}]}
    found: dict[str, Dataset[Any]] = {}
    for split, ways in asked.items():
        for way in ways:
            try:
                found.setdefault(split, made(place, **way))
            except ValueError:  # the set has no split of that name
                continue
            except (RuntimeError, OSError, TypeError) as error:
                raise DataError(
                    f"set {spec!r} cannot be read from {place!r}: {first_line(error)}; fetch it with python -c "
                    f"\"from torchvision import datasets; datasets.{called}('{place}', download=True)\", or name the "
                    f"folder that has it, torchvision:{called}:FOLDER"
                ) from error
            break
    if "train" not in found:
        raise DataError(f"set {spec!r} has no split train: in Python, give from_datasets its parts")
    return as_data(found, called)


def _options(made: Any) -> Mapping[str, Any]:
    return inspect.signature(made).parameters


def _looked(dataset: Any, what: str) -> tuple[Pictures, Tensor]:
    """The images of a data set, its labels as a tensor; every item is read once."""
    if isinstance(dataset, IterableDataset):
        dataset = _read(dataset, what)
    if not all(hasattr(dataset, method) for method in ("__getitem__", "__len__")):
        raise DataError(
            f"{what} is a {type(dataset).__name__}: expected a data set with dataset[i] and len(dataset), or torch's "
            "IterableDataset"
        )
    if not len(dataset):
        raise DataError(f"{what} is empty: expected items")
    held, labels = _Images(dataset, what), []
    keys = np.empty(len(dataset), np.uint64)
    for index in range(len(keys)):
        image, label = held.pair(index)
        where = f"{what}, item {index}"
        try:
            if isinstance(image, (Path, bytes)):
                check_image(image)
                keys[index] = content_key(image)
            else:
                keys[index] = content_key(pixels_of(image))
        except (DataError, InputError) as error:
            raise DataError(f"{where}: {error}") from error
        labels.append(_label(label, where))
        if np.shape(labels[-1]) != np.shape(labels[0]):
            raise DataError(f"{where}: label {label!r:.80}: expected one as of item 0")
    return Pictures(held, keys), torch.from_numpy(np.array(labels))


def _read(dataset: IterableDataset[Any], what: str) -> list[tuple[Any, Any]]:
    """The items of an iterable data set, pixels in place of open images; DataError where they do not end in time."""
    found: list[tuple[Any, Any]] = []
    size, items, end = 0, iter(dataset), object()
    while True:
        where = f"{what}, item {len(found)}"
        with decoding(where):
            item = next(items, end)
        if item is end:
            return found
        image, label = _pair(item, where)
        if not isinstance(image, (Path, bytes)):
            try:
                # A picture may be an open file, and a tensor may be filled again for the next item.
                image = pixels_of(image).clone()
            except (DataError, InputError) as error:
                raise DataError(f"{where}: {error}") from error
        size += len(image) if isinstance(image, bytes) else getattr(image, "nbytes", 0)
        if len(found) == MOST_HELD or size > CACHE_BYTES:
            raise DataError(
                f"{what} is a {type(dataset).__name__} of more than {len(found)} images, {size >> 20} MiB: expected "
                f"one that ends within {MOST_HELD} images and {CACHE_BYTES >> 20} MiB, as it is held in memory; give "
                "a data set with dataset[i] and len(dataset), or write tars and use load_table"
            )
        found.append((image, label))


def _pair(item: Any, where: str) -> tuple[Any, Any]:
    """An item's image and label; DataError where it is none."""
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise DataError(f"{where} is a {type(item).__name__}: expected a pair (image, label)")
    return Path(item[0]) if isinstance(item[0], str) else item[0], item[1]


class _Images(Sequence[Any]):
    """The images of a data set of pairs."""

    def __init__(self, dataset: Any, what: str) -> None:
        self.dataset, self.what = dataset, what

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return self.pair(index)[0]

    def pair(self, index: int) -> tuple[Any, Any]:
        """An item; DataError where it is none."""
        where = f"{self.what}, item {index}"
        with decoding(where):
            item = self.dataset[index]
        return _pair(item, where)


def _label(label: Any, where: str) -> Any:
    """A label as a number, or an array of bools or numbers."""
    found = np.asarray(label)
    if found.dtype.kind == "f":
        found = np.atleast_1d(found)
    if found.dtype.kind not in "biuf" or found.ndim != (found.dtype.kind in "bf"):
        raise DataError(
            f"{where}: label {label!r:.80}: expected the index of a class, or a row of bools or of floats"
        )
    return found


def _names(train: Any, looked: Mapping[str, tuple[Pictures, Tensor]]) -> Sequence[str] | int:
    """The classes' names, as the data set has them; else how many there are."""
    # torchvision's sets have them, a Subset's in what it is of, timm's in their reader.
    for holder in (train, getattr(train, "dataset", None), getattr(train, "reader", None)):
        if named := getattr(holder, "classes", None):
            return [", ".join(one) if isinstance(one, tuple) else str(one) for one in named]
        if named := getattr(holder, "class_to_idx", None):
            return sorted(named, key=named.__getitem__)
    labels = [labels for _, labels in looked.values()]
    return labels[0].shape[1] if labels[0].ndim == 2 else 1 + max(int(x.max()) for x in labels)
