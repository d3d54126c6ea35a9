"""Files of torch.save, read as data: nothing in them is imported, called or run.

A pickle is a program. ``pickle.Unpickler`` runs it here with a list of instructions, checked before the first one is
followed, and a list of names, each of which stands for something inert: a tensor comes as ``Stored``, where its numbers
lie, a module as ``Record``, its class's name and attributes. ``torch.load`` is not used: with ``weights_only`` it
refuses the modules in the authors' packs, and it believes whatever sizes a pickle claims for its storages.
"""

from __future__ import annotations

import contextlib
import io
import math
import mmap
import os
import pickle
import pickletools
import re
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from piggyback.errors import TaskFileError

_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
"""By the name of the storage class, without "Storage"."""
_STORAGE = re.compile(rf"torch(?:\.cuda)?\.({'|'.join(_DTYPES)})Storage")
_MODULE = re.compile(r"torch\.nn\.modules\.\w{1,60}\.\w{1,60}")
_FRESH = {
    "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "BINFLOAT",
    "BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE",
    "GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BINPERSID",
}  # fmt: skip
"""Instructions that put something new on the stack, and no tuple of other things."""
_INSTRUCTIONS = _FRESH | {
    "PROTO", "FRAME", "STOP", "MARK", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM",
    "SETITEMS", "BUILD", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "MEMOIZE",
}  # fmt: skip
"""All that torch.save writes."""

_MAX_BYTES = 1 << 34
"""Of a file; the authors' largest has 1 GB."""
_MAX_WORK = 1 << 20
"""Instructions, and copied items, of a pickle; the authors' largest packs take some twenty thousand."""
_MAX_BITS = 128
"""Of a number."""
_MAX_DIMENSIONS = 64
"""Of a tensor, by torch's own limit."""

_DAMAGED = (
    *(pickle.UnpicklingError, AttributeError, EOFError, LookupError, OverflowError),
    *(TypeError, ValueError),
)
"""What reading a cut-off or scrambled pickle comes to."""
_NO_ZIP = (
    *(zipfile.BadZipFile, NotImplementedError, RuntimeError, KeyError),
    *(EOFError, OSError, UnicodeDecodeError, struct.error),
)
"""What zipfile raises for archives that are damaged, encrypted or otherwise not torch's."""


class Record:
    """An instance of a module class: its attributes as they were saved; ``name`` is the class's dotted name."""

    name = ""
    state: Mapping[Any, Any] = MappingProxyType({})

    def __setstate__(self, state: object) -> None:
        if type(state) is not dict:
            raise TypeError("attributes that are no dictionary")
        self.__dict__ = {"state": state}


@dataclass(frozen=True)
class Storage:
    """Numbers that lie elsewhere in the file."""

    key: str
    dtype: torch.dtype
    numel: int
    """Of the whole storage, in elements."""
    start: int = 0
    """First element of this part of it."""


@dataclass(frozen=True)
class Stored:
    """A tensor whose numbers have not been read; all its elements lie in its storage and are no more than that."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        if type(self.storage) is not Storage:
            raise TypeError(f"a tensor of {type(self.storage).__name__}")
        if not len(self.shape) == len(self.stride) <= _MAX_DIMENSIONS:
            raise ValueError(f"a tensor of {len(self.shape)} dimensions")
        for count in (self.offset, *self.shape, *self.stride):
            _natural(count)
        last = sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        room = self.storage.numel - self.storage.start
        # The product too: a stride of 0 would make one number as many as one likes.
        if math.prod(self.shape) > self.storage.numel or (
            0 not in self.shape and self.offset + last >= room
        ):
            raise ValueError(f"a tensor of {self.shape} beyond its storage of {room}")

    def __setstate__(self, state: object) -> None:
        """Ignore what a pickle sets: of a parameter, its gradient."""


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


# -- pickles -----------------------------------------------------------------------------------------


def read_pickle(file: BinaryIO | mmap.mmap, storages: dict[str, Storage] | None = None) -> Any:
    """Return what the pickle at ``file``'s position holds, and leave the position behind it.

    Numbers, strings and containers come as they are, an OrderedDict as a dict, a set as a list, tensors as Stored,
    modules as Record. Raises TaskFileError, which names it, for anything else. The storages that tensors refer to
    are put into ``storages`` by their keys.

    >>> read_pickle(io.BytesIO(pickle.dumps({"a": (1, [2.5])}, 2)))
    {'a': (1, [2.5])}
    >>> read_pickle(io.BytesIO(pickle.dumps(print, 2)))
    Traceback (most recent call last):
    ...
    piggyback.errors.TaskFileError: it holds '__builtin__.print': expected only tensors, containers and torch.nn \
modules; nothing of it was run, get the file from where it was published
    """
    start = file.tell()
    try:
        _check_instructions(file)
        end = file.tell()
        file.seek(start)
        return _Unpickler(file.read(end - start), {} if storages is None else storages).load()
    except _DAMAGED as error:
        if isinstance(error, TaskFileError):
            raise
        raise damaged(f"{type(error).__name__} in its pickle") from error


def _check_instructions(file: Any) -> None:
    """Read a pickle's instructions without following any, so that a few bytes cannot ask for much time or memory."""
    work = notes = 0
    last, tuples = "", set[int]()
    for opcode, arg, _ in pickletools.genops(file):
        work += 1
        name = opcode.name
        if name not in _INSTRUCTIONS:
            raise _refused(f"instruction {name}")
        if work > _MAX_WORK:
            raise damaged(f"its pickle takes more than {_MAX_WORK} steps")
        if isinstance(arg, int) and arg.bit_length() > _MAX_BITS:
            raise damaged(f"its pickle has a number of {arg.bit_length()} bits")
        if name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            place = notes if arg is None else arg
            notes += 1
            if place > work:  # the unpickler would make room for as many
                raise damaged(f"its pickle sets aside an object as number {place}")
            if last not in _FRESH:
                tuples.add(place)
            continue
        if name in ("BINGET", "LONG_BINGET") and arg in tuples:
            # Tuples that hold the one before twice would take 2 ** n steps to become a dictionary's key.
            raise damaged("its pickle uses a tuple again")
        last = name


class _Unpickler(pickle.Unpickler):
    """Follows the instructions; whatever a name on the list stands for makes an inert object."""

    def __init__(self, data: bytes, storages: dict[str, Storage]) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._storages = storages
        self._copied = 0
        # Made anew for each pickle, which may set attributes on them.
        tensor, parameter = self._tensor, self._parameter
        copied = self._copy
        self._known: dict[str, Callable[..., Any]] = {
            "torch._utils._rebuild_tensor": lambda *args: tensor(*args),
            "torch._utils._rebuild_tensor_v2": lambda *args: tensor(*args),
            "torch._utils._rebuild_parameter": lambda *args: parameter(*args),
            "torch.nn.parameter.Parameter": lambda *args: parameter(*args),
            # Old modules, those of the authors' packs among them, were saved with this.
            "torch.nn.backends.thnn._get_thnn_function_backend": lambda: None,
            "collections.OrderedDict": lambda *args: dict(copied(*args)),
            "__builtin__.set": lambda *args: copied(*args),
            "builtins.set": lambda *args: copied(*args),
        }

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name on the list stands for; where Python would import it, nothing else is touched."""
        dotted = f"{module}.{name}"
        if found := _STORAGE.fullmatch(dotted):
            return _DTYPES[found[1]]
        if _MODULE.fullmatch(dotted):
            return type(name, (Record,), {"name": dotted})
        if dotted not in self._known:
            raise _refused(dotted[:200])
        return self._known[dotted]

    def persistent_load(self, pid: Any) -> Any:
        """Return a storage, or a class that comes with its source text, as torch.save refers to them."""
        kind, what, *rest = pid
        if kind == "module" and isinstance(what, type):
            return what
        if kind != "storage" or type(what) is not torch.dtype:
            raise _refused(f"a reference to {getattr(what, 'name', type(what).__name__)}")
        key, _location, numel, *view = rest
        if type(key) is not str or not re.fullmatch("[0-9]{1,20}", key):
            raise ValueError("a key")
        start = 0
        if view and view[0] is not None:  # a part of a storage; only before torch 0.4
            _, start, part = view[0]
            if not 0 <= start <= start + part <= numel:
                raise ValueError("a part")
        made = Storage(key, what, _natural(numel), _natural(start))
        known = self._storages.setdefault(key, made)
        if (known.dtype, known.numel) != (made.dtype, made.numel):
            raise ValueError("two storages of one key")
        return made

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Stored:
        if not type(shape) is type(stride) is tuple:
            raise TypeError("a shape")
        return Stored(storage, offset, shape, stride)

    def _parameter(self, data: Any, *_: Any) -> Stored:
        if type(data) is not Stored:
            raise TypeError("a parameter without a tensor")
        return data

    def _copy(self, items: Any = ()) -> list[Any]:
        """A list's copy; a few bytes could ask for that of the same long one again and again."""
        self._copied += len(items)
        if self._copied > _MAX_WORK:
            raise damaged(f"its pickle takes more than {_MAX_WORK} steps")
        return list(items)


def _natural(value: Any) -> int:
    """``value`` if it can be a count of elements."""
    if type(value) is not int or not 0 <= value < 1 << 48:
        raise ValueError(f"a count of type {type(value).__name__}")
    return value


def _refused(what: str) -> TaskFileError:
    return TaskFileError(
        f"it holds {what!r}: expected only tensors, containers and torch.nn modules; nothing of it was run, "
        "get the file from where it was published"
    )


def damaged(what: str) -> TaskFileError:
    """Return the error for a file that torch.save did not write so."""
    return TaskFileError(f"{what}: expected a whole file of torch.save; get it again")


# -- files: the zip format, and the one before torch 1.6 ---------------------------------------------------


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
        if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= _MAX_BYTES:
            raise damaged(f"it is empty, no regular file, or of more than {_MAX_BYTES} bytes")
        # A mapping, since it never hands out more than there is, whatever length a pickle claims.
        view = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if view[:4] == b"PK\x03\x04":
            with _zip_errors("its zip archive"):
                archive = _open_zip(stack.enter_context(zipfile.ZipFile(file)))
        else:
            archive = _open_old(view)
        yield archive


@contextlib.contextmanager
def _zip_errors(what: str) -> Iterator[None]:
    try:
        yield
    except _NO_ZIP as error:
        raise damaged(f"{what} cannot be read ({error})") from error


def _open_zip(file: zipfile.ZipFile) -> Archive:
    """The format since torch 1.6: ``<name>/data.pkl``, and ``<name>/data/<key>`` per storage."""
    names = file.namelist()
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise damaged(f"its zip archive has {len(pickles)} entries */data.pkl")
    folder = pickles[0].removesuffix("data.pkl")

    def read(name: str) -> bytes:
        if file.getinfo(folder + name).compress_type != zipfile.ZIP_STORED:
            raise damaged(f"its entry {name!r} is compressed")  # torch never does
        return file.read(folder + name)

    def numbers(storage: Storage) -> bytes:
        with _zip_errors(f"its tensor data/{storage.key}"):
            data = read(f"data/{storage.key}")
        if len(data) != storage.numel * storage.dtype.itemsize:
            raise damaged(f"its tensor data/{storage.key} has {len(data)} bytes")
        return data

    if f"{folder}byteorder" in names and read("byteorder") != b"little":
        raise damaged("it was written on a big-endian machine")
    return Archive(read_pickle(io.BytesIO(read("data.pkl"))), numbers)


def _open_old(view: mmap.mmap) -> Archive:
    """The format before torch 1.6: five pickles, then each storage's length and numbers."""
    if view[:1] != b"\x80" or read_pickle(view) != 0x1950A86A20F9469CFC6C:
        raise damaged("it does not begin as torch.save does")
    version, system = read_pickle(view), read_pickle(view)
    if version != 1001 or not isinstance(system, dict) or not system.get("little_endian"):
        raise damaged("it is not of version 1001, or from a big-endian machine")
    storages: dict[str, Storage] = {}
    root, keys = read_pickle(view, storages), read_pickle(view)
    named = isinstance(keys, list) and all(type(key) is str for key in keys)
    if not named or storages.keys() - set(keys):
        raise damaged("its list of storages is not whole")
    places: dict[str, int] = {}
    at = view.tell()
    for key in keys:
        storage = storages.get(key)
        count = int.from_bytes(view[at : at + 8], "little")
        if storage is None or count != storage.numel:
            raise damaged(f"storage {key[:40]!r} of {count} elements is unknown or of another size")
        places[key] = at + 8
        at += 8 + count * storage.dtype.itemsize
        if at > len(view):
            raise damaged(f"it ends after {len(view)} bytes, in the middle of its tensors")

    def numbers(storage: Storage) -> bytes:
        place = places[storage.key]
        return view[place : place + storage.numel * storage.dtype.itemsize]

    return Archive(root, numbers)
