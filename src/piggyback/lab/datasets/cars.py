"""Stanford Cars, cropped by box, read from the annotation files of its devkit."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from piggyback.errors import DataError
from piggyback.images.decode import Box
from piggyback.lab.datasets.info import DatasetInfo
from piggyback.lab.datasets.listed import image_set, inside
from piggyback.lab.datasets.matlab import Value, structs, texts
from piggyback.train.data.sets import ImageData, ImageSet
from piggyback.train.data.splits import cut

_FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")


def read(root: Path) -> ImageData:
    """Return the set in ``root``: cars_train/, cars_test/, devkit/."""
    classes = texts(root / "devkit" / "cars_meta.mat", "class_names")
    train = root / "devkit" / "cars_train_annos.mat"
    test = root / "cars_test_annos_withlabels.mat"
    if not test.exists():  # it was published beside the devkit, and is often put into it
        test = root / "devkit" / test.name
    return cut(
        "cars",
        _split(root / "cars_train", train, classes),
        None,
        _split(root / "cars_test", test, classes),
    )


def _split(folder: Path, source: Path, classes: list[str]) -> ImageSet:
    files: list[Path] = []
    labels: list[int] = []
    boxes: list[Box] = []
    for number, row in enumerate(structs(source, "annotations", _FIELDS), 1):
        try:
            left, top, right, bottom, label = (_whole(row[field]) for field in _FIELDS[:-1])
        except ValueError as error:
            raise DataError(f"{source}, annotation {number}: {error}") from None
        # MATLAB counts pixels and classes from 1, and its boxes include their last pixel.
        boxes.append((left - 1, top - 1, right, bottom))
        labels.append(label - 1)
        files.append(inside(folder, str(row["fname"]), source))
    return image_set(classes, files, labels, source, boxes)


def _whole(value: Value) -> int:
    if not isinstance(value, np.ndarray) or value.shape != (1,) or not float(value[0]).is_integer():
        raise ValueError(f"{value!r}: expected a whole number")
    return int(value[0])


CARS = DatasetInfo(
    name="cars",
    title="Stanford Cars, cropped by box",
    kind="classification",
    classes=196,
    counts={"train": 8144, "test": 8041},
    image_size=224,
    crop_pct=1.0,
    flip=True,
    licence="non-commercial research; the images belong to their owners",
    how_to_get="the publisher's page is gone, and torchvision cannot download it any more; ask for a copy of "
    "car_ims, car_devkit.tgz and cars_test_annos_withlabels.mat",
    layout="cars_train/<file>, cars_test/<file>, devkit/cars_meta.mat, devkit/cars_train_annos.mat, "
    "cars_test_annos_withlabels.mat",
    read=read,
    folders=("cars", "stanford_cars"),
)
