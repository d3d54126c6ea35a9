"""Domains of the Decathlon as their own publishers have them, at full size and with labels for test.

In the layouts that torchvision makes. Their splits are not the Decathlon's in SVHN, whose val is cut from train.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torchvision import datasets
from torchvision.datasets.utils import download_url

from piggyback.errors import DataError
from piggyback.lab.datasets.info import DatasetInfo
from piggyback.lab.datasets.listed import image_set, inside, rows
from piggyback.lab.datasets.matlab import read_matlab, whole_numbers
from piggyback.train.data.sets import ImageData, ImageSet
from piggyback.train.data.splits import cut


def read_aircraft(root: Path) -> ImageData:
    """Return FGVC-Aircraft by variant from ``root``, which holds fgvc-aircraft-2013b/."""
    folder = root / "fgvc-aircraft-2013b" / "data"
    classes = [name for (name,) in rows(folder / "variants.txt", 1)]

    def split(part: str) -> ImageSet:
        source = folder / f"images_variant_{part}.txt"
        listed = rows(source, 2)
        files = [inside(folder / "images", f"{number}.jpg", source) for number, _ in listed]
        return image_set(
            classes, files, _labels([name for _, name in listed], classes, source), source
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
        labels = _labels([name.split("/")[0] for name in names[part]], classes, lists[part])
        return image_set(classes, files, labels, lists[part])

    return ImageData("textures", split("train"), split("val"), split("test"))


def read_svhn(root: Path) -> ImageData:
    """Return the cropped digits of Street View House Numbers from ``root``, in memory: 300 MB."""
    return cut("svhn", _digits(root / "train_32x32.mat"), None, _digits(root / "test_32x32.mat"))


def _labels(names: list[str], classes: list[str], source: Path) -> list[int]:
    place = {name: label for label, name in enumerate(classes)}
    for name in names:
        if name not in place:
            raise DataError(f"{source}: class {name!r} is not one of the {len(classes)} classes")
    return [place[name] for name in names]


def _digits(source: Path) -> ImageSet:
    pixels, labels = read_matlab(source, "X"), whole_numbers(source, "y")
    n = len(labels)
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.shape != (n * 3072,)
        or not all(1 <= label <= 10 for label in labels)
    ):
        raise DataError(f"{source}: expected 32 x 32 x 3 bytes for each of {n} labels from 1 to 10")
    # MATLAB has rows first in memory, then columns, channels, images; its label 10 is the digit 0.
    images = torch.from_numpy(pixels.reshape(n, 3, 32, 32).transpose(0, 1, 3, 2).copy())
    return ImageSet(tuple("0123456789"), torch.tensor(labels, dtype=torch.int64) % 10, images)


def download_aircraft(root: Path) -> None:
    """Fetch the set to ``root``/aircraft: about 3 GB."""
    datasets.FGVCAircraft(root / "aircraft", split="train", download=True)


def download_textures(root: Path) -> None:
    """Fetch the set to ``root``/textures: about 600 MB."""
    datasets.DTD(root / "textures", download=True)


def download_svhn(root: Path) -> None:
    """Fetch the set to ``root``/svhn: about 250 MB. Torchvision's own class needs scipy to do so."""
    for split in ("train", "test"):
        url, name, md5 = datasets.SVHN.split_list[split]
        download_url(url, root / "svhn", name, md5)


WHOLE_DOMAINS = (
    DatasetInfo(
        name="aircraft",
        title="FGVC-Aircraft by variant",
        kind="classification",
        classes=100,
        counts={"train": 3334, "val": 3333, "test": 3333},
        image_size=224,
        crop_pct=1.0,
        flip=True,
        licence="non-commercial research; the images belong to their photographers",
        how_to_get="--download, or fgvc-aircraft-2013b.tar.gz from "
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        layout="fgvc-aircraft-2013b/data/: images/<number>.jpg, variants.txt, images_variant_<split>.txt",
        read=read_aircraft,
        download=download_aircraft,
    ),
    DatasetInfo(
        name="textures",
        title="Describable Textures (DTD), first partition",
        kind="classification",
        classes=47,
        counts={"train": 1880, "val": 1880, "test": 1880},
        image_size=224,
        crop_pct=0.875,
        flip=True,
        licence="research; the images belong to their owners",
        how_to_get="--download, or dtd-r1.0.1.tar.gz from https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        layout="dtd/dtd/: images/<class>/<file>, labels/<split>1.txt",
        read=read_textures,
        download=download_textures,
    ),
    DatasetInfo(
        name="svhn",
        title="Street View House Numbers, cropped digits",
        kind="classification",
        classes=10,
        counts={"train": 73257, "test": 26032},
        image_size=64,
        crop_pct=1.0,
        flip=False,
        licence="non-commercial use",
        how_to_get="--download, or train_32x32.mat and test_32x32.mat from http://ufldl.stanford.edu/housenumbers/",
        layout="train_32x32.mat, test_32x32.mat",
        read=read_svhn,
        download=download_svhn,
    ),
)
