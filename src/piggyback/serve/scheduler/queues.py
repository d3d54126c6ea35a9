"""Requests wait in one queue per task; workers take batches, each of one task.

    add     -> parked   its task is on disk      -- ready -->  waiting
            -> waiting  its task is in memory

    take    a request has waited longer than ``patience``:   the task with the oldest request
            none has:                                        a task that is live already, of these
                                                             the longest queue; else the longest

So switches are few while there is time, and nobody starves: once a request has waited for ``patience``, the only
batches that begin before its own are of requests that came before it. These are at most all that may wait, and the
scheduler keeps one task from being more than half of them. Letting tasks take turns instead was tried: where a few
tasks have most of the requests, it holds up just those that make full batches.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from piggyback.images.map_pictures import Frame
from piggyback.schemas import Answer
from piggyback.serve.store.folder import Key, TaskEntry


@dataclass(eq=False)
class Request:
    """An image for a task, from the call to the answer; times are seconds of ``time.perf_counter``."""

    entry: TaskEntry
    """The version of the task that ``input`` was made for."""
    source: Any
    """The image as it was given: a task that is replaced meanwhile may want another input."""
    input: Tensor
    top_k: int
    began: float
    prepared: float
    """When ``input`` was."""
    arrived: float = 0.0
    """When it was queued."""
    loaded: float = 0.0
    """When its task came into memory, if it had to wait for that."""
    frame: Frame | None = None
    """The image that ``input`` shows, for a task that labels every pixel."""
    future: Future[Answer] = field(default_factory=Future)


def fail(requests: Iterable[Request], error: Exception) -> None:
    """Tell those who wait for ``requests`` why there is no answer."""
    for request in requests:
        if request.future.set_running_or_notify_cancel():
            request.future.set_exception(error)


class Queues:
    """Requests in order of arrival, by task; not safe for threads, the caller holds a lock.

    >>> from types import SimpleNamespace
    >>> queues = Queues(max_batch=8, patience=0.02)
    >>> for task, arrived in (("a", 1.0), ("b", 1.001), ("a", 1.002)):
    ...     queues.add(task, SimpleNamespace(arrived=arrived))
    >>> task, batch = queues.take(1.003, is_live=lambda task: task == "b")
    >>> task, len(batch)
    ('b', 1)
    """

    def __init__(self, max_batch: int, patience: float) -> None:
        self._max_batch, self._patience = max_batch, patience
        self._waiting: dict[Key, deque[Request]] = {}
        self._parked: dict[Key, deque[Request]] = {}
        # A heap: when the oldest request of each task arrived. Outdated entries are passed over.
        self._since: list[tuple[float, Key]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, key: Key, item: Request, *, parked: bool = False) -> None:
        """Put ``item`` behind those of its task; ``parked``: until ``ready`` is called for it."""
        self._count += 1
        if parked and key in self._waiting:  # its task has left memory since
            self._parked[key] = self._waiting.pop(key)
        if parked or key in self._parked:
            self._parked.setdefault(key, deque()).append(item)
        elif key in self._waiting:
            self._waiting[key].append(item)
        else:
            self._wait(key, deque([item]))

    def ready(self, key: Key) -> list[Request]:
        """Let a parked task's requests be taken, and return them: it is in memory now."""
        items = self._parked.pop(key, deque())
        if items:
            self._wait(key, items)
        return list(items)

    def put_back(self, key: Key, batch: list[Request]) -> None:
        """Return a batch that was just taken to its place, parked: its task has left memory."""
        self._count += len(batch)
        later = self._waiting.pop(key, deque())
        self._parked[key] = deque([*batch, *later, *self._parked.get(key, ())])

    def count(self, key: Key) -> int:
        """Return how many requests for the task wait."""
        return len(self._waiting.get(key, ())) + len(self._parked.get(key, ()))

    def has(self, key: Key) -> bool:
        """Return whether requests for the task wait."""
        return key in self._waiting or key in self._parked

    def drop(self, key: Key) -> list[Request]:
        """Return the requests of a task, which wait no longer."""
        items = [*self._parked.pop(key, ()), *self._waiting.pop(key, deque())]
        self._count -= len(items)
        return items

    def discard(self, key: Key, item: Request) -> bool:
        """Forget one request; return whether it was still waiting."""
        for queues in (self._waiting, self._parked):
            items = queues.get(key)
            if items is not None and item in items:
                items.remove(item)
                self._count -= 1
                if not items:
                    del queues[key]
                elif queues is self._waiting:
                    self._wait(key, items)  # another may be the oldest now
                return True
        return False

    def take(self, now: float, is_live: Callable[[Key], bool]) -> tuple[Key, list[Request]] | None:
        """Return the next task and its batch, oldest request first; None where none is ready."""
        key = self._next(now, is_live)
        if key is None:
            return None
        items = self._waiting.pop(key)
        batch = [items.popleft() for _ in range(min(len(items), self._max_batch))]
        self._count -= len(batch)
        if items:
            self._wait(key, items)
        return key, batch

    def keys(self) -> Iterator[Key]:
        """Yield the tasks with requests."""
        yield from self._waiting
        yield from self._parked

    def _next(self, now: float, is_live: Callable[[Key], bool]) -> Key | None:
        while self._since:
            since, key = self._since[0]
            if key in self._waiting and self._waiting[key][0].arrived == since:
                break
            heapq.heappop(self._since)
        else:
            return None
        if now - since >= self._patience:
            return key
        # None has waited for longer, so there are few: what came within it.
        lengths = {key: len(items) for key, items in self._waiting.items()}
        live = {key: n for key, n in lengths.items() if is_live(key)} or lengths
        return max(live, key=live.__getitem__)

    def _wait(self, key: Key, items: deque[Request]) -> None:
        self._waiting[key] = items
        heapq.heappush(self._since, (items[0].arrived, key))
