"""All data sets by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from piggyback.datasets.cars import CARS
from piggyback.datasets.cubs import CUBS
from piggyback.datasets.decathlon import DECATHLON
from piggyback.datasets.flowers import FLOWERS
from piggyback.datasets.in_folders import IMAGENET, REDUCED, SKETCH, WIKIART
from piggyback.datasets.info import DatasetInfo
from piggyback.datasets.places import PLACES
from piggyback.datasets.segmentation import CAMVID, VOC
from piggyback.datasets.whole_domains import WHOLE_DOMAINS
from piggyback.errors import DataError, near_misses

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
