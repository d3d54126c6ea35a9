"""Columns of tables, whatever holds them: CSV, TSV (tab separated, no quoting), JSONL, Parquet, tars, the Hub's sets.

CSV has commas between cells; semicolons or tabs where its first line has no comma. What cannot be read is a DataError
with its row: 1 is the first below the names of the columns.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from piggyback.errors import DataError
from piggyback.strict_json import strict_json
from piggyback.texts.preprocessing import bad_text
from piggyback.train.data.arrow import HUB, PARQUET, Encoded, hub_columns, parquet_columns
from piggyback.train.data.shards import TAR, TarImages, shards_of, tar_columns

SUFFIXES = (".csv", ".tsv", ".jsonl", PARQUET)
_SEPARATOR = re.compile(r'"?sep=(.)"?\s*')
"""First line of a CSV for Excel."""
_JSON = (".json", ".ndjson")
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
"""A cell as CSV has it in quotes."""
_FIELD, _KNOWN = 1 << 20, 10_000

Columns = Mapping[str, Sequence[Any]]
"""Cells by the name of their column; row 1 is at 0."""


def is_table(path: Path) -> bool:
    """Return whether a path is that of a table, or of tars or a set of Hugging Face's, which are read as one.

    >>> [is_table(Path(name)) for name in ("reviews.tsv", "hf:beans", "photos")]
    [True, True, False]
    """
    named = path.suffix.lower() in (*SUFFIXES, TAR) or str(path).startswith(HUB)
    return named or bool(shards_of(path))


def read_columns(path: Path) -> Columns:
    """Return a table's columns by name; DataError, with the row, for one that cannot be read."""
    if str(path).startswith(HUB):
        return hub_columns(str(path))
    if path.suffix.lower() == PARQUET:
        return parquet_columns(path)
    if path.suffix.lower() == TAR or path.is_dir():
        return tar_columns(path)
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
    except OSError as error:
        raise DataError(f"table {str(path)!r}: {error.strerror}") from error


def read_texts(path: Path, column: str | None = None) -> list[str]:
    """Return the texts of a table's ``column``, by default "text", or the lines of another file."""
    if is_table(path):
        columns = read_columns(path)
        return checked_texts(path, cells_of(path, columns, "text", column))
    if column is not None:
        raise DataError(f"{str(path)!r}: a column {column!r} of it: expected a table")
    if path.suffix.lower() in _JSON:
        raise DataError(
            f"{str(path)!r} is JSON, and its lines are no texts: expected an object a line in a file called .jsonl"
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise DataError(f"{str(path)!r}: no such file; give a text itself as text=") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{str(path)!r}: expected UTF-8 text, a text a line ({error})") from error
    found = [line for line in lines if line.strip()]
    if not found:
        raise DataError(f"{str(path)!r} is empty: expected a text a line")
    return found


def read_files(path: Path, column: str | None = None, *, missing: bool = False) -> list[Path]:
    """Return the image files that a table's ``column`` names, by default "image", relative to the table.

    Raises DataError with the row of one that is not there, unless ``missing``.
    """
    columns = read_columns(path)
    cells = cells_of(path, columns, "image", column)
    if isinstance(cells, (Encoded, TarImages)):
        raise DataError(f"table {str(path)!r} holds its images itself: expected paths of files")
    files = [path.parent / file_of(path, at, cell) for at, cell in enumerate(cells, 1)]
    gone = [at for at, file in enumerate(files, 1) if not missing and not file.is_file()]
    if gone:
        more = f"; and {len(gone) - 1} more rows" * (len(gone) > 1)
        raise DataError(
            f"{row_of(path, gone[0])}: image {str(files[gone[0] - 1])!r}: no such file{more}"
        )
    return files


def _csv_columns(path: Path, file: TextIO) -> Columns:
    if path.suffix.lower() == ".tsv":
        how: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    else:
        # Where commas stand within numbers, spreadsheets write semicolons between cells; some say so in a first line.
        first = file.readline()
        told = _SEPARATOR.fullmatch(first)
        if told is None:
            file.seek(0)
        between = told[1] if told else next((mark for mark in ",;\t" if mark in first), ",")
        how = {"delimiter": between, "strict": True, "skipinitialspace": True}
    csv.field_size_limit(max(csv.field_size_limit(), _FIELD))
    rows = _rows(path, csv.reader(file, **how))
    names = next(rows, None)
    if names is None:
        raise DataError(f"table {str(path)!r} is empty: expected a line with the columns' names")
    names = [name.strip() for name in names]
    # Spreadsheets leave rows without a word in any cell below the others.
    full = (
        row
        for row in rows
        if len(names) == 1 or (any(row) and (len(row) == len(names) or "".join(row).strip()))
    )
    if twice := [name for name, n in Counter(names).items() if name and n > 1]:
        raise DataError(f"table {str(path)!r} has two columns {twice[0]!r}: expected one")
    columns: list[list[str]] = [[] for _ in names]
    known: dict[str, str] = {}  # labels and splits that come again and again are held once
    for at, row in enumerate(full, 1):
        if len(row) != len(names):
            raise DataError(
                f"{row_of(path, at)}: {len(row)} cells: expected {len(names)}, as many as columns"
            )
        for column, cell in zip(columns, row, strict=True):
            kept = known.setdefault(cell, cell) if len(known) < _KNOWN else known.get(cell, cell)
            column.append(kept)
    found = dict(zip(names, columns, strict=True))
    if path.suffix.lower() == ".tsv":
        _refuse_quoted(path, found)
    return found


def _rows(path: Path, reader: Iterable[list[str]]) -> Iterator[list[str]]:
    """The rows that are not empty, the names first; DataError with that of a quote that is not closed, or the like."""
    at = 0
    try:
        for row in reader:
            if row:
                yield row
                at += 1
    except csv.Error as error:
        raise DataError(f"{row_of(path, at)}: {error}: expected a whole table") from error


def _refuse_quoted(path: Path, columns: Mapping[str, Sequence[str]]) -> None:
    """Raise DataError for a TSV that was written with quotes around cells: they would be learned as letters."""
    for name, cells in columns.items():
        marked = [(at, cell) for at, cell in enumerate(cells, 1) if '"' in cell]
        if not marked or not all(_QUOTED.fullmatch(cell) for _, cell in marked):
            continue
        if 1 < len(cells) == len(marked) or any('""' in cell[1:-1] for _, cell in marked):
            at, cell = marked[0]
            raise DataError(
                f"{row_of(path, at)}: {name!r} is {cell!r:.40}, in quotes, which a TSV does not have: save it as .csv, "
                "where tabs may stand between cells"
            )


def _json_columns(path: Path, file: TextIO) -> Columns:
    columns: dict[str, list[Any]] = {}
    for at, line in enumerate(filter(str.strip, file), 1):
        try:
            row = strict_json(line)
        except ValueError as error:
            raise DataError(
                f"{row_of(path, at)}: cannot be read as JSON ({error}): expected an object a line"
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{row_of(path, at)}: {line[:40]!r}: expected an object")
        for name in row:
            if name not in columns:  # earlier rows have nothing there
                columns[name] = [None] * (at - 1)
        for name, cells in columns.items():
            cells.append(row.get(name))
    if not columns:
        raise DataError(f"table {str(path)!r} is empty: expected an object a line")
    return columns


def column_of(path: Path, columns: Columns, role: str, name: str | None) -> str:
    """Return the name of the column for ``role``, by default the role itself; DataError where there is none."""
    wanted = name or role
    if wanted not in columns:
        raise DataError(
            f"table {str(path)!r} has no column {wanted!r} for {role}: it has {listed(columns)}; name it in columns= "
            f"({role}=NAME)"
        )
    return wanted


def cells_of(path: Path, columns: Columns, role: str, name: str | None) -> Sequence[Any]:
    """Return the cells of the column for ``role``; DataError where there are none, or as ``column_of``."""
    cells = columns[column_of(path, columns, role, name)]
    if not len(cells):
        raise DataError(f"table {str(path)!r} has no rows: expected one or more below the names")
    return cells


def row_of(path: Path, at: int) -> str:
    """Return what an error calls a row."""
    return f"table {str(path)!r}, row {at}"


def checked_texts(path: Path, cells: Sequence[Any]) -> list[str]:
    """Return texts, none of them empty; raises DataError with the row of one that is."""
    if (row := bad_text(cells)) is not None:
        cell, where = cells[row], row_of(path, row + 1)
        if isinstance(cell, str):
            raise DataError(f"{where}: the text is empty; leave the row out")
        raise DataError(f"{where}: text {cell!r:.40}: expected a text")
    return list(cells)


def file_of(path: Path, at: int, cell: Any) -> str:
    """Return the path of a file that a cell names; raises DataError."""
    if not isinstance(cell, str) or not cell.strip() or "\0" in cell or "://" in cell:
        raise DataError(
            f"{row_of(path, at)}: image {cell!r:.80}: expected the path of a file on disk"
        )
    return os.path.normpath(cell.strip())


def listed(names: Iterable[str]) -> str:
    """Return the first names, as an error lists those that are there."""
    return ", ".join(map(repr, list(names)[:8]))
