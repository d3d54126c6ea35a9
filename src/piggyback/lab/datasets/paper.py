"""The image sets of the paper's tables, each in the layout its publisher gave it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from piggyback.images.decode import Box
from piggyback.lab.datasets.info import DatasetInfo, by_torchvision
from piggyback.lab.datasets.lists import (
    by_id,
    folder_splits,
    image_set,
    inside,
    labels_of,
    read_matlab,
    reading,
    rows,
    whole,
    whole_numbers,
)
from piggyback.train.data.sets import ImageData, ImageSet, cut

# -- CUBS: birds, cropped by box, from the lists in its own archive ------------------------------------


def read_cubs(root: Path) -> ImageData:
    """Return CUBS-200-2011 in ``root``: images/, images.txt and the lists beside it."""
    listed = root / "images.txt"
    names, classes, of_class, parts, boxes = (
        by_id(root / f"{name}.txt")
        for name in (
            *("images", "classes", "image_class_labels"),
            *("train_test_split", "bounding_boxes"),
        )
    )

    def split(wanted: str) -> ImageSet:
        chosen = [image for image in names if parts[image] == wanted]
        return image_set(
            list(classes.values()),
            [inside(root / "images", names[image], listed) for image in chosen],
            labels_of([of_class[image] for image in chosen], list(classes), listed),
            listed,
            [_box(boxes[image]) for image in chosen],
        )

    with reading(listed):
        if wrong := set(parts.values()) - {"0", "1"}:
            raise ValueError(f"part {min(wrong)!r} in train_test_split.txt is neither 0 nor 1")
        return cut("cubs", split("1"), None, split("0"))


def _box(text: str) -> Box:
    """From x, y, width, height."""
    x, y, width, height = (round(float(part)) for part in text.split())
    return x, y, x + width, y + height


CUBS = DatasetInfo(
    name="cubs",
    title="Caltech-UCSD Birds-200-2011, cropped by box",
    classes=200,
    counts={"train": 5994, "test": 5794},
    crop_pct=1.0,
    licence="images belong to their photographers; non-commercial research and education",
    how_to_get="CUB_200_2011.tgz from https://www.vision.caltech.edu/datasets/cub_200_2011/",
    layout="images/<class>/<file>, images.txt, classes.txt, image_class_labels.txt, train_test_split.txt, "
    "bounding_boxes.txt",
    read=read_cubs,
    folders=("cubs", "CUB_200_2011"),
)

# -- Stanford Cars, cropped by box, from the annotation files of its devkit ------------------------------


def read_cars(root: Path) -> ImageData:
    """Return Stanford Cars in ``root``: cars_train/, cars_test/, devkit/."""
    classes = [str(name) for name in read_matlab(root / "devkit" / "cars_meta.mat", "class_names")]
    test = root / "cars_test_annos_withlabels.mat"
    if not test.exists():  # it was published beside the devkit, and is often put into it
        test = root / "devkit" / test.name

    def split(folder: str, source: Path) -> ImageSet:
        files: list[Path] = []
        labels: list[int] = []
        boxes: list[Box] = []
        with reading(source):
            for row in read_matlab(source, "annotations"):
                # MATLAB counts pixels and classes from 1, and its boxes include their last pixel.
                left, top, right, bottom = (
                    whole(row[f"bbox_{edge}"]) for edge in ("x1", "y1", "x2", "y2")
                )
                boxes.append((left - 1, top - 1, right, bottom))
                labels.append(whole(row["class"]) - 1)
                files.append(inside(root / folder, str(row["fname"]), source))
        return image_set(classes, files, labels, source, boxes)

    train = split("cars_train", root / "devkit" / "cars_train_annos.mat")
    return cut("cars", train, None, split("cars_test", test))


CARS = DatasetInfo(
    name="cars",
    title="Stanford Cars, cropped by box",
    classes=196,
    counts={"train": 8144, "test": 8041},
    crop_pct=1.0,
    licence="non-commercial research; the images belong to their owners",
    how_to_get="the publisher's page is gone, and torchvision cannot download it any more; ask for a copy of "
    "car_ims, car_devkit.tgz and cars_test_annos_withlabels.mat",
    layout="cars_train/<file>, cars_test/<file>, devkit/cars_meta.mat, devkit/cars_train_annos.mat, "
    "cars_test_annos_withlabels.mat",
    read=read_cars,
    folders=("cars", "stanford_cars"),
)

# -- Flowers-102 -----------------------------------------------------------------------------------------


def read_flowers(root: Path) -> ImageData:
    """Return Flowers-102 in ``root``: jpg/, imagelabels.mat, setid.mat.

    As in the paper, train is what was published as training and validation images together.
    """
    labels, source = whole_numbers(root / "imagelabels.mat", "labels"), root / "setid.mat"

    def split(*keys: str) -> ImageSet:
        ids = [number for key in keys for number in whole_numbers(source, key)]
        with reading(source):
            if min(ids) < 1:
                raise ValueError(f"image {min(ids)} is out of range")
            of_class = [labels[number - 1] - 1 for number in ids]
        return image_set(
            # The files give the classes no names, only numbers.
            [f"{number:03d}" for number in range(1, FLOWERS.classes + 1)],
            [root / "jpg" / f"image_{number:05d}.jpg" for number in ids],
            of_class,
            source,
        )

    return cut("flowers", split("trnid", "valid"), None, split("tstid"))


FLOWERS = DatasetInfo(
    name="flowers",
    title="Oxford Flowers-102",
    classes=102,
    counts={"train": 2040, "test": 6149},
    licence="no licence is stated; the images belong to their owners",
    how_to_get="--download, or 102flowers.tgz, imagelabels.mat and setid.mat from "
    "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    layout="jpg/image_<number>.jpg, imagelabels.mat, setid.mat",
    read=read_flowers,
    download=by_torchvision("Flowers102", "."),  # into flowers-102/
    folders=("flowers", "flowers-102"),
)

# -- sets whose folders are their annotation ---------------------------------------------------------------

_AUTHORS = "the archive of the paper's authors, linked from https://github.com/arunmallya/piggyback"

WIKIART = DatasetInfo(
    name="wikiart",
    title="WikiArt, as the paper split it",
    classes=195,
    counts={"train": 42129, "test": 10628},
    licence="the paintings belong to their owners; research only",
    how_to_get=_AUTHORS,
    layout="train/<class>/<file>, test/<class>/<file>",
    read=partial(folder_splits, name="wikiart"),
)
SKETCH = DatasetInfo(
    name="sketch",
    title="TU-Berlin sketches, as the paper split them",
    classes=250,
    counts={"train": 16000, "test": 4000},
    licence="CC BY 4.0",
    how_to_get=_AUTHORS,
    layout="train/<class>/<file>, test/<class>/<file>",
    read=partial(folder_splits, name="sketch"),
    folders=("sketch", "sketches"),
)
IMAGENET = DatasetInfo(
    name="imagenet",
    title="ImageNet (ILSVRC 2012); its val is what papers measure",
    classes=1000,
    counts={"train": 1281167, "test": 50000},
    licence="non-commercial research and education, under ImageNet's terms of access",
    how_to_get="https://image-net.org/download.php, after signing in; sort val into folders by its ground truth",
    layout="train/<wnid>/<file>, val/<wnid>/<file>",
    read=partial(folder_splits, name="imagenet", test="val"),
)

# -- Places365-Standard with images of 256 x 256 pixels, in the layout that torchvision makes ----------------


def read_places(root: Path) -> ImageData:
    """Return Places365 in ``root``; its val, which is what papers measure, is test."""
    source = root / "categories_places365.txt"
    with reading(source):
        numbers = {name.lstrip("/"): int(label) for name, label in by_id(source).items()}
        if sorted(numbers.values()) != list(range(len(numbers))):
            raise ValueError(f"not each number from 0 to {len(numbers) - 1} is there once")
    classes = sorted(numbers, key=numbers.__getitem__)

    def split(folder: Path, source: Path) -> ImageSet:
        listed = rows(source, 2)
        files = [inside(folder, name.lstrip("/"), source) for name, _ in listed]
        with reading(source):
            labels = [int(label) for _, label in listed]
        return image_set(classes, files, labels, source)

    train = root / "data_256_standard"
    if not train.is_dir():  # as its archive has it; torchvision renames it
        train = root / "data_256"
    learned = split(train, root / "places365_train_standard.txt")
    return cut("places365", learned, None, split(root / "val_256", root / "places365_val.txt"))


PLACES = DatasetInfo(
    name="places365",
    title="Places365-Standard; its val is what papers measure",
    classes=365,
    counts={"train": 1803460, "test": 36500},
    licence="non-commercial research and education; the images belong to their owners",
    how_to_get="--download, or train_256_places365standard.tar, val_256.tar and "
    "filelist_places365-standard.tar from http://places2.csail.mit.edu/download.html",
    layout="data_256_standard/<letter>/<class>/<file>, val_256/<file>, categories_places365.txt, "
    "places365_train_standard.txt, places365_val.txt",
    read=read_places,
    download=by_torchvision(
        "Places365",
        "places365",
        {"split": "train-standard", "small": True},
        {"split": "val", "small": True},
    ),
)
