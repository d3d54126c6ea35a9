"""Image folders: ``<root>/<split>/<class>/<file>``, or ``<root>/<class>/<file>``.

Splits that are missing are cut from train. Everything that is wrong with a folder is found here,
before training starts, and named.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch

from piggyback.errors import DataError, near_misses
from piggyback.images.decode import check_image, in_threads
from piggyback.images.find import SUFFIXES, is_image_name, list_folders, list_images
from piggyback.train.data.sets import ImageData, ImageSet, cut

_SPLIT_WORDS = {
    "train": "train", "training": "train", "trainset": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "valset": "val",
    "test": "test", "testing": "test", "testset": "test",
}  # fmt: skip
_BESIDE = frozenset({"seg", "set", "split", "data", "dataset", "images", "imgs", "dir", "folder"})
"""Words that a split's folder may have in its name besides."""


def split_of(name: str) -> str | None:
    """Return which split a folder's name stands for, "train", "val" or "test"; None where it is a class.

    >>> [split_of(name) for name in ("Train", "seg_test", "dev", "TESTING", "trainData", "test tube")]
    ['train', 'test', 'val', 'test', 'train', None]
    """
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]
    found = {_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS}
    others = [word for word in words if word not in _SPLIT_WORDS and word not in _BESIDE]
    return found.pop() if len(found) == 1 and not others else None


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each split in ``root``, "train" first; nothing where it holds class folders themselves.

    Only folders that hold folders count: a class may be called "train". Raises DataError for two folders of one split.
    """
    found: dict[str, list[Path]] = {"train": [], "val": [], "test": []}
    for folder in list_folders(root):
        split = split_of(folder.name)
        if split is not None and list_folders(folder):
            found[split].append(inner_folder(folder))
    for split, folders in found.items():
        if len(folders) > 1:
            names = " and ".join(repr(folder.name) for folder in folders[:2])
            raise DataError(
                f"image folder {str(root)!r} holds {names}: expected one {split} folder"
            )
    return {split: folders[0] for split, folders in found.items() if folders}


def load_folder(
    root: str | Path,
    name: str | None = None,
    *,
    skip_bad: bool = False,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
    classes: Sequence[str] | int | None = None,
    train_per_class: int | None = None,
) -> ImageData:
    """Return the images under ``root``, checked; class names sorted, labels in that order.

    ``root`` holds train/, and val/ and test/ or not; or class folders directly, which are all taken as train.
    ``skip_bad``: leave unreadable images out (every image is decoded once to find them) and list them in ``skipped``;
    otherwise the first one raises. ``seed``: of the cut, so that it stays the same over runs. ``classes``: only these,
    or so many of the first ones; ``train_per_class``: of each at most so many training images, the first by name.

    What else was passed over is counted in ``notes``, and images that are in train and in another split, byte for byte.
    Hidden folders and those of file managers are not read; linked ones are, once.

    val and test may lack a class of train, which is said in ``notes``; accents of a class's name may be written in
    either of Unicode's two ways, and train's is kept.

    Raises DataError for a folder that is missing or empty, a class without images in train, one class only,
    a class that train does not have, a corrupt or truncated image.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"image folder {str(root)!r}: no such directory")
    folders, left_out = split_folders(root), Counter[str]()
    if folders and "train" not in folders:
        raise DataError(
            f"image folder {str(root)!r} holds {', '.join(p.name for p in folders.values())} but no "
            "'train': expected <root>/train/<class>/<file>"
        )
    if folders:
        left_out.update(
            f"folder without class folders: {other.name!r}"
            if split_of(other.name)
            else f"folder that is not called train, val or test: {other.name!r}"
            for other in list_folders(root)
            if split_of(other.name) is None or not list_folders(other)
        )
        count_loose(root, left_out)
    layout = layout_notes(folders.get("train", root))
    sets: dict[str, ImageSet] = {}
    skipped: list[str] = []
    deep: list[Path] = []
    for split, folder in (folders or {"train": root}).items():
        most = train_per_class if split == "train" else None
        known = sets["train"].classes if "train" in sets else ()
        sets[split], bad = _read_split(folder, skip_bad, classes, most, left_out, known)
        skipped += bad
        deep += [file.parent for file in sets[split].files if file.parent.parent != folder]
    notes = [f"passed over: {count} {what}" for what, count in left_out.most_common()]
    notes += layout
    if deep and not layout:
        where = f"{deep[0].name!r} in {deep[0].parent.name!r}"
        notes.append(
            f"{len(deep)} images lie in folders below their class's, such as {where}: they count as that class's"
        )
    return cut(
        name or root.resolve().name,
        sets["train"],
        sets.get("val"),
        sets.get("test"),
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        seed=seed,
        skipped=tuple(skipped),
        notes=tuple(notes),
    )


def load_split(folder: str | Path, *, skip_bad: bool = False) -> ImageSet:
    """Return the images of one folder of class folders, checked as ``load_folder`` does."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"image folder {str(folder)!r}: no such directory")
    return _read_split(inner_folder(folder), skip_bad)[0]


def inner_folder(folder: Path) -> Path:
    """``folder``, or the one in it that holds the classes where archives were unpacked twice: seg_train/seg_train."""
    inner = list_folders(folder)
    again = len(inner) == 1 and split_of(inner[0].name) is not None and bool(list_folders(inner[0]))
    return inner_folder(inner[0]) if again else folder


def _read_split(
    folder: Path,
    skip_bad: bool,
    wanted: Sequence[str] | int | None = None,
    most: int | None = None,
    left_out: Counter[str] | None = None,
    known: Sequence[str] = (),
) -> tuple[ImageSet, list[str]]:
    inside = list_folders(folder)
    written = {
        _composed(name): name for name in (*[f.name for f in inside], *known)
    }  # train's wins
    names = {written[_composed(inner.name)]: inner for inner in inside}
    if len(names) < len(inside):
        twice = next(f.name for f in inside if f not in names.values())
        both = [ascii(f.name) for f in inside if _composed(f.name) == _composed(twice)]
        raise DataError(
            f"image folder {str(folder)!r} holds {' and '.join(both)}, two ways to write {twice!r}: expected one "
            "folder for each class; merge them"
        )
    found = sorted({*names, *known})
    if not names:
        raise DataError(
            f"image folder {str(folder)!r} holds no class folders{_flat(folder)}: expected one folder per class in it; "
            "or name the classes in a table, FILE.csv with columns image and label"
        )
    for name in found:
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise DataError(
                f"class folder {str(folder / name)!r}: its name is not UTF-8, and no task file can hold it; rename it"
            )
    classes = found[:wanted] if isinstance(wanted, int) else sorted(wanted or found)
    for name in classes:
        if name not in found:
            raise DataError(
                f"image folder {str(folder)!r} holds no class {name!r}{near_misses(name, found)}"
            )
    if left_out is not None:
        count_loose(folder, left_out)
    files: list[Path] = []
    labels: list[int] = []
    places = _places(folder, {name: names[name] for name in classes if name in names})
    for label, class_name in enumerate(classes):
        elsewhere = {place for name, place in places.items() if name != class_name}
        here = names.get(class_name)
        beside = Counter[str]()
        images = list_images(here, beside, elsewhere)[:most] if here else []
        if not images and not known:
            raise DataError(
                f"class folder {str(here)!r} holds no images{only(beside)}: expected one or more "
                f"of {', '.join(sorted(SUFFIXES))}; remove the folder if the class is not wanted"
            )
        if left_out is not None:
            left_out.update(beside)
        files += images
        labels += [label] * len(images)
    checks = enumerate(in_threads(partial(problem_of, thorough=skip_bad), files))
    bad = {position: problem for position, problem in checks if problem is not None}
    if bad and not skip_bad:
        listed = [*bad.values()][:10]
        others = f"; and {len(bad) - len(listed)} more" if len(bad) > len(listed) else ""
        raise DataError(
            f"{'; '.join(listed)}{others}; remove them or skip such images (skip_bad=True)"
        )
    good = [i for i in range(len(files)) if i not in bad]
    whole = ImageSet(tuple(classes), torch.tensor(labels), files=tuple(files))
    return whole.subset(torch.tensor(good, dtype=torch.int64)), [str(files[i]) for i in sorted(bad)]


def layout_notes(folder: Path) -> list[str]:
    """Return a line where the folders in one may not be the classes: each holds several others and no image.

    Raises DataError where they hold splits, are splits with images in them, or where there is but one, around others
    or beside a table.
    """
    places = list_folders(folder)
    if len({split_of(place.name) for place in places} - {None}) == len(places) > 1:
        raise DataError(
            f"image folder {str(folder)!r} holds {' and '.join(repr(place.name) for place in places)} without class "
            "folders in them: expected <root>/<split>/<class>/<file>, or a table that names the classes, FILE.csv with "
            "columns image, label and split"
        )
    if len(places) == 1 and (tables := sorted(folder.glob("*.[ct]sv"))):
        raise DataError(
            f"image folder {str(folder)!r} holds one folder, {places[0].name!r}, and a table: give {str(tables[0])!r}"
        )
    inner = [[each.name for each in list_folders(place)] for place in places]
    splits = [{split_of(name): name for name in names if split_of(name)} for names in inner]
    # Splits that all of them hold, and no image beside these; a single class may well have a "test" in it.
    if splits and min(map(len, splits)) > 1 and not any(map(_flat, places)):
        what = " and ".join(map(repr, splits[0].values()))
        todo = f"give {str(places[0])!r}" if len(places) == 1 else "move the folders"
        raise DataError(
            f"class folder {str(places[0])!r} holds {what}: expected <root>/<split>/<class>/<file>, splits outside and "
            f"classes within; {todo}"
        )
    if not inner or min(map(len, inner)) < 2 or any(map(_flat, places)):
        return []
    some = ", ".join(map(repr, inner[0][:3])) + ", ..." * (len(inner[0]) > 3)
    if len(places) == 1:
        raise DataError(
            f"image folder {str(folder)!r} holds one folder, {places[0].name!r}, with {some} in it: expected a folder "
            f"for each class, or for each split; give {str(places[0])!r}, or move its folders up"
        )
    named = ", ".join([repr(place.name) for place in places[:3]]) + ", ..." * (len(places) > 3)
    return [
        f"the classes are {named}, not the folders in them, {some}: if those are, move them up, or into train and test"
    ]


def only(others: Counter[str]) -> str:
    """What there is in a folder without images, as an error goes on: " but 3 '.heic' files"."""
    found = ", ".join(f"{count} {what}{'s' * (count > 1)}" for what, count in others.most_common(3))
    return f" but {found}" if found else ""


def count_loose(folder: Path, left_out: Counter[str]) -> None:
    """Count in ``left_out`` the images that lie in ``folder`` itself, beside the folders of splits or classes."""
    if loose := sum(is_image_name(file) for file in folder.iterdir() if file.is_file()):
        left_out["image file outside the class folders"] += loose


def _composed(name: str) -> str:
    """``name`` in one of Unicode's two ways to write accents: macOS's and others' compare equal."""
    return unicodedata.normalize("NFC", name)


def _flat(folder: Path) -> str:
    images = sum(is_image_name(file) for file in folder.iterdir())
    return f" but {images} images" if images else ""


def _places(folder: Path, classes: Mapping[str, Path]) -> dict[str, str]:
    """The real path of each class's folder; DataError where one is another's, or holds it."""
    places = {name: os.path.realpath(place) for name, place in classes.items()}
    inside_out = sorted(places.items(), key=lambda pair: Path(pair[1]).parts)
    for (outer, real), (name, other) in pairwise(inside_out):
        if Path(other).is_relative_to(real):
            raise DataError(
                f"class folders {outer!r} and {name!r} in {str(folder)!r} are links to one folder, or one holds the "
                f"other ({real!r}, {other!r}): expected a folder of its own for each class; remove the link"
            )
    return places


def problem_of(source: Path | bytes, thorough: bool = False) -> str | None:
    """Return why an image cannot be read, None for a good one, see ``check_image``."""
    try:
        check_image(source, thorough=thorough)
    except DataError as error:
        return str(error)
    return None
