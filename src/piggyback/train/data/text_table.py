"""Tables of texts: CSV, TSV (tab separated, no quoting), JSONL, and plain files of a text a line.

Everything that is wrong with a table is found here, before training starts, with its row: 1 is the first below the
names of the columns.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from piggyback.errors import DataError, near_misses
from piggyback.train.data.folder import split_of
from piggyback.train.data.sets import ImageData, cut
from piggyback.train.data.text import TextSet

SUFFIXES = (".csv", ".tsv", ".jsonl")
ROLES = ("text", "label", "split")
"""What a column may be for; each is by default the column of that name."""
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


def load_text_table(
    path: str | Path, name: str | None = None, columns: Mapping[str, str] | None = None
) -> ImageData:
    """Return a table's texts with a class each, checked; class names sorted, splits that are missing cut from train.

    ``columns`` says which columns hold what, by ``ROLES``; a table without a split is train.
    Raises DataError with the row, the value, and what was expected.
    """
    path = Path(path)
    parts = text_splits(path, columns)
    if "train" not in parts:
        raise DataError(
            f"table {str(path)!r} has splits {', '.join(parts)}: expected one called train"
        )
    return cut(name or path.stem, parts["train"], parts.get("val"), parts.get("test"))


def text_splits(path: Path, columns: Mapping[str, str] | None = None) -> dict[str, TextSet]:
    """Return the texts of each split in a table; all are train where it has none. Errors as ``load_text_table``."""
    names, rows = read_rows(path)
    chosen = dict(columns or {})
    if unknown := [role for role in chosen if role not in ROLES]:
        raise DataError(
            f"column {unknown[0]}={chosen[unknown[0]]}: expected one of {', '.join(ROLES)}"
            f"{near_misses(unknown[0], ROLES)}"
        )
    text, label = (_column(path, names, role, chosen.get(role)) for role in ("text", "label"))
    split = chosen.get("split", "split" if "split" in names else None)
    if split is not None:
        split = _column(path, names, "split", split)
    if not rows:
        raise DataError(f"table {str(path)!r} has no rows: expected texts with labels")
    found: dict[str, tuple[list[str], list[str]]] = {}
    for at, row in enumerate(rows, 1):
        part = "train" if split is None else _split(path, at, row[split])
        texts, labels = found.setdefault(part, ([], []))
        texts.append(_text(path, at, row[text]))
        labels.append(_label(path, at, row[label]))
    classes = tuple(sorted(set(found["train"][1]))) if "train" in found else ()
    classes = classes or tuple(sorted({one for _, labels in found.values() for one in labels}))
    places = {one: index for index, one in enumerate(classes)}
    for part, (_, labels) in found.items():
        if wrong := [one for one in labels if one not in places]:
            raise DataError(
                f"table {str(path)!r}: label {wrong[0]!r} is in {part} and not in train: expected one of "
                f"{', '.join(map(repr, classes[:5]))}{near_misses(wrong[0], classes)}"
            )
    return {
        part: TextSet(classes, torch.tensor([places[one] for one in labels]), tuple(texts))
        for part, (texts, labels) in found.items()
    }


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
