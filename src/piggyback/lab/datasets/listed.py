"""Sets whose files are named in lists: a list that names what is not there is found before training starts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from piggyback.errors import DataError
from piggyback.images.decode import Box, check_image
from piggyback.train.data.folder import load_split
from piggyback.train.data.sets import ImageData, ImageSet
from piggyback.train.data.splits import cut

_FAR = 1 << 31
"""No image has as many pixels a side."""


def required(path: Path) -> Path:
    """Return ``path``, a file or folder that a set cannot do without; DataError if it is not there."""
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; `piggyback data` NAME shows the layout that is expected"
        )
    return path


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

    Raises DataError for an id that is there twice, or one of ``ids`` that is not there.
    """
    found: dict[str, str] = {}
    for name, value in rows(path, 2):
        if name in found:
            raise DataError(f"{path}: {name!r} is there twice: expected each id once")
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


def inside(folder: Path, name: str, source: Path) -> Path:
    """Return ``folder / name``; DataError if ``name``, which ``source`` gives, would leave the folder.

    >>> inside(Path("images"), "cat/1.jpg", Path("list.txt")).as_posix()
    'images/cat/1.jpg'
    """
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or PurePosixPath(name).is_absolute():
        raise DataError(f"{source}: {name!r}: expected a path inside {folder}")
    return folder.joinpath(*parts)


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
    _check_there(files, source)

    def problem(index: int) -> str | None:
        try:
            check_image(files[index], box=None if boxes is None else boxes[index])
        except DataError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        for text in pool.map(problem, range(len(files))):
            if text is not None:
                pool.shutdown(wait=False, cancel_futures=True)
                raise DataError(f"{text} (listed in {source})")
    return ImageSet(
        tuple(classes),
        torch.tensor(labels, dtype=torch.int64),
        files=tuple(files),
        boxes=None if boxes is None else torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4),
    )


def folder_splits(root: Path, name: str, train: str, test: str) -> ImageData:
    """Return ``<root>/<train>/<class>/`` and ``<root>/<test>/<class>/``, with val cut from train."""
    folders = [required(root / split) for split in (train, test)]
    learned, measured = (load_split(folder) for folder in folders)
    return cut(name, learned, None, measured)


def _check_there(files: Iterable[Path], source: Path) -> None:
    """One listing a folder, rather than a question a file: sets have up to millions of files."""
    listings: dict[Path, set[str]] = {}
    for file in files:
        folder = file.parent
        if folder not in listings:
            listings[folder] = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
        if file.name not in listings[folder]:
            raise DataError(
                f"{file}: no such file, though {source} lists it; unpack the images again"
            )
