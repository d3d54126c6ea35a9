"""Where a data set lies: looking, unpacking, fetching, reading, and comparing with what was published."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from piggyback.errors import DataError, PiggybackWarning
from piggyback.lab.datasets.info import DatasetInfo
from piggyback.lab.datasets.registry import dataset
from piggyback.lab.datasets.unpack import unpacked, writable
from piggyback.train.data.sets import ImageData


def default_roots() -> list[Path]:
    """Return the folders that hold data sets: those of $PIGGYBACK_DATA, ./data, ../shared/data."""
    given = os.environ.get("PIGGYBACK_DATA", "").split(os.pathsep)
    return [Path(part) for part in given if part] + [Path("data"), Path("..", "shared", "data")]


def locate(name: str, roots: Sequence[Path] | None = None) -> Path | None:
    """Return the set's folder, or its .tar that is yet to be unpacked; None where there is neither."""
    info = dataset(name)
    for root in default_roots() if roots is None else roots:
        for place in info.places:
            if (root / place / info.part).is_dir():
                return root / place
            if (packed := root / f"{place}.tar").is_file():
                return packed
    return None


def find(name: str, roots: Sequence[Path] | None = None) -> Path | None:
    """Return the set's folder, unpacked if need be; None where it is not. Raises DataError for a bad .tar."""
    place = locate(name, roots)
    if place is None or place.is_dir():
        return place
    return unpacked(place, dataset(name).places)


def missing(name: str, roots: Sequence[Path] | None = None) -> str:
    """Return in one line what is missing, where it was looked for, how to get it and how to lay it out."""
    info = dataset(name)
    looked = ", ".join(str(root) for root in (default_roots() if roots is None else roots))
    inner = f"{info.part}/" if info.part else ""
    places = " or ".join(f"{place}/{inner}, {place}.tar" for place in info.places)
    return (
        f"data set {name!r} ({info.title}) is missing: looked for {places} in {looked}; "
        f"get {info.how_to_get}; lay out {info.places[0]}/ as {info.layout}; "
        "put it there, or set PIGGYBACK_DATA to the folder it is put into"
    )


def load(name: str, roots: Sequence[Path] | None = None, *, download: bool = False) -> ImageData:
    """Return the data set, read from the first of ``roots`` (by default ``default_roots``) that has it.

    Warns where the counts are not the published ones. ``download``: fetch it first where torchvision can.
    Raises DataError for a set that is missing, incomplete or malformed.
    """
    info = dataset(name)
    place = find(name, roots)
    if place is None and download:
        fetch(info, roots)
        place = find(name, roots)
    if place is None:
        raise DataError(missing(name, roots))
    data = info.read(place)
    differing = differences(info, data)
    if differing:
        warnings.warn(
            f"data set {name!r} in {place}: {differing}; results cannot be compared with published ones",
            PiggybackWarning,
            stacklevel=2,
        )
    return data


def fetch(info: DatasetInfo, roots: Sequence[Path] | None = None) -> None:
    """Download the set to the first of ``roots`` that can be written, made if need be; raises DataError."""
    if info.download is None:
        raise DataError(f"data set {info.name!r} cannot be downloaded: get {info.how_to_get}")
    candidates = default_roots() if roots is None else roots
    root = next((root for root in candidates if not root.is_dir() or writable(root)), None)
    if root is None:
        raise DataError(
            f"data set {info.name!r}: none of {', '.join(map(str, candidates))} can be written; set PIGGYBACK_DATA"
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        info.download(root)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"data set {info.name!r}: the download to {root} failed ({reason}); get {info.how_to_get}"
        ) from error


def differences(info: DatasetInfo, data: ImageData) -> str:
    """Return in words how the numbers of classes and images differ from the published ones; "" if they do not."""
    found = {split: len(images) for split, images in data.splits().items()}
    if data.cut:
        found["train"] += found.pop("val")
        if "val" in info.counts:  # the labels of test are withheld: what is measured is val
            found["val"] = found.pop("test")
    found_and_published = [
        f"{count} {split} images, published {info.counts[split]}"
        for split, count in found.items()
        if count != info.counts[split]
    ]
    if len(data.classes) != info.classes:
        found_and_published.insert(0, f"{len(data.classes)} classes, published {info.classes}")
    return ", ".join(found_and_published)
