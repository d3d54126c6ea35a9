"""Places365-Standard with images of 256 x 256 pixels, in the layout that torchvision makes."""

from __future__ import annotations

from pathlib import Path

from torchvision import datasets

from piggyback.errors import DataError
from piggyback.lab.datasets.info import DatasetInfo
from piggyback.lab.datasets.listed import image_set, inside, rows, whole
from piggyback.train.data.sets import ImageData, ImageSet
from piggyback.train.data.splits import cut


def read(root: Path) -> ImageData:
    """Return the set in ``root``; its val, which is what papers measure, is test."""
    source = root / "categories_places365.txt"
    numbers = {name.lstrip("/"): whole(label, source) for name, label in rows(source, 2)}
    if sorted(numbers.values()) != list(range(len(numbers))):
        raise DataError(f"{source}: expected each number from 0 to {len(numbers) - 1} once")
    classes = sorted(numbers, key=numbers.__getitem__)
    train = root / "data_256_standard"
    if not train.is_dir():  # as its archive has it; torchvision renames it
        train = root / "data_256"
    return cut(
        "places365",
        _split(train, root / "places365_train_standard.txt", classes),
        None,
        _split(root / "val_256", root / "places365_val.txt", classes),
    )


def _split(folder: Path, source: Path, classes: list[str]) -> ImageSet:
    listed = rows(source, 2)
    files = [inside(folder, name.lstrip("/"), source) for name, _ in listed]
    return image_set(classes, files, [whole(label, source) for _, label in listed], source)


def download(root: Path) -> None:
    """Fetch the set to ``root``/places365: about 24 GB."""
    for split in ("train-standard", "val"):
        datasets.Places365(root / "places365", split=split, small=True, download=True)


PLACES = DatasetInfo(
    name="places365",
    title="Places365-Standard; its val is what papers measure",
    kind="classification",
    classes=365,
    counts={"train": 1803460, "test": 36500},
    image_size=224,
    crop_pct=0.875,
    flip=True,
    licence="non-commercial research and education; the images belong to their owners",
    how_to_get="--download, or train_256_places365standard.tar, val_256.tar and "
    "filelist_places365-standard.tar from http://places2.csail.mit.edu/download.html",
    layout="data_256_standard/<letter>/<class>/<file>, val_256/<file>, categories_places365.txt, "
    "places365_train_standard.txt, places365_val.txt",
    read=read,
    download=download,
)
