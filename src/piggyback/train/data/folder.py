"""Image folders: ``<root>/<split>/<class>/<file>``, or ``<root>/<class>/<file>``.

Splits that are missing are cut from train. Everything that is wrong with a folder is found here,
before training starts, and named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from piggyback.errors import DataError, near_misses
from piggyback.images.decode import check_image
from piggyback.images.find import SUFFIXES, list_images
from piggyback.train.data.sets import ImageData, ImageSet, cut

SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""Names a split's folder may have."""


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

    Raises DataError for a folder that is missing or empty, a class without images, one class only, splits with
    different classes, a corrupt or truncated image.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"image folder {str(root)!r}: no such directory")
    folders = _split_folders(root)
    sets: dict[str, ImageSet] = {}
    skipped: list[str] = []
    for split, folder in folders.items():
        most = train_per_class if split == "train" else None
        sets[split], bad = _read_split(folder, skip_bad, classes, most)
        skipped += bad
    return cut(
        name or root.resolve().name,
        sets["train"],
        sets.get("val"),
        sets.get("test"),
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        seed=seed,
        skipped=tuple(skipped),
    )


def load_split(folder: str | Path, *, skip_bad: bool = False) -> ImageSet:
    """Return the images of one folder of class folders, checked as ``load_folder`` does."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"image folder {str(folder)!r}: no such directory")
    return _read_split(folder, skip_bad)[0]


def _split_folders(root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for split, names in SPLITS.items():
        present = [root / name for name in names if (root / name).is_dir()]
        if len(present) > 1:
            raise DataError(
                f"image folder {str(root)!r} holds {present[0].name!r} and {present[1].name!r}: "
                f"expected one {split} folder"
            )
        if present:
            found[split] = present[0]
    if found and "train" not in found:
        raise DataError(
            f"image folder {str(root)!r} holds {', '.join(p.name for p in found.values())} but no "
            "'train': expected <root>/train/<class>/<file>"
        )
    return found or {"train": root}


def _read_split(
    folder: Path,
    skip_bad: bool,
    wanted: Sequence[str] | int | None = None,
    most: int | None = None,
) -> tuple[ImageSet, list[str]]:
    found = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not found:
        raise DataError(
            f"image folder {str(folder)!r} holds no class folders: expected <class>/<file> in it"
        )
    classes = found[:wanted] if isinstance(wanted, int) else sorted(wanted or found)
    for name in classes:
        if name not in found:
            raise DataError(
                f"image folder {str(folder)!r} holds no class {name!r}{near_misses(name, found)}"
            )
    files: list[Path] = []
    labels: list[int] = []
    for label, class_name in enumerate(classes):
        inside = list_images(folder / class_name)[:most]
        if not inside:
            raise DataError(
                f"class folder {str(folder / class_name)!r} holds no images: expected one or more "
                f"of {', '.join(sorted(SUFFIXES))}; remove the folder if the class is not wanted"
            )
        files += inside
        labels += [label] * len(inside)
    bad = set()
    checks = problems(partial(_problem, thorough=skip_bad), files)
    for position, problem in enumerate(checks):
        if problem is not None and not skip_bad:
            raise DataError(f"{problem}; remove it or skip such images (skip_bad)")
        if problem is not None:
            bad.add(position)
    good = [i for i in range(len(files)) if i not in bad]
    whole = ImageSet(tuple(classes), torch.tensor(labels), files=tuple(files))
    return whole.subset(torch.tensor(good, dtype=torch.int64)), [str(files[i]) for i in sorted(bad)]


def problems(check: Callable[..., str | None], *files: Sequence[Path]) -> Iterator[str | None]:
    """Yield what ``check`` says of each file, in order, looking at several at a time."""
    pool = ThreadPoolExecutor()
    try:
        yield from pool.map(check, *files)
    finally:  # also where the caller has seen enough
        pool.shutdown(wait=False, cancel_futures=True)


def _problem(path: Path, thorough: bool) -> str | None:
    try:
        check_image(path, thorough=thorough)
    except DataError as error:
        return str(error)
    return None
