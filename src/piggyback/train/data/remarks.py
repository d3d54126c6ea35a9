"""What a person should know of a data set before anything is learned from it: a line each, none of them an error."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from piggyback.train.data.labelled import LabelledSet

if TYPE_CHECKING:
    from piggyback.train.data.sets import Split

_MISSING = frozenset({"nan", "null", "<na>", "n/a", "#n/a"})
"""How programs write that a cell has nothing."""


class Surveyed(str):
    """A note on what a survey of the same samples finds, too: copies, or a split that lacks classes."""

    lacking: str
    """That split; empty for copies."""

    def __new__(cls, text: str, split: str = "") -> Surveyed:
        note = super().__new__(cls, text)
        note.lacking = split
        return note


def remarks(splits: Mapping[str, Split], keys: Mapping[str, NDArray[np.uint64]]) -> tuple[str, ...]:
    """Return what is odd about names, missing classes and copies in ``splits``, "train" among them.

    ``keys``: content keys of each, uint64 (n,).
    """
    train = splits["train"]
    if not isinstance(train, LabelledSet):
        return ()
    # Sorted once: in numpy, isin of numbers that are all different takes ten times as long.
    learned, firsts, places = np.unique(keys["train"], return_index=True, return_inverse=True)
    # Of tags, B-PLACE and I-PLACE, the types.
    tagged = train.kind == "tokens"
    found = alike(dict.fromkeys(name[2:] for name in train.classes) if tagged else train.classes)
    if train.kind in ("classification", "multilabel"):
        found += [
            f"{name!r} is a class of its own: leave its rows out if it stands for no label"
            for name in train.classes
            if name in ("None", "NA") or name.casefold() in _MISSING
        ]
    for split, part in splits.items():
        if split == "train" or not isinstance(part, LabelledSet):
            continue
        if train.kind == "classification":
            absent = [c for c, n in zip(part.classes, part.counts(), strict=True) if not n]
            if absent:
                some = f"{len(absent)} of {len(part.classes)} classes, {absent[0]!r} first"
                found.append(Surveyed(f"{split} has no {part.what} of {some}", split))
        nearest = np.searchsorted(learned, keys[split]).clip(max=len(learned) - 1)
        if same := int((learned[nearest] == keys[split]).sum()):
            copies = (
                f"{same} {part.what} of {split} are also in train, byte for byte; they were kept"
            )
            found.append(Surveyed(copies))
    if len(train.labels) == len(places):  # of tags there are more
        rows = train.labels.numpy().reshape(len(places), -1)
        if unlike := int((rows != rows[firsts[places]]).any(1).sum()):
            again = f"{unlike} training {train.what} occur again with other labels, byte for byte"
            found.append(Surveyed(f"{again}; they were kept"))
    return tuple(found)


def alike(names: Iterable[str]) -> list[str]:
    """Return a line for names that are one but for capitals, spaces, letters that are not seen, or a number's form.

    >>> alike(["Cat", "cat", "dog"])
    ["'Cat' and 'cat' differ only in how they are written: merge them if they are one class"]
    >>> alike(["1", "1.0", "2", "02"])[0].partition(":")[0]
    "'1' and '1.0', and 1 more such pair, differ only in how they are written"
    """
    by_key: dict[str | float, list[str]] = defaultdict(list)
    for name in names:
        try:
            key: str | float = float(name)
        except ValueError:
            shown = unicodedata.normalize("NFKC", name).casefold()
            seen = (c for c in shown if unicodedata.category(c) not in ("Cf", "Cc") or c.isspace())
            key = " ".join("".join(seen).split())
        by_key[key].append(name)
    pairs = [(some[0], other) for some in by_key.values() for other in some[1:]]
    if not pairs:
        return []
    first, rest = " and ".join(map(repr, pairs[0])), len(pairs) - 1
    more = f", and {rest} more such pair{'s' * (rest > 1)}," if rest else ""
    return [f"{first}{more} differ only in how they are written: merge them if they are one class"]
