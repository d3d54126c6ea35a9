"""MATLAB files: the same values as scipy reads, in either byte order, and errors instead of crashes."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from piggyback.errors import DataError
from piggyback.lab.datasets.matlab import read_matlab, structs, texts, whole_numbers

KINDS = [
    "float64",
    "float32",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_that_scipy_reads(tmp_path: Path, kind: str, compressed: bool) -> None:
    place = tmp_path / "a.mat"
    values = (np.random.default_rng(0).random((3, 5)) * 100).astype(kind)
    savemat(place, {"other": [1], "x": values, "last": "text"}, do_compression=compressed)
    found = read_matlab(place, "x")
    assert isinstance(found, np.ndarray)
    assert (found == loadmat(place)["x"].ravel(order="F")).all()
    assert read_matlab(place, "last") == "text"


@pytest.mark.parametrize("compressed", [False, True])
def test_cells_structs_and_text_nest(tmp_path: Path, compressed: bool) -> None:
    place = tmp_path / "a.mat"
    cells = np.empty(3, dtype=object)
    cells[:] = ["Käfer", "a" * 40, ""]
    rows = np.empty(2, dtype=[("name", object), ("box", object), ("more", object)])
    rows[0], rows[1] = ("one", 7, cells), ("two", 300.5, {"deep": 1})
    savemat(place, {"cells": cells, "rows": rows}, do_compression=compressed)
    assert read_matlab(place, "cells") == ["Käfer", "a" * 40, ""]
    assert texts(place, "cells")[0] == "Käfer"
    first, second = structs(place, "rows", ["name", "box"])
    assert (first["name"], first["more"]) == ("one", ["Käfer", "a" * 40, ""])
    assert [float(row["box"][0]) for row in (first, second)] == [7, 300.5]
    assert second["more"][0]["deep"].tolist() == [1]
    with pytest.raises(DataError, match=r"'rows' has no fname: expected the file with labels"):
        structs(place, "rows", ["fname"])
    for read in (structs, texts, whole_numbers):
        with pytest.raises(DataError, match=r"a\.mat: 'rows|a\.mat: 'cells"):
            read(place, "cells" if read is structs else "rows", *(["x"],) * (read is structs))


def big_endian() -> bytes:
    """A file as a big-endian machine writes it: x = [1 2 300], its numbers stored in 16 bits."""
    flags = struct.pack(">IIII", 6, 8, 6, 0)
    size = struct.pack(">IIii", 5, 8, 1, 3)
    name = struct.pack(">HH4s", 1, 1, b"x")
    data = struct.pack(">II3h2x", 3, 6, 1, 2, 300)
    matrix = flags + size + name + data
    return b"MATLAB 5.0".ljust(124) + b"\1\0MI" + struct.pack(">II", 14, len(matrix)) + matrix


def test_the_other_byte_order_and_small_elements(tmp_path: Path) -> None:
    place = tmp_path / "a.mat"
    place.write_bytes(big_endian())
    assert loadmat(place)["x"].tolist() == [[1, 2, 300]]
    assert whole_numbers(place, "x") == [1, 2, 300]


def test_what_is_not_read(tmp_path: Path) -> None:
    place = tmp_path / "a.mat"
    savemat(place, {"x": np.array([1 + 2j])})
    with pytest.raises(DataError, match=r"a\.mat: cannot be read as a MATLAB file.*class 6"):
        read_matlab(place, "x")
    place.write_bytes(b"\x89HDF\r\n" * 100)
    with pytest.raises(DataError, match=r"a\.mat.*its header is not that of one"):
        read_matlab(place, "x")
    with pytest.raises(DataError, match=r"b\.mat: no such file"):
        read_matlab(tmp_path / "b.mat", "x")


def test_a_compressed_part_cannot_grow_without_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "a.mat"
    savemat(place, {"x": np.zeros(10000)}, do_compression=True)
    monkeypatch.setattr("piggyback.lab.datasets.matlab._LIMIT", 79999)
    with pytest.raises(DataError, match="holds more than 79999 bytes"):
        read_matlab(place, "x")


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_ends_in_errors_only(tmp_path: Path, compressed: bool) -> None:
    place = tmp_path / "a.mat"
    rows = np.empty(4, dtype=[("name", object), ("box", object)])
    for at in range(4):
        rows[at] = (f"name {at}", at)
    savemat(place, {"rows": rows}, do_compression=compressed)
    whole = place.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(400):
        broken = bytearray(whole[: rng.integers(len(whole))] if trial % 2 else whole)
        for at in rng.integers(0, max(1, len(broken)), 3):
            broken[at:at] = b"" if not broken else bytes([rng.integers(256)])
        place.write_bytes(bytes(broken))
        try:
            read_matlab(place, "rows")
        except DataError as error:
            refused += "\n" not in str(error)
    assert refused > 300


def test_every_cut_is_found(tmp_path: Path) -> None:
    place = tmp_path / "a.mat"
    savemat(place, {"x": np.arange(9.0)})
    whole = place.read_bytes()
    for end in range(len(whole)):
        place.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"a\.mat"):
            read_matlab(place, "x")
