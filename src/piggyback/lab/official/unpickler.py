"""Pickles read as data: nothing in them is imported, called or set as an attribute.

A pickle is a program for a small stack machine. This one knows the few instructions that torch.save writes, and
where Python's own would import a name and call it, it looks the name up in a short list and makes an inert object.
A name that is not on the list ends the reading: what it stands for is never touched.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from typing import Any, BinaryIO

from piggyback.errors import TaskFileError
from piggyback.lab.official.data import DTYPES, Name, Record, Storage, Stored, damaged, natural

_STORAGE = re.compile(rf"torch(?:\.cuda)?\.({'|'.join(DTYPES)})Storage")
_MODULE = re.compile(r"torch\.nn\.modules\.\w{1,60}\.\w{1,60}")
_TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter")
_SETS = ("__builtin__.set", "builtins.set")
_ORDERED = "collections.OrderedDict"
_BACKEND = "torch.nn.backends.thnn._get_thnn_function_backend"
"""What old modules, those of the authors' packs among them, were saved with."""
_KNOWN = {*_TENSORS, *_PARAMETERS, *_SETS, _ORDERED, _BACKEND}

_STORAGE_KEY = re.compile("[0-9]{1,20}")
_MAX_WORK = 1 << 20
"""Instructions and copied items in all: one byte can make a container, and a few copy the same list again and again.
The authors' largest packs take some twenty thousand."""

_DAMAGED = (ValueError, IndexError, KeyError, TypeError, OverflowError)
"""What reading a cut-off or scrambled pickle comes to."""


def read_pickle(file: BinaryIO, storages: dict[str, Storage] | None = None) -> Any:
    """Return what the pickle at ``file``'s position holds, and leave the position behind it.

    Numbers, strings and containers come as they are, an OrderedDict as a dict, a set as a list, tensors as Stored,
    modules as Record. Raises TaskFileError, which names it, for anything else. The storages that tensors refer to
    are put into ``storages`` by their keys.

    >>> import io, pickle
    >>> read_pickle(io.BytesIO(pickle.dumps({"a": (1, [2.5])}, 2)))
    {'a': (1, [2.5])}
    >>> read_pickle(io.BytesIO(pickle.dumps(print, 2)))
    Traceback (most recent call last):
    ...
    piggyback.errors.TaskFileError: it holds '__builtin__.print': expected only tensors, containers and torch.nn \
modules; nothing of it was run, get the file from where it was published
    """
    machine = _Machine({} if storages is None else storages)
    try:
        for opcode, arg, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, arg)
    except _DAMAGED as error:
        if isinstance(error, TaskFileError):
            raise
        raise damaged(f"{type(error).__name__} in its pickle") from error
    raise damaged("its pickle has no end")


def _refused(what: str) -> TaskFileError:
    return TaskFileError(
        f"it holds {what!r}: expected only tensors, containers and torch.nn modules; nothing of it was run, "
        "get the file from where it was published"
    )


class _Machine:
    """The stack, the marks on it, and what was set aside by number."""

    def __init__(self, storages: dict[str, Storage]) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.work = 0

    def step(self, name: str, arg: Any) -> None:
        """Follow one instruction."""
        self._count(1)
        if name in _NUMBERS or name in _TEXTS:
            self.stack.append(arg)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[int(arg)])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[int(arg)] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name in ("GLOBAL", "INST"):
            self._name(str(arg).replace(" ", "."))
            if name == "INST":
                raise _refused("instruction INST")
        elif name in _METHODS:
            _METHODS[name](self)
        elif name not in ("PROTO", "FRAME"):
            raise _refused(f"instruction {name}")

    def _name(self, dotted: str) -> None:
        if not (dotted in _KNOWN or _STORAGE.fullmatch(dotted) or _MODULE.fullmatch(dotted)):
            raise _refused(dotted[:200])
        self.stack.append(Name(dotted))

    def _stack_global(self) -> None:
        module, name = self._take(2)
        if type(module) is not str or type(name) is not str:
            raise TypeError
        self._name(f"{module}.{name}")

    def _since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _take(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError(count)
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _tuple(self) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _tuple1(self) -> None:
        self.stack.append(tuple(self._take(1)))

    def _tuple2(self) -> None:
        self.stack.append(tuple(self._take(2)))

    def _tuple3(self) -> None:
        self.stack.append(tuple(self._take(3)))

    def _append(self) -> None:
        self._extend(self._take(1))

    def _appends(self) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError
        self.stack[-1].extend(items)

    def _setitem(self) -> None:
        self._set(self._take(2))

    def _setitems(self) -> None:
        self._set(self._since_mark())

    def _set(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict:
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][_key(key)] = value

    def _call(self) -> None:
        """REDUCE and NEWOBJ: where Python would call ``function(*args)``."""
        function, args = self._take(2)
        if type(function) is not Name or type(args) is not tuple:
            raise TypeError
        name = function.dotted
        if name in _TENSORS:
            made: Any = Stored.made(*args[:4])
        elif name in _PARAMETERS and args and type(args[0]) is Stored:
            made = args[0]
        elif name == _ORDERED:
            made = {_key(key): value for key, value in self._items(args)}
        elif name in _SETS:
            made = list(self._items(args))
        elif not args and (name == _BACKEND or _MODULE.fullmatch(name)):
            made = Record(name)
        else:
            raise _refused(f"a call of {name}")
        self.stack.append(made)

    def _items(self, args: tuple[Any, ...]) -> list[Any]:
        (items,) = args or ([],)
        if type(items) is not list:
            raise TypeError
        self._count(len(items))
        return items

    def _count(self, work: int) -> None:
        self.work += work
        if self.work > _MAX_WORK:
            raise damaged(f"its pickle takes more than {_MAX_WORK} steps")

    def _build(self) -> None:
        """BUILD: where Python would call ``__setstate__`` or set attributes. Only a module's matter here."""
        (state,) = self._take(1)
        made = self.stack[-1]
        if type(made) is Record and type(state) is dict:
            made.state = state
        elif type(made) not in (
            Stored,
            dict,
        ):  # of a parameter, gradients; of an OrderedDict, notes
            raise TypeError

    def _persistent(self) -> None:
        """A storage, or a class with its source text, as torch.save refers to them."""
        (ref,) = self._take(1)
        kind, name, *rest = ref
        if type(name) is not Name:
            raise TypeError
        if kind == "module":
            self.stack.append(name)
            return
        found = _STORAGE.fullmatch(name.dotted)
        if kind != "storage" or found is None:
            raise _refused(f"a reference to {name.dotted}")
        key, _location, numel, *view = rest
        if type(key) is not str or not _STORAGE_KEY.fullmatch(key):
            raise ValueError
        start = 0
        if view and view[0] is not None:  # a part of a storage; only before torch 0.4
            _, start, part = view[0]
            if not 0 <= start <= start + part <= numel:
                raise ValueError
        made = Storage(key, DTYPES[found[1]], natural(numel), natural(start))
        known = self.storages.setdefault(key, made)
        if (known.dtype, known.numel) != (made.dtype, made.numel):
            raise ValueError
        self.stack.append(made)


def _key(value: Any) -> str | int:
    return value if type(value) is str else natural(value)


_NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_TEXTS = {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_METHODS: dict[str, Callable[[_Machine], None]] = {
    "STACK_GLOBAL": _Machine._stack_global,
    "TUPLE": _Machine._tuple,
    "TUPLE1": _Machine._tuple1,
    "TUPLE2": _Machine._tuple2,
    "TUPLE3": _Machine._tuple3,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "SETITEM": _Machine._setitem,
    "SETITEMS": _Machine._setitems,
    "REDUCE": _Machine._call,
    "NEWOBJ": _Machine._call,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent,
}
