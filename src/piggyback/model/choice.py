"""Which task a caller has chosen: per thread and per coroutine."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from types import MappingProxyType
from typing import Literal

_NOTHING: Mapping[int, str | None] = MappingProxyType({})
_chosen: ContextVar[Mapping[int, str | None]] = ContextVar("piggyback_chosen", default=_NOTHING)
"""By a choice's id; one variable for all, since a context keeps its variables for ever."""
_ids = itertools.count()


class Which(Enum):
    """What stands where a task's name could."""

    CHOSEN = "the task that the caller has chosen"
    UNSURE = "a write that did not come to its end"


Chosen = Literal[Which.CHOSEN]


class TaskChoice:
    """The task that each thread or coroutine has chosen on one model; None is the backbone.

    A thread that never chose follows the last ``set`` of the thread that made the model.

    >>> choice = TaskChoice()
    >>> choice.set("signs")
    >>> with choice.within("letters"):
    ...     choice.get()
    'letters'
    >>> choice.get()
    'signs'
    """

    def __init__(self) -> None:
        self._default: str | None = None
        self._owner = threading.get_ident()
        self._id = next(_ids)

    def get(self) -> str | None:
        """Return the caller's choice."""
        return _chosen.get().get(self._id, self._default)

    def set(self, name: str | None) -> None:
        """Choose ``name`` from here on."""
        _chosen.set({**_chosen.get(), self._id: name})
        if threading.get_ident() == self._owner:
            self._default = name

    @contextmanager
    def within(self, name: str | None) -> Iterator[None]:
        """Choose ``name`` for a ``with`` block and nobody else."""
        before = _chosen.get()
        _chosen.set({**before, self._id: name})
        try:
            yield
        finally:
            now = {key: value for key, value in _chosen.get().items() if key != self._id}
            if self._id in before:
                now[self._id] = before[self._id]
            _chosen.set(now)

    def forget(self, name: str) -> None:
        """Take back the caller's choice and the default where they are ``name``; other threads keep theirs."""
        if self._default == name:
            self._default = None
        if self.get() == name:
            _chosen.set({**_chosen.get(), self._id: None})

    def __getstate__(self) -> dict[str, str | None]:
        return {"chosen": self.get()}

    def __setstate__(self, state: dict[str, str | None]) -> None:
        """A copy begins with what its maker had chosen, and then goes its own way."""
        self.__init__()  # type: ignore[misc]
        self._default = state["chosen"]
