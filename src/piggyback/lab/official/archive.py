"""Files of torch.save, opened without running anything in them: both the zip format and the one before torch 1.6."""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from piggyback.errors import TaskFileError
from piggyback.lab.official.data import Storage, Stored, damaged
from piggyback.lab.official.unpickler import read_pickle

_ZIP = b"PK\x03\x04"
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""What a file of the old format begins with, each a pickle of its own."""
_NO_ZIP = (
    *(zipfile.BadZipFile, NotImplementedError, RuntimeError, KeyError),
    *(EOFError, OSError, UnicodeDecodeError, struct.error),
)
"""What zipfile raises for archives that are damaged, encrypted or otherwise not torch's."""


@dataclass(frozen=True)
class Archive:
    """What a file of torch.save holds; the numbers of its tensors are read when they are asked for."""

    root: Any
    _bytes: Callable[[Storage], bytes]

    def tensor(self, stored: Stored) -> Tensor:
        """Return a tensor with its numbers, contiguous, on the CPU."""
        storage = stored.storage
        if not storage.numel:
            return torch.empty(stored.shape, dtype=storage.dtype)
        flat = torch.frombuffer(bytearray(self._bytes(storage)), dtype=storage.dtype)
        start = storage.start + stored.offset
        return flat.as_strided(stored.shape, stored.stride, start).contiguous()


@contextlib.contextmanager
def open_archive(path: str | os.PathLike[str]) -> Iterator[Archive]:
    """Yield what the file at ``path`` holds: see ``read_pickle``.

    Raises TaskFileError for a file that torch.save did not write, that is damaged, or that holds more than tensors,
    containers and modules.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(Path(path).open("rb"))
        except OSError as error:
            raise TaskFileError(
                f"it cannot be read ({error.strerror}): expected a file of torch.save; check the path"
            ) from error
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            raise damaged("it is empty, or no regular file")
        # A mapping, since it never hands out more than there is, whatever length a pickle claims.
        view = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if view[: len(_ZIP)] == _ZIP:
            try:
                archive = _open_zip(stack.enter_context(zipfile.ZipFile(file)))
            except _NO_ZIP as error:
                raise damaged(f"its zip archive cannot be read ({error})") from error
        else:
            archive = _open_old(view)
        yield archive


def _open_zip(file: zipfile.ZipFile) -> Archive:
    """The format since torch 1.6: ``<name>/data.pkl``, and ``<name>/data/<key>`` per storage."""
    pickles = [
        name for name in file.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")
    ]
    if len(pickles) != 1:
        raise damaged(f"its zip archive has {len(pickles)} entries */data.pkl")
    folder = pickles[0].removesuffix("data.pkl")

    def read(name: str) -> bytes:
        if file.getinfo(folder + name).compress_type != zipfile.ZIP_STORED:
            raise damaged(f"its entry {name!r} is compressed")  # torch never does
        return file.read(folder + name)

    def numbers(storage: Storage) -> bytes:
        try:
            data = read(f"data/{storage.key}")
        except _NO_ZIP as error:
            raise damaged(f"its tensor data/{storage.key} cannot be read ({error})") from error
        if len(data) != storage.numel * storage.dtype.itemsize:
            raise damaged(f"its tensor data/{storage.key} has {len(data)} bytes")
        return data

    if f"{folder}byteorder" in file.namelist() and read("byteorder") != b"little":
        raise damaged("it was written on a big-endian machine")
    return Archive(read_pickle(io.BytesIO(read("data.pkl"))), numbers)


def _open_old(view: mmap.mmap) -> Archive:
    """The format before torch 1.6: five pickles, then each storage's length and numbers."""
    places: dict[str, int] = {}
    storages: dict[str, Storage] = {}
    file: Any = view
    if view[257:262] == b"ustar":
        raise damaged("it is in the tar format of before torch 0.1.10")
    if view[:1] != b"\x80" or read_pickle(file) != _MAGIC:
        raise damaged("it does not begin as torch.save does")
    version, system = read_pickle(file), read_pickle(file)
    if version != _PROTOCOL or not isinstance(system, dict) or not system.get("little_endian"):
        raise damaged(f"it is not of version {_PROTOCOL}, or from a big-endian machine")
    root, keys = read_pickle(file, storages), read_pickle(file)
    named = isinstance(keys, list) and all(type(key) is str for key in keys)
    if not named or storages.keys() - set(keys):
        raise damaged("its list of storages is not whole")
    at = view.tell()
    for key in keys:
        storage = storages.get(key)
        count = int.from_bytes(view[at : at + 8], "little")
        if storage is None or count != storage.numel:
            raise damaged(
                f"storage {key[:40]!r} has {count} elements, of another number or unknown"
            )
        places[key] = at + 8
        at += 8 + count * storage.dtype.itemsize
        if at > len(view):
            raise damaged(f"it ends after {len(view)} bytes, in the middle of its tensors")

    def numbers(storage: Storage) -> bytes:
        place = places[storage.key]
        return view[place : place + storage.numel * storage.dtype.itemsize]

    return Archive(root, numbers)
