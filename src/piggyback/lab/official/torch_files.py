"""Files of torch.save, read as data: nothing in them is imported, called or run.

A pickle is a program. ``pickle.Unpickler`` runs it here with a list of names, each of which stands for something inert:
a module comes as ``Record``, its class's name and attributes, a tensor as ``Stored``. ``torch.load`` is not used: with
``weights_only`` it refuses the modules in the authors' packs.
"""

from __future__ import annotations

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
from collections.abc import Callable, Mapping
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
_MAX_BYTES = 1 << 34
"""Of a file; the authors' largest has 1 GB."""
_MAX_STEPS = 1 << 20
"""Instructions of a pickle; the authors' largest packs take some twenty thousand."""

_DAMAGED = (
    *(pickle.UnpicklingError, AttributeError, EOFError, LookupError, OverflowError),
    *(RuntimeError, TypeError, ValueError),
)
"""What reading a cut-off or scrambled pickle comes to."""
_NO_ZIP = (
    *(zipfile.BadZipFile, NotImplementedError, RuntimeError, KeyError),
    *(EOFError, UnicodeDecodeError, struct.error),
)
"""What zipfile raises for archives that are damaged, encrypted or otherwise not torch's."""


class Record:
    """An instance of a module class: its attributes as they were saved; ``name`` is the class's dotted name."""

    name = ""
    state: Mapping[Any, Any] = MappingProxyType({})

    def __setstate__(self, state: object) -> None:
        if type(state) is not dict:
            raise TypeError("attributes that are not a dictionary")
        self.__dict__ = {"state": state}


class Stored:
    """A tensor, without what a pickle could do to one: set its attributes."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __setstate__(self, state: object) -> None:
        """Ignore them: of a parameter, its gradient."""


Storages = Callable[[str, torch.dtype, int], Tensor]
"""Returns the numbers with a key, of a dtype, that many: one tensor for each key; raises ValueError."""


# -- pickles -----------------------------------------------------------------------------------------


def _none(key: str, dtype: torch.dtype, numel: int) -> Tensor:
    raise ValueError("numbers where there are none")


def read_pickle(file: BinaryIO | mmap.mmap, storages: Storages = _none) -> Any:
    """Return what the pickle at ``file``'s position holds, and leave the position behind it.

    Numbers, strings and containers come as they are, an OrderedDict as a dict, a set as a list, tensors as Stored,
    modules as Record. Raises TaskFileError, which names it, for anything else.

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
        # Looked through first, so that a few bytes cannot ask for much time or memory.
        for step, (opcode, arg, _) in enumerate(pickletools.genops(file)):  # type: ignore[arg-type]
            if step == _MAX_STEPS:
                raise damaged(f"its pickle takes more than {_MAX_STEPS} steps")
            if (
                "PUT" in opcode.name and int(arg or 0) > step
            ):  # the unpickler makes room for as many
                raise damaged(f"its pickle sets aside an object as number {arg}")
        end = file.tell()
        file.seek(start)
        return _Unpickler(file.read(end - start), storages).load()
    except _DAMAGED as error:
        if isinstance(error, TaskFileError):
            raise
        raise damaged(f"{type(error).__name__} in its pickle") from error


class _Unpickler(pickle.Unpickler):
    """Whatever a name on the list stands for makes an inert object."""

    def __init__(self, data: bytes, storages: Storages) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._storages = storages
        # Made anew for each pickle, which may set attributes on them.
        self._known: dict[str, Callable[..., Any]] = {
            "torch._utils._rebuild_tensor": lambda *args: _tensor(*args),
            "torch._utils._rebuild_tensor_v2": lambda *args: _tensor(*args),
            "torch._utils._rebuild_parameter": lambda *args: _parameter(*args),
            "torch.nn.parameter.Parameter": lambda *args: _parameter(*args),
            # Old modules, those of the authors' packs among them, were saved with this.
            "torch.nn.backends.thnn._get_thnn_function_backend": lambda: None,
            "collections.OrderedDict": lambda *args: dict(*args),
            "__builtin__.set": lambda *args: list(*args),
            "builtins.set": lambda *args: list(*args),
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
        if not re.fullmatch("[0-9]{1,20}", key) or not 0 <= numel < _MAX_BYTES:
            raise ValueError("a storage's key, or its number of elements")
        flat = self._storages(key, what, numel)
        if view and view[0] is not None:  # a part of a storage; only before torch 0.4
            _, start, part = view[0]
            flat = flat.narrow(0, start, part)
        return flat


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Stored:
    # A stride of 0 would make one number as many as one likes; all else as_strided refuses.
    if math.prod(shape) > len(storage) or not 0 <= offset <= len(storage):
        raise ValueError("a tensor of more than its storage")
    return Stored(storage.as_strided(shape, stride, storage.storage_offset() + offset))


def _parameter(data: Any, *_: Any) -> Stored:
    if type(data) is not Stored:
        raise TypeError("a parameter without a tensor")
    return data


def _refused(what: str) -> TaskFileError:
    return TaskFileError(
        f"it holds {what!r}: expected only tensors, containers and torch.nn modules; nothing of it was run, "
        "get the file from where it was published"
    )


def damaged(what: str) -> TaskFileError:
    """Return the error for a file that torch.save did not write so."""
    return TaskFileError(f"{what}: expected a whole file of torch.save; get it again")


# -- files: the zip format, and the one before torch 1.6 ---------------------------------------------------


def read_archive(path: str | os.PathLike[str]) -> Any:
    """Return what the file at ``path`` holds: see ``read_pickle``.

    Raises TaskFileError for a file that torch.save did not write, that is damaged, or that holds more than tensors,
    containers and modules.
    """
    try:
        with Path(path).open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= _MAX_BYTES:
                raise damaged(f"it is empty, not a regular file, or larger than {_MAX_BYTES} bytes")
            # A mapping, since it never hands out more than there is, whatever length a pickle claims.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                if view[:4] != b"PK\x03\x04":
                    return _read_old(view)
            with zipfile.ZipFile(file) as archive:
                return _read_zip(archive)
    except _NO_ZIP as error:
        raise damaged(f"its zip archive cannot be read ({error})") from error
    except OSError as error:
        raise TaskFileError(
            f"it cannot be read ({error.strerror}): expected a file of torch.save; check the path"
        ) from error


def _read_zip(file: zipfile.ZipFile) -> Any:
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

    if f"{folder}byteorder" in names and read("byteorder") != b"little":
        raise damaged("it was written on a big-endian machine")
    known: dict[str, Tensor] = {}

    def storages(key: str, dtype: torch.dtype, numel: int) -> Tensor:
        if key not in known:
            known[key] = _numbers(read(f"data/{key}"), dtype)
        return _agreed(known[key], dtype, numel)

    return read_pickle(io.BytesIO(read("data.pkl")), storages)


def _read_old(view: mmap.mmap) -> Any:
    """The format before torch 1.6: five pickles, then each storage's length and numbers."""
    if view[:1] != b"\x80" or read_pickle(view) != 0x1950A86A20F9469CFC6C:
        raise damaged("it does not begin as torch.save does")
    version, system = read_pickle(view), read_pickle(view)
    if version != 1001 or not isinstance(system, dict) or not system.get("little_endian"):
        raise damaged("it is not of version 1001, or from a big-endian machine")
    known: dict[str, Tensor] = {}
    free = len(view)

    def storages(key: str, dtype: torch.dtype, numel: int) -> Tensor:
        nonlocal free
        if key not in known:
            free -= numel * dtype.itemsize
            if free < 0:
                raise ValueError("storages of more than the file")
            known[key] = torch.empty(numel, dtype=dtype)  # filled below
        return _agreed(known[key], dtype, numel)

    root, keys = read_pickle(view, storages), read_pickle(view)
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(known):
        raise damaged("its list of storages is not whole")
    at = view.tell()
    for key in keys:
        flat = known[key]
        data = view[at + 8 : at + 8 + flat.nbytes]
        if int.from_bytes(view[at : at + 8], "little") != len(flat) or len(data) != flat.nbytes:
            raise damaged(f"its storage {key[:40]!r} is cut off, or of another size")
        flat.copy_(_numbers(data, flat.dtype))
        at += 8 + len(data)
    return root


def _numbers(data: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _agreed(flat: Tensor, dtype: torch.dtype, numel: int) -> Tensor:
    if (flat.dtype, len(flat)) != (dtype, numel):
        raise ValueError("a storage of another size, or two of one key")
    return flat
