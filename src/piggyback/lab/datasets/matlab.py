"""MATLAB's files of annotations (level 5), without scipy, whose reader can crash on a damaged file.

    file     128 bytes, of which the last two tell the byte order; then elements
    element  type u32, bytes u32, data, padded to 8; up to 4 bytes: bytes u16 and type u16 in one word, data in the next
    matrix   elements: flags with the class, dimensions, name; then numbers, text, cells, or fields of structs

Source: MathWorks, MAT-File Format. What published annotations do not use (sparse, objects, level 7.3) is refused.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from piggyback.errors import DataError
from piggyback.lab.datasets.listed import required

Value: TypeAlias = "npt.NDArray[np.generic] | str | list[Value] | list[dict[str, Value]]"
"""Numbers (n,) in MATLAB's order of memory, text, cells, or structs."""

_HEADER = 128
_COMPRESSED, _MATRIX = 15, 14
_STORED = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
"""Types of elements that hold numbers, as numpy calls them."""
_TEXT = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16"}
_CELL, _STRUCT, _CHAR = 1, 2, 4
_NUMBERS = range(6, 16)
_COMPLEX = 0x800
_LIMIT = 1 << 28
"""Bytes that a file may unpack to; annotations are a few megabytes."""
_DEPTH = 8
"""Cells and structs within each other."""


def read_matlab(path: Path, key: str) -> Value:
    """Return the variable ``key`` of a .mat file; raises DataError."""
    try:
        data = required(path).read_bytes()
        found = _variable(data, key)
    except (OSError, ValueError, struct.error, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read as a MATLAB file, level 5 ({error})") from error
    if found is None:
        raise DataError(f"{path}: holds no variable {key!r}; is it the right file?")
    return found


def whole_numbers(path: Path, key: str) -> list[int]:
    """Return the variable ``key`` as whole numbers; raises DataError for anything else."""
    values = read_matlab(path, key)
    if (
        not isinstance(values, np.ndarray)
        or not np.isfinite(values).all()
        or (values != np.floor(values)).any()
    ):
        raise DataError(f"{path}: {key!r}: expected a row of whole numbers")
    return [int(value) for value in values]


def texts(path: Path, key: str) -> list[str]:
    """Return the variable ``key``, cells of text; raises DataError for anything else."""
    values = read_matlab(path, key)
    found = [value for value in values if isinstance(value, str)]
    if not isinstance(values, list) or len(found) != len(values):
        raise DataError(f"{path}: {key!r}: expected cells of text")
    return found


def structs(path: Path, key: str, fields: Sequence[str]) -> list[dict[str, Value]]:
    """Return the variable ``key``, structs that have ``fields``; raises DataError for anything else."""
    values = read_matlab(path, key)
    rows = [value for value in values if isinstance(value, dict)]
    if not isinstance(values, list) or len(rows) != len(values):
        raise DataError(f"{path}: {key!r}: expected an array of structs")
    absent = [name for name in fields if rows and name not in rows[0]]
    if absent:
        raise DataError(
            f"{path}: {key!r} has no {', '.join(absent)}: expected the file with labels"
        )
    return rows


def _variable(data: bytes, key: str) -> Value | None:
    if len(data) < _HEADER or data[126:128] not in (b"IM", b"MI"):
        raise ValueError("its header is not that of one")
    order = "<" if data[126:128] == b"IM" else ">"
    for kind, content in _elements(data[_HEADER:], order):
        if kind == _COMPRESSED:
            content = _inflated(content)
            kind, content = next(_elements(content, order), (0, b""))
        if kind == _MATRIX:
            name, value = _matrix(content, order, key, 0)
            if name == key:
                return value
    return None


def _inflated(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    held = stream.decompress(data, _LIMIT)
    if stream.unconsumed_tail or not stream.eof:
        raise ValueError(f"a compressed part is cut off, or holds more than {_LIMIT} bytes")
    return held


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """The elements of ``data`` one after the other: type and content."""
    at = 0
    while at < len(data):
        (word,) = struct.unpack_from(order + "I", data, at)
        if word >> 16:
            kind, size, start, end = word & 0xFFFF, word >> 16, at + 4, at + 8
            if size > 4:
                raise ValueError(f"a small element of {size} bytes")
        else:
            kind, (size,) = word, struct.unpack_from(order + "I", data, at + 4)
            start = at + 8
            end = start + size + (0 if kind == _COMPRESSED else -size % 8)
        if start + size > len(data):
            raise ValueError(f"an element of {size} bytes where {len(data) - start} are left")
        yield kind, data[start : start + size]
        at = end


def _matrix(data: bytes, order: str, wanted: str | None, depth: int) -> tuple[str, Value]:
    """Name and value; at the top, the value of anything but ``wanted`` is not looked at."""
    if not data:
        return "", np.empty(0)
    if depth > _DEPTH:
        raise ValueError(f"more than {_DEPTH} levels of cells and structs")
    parts = _elements(data, order)
    (flags, *_), sizes = _numbers(parts, order).tolist() or [0], _numbers(parts, order)
    _, name = _next(parts)
    label = name.decode("latin-1")
    if wanted is not None and label != wanted:
        return label, ""
    count = math.prod(int(size) for size in sizes)
    kind = flags & 0xFF
    if kind in _NUMBERS and not flags & _COMPLEX:
        values = _numbers(parts, order)
        if len(values) != count:
            raise ValueError(f"{len(values)} numbers, expected {count}")
        return label, values
    if kind == _CHAR:
        return label, _text(parts, order)
    if kind == _CELL:
        return label, list(_inner(parts, order, count, depth))
    if kind == _STRUCT:
        (width, *_), (_, held) = _numbers(parts, order).tolist() or [0], _next(parts)
        if width < 1 or not held:
            raise ValueError("structs without fields")
        names = [held[at : at + width] for at in range(0, len(held), width)]
        fields = [field.split(b"\0")[0].decode("latin-1") for field in names]
        inner = list(_inner(parts, order, count * len(fields), depth))
        rows = (inner[at : at + len(fields)] for at in range(0, len(inner), len(fields)))
        return label, [dict(zip(fields, row, strict=True)) for row in rows]
    raise ValueError(f"a matrix of class {kind}: expected numbers, text, cells or structs")


def _inner(
    parts: Iterator[tuple[int, bytes]], order: str, count: int, depth: int
) -> Iterator[Value]:
    for _ in range(count):
        kind, content = _next(parts)
        if kind != _MATRIX:
            raise ValueError(f"an element of type {kind}: expected a matrix")
        yield _matrix(content, order, None, depth + 1)[1]


def _next(parts: Iterator[tuple[int, bytes]]) -> tuple[int, bytes]:
    found = next(parts, None)
    if found is None:
        raise ValueError("a matrix is cut off")
    return found


def _numbers(parts: Iterator[tuple[int, bytes]], order: str) -> npt.NDArray[np.generic]:
    kind, content = _next(parts)
    if kind not in _STORED:
        raise ValueError(f"an element of type {kind}: expected numbers")
    return np.frombuffer(content, order + _STORED[kind])


def _text(parts: Iterator[tuple[int, bytes]], order: str) -> str:
    kind, content = _next(parts)
    if kind not in _TEXT:
        raise ValueError(f"an element of type {kind}: expected text")
    suffix = {"<": "-le", ">": "-be"}[order] if _TEXT[kind] == "utf-16" else ""
    return content.decode(_TEXT[kind] + suffix)
