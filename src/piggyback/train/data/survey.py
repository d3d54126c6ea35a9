"""What is in an image folder, before anything is trained on it: every image is decoded once, nothing is refused.

files -> look: size, colour, bytes, a thumbnail -> Survey: counts, unreadable ones, copies, sizes
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as F

from piggyback.errors import DataError
from piggyback.images.decode import content_key, in_threads, read_image
from piggyback.images.find import list_folders, list_images
from piggyback.train.data.folder import inner_folder, split_folders

THUMBNAIL = 9
"""Side of the grey picture by which images that look the same are found."""
CLOSE = 3
"""Grey levels, of 255, that no pixel of two such pictures may differ by; of pale and dark ones fewer."""
FLAT = 10
"""Standard deviation in grey levels below which a picture has too little to be told by."""
SKEWED = 10
"""Times as many images as the smallest class has, from which the largest is called out of balance."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One image file and what was seen in it."""

    file: Path
    split: str
    label: str
    size: tuple[int, int] = (0, 0)
    """Width and height, turned upright."""
    grey: bool = False
    key: int = 0
    """Follows from the file's bytes."""
    thumbnail: NDArray[np.int16] | None = None
    problem: str = ""
    """Why it cannot be read."""


@dataclass(frozen=True)
class Copies:
    """Files that are the same picture."""

    files: tuple[str, ...]
    exact: bool
    """Byte for byte; else they look the same: saved again, or in another size."""
    splits: tuple[str, ...]
    labels: tuple[str, ...]

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

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Readable images by class, then by split."""
        splits = list(dict.fromkeys(one.split for one in self.samples))
        labels = sorted({one.label for one in self.samples})
        found = Counter((one.label, one.split) for one in self.samples if not one.problem)
        return {label: {split: found[label, split] for split in splits} for label in labels}

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
                f"{len(self.unreadable)} images cannot be read: remove them, or leave them out in training"
            )
        for split in next(iter(counts.values()), {}):
            empty = [label for label, row in counts.items() if not row[split]]
            if empty:
                found.append(f"no images in {split} for {_some(empty)}")
        kinds = Counter(one.what for one in self.copies)
        for what, meaning in _MEANINGS.items():
            if kinds[what]:
                one = kinds[what] == 1
                found.append(
                    f"{kinds[what]} picture{'s occur' if not one else ' occurs'} {meaning}"
                )
        sizes = {label: row[first] for label, row in counts.items()}
        largest, smallest = max(sizes, key=sizes.__getitem__), min(sizes, key=sizes.__getitem__)
        if len(sizes) == 1:
            found.append(f"one class, {largest!r}: training expects two or more")
        if sizes[smallest] and sizes[largest] >= SKEWED * sizes[smallest]:
            found.append(
                f"out of balance: {sizes[largest]} images of {largest!r} in {first}, {sizes[smallest]} of {smallest!r}"
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain JSON."""
        good = [one for one in self.samples if not one.problem]
        sides = sorted(min(one.size) for one in good)
        return {
            "name": self.name,
            "images": len(self.samples),
            "counts": self.counts,
            "warnings": self.warnings(),
            "unreadable": {str(one.file): one.problem for one in self.unreadable},
            "copies": [
                {"files": list(one.files), "exact": one.exact, "what": one.what}
                for one in self.copies
            ],
            "shorter_side": [sides[0], round(statistics.median(sides)), sides[-1]]
            if sides
            else None,
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
        (file, split, folder.name)
        for split, part in (split_folders(root) or {"all": inner_folder(root)}).items()
        for folder in list_folders(part)
        for file in list_images(folder, left_out)
    ]
    if not places:
        raise DataError(
            f"image folder {str(root)!r}: expected <class>/<file> or <split>/<class>/<file>, found no image"
        )
    samples = list(in_threads(lambda place: _look(*place), places))
    return Survey(root.resolve().name, samples, _copies(samples), dict(left_out.most_common()))


def _look(file: Path, split: str, label: str) -> Sample:
    try:
        image = read_image(file)
        key = content_key(file)
    except (DataError, OSError) as error:
        return Sample(file, split, label, problem=" ".join(str(error).split()))
    height, width = image.shape[1:]
    grey = bool((image[0] == image[1]).all() and (image[1] == image[2]).all())
    small = F.resize(F.rgb_to_grayscale(image), [THUMBNAIL, THUMBNAIL], antialias=True)
    return Sample(file, split, label, (width, height), grey, key, small[0].numpy().astype(np.int16))


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
        tuple(str(one.file) for one in group),
        exact,
        tuple(sorted({one.split for one in group})),
        tuple(sorted({one.label for one in group})),
    )


def _some(names: Sequence[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + rest
