"""Columns of Parquet files and of Hugging Face's sets, each read when it is asked for.

FILE.parquet               images are paths, encoded bytes, or {bytes, path}, as Hugging Face writes them
hf:NAME, hf:NAME:CONFIG    a set of the Hub, fetched by ``datasets``, which keeps it; read from there
hf:FOLDER                  a folder that ``datasets`` can load, or that its ``save_to_disk`` wrote
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from piggyback.errors import DataError, first_line, require
from piggyback.strict_json import strict_json
from piggyback.train.data.categorical import Categorical, read_each
from piggyback.train.data.folder import split_of

PARQUET, HUB = ".parquet", "hf:"
SPLIT = "split"
_LOOKED_AT = 10_000
"""Cells by which a column is one whose cells come again."""


class ArrowColumns(Mapping[str, Sequence[Any]]):
    """Columns by name: cells, or ``Encoded`` images."""

    def __init__(self, what: str, schema: Any, read: Callable[[str], Any], root: Path) -> None:
        if twice := [name for name, n in Counter(schema.names).items() if n > 1]:
            raise DataError(f"{what} has two columns {twice[0]!r}: expected one")
        self.what, self.names, self._schema, self._read = what, schema.names, schema, read
        self.root = root
        self.notes: tuple[str, ...] = ()
        self._features: Mapping[str, Any] = {}
        # Metadata of others' says nothing about columns.
        with suppress(ValueError, TypeError, KeyError):
            about = strict_json(schema.metadata[b"huggingface"])["info"]["features"]
            self._features = {key: f for key, f in dict(about).items() if isinstance(f, dict)}

    def __getitem__(self, name: str) -> Sequence[Any]:
        kinds, kind = require("pyarrow.types", "parquet"), self._schema.field(name).type
        with _reading(self.what):
            column = self._read(name)
            bytes_and_path = kinds.is_struct(kind) and {f.name for f in kind} == {"bytes", "path"}
            if bytes_and_path or kinds.is_binary(kind) or kinds.is_large_binary(kind):
                return Encoded(column, self.root)
            cells = _cells(column)
        feature = self._features.get(name) or {}
        inner = feature.get("feature")
        names = feature.get("names") or (inner.get("names") if isinstance(inner, dict) else None)
        return read_each(cells, lambda _, cell: _named(cell, names)) if names else cells

    def __contains__(self, name: object) -> bool:
        return name in self.names  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class Encoded(Sequence[Any]):
    """Images in a column: the bytes of one where it has them, else the path of its file."""

    def __init__(self, column: Any, root: Path) -> None:
        self.column, self.root = column, root

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, index: Any) -> Any:
        cell = self.column[index].as_py()
        data, path = (cell["bytes"], cell["path"]) if isinstance(cell, dict) else (cell, None)
        return data or (self.root / path if path else None)


def parquet_columns(path: Path) -> ArrowColumns:
    """Return a Parquet file's columns; DataError for one that cannot be read, MissingExtraError without pyarrow."""
    parquet, what = require("pyarrow.parquet", "parquet"), f"table {str(path)!r}"
    with _reading(what):
        file = parquet.ParquetFile(path, memory_map=True)
    return ArrowColumns(what, file.schema_arrow, lambda name: file.read([name])[name], path.parent)


def hub_columns(spec: str) -> ArrowColumns:
    """Return the columns of a Hugging Face set, those of all its splits one after another, with their split.

    ``spec``: hf:NAME, hf:NAME:CONFIG or hf:FOLDER. Splits that are none of train, val and test are left out, which
    ``notes`` say. Raises DataError where it cannot be loaded, MissingExtraError without ``datasets``.
    """
    datasets, arrow = require("datasets", "hf"), require("pyarrow", "hf")
    name, _, config = spec.removeprefix(HUB).partition(":")
    saved = any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json"))
    with _reading(f"set {spec!r}", datasets.exceptions.DatasetsError):
        found = (
            datasets.load_from_disk(name) if saved else datasets.load_dataset(name, config or None)
        )
    parts = dict(found) if isinstance(found, Mapping) else {"train": found}
    known = {split: part for split, part in parts.items() if split_of(split)} or parts
    tables = []
    for split, part in known.items():
        table = part.with_format("arrow")[:]
        named = arrow.array([split] * len(part), arrow.string())
        tables.append(table if SPLIT in table.schema.names else table.append_column(SPLIT, named))
    with _reading(f"set {spec!r}"):
        whole = arrow.concat_tables(tables)
    columns = ArrowColumns(f"set {spec!r}", whole.schema, whole.column, Path(name))
    columns.notes = tuple(f"left out: split {s!r}" for s in parts if s not in known)
    return columns


def _cells(column: Any) -> Sequence[Any]:
    """A column's cells; where texts or whole numbers come again, arrow tells them apart, which is faster."""
    kinds = require("pyarrow.types", "parquet")
    if kinds.is_dictionary(column.type):  # which may have words that no row has, in any order
        column = column.cast(column.type.value_type)
    kind, some = column.type, column[:_LOOKED_AT]
    tellable = kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_integer(kind)
    if not tellable or 2 * len(some.unique()) >= len(some):
        cells: list[Any] = column.to_pylist()
        return cells
    found = column.dictionary_encode("encode").combine_chunks()
    return Categorical(found.dictionary.to_pylist(), found.indices.to_numpy().astype(np.int64))


@contextmanager
def _reading(what: str, *others: type[Exception]) -> Iterator[None]:
    """Turn what pyarrow and ``datasets`` raise on files into a DataError of one line."""
    kinds: tuple[type[Exception], ...] = (OSError, ValueError, NotImplementedError, *others)
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{what}: no such file ({first_line(error)})") from error
    except kinds as error:
        raise DataError(f"{what} cannot be read: {first_line(error)}") from error


def _named(cell: Any, names: Sequence[str]) -> Any:
    """A class's number as its name, also in a list; None for one that is none, as -1 is."""
    if isinstance(cell, list):
        return [_named(one, names) for one in cell]
    return names[cell] if isinstance(cell, int) and 0 <= cell < len(names) else None
