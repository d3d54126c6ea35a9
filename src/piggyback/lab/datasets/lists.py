"""What readers share: text, JSON and MATLAB files of annotations, and sets made of the files that these name.

A list that names what is not there is found before training starts.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from piggyback.errors import DataError, require
from piggyback.images.decode import Box, check_image
from piggyback.train.data.folder import load_split
from piggyback.train.data.sets import ImageData, ImageSet, cut

_FAR = 1 << 31
"""No image has as many pixels a side."""

_NOT_MATLAB = (
    *(ArithmeticError, LookupError, NotImplementedError, OSError, TypeError, ValueError),
    zlib.error,
)
"""What scipy raises, besides its own error, for files that are damaged, cut off, or not of level 5."""


def required(path: Path) -> Path:
    """Return ``path``, a file or folder that a set cannot do without; DataError if it is not there."""
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; `piggyback data NAME` shows the layout that is expected"
        )
    return path


# -- text and JSON -----------------------------------------------------------------------------------


def rows(path: Path, columns: int) -> list[list[str]]:
    """Return the non-empty lines of a text file, each cut at spaces into ``columns`` parts.

    The last part keeps its spaces. Raises DataError, naming file and line.
    """
    try:
        text = required(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from error
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split(None, columns - 1)
        if not parts:
            continue
        if len(parts) != columns:
            raise DataError(f"{path}, line {number}: {line!r}: expected {columns} columns")
        found.append([part.strip() for part in parts])
    return found


def by_id(path: Path, ids: Iterable[str] | None = None) -> dict[str, str]:
    """Return a text file of ``<id> <value>`` lines as a mapping; the value keeps its spaces.

    Raises DataError for an id that appears twice, or one of ``ids`` that is not there.
    """
    found: dict[str, str] = {}
    for name, value in rows(path, 2):
        if name in found:
            raise DataError(f"{path}: {name!r} appears twice: expected each id once")
        found[name] = value
    for name in ids or ():
        if name not in found:
            raise DataError(f"{path}: says nothing about {name!r}: expected a line for each id")
    return found


def whole(text: str, path: Path) -> int:
    """Return the whole number that ``text`` of the file ``path`` says; raises DataError."""
    try:
        return int(text)
    except ValueError:
        raise DataError(f"{path}: {text!r}: expected a whole number") from None


def read_json(path: Path) -> Any:
    """Return the JSON in ``path``; raises DataError."""
    try:
        return json.loads(required(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error


# -- MATLAB ------------------------------------------------------------------------------------------


def read_matlab(path: Path, key: str) -> Any:
    """Return the variable ``key`` of a .mat file without axes of length 1; raises DataError.

    By scipy, which finds every cut and any damage to a compressed file, as the published ones are.
    """
    io = require("scipy.io", "data")
    required(path)
    try:
        found = io.loadmat(path, squeeze_me=True, variable_names=[key])
    except (*_NOT_MATLAB, io.matlab.MatReadError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be read as a MATLAB file, level 5 ({reason})") from error
    if key not in found:
        raise DataError(f"{path}: holds no variable {key!r}; is it the right file?")
    return found[key]


def whole_numbers(path: Path, key: str) -> list[int]:
    """Return the variable ``key`` as whole numbers; raises DataError for anything else."""
    values = np.atleast_1d(read_matlab(path, key))
    if (
        values.ndim != 1
        or values.dtype.kind not in "iuf"
        or not np.isfinite(values).all()
        or (values != np.floor(values)).any()
    ):
        raise DataError(f"{path}: {key!r}: expected a row of whole numbers")
    return [int(value) for value in values]


def texts(path: Path, key: str) -> list[str]:
    """Return the variable ``key``, cells of text; raises DataError for anything else."""
    values: list[Any] = np.atleast_1d(read_matlab(path, key)).tolist()
    if not all(isinstance(value, str) for value in values):
        raise DataError(f"{path}: {key!r}: expected cells of text")
    return values


def structs(path: Path, key: str, fields: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return of the variable ``key``, structs, the values of ``fields``; raises DataError for anything else."""
    values = np.atleast_1d(read_matlab(path, key))
    if values.ndim != 1 or values.dtype.names is None:
        raise DataError(f"{path}: {key!r}: expected an array of structs")
    absent = [name for name in fields if name not in values.dtype.names]
    if absent:
        raise DataError(
            f"{path}: {key!r} has no {', '.join(absent)}: expected the file with labels"
        )
    return [tuple(row[name] for name in fields) for row in values]


# -- sets --------------------------------------------------------------------------------------------


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
    for file, box in zip(files, boxes or (), strict=False):
        if not all(-_FAR < edge < _FAR for edge in box):
            raise DataError(f"{source}: {file.name} has box {box}: expected pixels")

    def check(index: int) -> None:
        try:
            check_image(files[index], box=None if boxes is None else boxes[index])
        except DataError as error:
            raise DataError(f"{error} (listed in {source})") from error

    with ThreadPoolExecutor() as pool:
        list(pool.map(check, range(len(files))))  # raises the first fault and cancels the rest
    return ImageSet(
        tuple(classes),
        torch.tensor(labels, dtype=torch.int64),
        files=tuple(files),
        boxes=None if boxes is None else torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4),
    )


def folder_splits(root: Path, name: str, train: str = "train", test: str = "test") -> ImageData:
    """Return ``<root>/<train>/<class>/`` and ``<root>/<test>/<class>/``, with val cut from train."""
    folders = [required(root / split) for split in (train, test)]
    learned, measured = (load_split(folder) for folder in folders)
    return cut(name, learned, None, measured)
