"""The paper's data sets by name: what they are, where they lie, how they are read.

    dataset(name)   what is known about one: counts, preparation, licence, layout, where to get it
    load(name)      its ImageData, from the user's disk; says what is missing, or differs from what was published

Reading order: info.py, registry.py, find.py; then paper.py and decathlon.py, over lists.py.
"""

from piggyback.lab.datasets.find import default_roots, find, load, locate, missing
from piggyback.lab.datasets.info import DatasetInfo
from piggyback.lab.datasets.registry import DATASETS, dataset

__all__ = [
    "DATASETS",
    "DatasetInfo",
    "dataset",
    "default_roots",
    "find",
    "load",
    "locate",
    "missing",
]
