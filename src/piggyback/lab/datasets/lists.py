"""What readers share: text and MATLAB files of annotations, and sets made of the files that these name.

A list that names what is not there is found before training starts.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from piggyback.errors import DataError, require
from piggyback.images.decode import Box, check_image, in_threads
from piggyback.train.data.folder import load_split
from piggyback.train.data.sets import ImageData, ImageSet, cut

_MALFORMED = (
    *(ArithmeticError, LookupError, NotImplementedError, OSError, TypeError, ValueError),
    zlib.error,
)
"""What reading files comes to that are damaged, or whose parts do not belong together."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name ``path`` in whatever goes wrong while it is read, and what it says is used: a DataError of one line."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file or folder; `piggyback data NAME` shows the layout that is expected"
        ) from error
    except _MALFORMED as error:
        told = " ".join(str(error).split())[:200]
        reason = f"says nothing about {told}" if isinstance(error, KeyError) else told
        raise DataError(
            f"{path}: cannot be read ({reason or type(error).__name__}): expected the publisher's file; get it again"
        ) from error


def rows(path: Path, columns: int) -> list[list[str]]:
    """Return the non-empty lines of a text file, each cut at spaces into ``columns`` parts.

    The last part keeps its spaces. Raises DataError, naming file and line.
    """
    with reading(path):
        lines = path.read_text(encoding="utf-8").splitlines()
    found = [[part.strip() for part in line.split(None, columns - 1)] for line in lines]
    for number, parts in enumerate(found, 1):
        if len(parts) not in (0, columns):
            raise DataError(f"{path}, line {number}: {parts}: expected {columns} columns")
    return [parts for parts in found if parts]


def by_id(path: Path) -> dict[str, str]:
    """Return a text file of ``<id> <value>`` lines as a mapping; raises DataError for an id that is there twice."""
    pairs = rows(path, 2)
    with reading(path):
        return dict(
            zip(once([name for name, _ in pairs]), (value for _, value in pairs), strict=True)
        )


def once(ids: Sequence[Any]) -> Sequence[Any]:
    """Return ``ids``; raises ValueError for one that is there twice."""
    if len(set(ids)) < len(ids):
        raise ValueError(f"{next(i for n, i in enumerate(ids) if i in ids[:n])!r} is there twice")
    return ids


def whole(value: Any) -> int:
    """Return the whole number that a number or a text says; raises ValueError for another.

    >>> whole("3"), whole(3.0)
    (3, 3)
    """
    if not float(value).is_integer():
        raise ValueError(f"{value!s} is no whole number")
    return int(float(value))


def read_matlab(path: Path, key: str) -> Any:
    """Return the variable ``key`` of a .mat file, an array without axes of length 1; raises DataError.

    By scipy, which finds every cut and any damage to a compressed file, as the published ones are.
    """
    io = require("scipy.io", "data")
    with reading(path), path.open("rb") as file:
        try:
            found = io.loadmat(file, squeeze_me=True, variable_names=[key])
        except io.matlab.MatReadError as error:
            raise ValueError(f"{error}, no MATLAB file of level 5") from error
        return np.atleast_1d(found[key])


def whole_numbers(path: Path, key: str) -> list[int]:
    """Return the variable ``key`` of a .mat file as whole numbers; raises DataError for anything else."""
    with reading(path):
        return [whole(value) for value in read_matlab(path, key)]


def inside(folder: Path, name: str, source: Path) -> Path:
    """Return ``folder / name``; DataError if ``name``, which ``source`` gives, would leave the folder.

    >>> inside(Path("images"), "cat/1.jpg", Path("list.txt")).as_posix()
    'images/cat/1.jpg'
    """
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or PurePosixPath(name).is_absolute():
        raise DataError(f"{source}: {name!r}: expected a path inside {folder}")
    return folder.joinpath(*parts)


def labels_of(names: Iterable[str], classes: Sequence[str], source: Path) -> list[int]:
    """Return the label of each class name in ``source``; raises DataError for one that is not in ``classes``."""
    place = {name: label for label, name in enumerate(classes)}
    found = []
    for name in names:
        if name not in place:
            raise DataError(f"{source}: class {name!r} is not one of the {len(classes)} classes")
        found.append(place[name])
    return found


def image_set(
    classes: Sequence[str],
    files: Sequence[Path],
    labels: Sequence[int],
    source: Path,
    boxes: Sequence[Box] | None = None,
) -> ImageSet:
    """Return the set of ``files``, checked: each is there, looks whole, and its box meets it.

    ``source`` is the list that names them. Raises DataError, naming both.
    """
    for file, label in zip(files, labels, strict=True):
        if not 0 <= label < len(classes):
            raise DataError(
                f"{source}: {file.name} has label {label}, counted from 0: "
                f"expected 0 to {len(classes) - 1}, one of the {len(classes)} classes"
            )

    def check(index: int) -> None:
        try:
            check_image(files[index], box=None if boxes is None else boxes[index])
        except DataError as error:
            raise DataError(f"{error} (listed in {source})") from error

    for _ in in_threads(check, range(len(files))):  # raises the first fault and cancels the rest
        pass
    return ImageSet(
        tuple(classes),
        torch.tensor(labels, dtype=torch.int64),
        files=tuple(files),
        boxes=None if boxes is None else torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4),
    )


def folder_splits(root: Path, name: str, test: str = "test") -> ImageData:
    """Return ``<root>/train/<class>/`` and ``<root>/<test>/<class>/``, with val cut from train."""
    learned, measured = (load_split(root / split) for split in ("train", test))
    return cut(name, learned, None, measured)
