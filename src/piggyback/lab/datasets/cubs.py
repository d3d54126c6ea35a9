"""CUBS-200-2011: birds, cropped by box, read from the lists in its own archive."""

from __future__ import annotations

from pathlib import Path

from piggyback.errors import DataError
from piggyback.images.decode import Box
from piggyback.lab.datasets.info import DatasetInfo
from piggyback.lab.datasets.listed import by_id, image_set, inside
from piggyback.train.data.sets import ImageData, ImageSet
from piggyback.train.data.splits import cut


def read(root: Path) -> ImageData:
    """Return the set in ``root``: images/, images.txt and the lists beside it."""
    listed = root / "images.txt"
    names = by_id(listed)
    classes = by_id(root / "classes.txt")
    labels = _of_class(root / "image_class_labels.txt", names, list(classes))
    parts = _parts(root / "train_test_split.txt", names)
    boxes = _boxes(root / "bounding_boxes.txt", names)

    def split(part: str) -> ImageSet:
        ids = [image for image in names if parts[image] == part]
        return image_set(
            list(classes.values()),
            [inside(root / "images", names[image], listed) for image in ids],
            [labels[image] for image in ids],
            listed,
            [boxes[image] for image in ids],
        )

    return cut("cubs", split("1"), None, split("0"))


def _of_class(path: Path, names: dict[str, str], classes: list[str]) -> dict[str, int]:
    number = {name: label for label, name in enumerate(classes)}
    found = by_id(path, names)
    for image, name in found.items():
        if name not in number:
            raise DataError(f"{path}: image {image} is of class {name!r}: not in classes.txt")
    return {image: number[name] for image, name in found.items()}


def _parts(path: Path, names: dict[str, str]) -> dict[str, str]:
    found = by_id(path, names)
    for image, part in found.items():
        if part not in ("0", "1"):
            raise DataError(f"{path}: image {image}: {part!r}: expected 1 (train) or 0 (test)")
    return found


def _boxes(path: Path, names: dict[str, str]) -> dict[str, Box]:
    """The file has x, y, width, height."""
    boxes = {}
    for image, text in by_id(path, names).items():
        try:
            x, y, width, height = (round(float(part)) for part in text.split())
        except (ValueError, OverflowError):
            raise DataError(
                f"{path}: image {image}: {text!r}: expected x, y, width, height"
            ) from None
        boxes[image] = (x, y, x + width, y + height)
    return boxes


CUBS = DatasetInfo(
    name="cubs",
    title="Caltech-UCSD Birds-200-2011, cropped by box",
    kind="classification",
    classes=200,
    counts={"train": 5994, "test": 5794},
    image_size=224,
    crop_pct=1.0,
    flip=True,
    licence="images belong to their photographers; non-commercial research and education",
    how_to_get="CUB_200_2011.tgz from https://www.vision.caltech.edu/datasets/cub_200_2011/",
    layout="images/<class>/<file>, images.txt, classes.txt, image_class_labels.txt, train_test_split.txt, "
    "bounding_boxes.txt",
    read=read,
    folders=("cubs", "CUB_200_2011"),
)
