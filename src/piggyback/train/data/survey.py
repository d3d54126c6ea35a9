"""What is in a data set, before anything is trained on it: every image of a folder is decoded, and none is refused.

samples -> look: size, colour, bytes, a thumbnail -> Survey: counts, unreadable ones, copies, sizes
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as F

from piggyback.errors import DataError
from piggyback.images.decode import Box, as_box, content_key, in_threads, pixels_of
from piggyback.images.find import list_folders, list_images
from piggyback.images.label_maps import SegmentationSet
from piggyback.images.paths import PathList
from piggyback.images.pictures import Pictures
from piggyback.train.data.folder import inner_folder, only, split_folders
from piggyback.train.data.sets import ImageSet, Split
from piggyback.train.data.tagged import TaggedSet
from piggyback.train.data.text import TextSet

THUMBNAIL = 9
"""Side of the grey picture by which images that look the same are found."""
CLOSE = 3
"""Grey levels, of 255, that no pixel of two such pictures may differ by; of pale and dark ones fewer."""
FLAT = 10
"""Standard deviation in grey levels below which a picture has too little to be told by."""
DARK = 16
"""Grey level, of 255, that no part of an image reaches which is almost black."""
_ORDER = ("train", "val", "test")
SKEWED = 10
"""Times as many images as the smallest class has, from which the largest is called out of balance."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One image or text and what was seen in it."""

    source: Any
    """The image, as ``pixels_of`` takes it, or the text."""
    name: str
    """What to call it: a file's path, the text itself, or split and number."""
    split: str
    labels: tuple[str, ...]
    """One class; of several labels those that it has; of tags their types; of numbers none."""
    size: tuple[int, int] = (0, 0)
    """Width and height, turned upright."""
    grey: bool = False
    key: int = 0
    """Follows from its bytes."""
    thumbnail: NDArray[np.int16] | None = None
    problem: str = ""
    """Why it cannot be read."""


@dataclass(frozen=True)
class Copies:
    """Samples that are the same picture or text."""

    files: tuple[str, ...]
    """Their names."""
    exact: bool
    """Byte for byte; else they look the same: saved again, or in another size."""
    splits: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]

    @property
    def what(self) -> str:
        """What is wrong with it: the worst first."""
        if len(self.labels) > 1:
            return "two labels"
        return "across splits" if len(self.splits) > 1 else "within a split"


@dataclass(frozen=True)
class Survey:
    """What was found."""

    name: str
    samples: Sequence[Sample]
    copies: Sequence[Copies]
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Files that are no images, by what they are."""
    kind: str = "classification"
    what: str = "images"
    numbers: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    """Of a regression, by the number's name and the split: smallest, median, largest."""
    notes: Sequence[str] = ()
    """What training would say of the data besides, a line each."""
    refused: str = ""
    """Why training would not take them."""

    @cached_property
    def splits(self) -> list[str]:
        return list(dict.fromkeys(one.split for one in self.samples))

    @cached_property
    def counts(self) -> dict[str, dict[str, int]]:
        """Readable samples by class, or with a label, then by split."""
        labels = sorted({label for one in self.samples for label in one.labels})
        found = Counter(
            (label, one.split) for one in self.samples if not one.problem for label in one.labels
        )
        return {label: {split: found[label, split] for split in self.splits} for label in labels}

    @property
    def unreadable(self) -> list[Sample]:
        """Images that training would refuse, or leave out on request."""
        return [one for one in self.samples if one.problem]

    def warnings(self) -> list[str]:
        """Return what stands in the way of a good task, a line each, the worst first."""
        found, counts = [], self.counts
        first = next((one.split for one in self.samples), "train")
        if self.unreadable:
            found.append(
                f"{len(self.unreadable)} of the {self.what} cannot be read: remove them, or leave them out in training"
            )
        elif self.refused:
            found.append(f"training would refuse the data: {self.refused}")
        for split in next(iter(counts.values()), {}):
            empty = [label for label, row in counts.items() if not row[split]]
            if empty:
                found.append(f"no {self.what} in {split} for {_some(empty)}")
        kinds = Counter(one.what for one in self.copies)
        for what, meaning in _MEANINGS.items():
            if kinds[what]:
                one = kinds[what] == 1
                found.append(
                    f"{kinds[what]} of the {self.what} {'occurs' if one else 'occur'} {meaning}"
                )
        thumbnails = [(one.thumbnail, one.name) for one in self.samples]
        if dark := [name for seen, name in thumbnails if seen is not None and seen.max() < DARK]:
            found.append(
                f"{len(dark)} of the {self.what} are almost black, {_some(dark, 1)}: 16-bit files may hold 12 bits; "
                "stretch their values"
            )
        sizes = {label: row[first] for label, row in counts.items()}
        if not sizes:
            return found
        largest, smallest = max(sizes, key=sizes.__getitem__), min(sizes, key=sizes.__getitem__)
        if len(sizes) == 1 and self.kind == "classification":
            found.append(f"one class, {largest!r}: training expects two or more")
        if sizes[smallest] and sizes[largest] >= SKEWED * sizes[smallest]:
            found.append(
                f"out of balance: {sizes[largest]} {self.what} of {largest!r} in {first}, "
                f"{sizes[smallest]} of {smallest!r}"
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain JSON."""
        good = [one for one in self.samples if not one.problem]
        sides = sorted(min(one.size) for one in good if self.what == "images")
        words = sorted(len(one.source.split()) for one in good if self.what == "texts")
        return {
            "name": self.name,
            "kind": self.kind,
            self.what: len(self.samples),
            "counts": self.counts,
            "numbers": {name: dict(row) for name, row in self.numbers.items()},
            "warnings": self.warnings(),
            "notes": list(self.notes),
            "refused": self.refused or None,
            "unreadable": {one.name: one.problem for one in self.unreadable},
            "copies": [
                {"files": list(one.files), "exact": one.exact, "what": one.what}
                for one in self.copies
            ],
            "shorter_side": _spread(sides),
            "words": _spread(words),
            "grey": sum(one.grey for one in good),
            "left_out": dict(self.left_out),
        }


_MEANINGS = {
    "two labels": "under two labels, one of which is wrong",
    "across splits": "in more than one split, where scores say nothing of new images",
    "within a split": "more than once within a split",
}


def survey(root: str | Path) -> Survey:
    """Return what is in the class folders of ``root``, of one split or of several.

    Raises DataError where there is no such folder, or no class folder with images in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"image folder {str(root)!r}: no such directory")
    left_out: Counter[str] = Counter()
    places = [
        (file, str(file), split, (folder.name,))
        for split, part in (split_folders(root) or {"all": inner_folder(root)}).items()
        for folder in list_folders(part)
        for file in list_images(folder, left_out)
    ]
    if not places:
        raise DataError(
            f"image folder {str(root)!r}: expected <class>/<file> or <split>/<class>/<file>, found no image"
            f"{only(left_out)}"
        )
    samples = list(in_threads(lambda place: _look(*place), places))
    return Survey(root.resolve().name, samples, _copies(samples), dict(left_out.most_common()))


def survey_splits(name: str, splits: Mapping[str, Split]) -> Survey:
    """Return what is in a data set that was read already, from a table for instance; DataError for label maps.

    >>> from piggyback.train.data.text import TextSet
    >>> texts = TextSet(("bad", "good"), torch.tensor([1, 0, 0]), ("a joy", "a bore", "a joy"))
    >>> survey_splits("films", {"train": texts}).warnings()
    ['1 of the texts occurs under two labels, one of which is wrong']
    """
    kind, what, samples = "classification", "images", list[Sample]()
    numbers: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for split, part in sorted(splits.items(), key=lambda each: _ORDER.index(each[0])):
        if isinstance(part, SegmentationSet):
            raise DataError(f"{name!r} holds label maps: expected images or texts with labels")
        labels = _labels(part)
        if isinstance(part, TextSet):
            keys = part.content_keys().tolist()
            samples += [
                Sample(text, text, split, had, key=key)
                for text, had, key in zip(part.texts, labels, keys, strict=True)
            ]
        elif part.images is None and isinstance(part.files, PathList) and part.boxes is None:
            once, places = part.files.distinct()  # a table may name a file in many rows
            names = list(map(str, once))
            looks = list(in_threads(partial(_look, split=split, labels=()), once, names))
            rows = zip(places.tolist(), labels, strict=True)
            samples += [replace(looks[at], labels=had) for at, had in rows]
        else:
            held = part.files if part.images is None else part.images
            if part.images is None and not isinstance(part.files, Pictures):
                names = list(map(str, part.files))
            else:
                names = [f"{split} {at}" for at in range(1, len(part) + 1)]
            boxes = [None] * len(part) if part.boxes is None else map(as_box, part.boxes)
            # A file's key is made where a file that is missing is no error.
            files = part.images is None and not isinstance(held, Pictures) and part.boxes is None
            keys = [None] * len(part) if files else part.content_keys().tolist()
            samples += in_threads(_look, held, names, [split] * len(part), labels, keys, boxes)
        if part.kind == "regression":
            for column, units, values in zip_longest(part.classes, part.units, part.labels.T):
                title = f"{column} ({units})" if units else column
                numbers[title][split] = [
                    float(f(values)) for f in (torch.min, torch.median, torch.max)
                ]
        kind, what = part.kind, part.what
    return Survey(name, samples, _copies(samples), kind=kind, what=what, numbers=numbers)


def _labels(part: ImageSet | TextSet) -> list[tuple[str, ...]]:
    """Of each sample: its class, the labels that it has, or the types of its tags; of numbers nothing."""
    if isinstance(part, TaggedSet):
        rows = torch.split(part.labels, part.lengths)
        return [tuple(sorted({part.classes[i][2:] for i in row.tolist()} - {""})) for row in rows]
    if part.kind == "regression":
        return [()] * len(part)
    if part.kind == "multilabel":
        return [
            tuple(name for name, has in zip(part.classes, row, strict=True) if has)
            for row in part.labels.tolist()
        ]
    return [(part.classes[i],) for i in part.labels.tolist()]


def _look(
    source: Any,
    name: str,
    split: str,
    labels: tuple[str, ...],
    key: int | None = None,
    box: Box | None = None,
) -> Sample:
    try:
        if source is None:
            raise DataError("no image: expected its bytes, or the path of a file")
        image = pixels_of(source, box=box)
        key = content_key(source) if key is None else key
    except (DataError, OSError) as error:
        return Sample(source, name, split, labels, problem=" ".join(str(error).split()))
    height, width = image.shape[1:]
    grey = bool((image[0] == image[1]).all() and (image[1] == image[2]).all())
    small = F.resize(F.rgb_to_grayscale(image), [THUMBNAIL, THUMBNAIL], antialias=True)
    looks = small[0].numpy().astype(np.int16)
    return Sample(source, name, split, labels, (width, height), grey, key, looks)


def _copies(samples: Iterable[Sample]) -> list[Copies]:
    """Groups of samples that are the same bytes, or look the same; the worst first."""
    by_key: dict[int, list[Sample]] = defaultdict(list)
    for one in samples:
        if not one.problem:
            by_key[one.key].append(one)
    found = [_as_copies(group, exact=True) for group in by_key.values() if len(group) > 1]
    # Pictures that look the same have means that are close: only neighbours in that order are compared.
    pictures = [(group[0], group[0].thumbnail) for group in by_key.values()]
    told = [(p.mean(), p, one) for one, p in pictures if p is not None and p.std() >= FLAT]
    told.sort(key=lambda each: each[0])
    for i, (mean, picture, one) in enumerate(told):
        most = min(CLOSE, picture.std() / FLAT)
        for other_mean, other, again in told[i + 1 :]:
            if other_mean - mean > most:
                break
            if np.abs(picture - other).max() <= most:
                found.append(_as_copies([one, again], exact=False))
    return sorted(found, key=lambda one: list(_MEANINGS).index(one.what))


def _as_copies(group: Sequence[Sample], *, exact: bool) -> Copies:
    return Copies(
        tuple(one.name for one in group),
        exact,
        tuple(sorted({one.split for one in group})),
        tuple(sorted({one.labels for one in group})),
    )


def _spread(sizes: Sequence[int]) -> list[int] | None:
    """Smallest, median and largest of sorted sizes."""
    return [sizes[0], round(statistics.median(sizes)), sizes[-1]] if sizes else None


def _some(names: Sequence[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + rest
