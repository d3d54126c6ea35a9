"""Labelled images: sets in memory or in files, and the three splits a training needs.

    ImageSet    one split: classes, labels, and images (a uint8 tensor) or files
    ImageData   train, val and test

The labels' type says what kind of task it is: a class each, several labels each, or numbers; a ``TaggedSet`` has tags.
Val, and test where there is none, are cut from train, class by class, by a seed. ``folder.py`` reads sets from
directories, ``table.py`` from tables, ``batches.py`` serves them.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from piggyback.errors import DataError
from piggyback.images.decode import (
    as_box,
    content_keys,
    crop,
    fit,
    in_threads,
    load_fitted,
    stored_size,
)
from piggyback.images.label_maps import SegmentationSet
from piggyback.images.paths import PathList
from piggyback.images.pictures import Pictures
from piggyback.images.preprocessing import Preprocessing
from piggyback.model.heads import class_names
from piggyback.taskfile.task import TaskInfo
from piggyback.texts.preprocessing import Prepares, as_images
from piggyback.train.data.labelled import LabelledSet, as_tensor, check_tensor
from piggyback.train.data.remarks import remarks
from piggyback.train.data.text import TextSet
from piggyback.train.hashing import uniforms

CACHE_BYTES = 1 << 30
"""Decoded images are kept in memory while all splits together stay below this many bytes."""
SKETCH = 128
"""Images by which a task file knows what it was trained on."""
_STREAMS = {"val": 1, "test": 2}
"""Tell the numbers by which val and test are cut apart, and from those of training."""


@dataclass(frozen=True, eq=False)
class ImageSet(LabelledSet):
    """Images of one split with their labels, in memory (``images``) or on disk (``files``).

    >>> ImageSet(("cat", "dog"), torch.tensor([0, 1]), torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    ImageSet(2 images of 2 classes, in memory)
    """

    images: Tensor | None = None
    """uint8, (n, 3, height, width), or (n, 1, height, width) for grey ones."""
    files: Sequence[Path] = ()
    """One per label, when ``images`` is None; or ``Pictures``, which something else holds."""
    boxes: Tensor | None = None
    """int64, (n, 4): left, top, right, bottom of the part that is used, right and bottom outside; of
    files, in pixels as they are stored."""
    fitted: bool = False
    """Whether ``images`` are cropped as the network sees them, so that only their size may still change."""

    def __post_init__(self) -> None:
        if self.images is not None:
            object.__setattr__(self, "images", as_tensor(self.images, "images"))
        self.check_labels(len(self.files) if self.images is None else len(self.images))
        n = len(self.labels)
        if self.images is not None:
            good = self.images.ndim == 4 and self.images.shape[1] in (1, 3)
            check_tensor(self.images, "images", good, torch.uint8, "(n, 3, height, width)")
        if self.boxes is not None:
            wanted = f"({n}, 4), left, top, right, bottom per image"
            check_tensor(self.boxes, "boxes", self.boxes.shape == (n, 4), torch.int64, wanted)

    def __repr__(self) -> str:
        where = "in files" if self.images is None else "in memory"
        return f"ImageSet({len(self)} images of {len(self.classes)} classes, {where})"

    def load(self, index: int, preprocessing: Preprocessing) -> Tensor:
        """Return image ``index`` as the network sees it, uint8 (3, s, s); raises DataError."""
        box = None if self.boxes is None else as_box(self.boxes[index])
        if self.images is None:
            return load_fitted(self.files[index], preprocessing, box)
        image = self.images[index]
        if box is not None:
            image = crop(image, box, f"number {index}")
        view = replace(preprocessing, crop_pct=1.0) if self.fitted else preprocessing
        return fit(image, view).expand(3, -1, -1)

    def shorter_side(self, index: int) -> int:
        """Return the shorter side of image ``index``, or of its box, in pixels; nothing is decoded."""
        if self.boxes is not None:
            left, top, right, bottom = as_box(self.boxes[index])
            return min(right - left, bottom - top)
        if self.images is not None:
            return min(self.images.shape[-2:])
        return min(stored_size(self.files[index]))

    def subset(self, indices: Tensor) -> ImageSet:
        """Return the set with only the images at ``indices``, in that order."""
        images = None if self.images is None else self.images[indices]
        files = taken(self.files, indices) if self.images is None else ()
        boxes = None if self.boxes is None else self.boxes[indices]
        return replace(self, labels=self.labels[indices], images=images, files=files, boxes=boxes)

    def in_memory(self, prepared: Prepares) -> ImageSet:
        """Return the set decoded and resized, uint8 (n, 3, s, s); DataError for a bad file."""
        preprocessing = as_images(prepared)
        size = preprocessing.image_size
        ready = self.images is not None and tuple(self.images.shape[1:]) == (3, size, size)
        if ready and (preprocessing.crop_pct == 1 or self.fitted) and self.boxes is None:
            return self
        images = torch.empty(len(self), 3, size, size, dtype=torch.uint8)

        def fill(index: int) -> None:
            images[index] = self.load(index, preprocessing)

        for _ in in_threads(fill, range(len(self))):
            pass
        return replace(self, images=images, files=(), boxes=None, fitted=True)

    def content_keys(self) -> NDArray[np.uint64]:
        """Return a number for each image that follows from its bytes, and its box, alone: uint64 (n,)."""
        if isinstance(self.files, Pictures):
            return self.files.keys
        keys = content_keys(self.files if self.images is None else self.images)
        if self.boxes is not None:
            keys ^= content_keys(self.boxes)
        return keys

    def digest(self) -> str:
        """Return a SHA-256 (hex) over labels, boxes and images; of files, names and sizes only."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        digest.update(self.labels.numpy().tobytes())
        if self.boxes is not None:
            digest.update(self.boxes.contiguous().numpy().tobytes())
        if self.images is not None:
            digest.update(self.images.contiguous().numpy().tobytes())
        if isinstance(self.files, Pictures):
            digest.update(self.files.keys.astype("<u8").tobytes())
            return digest.hexdigest()
        files, places = self.files, range(len(self.files))
        if isinstance(files, PathList):  # a table may name a file in many rows
            files, rows = files.distinct()
            places = rows.tolist()
        lines = []
        for file in files:
            name = "/".join(file.parts[-2:]).encode(errors="surrogateescape")
            lines.append(b"%b\0%d\n" % (name, file.stat().st_size))
        for at in places:
            digest.update(lines[at])
        return digest.hexdigest()


def taken(files: Sequence[Path], indices: Tensor) -> Sequence[Path]:
    """Return the files at ``indices``; of those that know how to, without a Path for each."""
    if isinstance(files, (PathList, Pictures)):
        return files.at(indices)
    return tuple([files[i] for i in indices.tolist()])


def info_of(samples: Split) -> TaskInfo:
    """Return what a task on these samples would be: its kind, names, units, and the scaling of numbers."""
    if not isinstance(samples, LabelledSet):
        return TaskInfo(samples.kind, samples.classes)
    scaling: tuple[tuple[float, float], ...] = ()
    if samples.kind == "regression" and len(samples):
        means = samples.labels.double().mean(0).tolist()
        spreads = samples.labels.double().std(0, correction=0).tolist()
        pairs = zip(means, spreads, strict=True)
        scaling = tuple([(mean, spread or 1.0) for mean, spread in pairs])
    return TaskInfo(samples.kind, samples.classes, units=samples.units, scaling=scaling)


Split: TypeAlias = "ImageSet | TextSet | SegmentationSet"
"""Images or texts with labels, or images with a label map each."""


@dataclass(frozen=True)
class Cut:
    """A split that was taken out of train by the images' contents.

    >>> print(Cut("val", 0.1, seed=0))
    val 0.1
    """

    split: str
    fraction: float
    seed: int
    grouped: bool = False
    """By groups of images, in place of their contents."""

    def __str__(self) -> str:
        return f"{self.split} {self.fraction}"


@dataclass(frozen=True, eq=False)
class ImageData:
    """One task's images: train to learn from, val to choose the best epoch, test to touch once."""

    name: str
    train: Split
    val: Split
    test: Split
    skipped: tuple[str, ...] = ()
    """Files left out because they could not be read, on request."""
    cut: tuple[Cut, ...] = ()
    """Splits that were taken out of train."""
    notes: tuple[str, ...] = ()
    """What else was found and passed over, and how often, a line each."""

    def __post_init__(self) -> None:
        classes = self.train.classes
        if len(classes) < 2 and self.kind not in ("multilabel", "regression"):
            raise DataError(
                f"{self.name}: {len(classes)} class {list(classes)}: expected 2 or more"
            )
        for split, images in self.splits().items():
            if isinstance(images, TextSet) != isinstance(self.train, TextSet):
                raise DataError(
                    f"{self.name}: texts and images in one task's splits: expected one of them"
                )
            if images.kind != self.kind:
                raise DataError(
                    f"{self.name}: {split} is of kind {images.kind}: expected {self.kind}, as train"
                )
            if images.classes != classes:
                raise DataError(
                    f"{self.name}: classes of {split} differ from train's: "
                    f"{difference(classes, images.classes)}"
                )
            if not len(images):
                raise DataError(f"{self.name}: no {images.what} in {split}: expected one or more")
        if not isinstance(self.train, LabelledSet):
            return  # what its maps show is known only when all of them were read
        if self.kind == "regression":
            spread = self.train.labels.amax(0) - self.train.labels.amin(0)
            same = [name for name, d in zip(classes, spread.tolist(), strict=True) if not d]
            if same:
                raise DataError(
                    f"{self.name}: {same[0]!r} is the same number in float32 for all {self.train.what} of train: "
                    "expected different ones"
                )
        empty = [name for name, n in zip(classes, self.train.counts(), strict=True) if not n]
        if empty and self.kind != "tokens":  # of a type whose spans are all one word no I is there
            word = "label" if self.kind == "multilabel" else "class"
            raise DataError(f"{self.name}: no {self.train.what} in train for {word} {empty[0]!r}")

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the labels."""
        return self.train.classes

    @property
    def kind(self) -> str:
        """What the task is: "segmentation" where images have label maps, else what the labels' type says."""
        return self.train.kind

    def info(self) -> TaskInfo:
        """Return what a task on this data is: kind, names, units, and the scaling of train's numbers."""
        return info_of(self.train)

    def splits(self) -> dict[str, Split]:
        """Return the three sets by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def in_memory(
        self, preprocessing: Prepares, train_view: Prepares, budget: int = CACHE_BYTES
    ) -> ImageData:
        """Return the data decoded and resized once, or as it is when that exceeds ``budget`` bytes; texts as tokens.

        ``train_view`` is for train, ``preprocessing`` for val and test.
        Raises DataError, naming the file, for an image that cannot be decoded.
        """
        views: dict[str, Any] = {"train": train_view, "val": preprocessing, "test": preprocessing}
        last = self.test
        if not isinstance(last, TextSet):
            channels, parts = 4 if self.kind == "segmentation" else 3, self.splits()
            pixels = (len(parts[s]) * as_images(view).image_size ** 2 for s, view in views.items())
            if channels * sum(pixels) > budget:
                # A damaged image of train or val ends the first epoch; one of test would end the whole run.
                view = as_images(preprocessing)
                for _ in in_threads(lambda index: len(last.load(index, view)), range(len(last))):
                    pass
                return self
        train, val = self.train.in_memory(views["train"]), self.val.in_memory(views["val"])
        test = val if last is self.val else last.in_memory(views["test"])
        return replace(self, train=train, val=val, test=test)

    def describe(self) -> dict[str, Any]:
        """Return what identifies the data, as plain JSON: name, counts, digests, what was cut."""
        return {
            "name": self.name,
            "counts": {split: len(images) for split, images in self.splits().items()},
            "sha256": {split: images.digest() for split, images in self.splits().items()},
            "skipped": len(self.skipped),
            "cut": [{k: v for k, v in asdict(each).items() if v is not False} for each in self.cut],
            "learned_from": sketch_of(self.train, self.val),
        }


def sketch_of(*sets: Split) -> str:
    """Return which images the sets hold, in base64: the ``SKETCH`` smallest of their content keys.

    So a task file can say, in a kilobyte, of other images how many its training has seen.
    """
    # Counting makes numpy sort, which is ten times faster than its way with hashes.
    keys, _ = np.unique(np.concatenate([s.content_keys() for s in sets]), return_counts=True)
    return base64.b64encode(keys[:SKETCH].astype("<u8").tobytes()).decode()


def merged_sketch(one: str, other: str) -> str:
    """Return the sketch of the images of both.

    >>> images = ImageSet(("a", "b"), torch.tensor([0, 1]), torch.arange(6, dtype=torch.uint8).view(2, 3, 1, 1))
    >>> parts = [sketch_of(images.subset(torch.tensor([i]))) for i in (0, 1)]
    >>> merged_sketch(*parts) == sketch_of(images)
    True
    """
    keys = np.unique(
        np.concatenate([np.frombuffer(base64.b64decode(s), "<u8") for s in (one, other)])
    )
    return base64.b64encode(keys[:SKETCH].astype("<u8").tobytes()).decode()


def seen_in(images: Split, sketch: str) -> int | None:
    """Return how many of ``images`` a sketch's images are; an estimate where these are more than ``SKETCH``.

    None where the sketch cannot tell: none of the images is among those that it could know.

    >>> images = ImageSet(("a", "b"), torch.tensor([0, 1]), torch.arange(6, dtype=torch.uint8).view(2, 3, 1, 1))
    >>> seen_in(images, sketch_of(images)), seen_in(images, sketch_of(images.subset(torch.tensor([1]))))
    (2, 1)
    """
    known, keys = np.frombuffer(base64.b64decode(sketch), "<u8"), images.content_keys()
    if len(known) == SKETCH:  # it can tell of keys up to its largest only, which are a fair sample
        keys = keys[keys <= known.max()]
    return round(float(np.isin(keys, known).mean()) * len(images)) if len(keys) else None


def difference(expected: Sequence[str], found: Sequence[str]) -> str:
    """Return in words how class names ``found`` differ from ``expected``.

    >>> difference(["cat", "dog"], ["cat", "fox"])
    "missing 'dog'; unexpected 'fox'"
    """
    missing = sorted(set(expected) - set(found))
    extra = sorted(set(found) - set(expected))
    parts = [
        f"{word} {', '.join(map(repr, names[:3]))}"
        + (f" and {len(names) - 3} more" * (len(names) > 3))
        for word, names in (("missing", missing), ("unexpected", extra))
        if names
    ]
    return "; ".join(parts) or "same names in another order"


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
    units: Sequence[str] = (),
) -> ImageData:
    """Return ImageData from pairs of images, uint8 (n, 3, h, w), and labels: int64 (n,); bool or float32 (n, classes).

    ``classes`` names what labels are indices into, or their columns; ``units`` are those of numbers. Missing splits are
    cut from train.

    >>> images = torch.arange(20, dtype=torch.uint8).view(-1, 1, 1, 1).expand(20, 3, 8, 8)
    >>> labels = torch.arange(20) % 2
    >>> data = from_tensors("toy", ["a", "b"], (images, labels), (images, labels))
    >>> len(data.train) + len(data.val), len(data.test)
    (20, 20)
    """

    def as_set(pair: tuple[Tensor, Tensor]) -> ImageSet:
        return ImageSet(names, pair[1], pair[0], units=named_units)

    names, named_units = class_names(classes), tuple(units)
    return cut(
        name,
        as_set(train),
        None if val is None else as_set(val),
        None if test is None else as_set(test),
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        seed=seed,
    )


def cut(
    name: str,
    train: Split,
    val: Split | None,
    test: Split | None,
    *,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
    skipped: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
    groups: NDArray[np.uint64] | None = None,
) -> ImageData:
    """Return ImageData whose missing splits are cut from train, class by class, by ``seed`` and images' contents.

    ``groups``: a number for each training image; images of one number stay together, and go by it in place of their
    contents. ``notes`` get what ``remarks`` finds before them.
    """
    given = {"train": train, "test": test, "val": val}
    sets = {split: part for split, part in given.items() if part is not None}
    fractions = {"test": test_fraction, "val": val_fraction}
    missing = [split for split in fractions if split not in sets]
    cuts = tuple([Cut(split, fractions[split], seed, groups is not None) for split in missing])
    asked = bool(cuts) or isinstance(train, LabelledSet)  # of label maps nothing is said
    keys = {split: part.content_keys() for split, part in sets.items() if asked}
    if cuts:
        of_all = keys["train"]
        rows = cut_off(name, train, cuts, of_all if groups is None else groups)
        keys |= {split: of_all[mine.numpy()] for split, mine in rows.items()}
        parts = {split: train.subset(mine) for split, mine in rows.items()}
        sets = {split: parts[split] if split in parts else sets[split] for split in given}
    notes = (*remarks(sets, keys), *notes)
    return ImageData(name, **sets, skipped=skipped, cut=cuts, notes=notes)


def cut_off(
    name: str, images: Split, cuts: Sequence[Cut], numbers: NDArray[np.uint64]
) -> dict[str, Tensor]:
    """Return which of ``images`` each cut takes, one after another, and as "train" what is left: int64 indices.

    ``numbers``, uint64 (n,): their content keys, or groups.
    """
    left, found = torch.arange(len(images)), dict[str, Tensor]()
    for each in cuts:
        mine = uniforms(each.seed, _STREAMS[each.split], numbers[left.numpy()], 1)[:, 0]
        what, key = f"{name}: {each.split}", torch.from_numpy(mine)
        chosen = _chosen(images.subset(left), each.fraction, key, what, each.grouped)
        found[each.split], left = left[chosen], left[~chosen]
    return {"train": left, **found}


def _chosen(images: Split, fraction: float, key: Tensor, what: str, grouped: bool) -> Tensor:
    """Return which images are taken, bool (n,): of each class about the fraction, at least one while one is left.

    A sample goes by ``key``, which follows from its content and the seed, wherever it lies in a list: those that come
    later move no earlier one, and two copies stay together. Only of a class so small that none would be taken, one is.
    Groups go by their number and stay whole, whatever their classes.
    """
    if not 0 < fraction < 1:
        raise DataError(f"{what} fraction {fraction}: expected a number between 0 and 1")
    chosen = key < fraction
    if grouped or isinstance(images, SegmentationSet) or images.kind != "classification":
        if not chosen.any():
            chosen = key == key.min()
        if chosen.all():
            raise DataError(
                f"{what} cannot be cut from train: its {len(images)} {images.what} are all the same or in one group; "
                "add others or a split"
            )
        return chosen
    order = images.labels.argsort(stable=True)
    for members in torch.split(order, images.counts()):
        different = torch.unique(key[members])
        if len(different) < 2:  # of one image, or of copies of one, nothing is taken
            chosen[members] = False
        elif int(chosen[members].sum()) in (0, len(members)):
            # The copies of the first in order go alone, or those of the last stay alone.
            none = not chosen[members].any()
            odd = key[members] == (different[0] if none else different[-1])
            chosen[members] = odd if none else ~odd
    if not chosen.any():
        raise DataError(
            f"{what} cannot be cut from train: no class has two different {images.what} left; add some or a split"
        )
    return chosen
