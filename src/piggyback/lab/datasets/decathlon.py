"""The ten domains of the Visual Decathlon (Rebuffi et al. 2017), and three of them as their own publishers have them.

DECATHLON       one folder, decathlon-1.0, for all: annotations/<domain>_<split>.json in COCO's form, and
                data/<domain>/ with small images. The labels of test are withheld. So what is published as val is
                measured as test here, and val is cut from train; unless annotations/<domain>_test.json is there,
                and then each split is what its name says.
WHOLE_DOMAINS   at full size and with labels for test, in the layouts that torchvision makes. Their splits are the
                Decathlon's but for SVHN, whose val is cut from train.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel

from piggyback.errors import DataError
from piggyback.lab.datasets.info import DatasetInfo, by_torchvision
from piggyback.lab.datasets.lists import (
    image_set,
    inside,
    labels_of,
    once,
    read_matlab,
    reading,
    rows,
    whole_numbers,
)
from piggyback.train.data.sets import ImageData, ImageSet, cut


def read_domain(root: Path, domain: str) -> ImageData:
    """Return one domain of the decathlon in ``root``."""
    folder = root / "annotations"
    train, val = (_split(root, folder / f"{domain}_{split}.json") for split in ("train", "val"))
    labelled = folder / f"{domain}_test.json"
    if labelled.exists():
        return ImageData(f"decathlon-{domain}", train, val, _split(root, labelled))
    return cut(f"decathlon-{domain}", train, None, val)


class _Image(BaseModel, strict=True):
    id: int
    file_name: str


class _Category(BaseModel, strict=True):
    id: int
    name: str


class _Annotation(BaseModel, strict=True):
    image_id: int
    category_id: int


class _Annotations(BaseModel):
    """A split's file, in COCO's form."""

    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation]


def _split(root: Path, source: Path) -> ImageSet:
    with reading(source):
        held = _Annotations.model_validate_json(source.read_bytes())
        categories = once([category.id for category in held.categories])
        numbers = {category: label for label, category in enumerate(categories)}
        annotated = once([one.image_id for one in held.annotations])
        once([image.id for image in held.images])
        of_category = [numbers[one.category_id] for one in held.annotations]
        labels = dict(zip(annotated, of_category, strict=True))
        times = Counter(category.name for category in held.categories)
        return image_set(
            # Class names that several categories share get their id.
            [c.name if times[c.name] == 1 else f"{c.name} ({c.id})" for c in held.categories],
            [inside(root, image.file_name, source) for image in held.images],
            [labels[image.id] for image in held.images],
            source,
        )


def _domain(
    name: str, title: str, classes: int, counts: tuple[int, int, int], *, flip: bool = True
) -> DatasetInfo:
    archive = (
        "decathlon-1.0-data-imagenet.tar from https://image-net.org/download.php"
        if name == "imagenet12"
        else "decathlon-1.0-data.tar.gz"
    )
    return DatasetInfo(
        name=f"decathlon-{name}",
        title=f"Visual Decathlon: {title}; val is measured",
        classes=classes,
        counts=dict(zip(("train", "val", "test"), counts, strict=True)),
        image_size=64,
        crop_pct=64 / 72,
        flip=flip,
        licence="that of the set it is made of; research only",
        how_to_get=f"{archive}, and decathlon-1.0-devkit.tar.gz from https://www.robots.ox.ac.uk/~vgg/decathlon/",
        layout=f"annotations/{name}_<split>.json, data/{name}/<split>/<class>/<file>",
        read=partial(read_domain, domain=name),
        folders=("decathlon-1.0", "decathlon"),
        part=f"data/{name}",
    )


DECATHLON = (
    _domain("imagenet12", "ImageNet", 1000, (1232167, 49000, 48238)),
    _domain("aircraft", "FGVC-Aircraft", 100, (3334, 3333, 3333)),
    _domain("cifar100", "CIFAR-100", 100, (40000, 10000, 10000)),
    _domain("daimlerpedcls", "Daimler Pedestrians", 2, (23520, 5880, 19600)),
    _domain("dtd", "Describable Textures", 47, (1880, 1880, 1880)),
    _domain("gtsrb", "German Traffic Signs", 43, (31367, 7842, 12630), flip=False),
    _domain("vgg-flowers", "Flowers-102", 102, (1020, 1020, 6149)),
    _domain("omniglot", "Omniglot", 1623, (17853, 6492, 8115), flip=False),
    _domain("svhn", "Street View House Numbers", 10, (47217, 26040, 26032), flip=False),
    _domain("ucf101", "UCF101 dynamic images", 101, (7585, 1952, 3783)),
)
"""In the order of the challenge's tables."""


def read_aircraft(root: Path) -> ImageData:
    """Return FGVC-Aircraft by variant from ``root``, which holds fgvc-aircraft-2013b/."""
    folder = root / "fgvc-aircraft-2013b" / "data"
    classes = [name for (name,) in rows(folder / "variants.txt", 1)]

    def split(part: str) -> ImageSet:
        source = folder / f"images_variant_{part}.txt"
        listed = rows(source, 2)
        files = [inside(folder / "images", f"{number}.jpg", source) for number, _ in listed]
        return image_set(
            classes, files, labels_of([name for _, name in listed], classes, source), source
        )

    return ImageData("aircraft", split("train"), split("val"), split("test"))


def read_textures(root: Path) -> ImageData:
    """Return the Describable Textures, their first partition, from ``root``, which holds dtd/dtd/."""
    folder = root / "dtd" / "dtd"
    lists = {part: folder / "labels" / f"{part}1.txt" for part in ("train", "val", "test")}
    names = {part: [name for (name,) in rows(source, 1)] for part, source in lists.items()}
    classes = sorted({name.split("/")[0] for name in names["train"]})

    def split(part: str) -> ImageSet:
        files = [inside(folder / "images", name, lists[part]) for name in names[part]]
        labels = labels_of([name.split("/")[0] for name in names[part]], classes, lists[part])
        return image_set(classes, files, labels, lists[part])

    return ImageData("textures", split("train"), split("val"), split("test"))


def read_svhn(root: Path) -> ImageData:
    """Return the cropped digits of Street View House Numbers from ``root``, in memory: 300 MB."""
    return cut("svhn", _digits(root / "train_32x32.mat"), None, _digits(root / "test_32x32.mat"))


def _digits(source: Path) -> ImageSet:
    pixels, labels = read_matlab(source, "X"), whole_numbers(source, "y")
    n = len(labels)
    if (
        pixels.dtype != np.uint8
        or pixels.shape[:3] != (32, 32, 3)
        or pixels.size != n * 3072
        or not all(1 <= label <= 10 for label in labels)
    ):
        raise DataError(f"{source}: expected 32 x 32 x 3 bytes for each of {n} labels from 1 to 10")
    # The images' axis is the last, and the label 10 is the digit 0.
    images = torch.from_numpy(pixels.reshape(32, 32, 3, n).transpose(3, 2, 0, 1).copy())
    return ImageSet(tuple("0123456789"), torch.tensor(labels, dtype=torch.int64) % 10, images)


WHOLE_DOMAINS = (
    DatasetInfo(
        name="aircraft",
        title="FGVC-Aircraft by variant",
        classes=100,
        counts={"train": 3334, "val": 3333, "test": 3333},
        crop_pct=1.0,
        licence="non-commercial research; the images belong to their photographers",
        how_to_get="--download, or fgvc-aircraft-2013b.tar.gz from "
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        layout="fgvc-aircraft-2013b/data/: images/<number>.jpg, variants.txt, images_variant_<split>.txt",
        read=read_aircraft,
        download=by_torchvision("FGVCAircraft", "aircraft", {"split": "train"}),  # about 3 GB
    ),
    DatasetInfo(
        name="textures",
        title="Describable Textures (DTD), first partition",
        classes=47,
        counts={"train": 1880, "val": 1880, "test": 1880},
        licence="research; the images belong to their owners",
        how_to_get="--download, or dtd-r1.0.1.tar.gz from https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        layout="dtd/dtd/: images/<class>/<file>, labels/<split>1.txt",
        read=read_textures,
        download=by_torchvision("DTD", "textures"),  # about 600 MB
    ),
    DatasetInfo(
        name="svhn",
        title="Street View House Numbers, cropped digits",
        classes=10,
        counts={"train": 73257, "test": 26032},
        image_size=64,
        crop_pct=1.0,
        flip=False,
        licence="non-commercial use",
        how_to_get="--download, or train_32x32.mat and test_32x32.mat from http://ufldl.stanford.edu/housenumbers/",
        layout="train_32x32.mat, test_32x32.mat",
        read=read_svhn,
        download=by_torchvision(
            "SVHN", "svhn", {"split": "train"}, {"split": "test"}
        ),  # about 250 MB
    ),
)
