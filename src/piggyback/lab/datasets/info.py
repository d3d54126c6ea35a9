"""What the registry knows about a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torchvision import datasets

from piggyback.errors import require
from piggyback.train.data.sets import ImageData


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """One data set: what it is, where it is looked for, how it is read and prepared.

    >>> from piggyback.lab.datasets import dataset
    >>> cubs = dataset("cubs")
    >>> cubs.classes, dict(cubs.counts)
    (200, {'train': 5994, 'test': 5794})
    """

    name: str
    title: str
    kind: Literal["classification", "segmentation"] = "classification"
    classes: int
    counts: Mapping[str, int]
    """Published number of images by split. Without "val", val is cut from train. With "val" and without labels for
    test, the published val is measured in its place, and val is cut from train."""
    image_size: int = 224
    """Side of the square the paper's networks see, in pixels."""
    crop_pct: float = 0.875
    """1.0: the image, or the part in its box, is squeezed into the square; below: resized, then the centre."""
    flip: bool = True
    """Whether training images may be mirrored."""
    licence: str
    """One line; the publisher's own words decide."""
    how_to_get: str
    """One line."""
    layout: str
    """One line: what lies where in the folder."""
    read: Callable[[Path], ImageData]
    """From its folder; raises DataError, naming the file, for anything missing or malformed."""
    download: Callable[[Path], None] | None = None
    """Fetches it to a folder of data sets; only where torchvision can."""
    folders: tuple[str, ...] = ()
    """Names of its folder: its own name, where none are given."""
    part: str = ""
    """A folder in it that only this set has, where several share one."""

    @property
    def places(self) -> tuple[str, ...]:
        """Names that its folder may have, the usual one first."""
        return self.folders or (self.name,)


def by_torchvision(name: str, folder: str, *calls: dict[str, Any]) -> Callable[[Path], None]:
    """Return a ``download`` that torchvision's class ``name`` does, into ``folder``; once for each of ``calls``.

    Only fetching is left to torchvision. Its readers decode one image at a time and keep the names of their files
    private; ours name a file that is listed and missing, or torn, before training starts.
    """

    def download(root: Path) -> None:
        if name in ("Flowers102", "SVHN"):  # which read their .mat files, too
            require("scipy.io", "data")
        for options in calls or ({},):
            getattr(datasets, name)(root / folder, download=True, **options)

    return download
