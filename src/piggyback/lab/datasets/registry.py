"""All data sets by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from piggyback.errors import DataError, near_misses
from piggyback.lab.datasets.cars import CARS
from piggyback.lab.datasets.cubs import CUBS
from piggyback.lab.datasets.decathlon import DECATHLON
from piggyback.lab.datasets.flowers import FLOWERS
from piggyback.lab.datasets.in_folders import IMAGENET, REDUCED, SKETCH, WIKIART
from piggyback.lab.datasets.info import DatasetInfo
from piggyback.lab.datasets.places import PLACES
from piggyback.lab.datasets.segmentation import CAMVID, VOC
from piggyback.lab.datasets.whole_domains import WHOLE_DOMAINS

DATASETS: Mapping[str, DatasetInfo] = MappingProxyType(
    {
        info.name: info
        for info in (
            *(CUBS, CARS, FLOWERS, WIKIART, SKETCH, IMAGENET, PLACES),
            *DECATHLON,
            *WHOLE_DOMAINS,
            *(VOC, CAMVID),
            *REDUCED,
        )
    }
)
"""In the order of the paper's tables; the parts of sets that experiments here use come last."""


def dataset(name: str) -> DatasetInfo:
    """Return what is known about the data set called ``name``; DataError, naming near misses.

    >>> dataset("sketch").classes
    250
    """
    if name not in DATASETS:
        raise DataError(
            f"data set {name!r} is not known{near_misses(name, DATASETS)}; `piggyback data` lists them"
        )
    return DATASETS[name]
