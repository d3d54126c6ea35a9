"""Where requests, workers and loaders meet: queues, tiers and counts, guarded by one lock.

    submit -> queue of the task ----------------> worker: lease -> write the task into a live copy unless it is
                 |                                        there -> run -> done
                 `-- not in memory -> loader: next_load -> read, decode -> hold, which lets the queue go

Nothing slow is done under the lock: the methods here move entries between tables, and return.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from piggyback.errors import ClosedError, InputError, OverloadError, UnavailableError
from piggyback.schemas import Tier
from piggyback.serve.replicas.copies import ModelCopy
from piggyback.serve.replicas.packed import PackedTask
from piggyback.serve.scheduler.queues import Queues
from piggyback.serve.scheduler.requests import Request, fail
from piggyback.serve.scheduler.tiers import Tiers
from piggyback.serve.stats import Counts, Stats
from piggyback.serve.store.folder import TaskEntry

Key = tuple[str, str]
"""A task's name and version."""

LONGEST_RETRY = 30.0


@dataclass(frozen=True)
class Lease:
    """A batch, and the live copy that is its worker's to use until ``done``."""

    key: Key
    batch: list[Request]
    copy: ModelCopy
    tier: Tier
    """Where the task was."""
    write: PackedTask | None
    """What has to be written into the copy first; None where it is there."""


class Desk:
    """The state of an engine's work; every method takes the lock, and may be called from any thread.

    ``memory`` is the budget of ``tiers.py``; ``copies`` are the first live copies, one a worker.
    """

    def __init__(
        self,
        memory: int,
        copies: Collection[ModelCopy],
        copy_bytes: int,
        *,
        max_batch: int,
        max_queue: int,
        patience: float,
    ) -> None:
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._load = threading.Condition(self._lock)
        self._moved = threading.Condition(
            self._lock
        )  # something ended: there may be room, or peace
        self._queues: Queues[Key, Request] = Queues(max_batch, patience)
        self._tiers: Tiers[Key, PackedTask, ModelCopy] = Tiers(memory, copies, copy_bytes)
        self._counts = Counts()
        self._max_queue, self._workers = max_queue, len(copies)
        self._reserved = self._running = 0
        self._seconds = 0.01  # an image's share of a worker's time: a moving mean
        self._loads: dict[Key, TaskEntry] = {}
        self._loading: set[Key] = set()
        self._retired: dict[Key, bool] = {}  # versions to drop once nobody waits; is the task gone?
        self._grow = False
        self._closed = self._stopped = False

    # -- requests ------------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """Requests that wait, or whose images are being prepared."""
        return len(self._queues) + self._reserved

    def reserve(self, entries: Sequence[TaskEntry]) -> None:
        """Keep room in the queue for a request for each of ``entries``.

        No task gets more than half of the queue: others shall find room in it. Raises OverloadError, ClosedError, and
        InputError for more than there ever is room for.
        """
        n, asked = len(entries), Counter(entry.key for entry in entries)
        share = max(1, self._max_queue // 2)
        if n > self._max_queue or max(asked.values()) > share:
            raise InputError(
                f"{n} requests at once: expected at most {self._max_queue}, which is all that may wait, and "
                f"{share} for one task; send fewer"
            )
        with self._lock:
            if self._closed:
                raise ClosedError("the engine is stopping: it takes no more requests")
            full = self.depth + n > self._max_queue
            if full or any(self._queues.count(k) + m > share for k, m in asked.items()):
                for entry in entries:
                    self._counts.count(entry.name, "overload")
                wait = min(LONGEST_RETRY, self.depth * self._seconds / self._workers)
                raise OverloadError(
                    f"{self.depth} requests are waiting and {n} more came: expected at most "
                    f"{self._max_queue} in all and {share} for one task; ask again in {wait:.1f} s",
                    retry_after=wait,
                )
            self._reserved += n

    def unreserve(self, n: int) -> None:
        """Give room back that was not used."""
        with self._lock:
            self._reserved -= n
            self._moved.notify_all()

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests for which room was reserved; raises ClosedError."""
        with self._lock:
            self._reserved -= len(requests)
            if self._stopped:
                raise ClosedError("the engine has stopped: it takes no more requests")
            now = time.perf_counter()
            for request in requests:
                key, request.arrived = request.entry.key, request.arrived or now
                parked = self._tiers.tier(key) == "disk"
                if parked:
                    self._want(request.entry)
                self._queues.add(key, request, parked=parked)
            self._work.notify(len(requests))

    def forget(self, requests: Sequence[Request], outcome: Literal["timeout", "cancelled"]) -> None:
        """Drop requests that nobody waits for any more."""
        with self._lock:
            for request in requests:
                if request.future.cancel():
                    self._drop(request, outcome)
            self._moved.notify_all()

    def withdraw(self, request: Request) -> None:
        """Give up the place of a request that was cancelled."""
        with self._lock:
            self._drop(request, "cancelled")
            self._moved.notify_all()

    def close(self, drain: bool, timeout: float | None) -> None:
        """Take no more, answer what waits if ``drain``, for ``timeout`` seconds at most; the rest gets ClosedError."""
        with self._lock:
            self._closed = True
            if drain:
                self._moved.wait_for(lambda: not (self.depth or self._running), timeout)
            self._stopped = True
            left = [r for key in list(self._queues.keys()) for r in self._queues.drop(key)]
            for condition in (self._work, self._load, self._moved):
                condition.notify_all()
        fail(left, ClosedError("the engine has stopped before this request's turn"))

    def _drop(self, request: Request, outcome: Literal["timeout", "cancelled"]) -> None:
        if self._queues.discard(request.entry.key, request):
            request.future.set_running_or_notify_cancel()  # whoever waits for several of them
            self._counts.count(request.entry.name, outcome)

    # -- workers -------------------------------------------------------------------------------

    def lease(self) -> Lease | None:
        """Return the next batch, waiting for one; None once the engine has stopped."""
        with self._lock:
            while (lease := self._lease()) is None:
                if self._stopped:
                    return None
                self._work.wait()
            self._running += 1
            return lease

    def wrote(self, lease: Lease) -> None:
        """Note that the lease's copy holds its task: others may use it too."""
        extra = lease.copy.extra_bytes
        with self._lock:
            self._tiers.wrote(lease.key, lease.copy, extra)
            self._tiers.make_room(0, self._queues.has)

    def done(self, lease: Lease, seconds: float, latencies: Sequence[float]) -> None:
        """Take a lease's copy back; ``latencies`` are of those of its batch that were answered."""
        task, size = lease.key[0], len(lease.batch)
        with self._lock:
            self._running -= 1
            self._tiers.release(lease.key, lease.copy)
            counts = self._counts
            counts.count(task, "ok", latencies, len(latencies))
            if len(latencies) < size:
                counts.count(task, "error", n=size - len(latencies))
            counts.hits[lease.tier] += 1
            counts.batch_sizes.add([size])
            self._drop_retired(lease.key)
            self._seconds += 0.1 * (seconds / size - self._seconds)
            if lease.write is not None:
                counts.switches += 1
                if not self._grow and self._tiers.has_room_for_copy:
                    self._grow = True
                    self._load.notify()
            self._moved.notify_all()

    def _lease(self) -> Lease | None:
        while taken := self._queues.take(time.perf_counter(), self._tiers.is_dense):
            key, batch = taken
            if self._tiers.tier(key) == "disk":  # its bits had to go while it waited
                self._queues.put_back(key, batch)
                self._want(batch[0].entry)
                continue
            kept = [r for r in batch if r.future.set_running_or_notify_cancel()]
            if len(kept) < len(batch):
                self._counts.count(key[0], "cancelled", n=len(batch) - len(kept))
                self._moved.notify_all()
            if kept:
                return Lease(key, kept, *self._tiers.acquire(key))
        return None

    # -- loaders -------------------------------------------------------------------------------

    def want(self, entry: TaskEntry) -> None:
        """Have a task loaded if it is on disk: a request for it is on its way."""
        if self._tiers.tier(entry.key) == "disk":
            with self._lock:
                self._want(entry)

    def next_load(self) -> TaskEntry | Literal["a live copy"] | None:
        """Return what to bring into memory, waiting for something; None once the engine has stopped."""
        with self._lock:
            while not (self._loads or self._grow or self._stopped):
                self._load.wait()
            if self._stopped:
                return None
            if not self._loads:
                self._grow = False
                return "a live copy"
            key = next(iter(self._loads))
            self._loading.add(key)
            return self._loads.pop(key)

    def hold(self, entry: TaskEntry, packed: PackedTask, seconds: float) -> None:
        """Keep a loaded task in memory, waiting for room, and let its requests go.

        Raises UnavailableError where the budget can never have room for it, ClosedError.
        """
        with self._lock:
            while (room := self._tiers.make_room(packed.nbytes, self._queues.has)) is False:
                if self._stopped:
                    raise ClosedError("the engine has stopped")
                self._moved.wait()
            if room is None:
                raise UnavailableError(
                    f"task {entry.name!r} takes {packed.nbytes} bytes: expected at most what the budget of "
                    f"{self._tiers.budget} bytes leaves beside the live copies; give the engine more memory"
                )
            self._tiers.put(entry.key, packed)
            now = time.perf_counter()
            for request in self._queues.ready(entry.key):
                request.loaded = now
            self._loading.discard(entry.key)
            self._counts.loads += 1
            self._counts.load_seconds += seconds
            self._work.notify_all()

    def unhold(self, entry: TaskEntry, *, failed: bool) -> list[Request]:
        """Return the requests of a task that could not be loaded, or that is another by now; they wait no longer."""
        with self._lock:
            self._loading.discard(entry.key)
            requests = self._queues.drop(entry.key)
            if failed:
                self._counts.load_failures += 1
                self._counts.count(entry.name, "error", n=len(requests))
            else:
                self._reserved += len(requests)  # they will be submitted anew
            self._moved.notify_all()
            return requests

    def add_copy(self, copy: ModelCopy) -> None:
        """Use one more live copy, if there still is room for it."""
        with self._lock:
            if self._tiers.has_room_for_copy:
                self._tiers.add_copy(copy)

    def retire(self, entry: TaskEntry, *, gone: bool) -> None:
        """Drop a version that was replaced or, where it is ``gone``, removed, unless requests wait for it."""
        with self._lock:
            self._retired[entry.key] = gone
            self._drop_retired(entry.key)
            self._moved.notify_all()

    def _drop_retired(self, key: Key) -> None:
        """Drop a version that was replaced or removed, once nobody waits for it and no worker runs it."""
        if (
            key in self._retired
            and not self._queues.has(key)
            and self._tiers.forget(key)
            and self._retired.pop(key)
        ):
            self._counts.forget(key[0])

    def _want(self, entry: TaskEntry) -> None:
        key = entry.key
        if key not in self._loads and key not in self._loading and self._tiers.tier(key) == "disk":
            self._loads[key] = entry
            self._load.notify()

    # -- looking -------------------------------------------------------------------------------

    def where(self, entry: TaskEntry) -> tuple[Tier, int]:
        """Return a task's tier, and the bytes its packed form takes in memory."""
        return self._tiers.tier(entry.key), self._tiers.memory(entry.key)

    def stats(self, entries: Collection[TaskEntry]) -> Stats:
        """Return what was done so far, and where ``entries`` are."""
        with self._lock:
            where = [self._tiers.tier(entry.key) for entry in entries]
            tiers: tuple[Tier, ...] = ("dense", "packed", "disk")
            return Stats(
                **self._counts.snapshot(),
                evictions=dict(self._tiers.evictions),
                bytes=self._tiers.nbytes,
                budget=self._tiers.budget,
                tasks={tier: where.count(tier) for tier in tiers},
                queue_depth=self.depth,
                queue_limit=self._max_queue,
            )
