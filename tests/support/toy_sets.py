"""Every registered data set at toy size, in its publisher's own layout: tiny images of noise, all files made here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from piggyback.lab.datasets.decathlon import DECATHLON

SIZE = (24, 20)
"""Width and height of every picture."""
BOX = (4, 5, 16, 15)
"""Left, top, right, bottom of what is to be cropped: a green part in a red picture."""


def picture(path: Path, seed: int = 0) -> None:
    """Write red with a green box, and a little noise so that files differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 20, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    noise[..., 0] += 200
    left, top, right, bottom = BOX
    noise[top:bottom, left:right, :2] = (0, 200)
    Image.fromarray(noise).save(path, quality=100)


def lines(path: Path, rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")


def cubs(root: Path) -> None:
    """Two classes; images 1 to 5 of each, the last of each is for test."""
    names, labels, parts, boxes = [], [], [], []
    left, top, right, bottom = BOX
    for number in range(1, 11):
        bird = "001.Crow" if number <= 5 else "002.Wren"
        file = f"{bird}/{bird[4:]}_{number:04d}.jpg"
        picture(root / "images" / file, number)
        names.append(f"{number} {file}")
        labels.append(f"{number} {1 if number <= 5 else 2}")
        parts.append(f"{number} {0 if number in (5, 10) else 1}")
        boxes.append(f"{number} {left}.0 {top}.0 {right - left}.0 {bottom - top}.0")
    lines(root / "images.txt", names)
    lines(root / "classes.txt", ["1 001.Crow", "2 002.Wren"])
    lines(root / "image_class_labels.txt", labels)
    lines(root / "train_test_split.txt", parts)
    lines(root / "bounding_boxes.txt", boxes)


CAR = np.dtype(
    [(f"bbox_{name}", object) for name in ("x1", "y1", "x2", "y2")]
    + [("class", object), ("fname", object)]
)


def annotations(path: Path, rows: list[tuple[object, ...]]) -> None:
    """Write a struct array as the devkit of Stanford Cars has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = np.empty(len(rows), dtype=CAR)
    for place, row in enumerate(rows):
        made[place] = row
    savemat(path, {"annotations": made})


def cars(root: Path) -> None:
    """Two classes, four images of each in train and one in test; pixels count from 1, the last one is inside."""
    left, top, right, bottom = BOX
    (root / "devkit").mkdir(parents=True)
    names = np.array(["AM General Hummer", "Acura RL"], dtype=object)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names})
    for split, each, place in (
        ("train", 4, root / "devkit" / "cars_train_annos.mat"),
        ("test", 1, root / "cars_test_annos_withlabels.mat"),
    ):
        rows: list[tuple[object, ...]] = []
        for number in range(2 * each):
            name = f"{number + 1:05d}.jpg"
            picture(root / f"cars_{split}" / name, number)
            rows.append((left + 1, top + 1, right, bottom, number % 2 + 1, name))
        annotations(place, rows)


def flowers(root: Path) -> None:
    """102 classes; of each one image in train, one in val, one in test."""
    picture(root / "jpg" / "image_00001.jpg")
    same = (root / "jpg" / "image_00001.jpg").read_bytes()
    for number in range(2, 307):
        # What follows a JPEG's end is not read, and makes it another file.
        (root / "jpg" / f"image_{number:05d}.jpg").write_bytes(same + bytes(f"{number}", "ascii"))
    savemat(root / "imagelabels.mat", {"labels": np.arange(306) % 102 + 1})
    ids = np.arange(1, 307).reshape(3, 102)
    savemat(root / "setid.mat", {"trnid": ids[0], "valid": ids[1], "tstid": ids[2]})


def folders(root: Path, test: str = "test") -> None:
    """Three classes, four images of each in train, two in test."""
    for split, each in (("train", 4), (test, 2)):
        for name in ("a", "b", "c"):
            for number in range(each):
                picture(root / split / name / f"{number}.jpg", number)


def places365(root: Path) -> None:
    """Two classes, three images of each in train, two in val, which is measured."""
    names = {"/a/airfield": 0, "/b/bar/indoor": 1}
    lines(root / "categories_places365.txt", [f"{name} {label}" for name, label in names.items()])
    train = [(f"{n}/{i:08d}.jpg", label) for n, label in names.items() for i in range(3)]
    val = [(f"Places365_val_{i:08d}.jpg", i % 2) for i in range(4)]
    for place, listed, source in (
        ("data_256_standard", train, "places365_train_standard.txt"),
        ("val_256", val, "places365_val.txt"),
    ):
        for seed, (file, _) in enumerate(listed):
            picture(root / place / file.lstrip("/"), seed)
        lines(root / source, [f"{file} {label}" for file, label in listed])


def decathlon(root: Path, domain: str, splits: tuple[str, ...] = ("train", "val")) -> None:
    """Two categories, four images of each in train, two in val; with ids that do not count from 0."""
    for shift, split in enumerate(splits):
        images, notes = [], []
        for number in range(8 if split == "train" else 4):
            image, category = 1000 * shift + number, 50 + number % 2
            file = f"data/{domain}/{split}/{category:04d}/{number:06d}.jpg"
            picture(root / file, number)
            images.append({"id": image, "file_name": file, "width": 24, "height": 20})
            notes.append({"id": image, "image_id": image, "category_id": category})
        kinds = [{"id": 50 + i, "name": f"{domain}-{i}", "supercategory": domain} for i in (0, 1)]
        place = root / "annotations" / f"{domain}_{split}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        held = {"images": images, "annotations": notes, "categories": kinds}
        place.write_text(json.dumps(held))


def aircraft(root: Path) -> None:
    """Two variants, one with spaces; six images in train, two in val, two in test."""
    data = root / "fgvc-aircraft-2013b" / "data"
    variants = ("707-320", "Eurofighter Typhoon B")
    lines(data / "variants.txt", list(variants))
    for shift, (split, count) in enumerate((("train", 6), ("val", 2), ("test", 2))):
        ids = [f"{1000 * shift + number:07d}" for number in range(count)]
        for name in ids:
            picture(data / "images" / f"{name}.jpg")
        listed = [f"{name} {variants[at % 2]}" for at, name in enumerate(ids)]
        lines(data / f"images_variant_{split}.txt", listed)


def textures(root: Path) -> None:
    """Two classes; four images in train, two in val, two in test."""
    folder = root / "dtd" / "dtd"
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        kinds = [("banded", "woven")[number % 2] for number in range(count)]
        names = [f"{kind}/{kind}_{split}_{at:04d}.jpg" for at, kind in enumerate(kinds)]
        for name in names:
            picture(folder / "images" / name)
        lines(folder / "labels" / f"{split}1.txt", names)


def svhn(root: Path) -> None:
    """Forty digits in train, ten in test; the pixel in row 1 and column 2 of channel 0 is 100 + label."""
    root.mkdir(parents=True)
    for split, count in (("train", 40), ("test", 10)):
        labels = np.arange(count) % 10 + 1
        pixels = np.zeros((32, 32, 3, count), dtype=np.uint8)
        pixels[1, 2, 0] = 100 + labels
        if split == "train":
            pixels[3, 3, 1] = np.arange(count)
        savemat(root / f"{split}_32x32.mat", {"X": pixels, "y": labels[:, None]})


def label_map(path: Path, classes: int, void: int) -> None:
    """Write a map with every class and some void, with a palette as VOC has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = (np.arange(SIZE[0] * SIZE[1]) % (classes + 1)).astype(np.uint8)
    values[values == classes] = void
    image = Image.fromarray(values.reshape(SIZE[1], SIZE[0]), mode="P")
    image.putpalette([value % 256 for value in range(768)])
    image.save(path)


def voc(root: Path) -> None:
    """Six images in train, three in val, which is measured; classes 0 to 20, 255 is void."""
    place = root / "VOCdevkit" / "VOC2012"
    for split, ids in (("train", range(6)), ("val", range(6, 9))):
        names = [f"2007_{number:06d}" for number in ids]
        lines(place / "ImageSets" / "Segmentation" / f"{split}.txt", names)
        for number, name in zip(ids, names, strict=True):
            picture(place / "JPEGImages" / f"{name}.jpg", number)
            label_map(place / "SegmentationClass" / f"{name}.png", 21, 255)


def camvid(root: Path) -> None:
    """Four images in train, two in val, two in test; classes 0 to 10, 11 is void."""
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for number in range(count):
            picture(root / split / "images" / f"{split}_{number}.jpg")
            label_map(root / split / "labels" / f"{split}_{number}.png", 11, 11)


DOMAINS = [info.name.removeprefix("decathlon-") for info in DECATHLON]
MAKERS: Mapping[str, Callable[[Path], None]] = {
    "cubs": cubs,
    "cars": cars,
    "flowers": flowers,
    "wikiart": folders,
    "sketch": folders,
    "imagenet": partial(folders, test="val"),
    "places365": places365,
    **{f"decathlon-{domain}": partial(decathlon, domain=domain) for domain in DOMAINS},
    "aircraft": aircraft,
    "textures": textures,
    "svhn": svhn,
    "voc-segmentation": voc,
    "camvid": camvid,
    "gtsrb": folders,
    "dtd": folders,
    "cifar10": folders,
}
"""By the name in the registry: makes the set in its own folder."""
COUNTS: Mapping[str, tuple[int, int, int]] = {
    "cubs": (8, 0, 2),
    "cars": (8, 0, 2),
    "flowers": (204, 0, 102),
    "places365": (6, 0, 4),
    "aircraft": (6, 2, 2),
    "textures": (4, 2, 2),
    "svhn": (40, 0, 10),
    "voc-segmentation": (6, 0, 3),
    "camvid": (4, 2, 2),
    **{f"decathlon-{domain}": (8, 0, 4) for domain in DOMAINS},
}
"""Train, val and test of what MAKERS make; 0 where val is cut from train; else 12, 0, 6."""
