"""Tables of images or texts: CSV, TSV (tab separated, no quoting), JSONL, and plain files of a text a line.

    classification   a label column with the name of a class
    multilabel       a label column with several names, "a,b" or a JSON list, or a column of 0 and 1 for each label
    regression       a column for each number; "height (m)" is a height in metres

Everything that is wrong with a table is found here, before training starts, with its row: 1 is the first below the
names of the columns.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from piggyback.errors import DataError, near_misses
from piggyback.images.decode import check_image
from piggyback.images.paths import PathList
from piggyback.train.data.folder import problems, split_of
from piggyback.train.data.sets import ImageData, ImageSet, cut
from piggyback.train.data.text import TextSet

SUFFIXES = (".csv", ".tsv", ".jsonl")
ROLES = ("image", "text", "label", "split", "group")
"""What a column may be for; each but "group" is by default the column of that name."""
_KINDS = ("classification", "multilabel", "regression")
_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
_UNIT = re.compile(r"(.*\S)\s*[(\[]([^()\[\]]+)[)\]]")
"""Of a column such as "height (m)": name and unit."""
_FIELD, _KNOWN = 1 << 20, 10_000

Columns = Mapping[str, Sequence[Any]]
"""Cells by the name of their column; row 1 is at 0."""


def is_table(path: Path) -> bool:
    """Return whether a path is that of a table.

    >>> is_table(Path("reviews.tsv")), is_table(Path("photos"))
    (True, False)
    """
    return path.suffix.lower() in SUFFIXES


def read_columns(path: Path) -> Columns:
    """Return a table's columns by name; DataError, with the row, for one that cannot be read."""
    read = _json_columns if path.suffix.lower() == ".jsonl" else _csv_columns
    if path.exists() and not path.is_file():
        raise DataError(f"table {str(path)!r}: it is not a regular file: expected one")
    try:
        # Lines end as the file says, so that other characters that separate lines stay in a cell.
        with path.open(encoding="utf-8-sig", newline="") as file:
            return read(path, file)
    except FileNotFoundError:
        raise DataError(f"table {str(path)!r}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"table {str(path)!r}: {error.object[error.start : error.start + 1]!r} is not UTF-8: expected UTF-8; "
            "save it as that"
        ) from error
    except csv.Error as error:
        raise DataError(f"table {str(path)!r}: {error}: expected a whole table") from error
    except OSError as error:
        raise DataError(f"table {str(path)!r}: {error.strerror}") from error


def read_texts(path: Path, column: str | None = None) -> list[str]:
    """Return the texts of a table's ``column``, by default "text", or the lines of another file."""
    if is_table(path):
        columns = read_columns(path)
        cells = columns[_column(path, columns, "text", column)]
        return [_text(path, at, cell) for at, cell in enumerate(cells, 1)]
    if column is not None:
        raise DataError(f"{str(path)!r}: a column {column!r} of it: expected a table")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{str(path)!r}: expected UTF-8 text, a text a line ({error})") from error
    found = [line for line in lines if line.strip()]
    if not found:
        raise DataError(f"{str(path)!r} is empty: expected a text a line")
    return found


def load_table(
    path: str | Path,
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    kind: str = "classification",
    *,
    separator: str = ",",
    seed: int = 0,
) -> ImageData:
    """Return a table's images or texts with their labels, checked; splits that are missing are cut from train.

    ``columns`` says which columns hold what, by ``ROLES``; "label" may name several, with commas. Images are files,
    relative to the table or absolute. ``kind`` is that of the task, ``separator`` stands between the labels in a cell.
    Rows of one "group" stay in one split. A table without a split is train. Images in several rows are counted in
    ``notes``.

    Raises DataError with the row, the value, and what was expected.
    """
    path = Path(path)
    table = _Table(path, columns or {}, kind, separator)
    parts = table.splits()
    if "train" not in parts:
        raise DataError(
            f"table {str(path)!r} has splits {', '.join(parts)}: expected one called train"
        )
    return cut(
        name or path.stem,
        parts["train"],
        parts.get("val"),
        parts.get("test"),
        seed=seed,
        notes=table.notes,
        groups=table.groups_of("train"),
    )


def table_splits(
    path: Path,
    columns: Mapping[str, str] | None = None,
    kind: str = "classification",
    *,
    separator: str = ",",
) -> dict[str, ImageSet | TextSet]:
    """Return the samples of each split in a table; all are train where it has none. Errors as ``load_table``."""
    return _Table(path, columns or {}, kind, separator).splits()


class _Table:
    """A table's columns that are wanted of it."""

    def __init__(self, path: Path, columns: Mapping[str, str], kind: str, separator: str) -> None:
        self.path, self.kind, self.separator = path, kind, separator
        if kind not in _KINDS:
            raise DataError(
                f"kind {kind!r}: expected one of {', '.join(_KINDS)}{near_misses(kind, _KINDS)}"
            )
        held = read_columns(path)
        if unknown := [role for role in columns if role not in ROLES]:
            raise DataError(
                f"column {unknown[0]}={columns[unknown[0]]}: expected one of {', '.join(ROLES)}"
                f"{near_misses(unknown[0], ROLES)}"
            )
        if {"image", "text"} <= columns.keys():
            raise DataError(f"table {str(path)!r}: columns for image and for text: expected one")
        known = "image" in columns or ("text" not in columns and "image" in held)
        self.role = "image" if known else "text"
        sample = _column(path, held, self.role, columns.get(self.role))
        label = columns.get("label", "label")
        wanted = [label] if label in held else [part.strip() for part in label.split(",")]
        self.labels = {name: held[_column(path, held, "label", name)] for name in wanted}
        if len(self.labels) > 1 and kind == "classification":
            raise DataError(
                f"table {str(path)!r}: {len(self.labels)} columns of labels: expected one for classes; "
                "several are for another kind= (multilabel or regression)"
            )
        named = {"split": "split", **columns} if "split" in held else columns
        split, self.group = (
            _column(path, held, role, named[role]) if role in named else None
            for role in ("split", "group")
        )
        if not held[sample]:
            raise DataError(f"table {str(path)!r} has no rows: expected samples with labels")
        self.notes: tuple[str, ...] = ()
        self.samples = self._images(held[sample]) if known else self._texts(held[sample])
        self.parts = (
            ["train"] * len(self.samples)
            if split is None
            else [_split(path, at, cell) for at, cell in enumerate(held[split], 1)]
        )
        self.groups = None if self.group is None else self._groups(held[self.group])

    def splits(self) -> dict[str, ImageSet | TextSet]:
        """The samples of each split, everything checked."""
        names, labels, units = getattr(self, f"_{self.kind}")()
        if self.role == "image":
            self.notes = self._repeated(labels)
        found: dict[str, ImageSet | TextSet] = {}
        for part in dict.fromkeys(self.parts):
            at = [i for i, other in enumerate(self.parts) if other == part]
            mine, chosen = labels[torch.tensor(at)], [self.samples[i] for i in at]
            if self.role == "text":
                found[part] = TextSet(names, mine, tuple(chosen), units=units)
            else:
                files = PathList.of(self.path.parent, chosen)
                found[part] = ImageSet(names, mine, files=files, units=units)
        return found

    def groups_of(self, part: str) -> NDArray[np.uint64] | None:
        """A number for each sample of a split, the same within a group; None without groups."""
        if self.groups is None:
            return None
        mine = [
            group for group, other in zip(self.groups, self.parts, strict=True) if other == part
        ]
        digests = (hashlib.sha256(group.encode()).digest() for group in mine)
        return np.array([int.from_bytes(each[:8], "little") for each in digests], np.uint64)

    def _fail(self, at: int, what: str) -> DataError:
        return DataError(f"table {str(self.path)!r}, row {at}: {what}")

    def _texts(self, cells: Sequence[Any]) -> list[str]:
        return [_text(self.path, at, cell) for at, cell in enumerate(cells, 1)]

    def _images(self, cells: Sequence[Any]) -> list[str]:
        """The images' paths beside the table; each file is looked at once, however often it is named."""
        first: dict[str, int] = {}
        for at, cell in enumerate(cells, 1):
            if not isinstance(cell, str) or not cell.strip() or "\0" in cell:
                raise self._fail(at, f"image {cell!r:.80}: expected the path of a file")
            first.setdefault(os.path.normpath(cell.strip()), at)
        checks = zip(
            first.values(), problems(_problem, PathList.of(self.path.parent, first)), strict=True
        )
        bad = [f"row {at}: {problem}" for at, problem in checks if problem is not None]
        if bad:
            more = f"; and {len(bad) - 10} more" * (len(bad) > 10)
            raise DataError(f"table {str(self.path)!r}, {'; '.join(bad[:10])}{more}")
        return [os.path.normpath(cell.strip()) for cell in cells]

    def _repeated(self, labels: Tensor) -> tuple[str, ...]:
        """What is to be said of images in several rows; DataError where their labels differ."""
        first: dict[str, int] = {}
        values, again, apart = labels.tolist(), 0, 0
        for i, name in enumerate(self.samples):
            j = first.setdefault(name, i)
            if i == j:
                continue
            if values[i] != values[j]:
                raise self._fail(
                    i + 1,
                    f"image {name!r} has other labels than in row {j + 1}: expected all labels of an image in "
                    "one row",
                )
            again += 1
            apart += self.parts[i] != self.parts[j]
        found = []
        if again:
            found.append(f"{again} rows name an image that an earlier row names; they were kept")
        if apart:
            found.append(f"{apart} of them are in another split than that row")
        return tuple(found)

    def _groups(self, cells: Sequence[Any]) -> list[str]:
        """The group of each row; DataError for a row without, and for a group in two splits."""
        seen: dict[str, str] = {}
        found = ["" if cell is None else str(cell).strip() for cell in cells]
        for at, (group, part) in enumerate(zip(found, self.parts, strict=True), 1):
            if not group:
                raise self._fail(at, f"{self.group} is empty: expected a group")
            if seen.setdefault(group, part) != part:
                raise self._fail(
                    at, f"group {group!r:.80} is in {part} and in {seen[group]}: expected one split"
                )
        return found

    def _known(self, given: Sequence[Sequence[str]]) -> tuple[str, ...]:
        """The names that train's samples have, sorted; DataError for one that only another split has."""
        train = [names for names, part in zip(given, self.parts, strict=True) if part == "train"]
        known = tuple(sorted({name for names in train or given for name in names}))
        for at, (names, part) in enumerate(zip(given, self.parts, strict=True), 1):
            for name in names:
                if name not in known:
                    raise self._fail(
                        at,
                        f"label {name!r:.80} is in {part} and not in train: expected one of "
                        f"{', '.join(map(repr, known[:5]))}{near_misses(name, known)}",
                    )
        return known

    def _classification(self) -> tuple[tuple[str, ...], Tensor, tuple[str, ...]]:
        (cells,) = self.labels.values()
        given = [_label(self.path, at, cell) for at, cell in enumerate(cells, 1)]
        classes = self._known([(one,) for one in given])
        places = {name: index for index, name in enumerate(classes)}
        return classes, torch.tensor([places[one] for one in given]), ()

    def _multilabel(self) -> tuple[tuple[str, ...], Tensor, tuple[str, ...]]:
        if len(self.labels) > 1:
            return tuple(self.labels), self._each(self._flag, torch.bool), ()
        (cells,) = self.labels.values()
        given = [self._names(at, cell) for at, cell in enumerate(cells, 1)]
        names = self._known(given)
        places = {name: index for index, name in enumerate(names)}
        labels = torch.zeros(len(given), len(names), dtype=torch.bool)
        for row, each in enumerate(given):
            labels[row, [places[name] for name in each]] = True
        return names, labels, ()

    def _names(self, at: int, cell: Any) -> list[str]:
        """The labels in a cell; none of an empty one."""
        if isinstance(cell, str) and cell.lstrip().startswith("["):
            try:
                cell = json.loads(cell)
            except ValueError as error:
                raise self._fail(at, f"labels {cell!r:.80}: not a JSON list ({error})") from error
        parts = cell.split(self.separator) if isinstance(cell, str) else cell
        if parts is None:
            return []
        if not isinstance(parts, list) or not all(isinstance(one, (str, int)) for one in parts):
            raise self._fail(
                at, f"labels {cell!r:.80}: expected names with {self.separator!r} between them"
            )
        found = [str(one).strip() for one in parts if str(one).strip()]
        if len(set(found)) != len(found):
            raise self._fail(at, f"labels {cell!r:.80}: expected each once")
        return found

    def _flag(self, at: int, name: str, cell: Any) -> bool:
        found = _FLAGS.get(str(cell).strip().lower())
        if found is None:
            raise self._fail(at, f"label {name!r} is {cell!r:.40}: expected 0 or 1")
        return found

    def _each(self, read: Callable[[int, str, Any], float], dtype: torch.dtype) -> Tensor:
        """Every cell of the label columns as a number, (rows, columns)."""
        columns = [
            torch.tensor([read(at, name, cell) for at, cell in enumerate(cells, 1)], dtype=dtype)
            for name, cells in self.labels.items()
        ]
        return torch.stack(columns, dim=1)

    def _regression(self) -> tuple[tuple[str, ...], Tensor, tuple[str, ...]]:
        parted = [_UNIT.fullmatch(name) for name in self.labels]
        names = [name if m is None else m[1] for name, m in zip(self.labels, parted, strict=True)]
        units = ["" if m is None else m[2] for m in parted]
        numbers = self._each(self._number, torch.float32)
        return tuple(names), numbers, tuple(units) if any(units) else ()

    def _number(self, at: int, name: str, cell: Any) -> float:
        try:
            number = float("" if isinstance(cell, bool) else cell)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise self._fail(at, f"{name!r} is {cell!r:.40}: expected a finite number")
        return number


def _problem(path: Path) -> str | None:
    try:
        check_image(path)
    except DataError as error:
        return str(error)
    return None


def _csv_columns(path: Path, file: TextIO) -> Columns:
    tabs = path.suffix.lower() == ".tsv"
    how: dict[str, Any] = (
        {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    )
    csv.field_size_limit(max(csv.field_size_limit(), _FIELD))
    rows = filter(None, csv.reader(file, **how))
    names = next(rows, None)
    if names is None:
        raise DataError(f"table {str(path)!r} is empty: expected a line with the columns' names")
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        raise DataError(f"table {str(path)!r} has two columns {twice[0]!r}: expected one")
    columns: list[list[str]] = [[] for _ in names]
    known: dict[str, str] = {}  # labels and splits that come again and again are held once
    for at, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise DataError(
                f"table {str(path)!r}, row {at}: {len(row)} cells: expected {len(names)}, as many as columns"
            )
        for column, cell in zip(columns, row, strict=True):
            kept = known.setdefault(cell, cell) if len(known) < _KNOWN else known.get(cell, cell)
            column.append(kept)
    return dict(zip(names, columns, strict=True))


def _json_columns(path: Path, file: TextIO) -> Columns:
    columns: dict[str, list[Any]] = {}
    for at, line in enumerate(filter(str.strip, file), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"table {str(path)!r}, row {at}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"table {str(path)!r}, row {at}: {line[:40]!r}: expected an object")
        for name in row:
            columns.setdefault(name, [None] * (at - 1))
        for name, cells in columns.items():
            cells.append(row.get(name))
    if not columns:
        raise DataError(f"table {str(path)!r} is empty: expected an object a line")
    return columns


def _column(path: Path, columns: Columns, role: str, name: str | None) -> str:
    wanted = name or role
    if wanted not in columns:
        raise DataError(
            f"table {str(path)!r} has no column {wanted!r} for {role}: it has "
            f"{', '.join(map(repr, list(columns)[:8]))}; name it in columns= ({role}=NAME)"
        )
    return wanted


def _text(path: Path, at: int, cell: Any) -> str:
    if not isinstance(cell, str):
        raise DataError(f"table {str(path)!r}, row {at}: text {cell!r:.40}: expected a text")
    if not cell.strip():
        raise DataError(f"table {str(path)!r}, row {at}: the text is empty; leave the row out")
    return cell


def _label(path: Path, at: int, cell: Any) -> str:
    whole = isinstance(cell, (str, int)) and not isinstance(cell, bool)
    if not whole or not str(cell).strip():
        raise DataError(
            f"table {str(path)!r}, row {at}: label {cell!r:.40}: expected the name of a class"
        )
    return str(cell).strip()


def _split(path: Path, at: int, cell: Any) -> str:
    found = split_of(str(cell))
    if found is None:
        raise DataError(
            f"table {str(path)!r}, row {at}: split {cell!r:.40}: expected train, val or test"
        )
    return found
