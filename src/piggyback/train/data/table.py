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
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
_FIELD = 1 << 20

Row = Mapping[str, Any]


def is_table(path: Path) -> bool:
    """Return whether a path is that of a table.

    >>> is_table(Path("reviews.tsv")), is_table(Path("photos"))
    (True, False)
    """
    return path.suffix.lower() in SUFFIXES


def read_rows(path: Path) -> tuple[list[str], list[Row]]:
    """Return the names of a table's columns, and its rows; DataError, with the row, for one that cannot be read."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"table {str(path)!r}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"table {str(path)!r}: byte {error.start} is not UTF-8: expected UTF-8; save it as that"
        ) from error
    except OSError as error:
        raise DataError(f"table {str(path)!r}: {error.strerror}") from error
    if path.suffix.lower() == ".jsonl":
        return _json_rows(path, text)
    # One line is one row in TSV; in CSV a quoted cell may hold line breaks.
    tabs = path.suffix.lower() == ".tsv"
    lines = text.splitlines() if tabs else text.splitlines(keepends=True)
    how: dict[str, Any] = (
        {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    )
    csv.field_size_limit(max(csv.field_size_limit(), _FIELD))
    try:
        cells = [row for row in csv.reader(lines, **how) if row]
    except csv.Error as error:
        raise DataError(f"table {str(path)!r}: {error}: expected a whole table") from error
    if not cells:
        raise DataError(f"table {str(path)!r} is empty: expected a line with the columns' names")
    columns = cells[0]
    if twice := [name for name, n in Counter(columns).items() if n > 1]:
        raise DataError(f"table {str(path)!r} has two columns {twice[0]!r}: expected one")
    for at, row in enumerate(cells[1:], 1):
        if len(row) != len(columns):
            raise DataError(
                f"table {str(path)!r}, row {at}: {len(row)} cells: expected {len(columns)}, as many as columns"
            )
    return columns, [dict(zip(columns, row, strict=True)) for row in cells[1:]]


def read_texts(path: Path, column: str | None = None) -> list[str]:
    """Return the texts of a table's ``column``, by default "text", or the lines of another file."""
    if is_table(path):
        columns, rows = read_rows(path)
        wanted = _column(path, columns, "text", column)
        return [_text(path, at, row[wanted]) for at, row in enumerate(rows, 1)]
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
    relative to the table. ``kind`` is that of the task, ``separator`` stands between the labels in a cell. Rows of one
    "group" stay in one split. A table without a split is train.

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
    """A table's rows with the columns that are wanted of it."""

    def __init__(self, path: Path, columns: Mapping[str, str], kind: str, separator: str) -> None:
        self.path, self.kind, self.separator = path, kind, separator
        if kind not in _KINDS:
            raise DataError(
                f"kind {kind!r}: expected one of {', '.join(_KINDS)}{near_misses(kind, _KINDS)}"
            )
        names, self.rows = read_rows(path)
        if unknown := [role for role in columns if role not in ROLES]:
            raise DataError(
                f"column {unknown[0]}={columns[unknown[0]]}: expected one of {', '.join(ROLES)}"
                f"{near_misses(unknown[0], ROLES)}"
            )
        if {"image", "text"} <= columns.keys():
            raise DataError(f"table {str(path)!r}: columns for image and for text: expected one")
        known = "image" in columns or ("text" not in columns and "image" in names)
        self.role = "image" if known else "text"
        self.sample = _column(path, names, self.role, columns.get(self.role))
        label = columns.get("label", "label")
        wanted = [label] if label in names else [part.strip() for part in label.split(",")]
        self.labels = [_column(path, names, "label", each) for each in wanted]
        if len(self.labels) > 1 and kind == "classification":
            raise DataError(
                f"table {str(path)!r}: {len(self.labels)} columns of labels: expected one for classes; "
                "several are for --kind multilabel or regression"
            )
        self.split, self.group = (
            _column(path, names, role, columns[role]) if role in columns else None
            for role in ("split", "group")
        )
        if self.split is None and "split" in names:
            self.split = "split"
        if not self.rows:
            raise DataError(f"table {str(path)!r} has no rows: expected samples with labels")
        self.parts = [self._split_of(at, row) for at, row in enumerate(self.rows, 1)]

    def splits(self) -> dict[str, ImageSet | TextSet]:
        """The samples of each split, everything checked."""
        samples = self._samples()
        names, labels, units = getattr(self, f"_{self.kind}")()
        self._check_groups()
        found: dict[str, ImageSet | TextSet] = {}
        for part in dict.fromkeys(self.parts):
            at = [i for i, other in enumerate(self.parts) if other == part]
            mine = labels[torch.tensor(at)]
            if self.role == "text":
                texts = tuple([samples[i] for i in at])
                found[part] = TextSet(names, mine, texts, units=units)
            else:
                files = PathList.of(self.path.parent, [samples[i] for i in at])
                found[part] = ImageSet(names, mine, files=files, units=units)
        return found

    def groups_of(self, part: str) -> NDArray[np.uint64] | None:
        """A number for each sample of a split, the same within a group; None without groups."""
        if self.group is None:
            return None
        mine = [row for row, other in zip(self.rows, self.parts, strict=True) if other == part]
        digests = (hashlib.sha256(str(row[self.group]).encode()).digest() for row in mine)
        return np.array([int.from_bytes(each[:8], "little") for each in digests], np.uint64)

    def _fail(self, at: int, what: str) -> DataError:
        return DataError(f"table {str(self.path)!r}, row {at}: {what}")

    def _split_of(self, at: int, row: Row) -> str:
        return "train" if self.split is None else _split(self.path, at, row[self.split])

    def _samples(self) -> list[str]:
        """The texts, or the images' paths beside the table, all of them checked."""
        if self.role == "text":
            return [_text(self.path, at, row[self.sample]) for at, row in enumerate(self.rows, 1)]
        files: list[str] = []
        for at, row in enumerate(self.rows, 1):
            cell = row[self.sample]
            if not isinstance(cell, str) or not cell.strip() or "\0" in cell:
                raise self._fail(at, f"image {cell!r:.80}: expected the path of a file")
            files.append(cell.strip())
        checks = enumerate(problems(_problem, PathList.of(self.path.parent, files)), 1)
        bad = [f"row {at}: {problem}" for at, problem in checks if problem is not None]
        if bad:
            more = f"; and {len(bad) - 10} more" * (len(bad) > 10)
            raise DataError(f"table {str(self.path)!r}, {'; '.join(bad[:10])}{more}")
        return files

    def _check_groups(self) -> None:
        """Raise DataError for a group in two splits, and for a row of no group."""
        seen: dict[str, str] = {}
        for at, (row, part) in enumerate(zip(self.rows, self.parts, strict=True), 1):
            if self.group is None:
                return
            group = str("" if row[self.group] is None else row[self.group]).strip()
            if not group:
                raise self._fail(at, f"{self.group} is empty: expected a group")
            if seen.setdefault(group, part) != part:
                raise self._fail(
                    at, f"group {group!r:.80} is in {part} and in {seen[group]}: expected one split"
                )

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
        (column,) = self.labels
        given = [_label(self.path, at, row[column]) for at, row in enumerate(self.rows, 1)]
        classes = self._known([(one,) for one in given])
        places = {name: index for index, name in enumerate(classes)}
        return classes, torch.tensor([places[one] for one in given]), ()

    def _multilabel(self) -> tuple[tuple[str, ...], Tensor, tuple[str, ...]]:
        if len(self.labels) > 1:
            rows = [
                [self._flag(at, name, row[name]) for name in self.labels]
                for at, row in enumerate(self.rows, 1)
            ]
            return tuple(self.labels), torch.tensor(rows), ()
        given = [self._names(at, row[self.labels[0]]) for at, row in enumerate(self.rows, 1)]
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

    def _regression(self) -> tuple[tuple[str, ...], Tensor, tuple[str, ...]]:
        rows = [
            [self._number(at, name, row[name]) for name in self.labels]
            for at, row in enumerate(self.rows, 1)
        ]
        parted = [_UNIT.fullmatch(name) for name in self.labels]
        names = [name if m is None else m[1] for name, m in zip(self.labels, parted, strict=True)]
        units = ["" if m is None else m[2] for m in parted]
        return tuple(names), torch.tensor(rows), tuple(units) if any(units) else ()

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


def _json_rows(path: Path, text: str) -> tuple[list[str], list[Row]]:
    rows: list[Row] = []
    for at, line in enumerate(filter(str.strip, text.splitlines()), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"table {str(path)!r}, row {at}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"table {str(path)!r}, row {at}: {line[:40]!r}: expected an object")
        rows.append(row)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return columns, [{name: row.get(name) for name in columns} for row in rows]


def _column(path: Path, columns: Sequence[str], role: str, name: str | None) -> str:
    wanted = name or role
    if wanted not in columns:
        raise DataError(
            f"table {str(path)!r} has no column {wanted!r} for {role}: it has "
            f"{', '.join(map(repr, columns[:8]))}; name it with --column {role}=NAME"
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
