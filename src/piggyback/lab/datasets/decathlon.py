"""The ten domains of the Visual Decathlon, in the layout of decathlon-1.0 (Rebuffi et al. 2017).

One folder for all: annotations/<domain>_<split>.json in COCO's form, and data/<domain>/ with the images. The
labels of test are withheld. So what is published as val is measured as test here, and val is cut from train;
unless annotations/<domain>_test.json is there, and then each split is what its name says.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from piggyback.errors import DataError
from piggyback.lab.datasets.info import DatasetInfo
from piggyback.lab.datasets.listed import image_set, inside, read_json
from piggyback.train.data.sets import ImageData, ImageSet
from piggyback.train.data.splits import cut


def read(root: Path, domain: str) -> ImageData:
    """Return one domain of the decathlon in ``root``."""
    folder = root / "annotations"
    train, val = (_split(root, folder / f"{domain}_{split}.json") for split in ("train", "val"))
    labelled = folder / f"{domain}_test.json"
    if labelled.exists():
        return ImageData(f"decathlon-{domain}", train, val, _split(root, labelled))
    return cut(f"decathlon-{domain}", train, None, val)


def _split(root: Path, source: Path) -> ImageSet:
    held = read_json(source)
    categories = _records(held, "categories", source, id=int, name=str)
    images = _records(held, "images", source, id=int, file_name=str)
    annotations = _records(held, "annotations", source, image_id=int, category_id=int)
    numbers = {row["id"]: label for label, row in enumerate(categories)}
    names = {row["id"]: row["file_name"] for row in images}
    labels: dict[int, int] = {}
    for row in annotations:
        image, category = row["image_id"], row["category_id"]
        if image not in names or category not in numbers:
            raise DataError(
                f"{source}: image {image} is of category {category}: expected ids of its own "
                "images and categories"
            )
        if image in labels:
            raise DataError(f"{source}: image {image} has two annotations: expected one")
        labels[image] = numbers[category]
    for image in names:
        if image not in labels:
            raise DataError(f"{source}: image {image} ({names[image]}) has no annotation")
    return image_set(
        _unique([row["name"] for row in categories], [row["id"] for row in categories]),
        [inside(root, name, source) for name in names.values()],
        [labels[image] for image in names],
        source,
    )


def _records(held: Any, key: str, source: Path, **fields: type) -> list[dict[str, Any]]:
    """The list of objects under ``key``, each with ``fields`` of these types."""
    records = held.get(key) if isinstance(held, dict) else None
    if not isinstance(records, list):
        raise DataError(f"{source}: expected an object with a list of {key}")
    for number, row in enumerate(records):
        for field, kind in fields.items():
            if not isinstance(row, dict) or type(row.get(field)) is not kind:
                raise DataError(
                    f"{source}: {key}[{number}] is {str(row)[:60]}: "
                    f"expected {field!r}, of type {kind.__name__}"
                )
    if "id" in fields and len({row["id"] for row in records}) != len(records):
        raise DataError(f"{source}: two of {key} have the same id: expected each once")
    return records


def _unique(names: list[str], ids: list[int]) -> list[str]:
    """Class names; those that several categories share get their id."""
    times = Counter(names)
    return [
        name if times[name] == 1 else f"{name} ({number})"
        for name, number in zip(names, ids, strict=True)
    ]


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
        kind="classification",
        classes=classes,
        counts=dict(zip(("train", "val", "test"), counts, strict=True)),
        image_size=64,
        crop_pct=64 / 72,
        flip=flip,
        licence="that of the set it is made of; research only",
        how_to_get=f"{archive}, and decathlon-1.0-devkit.tar.gz from https://www.robots.ox.ac.uk/~vgg/decathlon/",
        layout=f"annotations/{name}_<split>.json, data/{name}/<split>/<class>/<file>",
        read=partial(read, domain=name),
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
