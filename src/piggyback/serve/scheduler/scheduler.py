"""Where callers, workers and loaders meet: queues, cache and counts, guarded by one lock.

    reserve a place -> have the task loaded -> prepare the image meanwhile -> queue of the task -> wait
                                                                                 |
        worker:  lease -> write the task into a live copy unless it is there -> run -> done
        loader:  next_load -> read, decode -> hold, which lets the queue go

Nothing slow is done under the lock: the methods here move entries between tables, and return.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import TIMEOUT_MAX
from typing import Any, Literal

from torch import Tensor

from piggyback.errors import (
    ClosedError,
    DataError,
    DeadlineError,
    InputError,
    OverloadError,
    PiggybackError,
    UnavailableError,
    check_number,
)
from piggyback.images.map_pictures import Frame
from piggyback.schemas import Answer, Tier
from piggyback.serve.inputs import frame_of, prepare
from piggyback.serve.options import EngineOptions
from piggyback.serve.replicas.copies import ModelCopy
from piggyback.serve.replicas.packed import PackedTask
from piggyback.serve.scheduler.cache import TaskCache
from piggyback.serve.scheduler.queues import Queues, Request, fail
from piggyback.serve.stats import Counts, Stats
from piggyback.serve.store.folder import Key, TaskEntry
from piggyback.texts.preprocessing import Prepares

Failed = Literal["raise", "skip", "return"]
"""What is done about requests that fail: the first error is raised; their answers are left out, unless there is no
other; or the DataError of an image that cannot be used stands in its answer's place, and other errors are raised."""

LONGEST_RETRY = 30.0
_NOTHING = Tensor()
"""The input of an image that could not be read."""


@dataclass(frozen=True)
class BatchRequest:
    """What a caller wants at once: of each image the answer of the task beside it."""

    images: Sequence[Any]
    entries: Sequence[TaskEntry]
    top_k: int
    failed: Failed = "raise"


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


class Scheduler:
    """The state of an engine's work; every method may be called from any thread.

    ``memory`` is the budget of the cache; ``copies`` are the first live copies, one per worker. Images of callers in
    event loops are prepared by ``preparers``.
    """

    def __init__(
        self,
        memory: int,
        copies: Collection[ModelCopy],
        copy_bytes: int,
        options: EngineOptions,
        preparers: ThreadPoolExecutor,
    ) -> None:
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._load = threading.Condition(self._lock)
        self._moved = threading.Condition(self._lock)  # something ended: there may be room
        self._queues = Queues(options.max_batch, options.patience_ms / 1e3)
        self._cache = TaskCache(memory, copies, copy_bytes)
        self._counts = Counts()
        self._max_queue, self._max_pixels = options.max_queue, options.max_pixels
        self._preparers, self._workers = preparers, len(copies)
        self._reserved = self._running = 0
        self._seconds = 0.01  # an image's share of a worker's time: a moving mean
        self._loads: dict[Key, TaskEntry] = {}
        self._loading: set[Key] = set()
        self._retired: dict[Key, bool] = {}  # versions to drop once nobody waits; is the task gone?
        self._grow = False
        self._closed = self._stopped = False

    # -- callers -------------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """Requests that wait, or whose images are being prepared."""
        return len(self._queues) + self._reserved

    def submit(self, asked: BatchRequest) -> list[Request]:
        """Queue what is asked; raises whatever ``Engine.predict`` does before it waits."""
        self._reserve(asked)
        return self._prepare(asked)

    def answers(self, asked: BatchRequest, timeout: float | None) -> list[Any]:
        """Return the answers, blocking for ``timeout`` seconds at most."""
        check_timeout(timeout)
        until = None if timeout is None else time.monotonic() + timeout

        def left() -> float | None:
            return None if until is None else max(0.0, until - time.monotonic())

        requests = self.submit(asked)
        try:
            if asked.failed != "raise":
                concurrent.futures.wait([request.future for request in requests], left())
            return _results(requests, asked.failed, left)
        except concurrent.futures.TimeoutError:
            self._abandon(requests, "timeout")
            raise self._late(asked, timeout) from None
        except BaseException:  # one of them failed, or the caller was interrupted
            self._abandon(requests, "cancelled")
            raise

    async def answers_async(self, asked: BatchRequest, timeout: float | None) -> list[Any]:
        """Return what ``answers`` does without blocking the event loop; cancelling it drops what waits."""
        check_timeout(timeout)
        self._reserve(asked)
        try:
            job = self._preparers.submit(self._prepare, asked)
        except RuntimeError as error:  # it was closed just now
            self._unreserve(len(asked.entries))
            raise ClosedError("the engine has stopped: it takes no more requests") from error
        try:
            async with asyncio.timeout(timeout) as limit:
                requests = await asyncio.wrap_future(job)
                waiting = [asyncio.wrap_future(request.future) for request in requests]
                await asyncio.gather(*waiting, return_exceptions=asked.failed != "raise")
            return _results(requests, asked.failed, lambda: 0.0)
        except BaseException as error:  # one of them failed, or the caller went away
            late = limit.expired() and isinstance(error, TimeoutError)
            outcome: Literal["timeout", "cancelled"] = "timeout" if late else "cancelled"

            def drop(done: Future[list[Request]]) -> None:
                if done.cancelled():  # before the images were prepared
                    self._unreserve(len(asked.entries))
                elif done.exception() is None:
                    self._abandon(done.result(), outcome)

            job.add_done_callback(drop)
            if late:
                raise self._late(asked, timeout) from None
            raise

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

    def _reserve(self, asked: BatchRequest) -> None:
        """Keep room in the queue for each request, and begin to load the tasks.

        No task gets more than half of the queue: others shall find room in it.
        """
        entries, top_k = asked.entries, asked.top_k
        if type(top_k) is not int or top_k < 1:
            raise InputError(f"top_k {top_k!r}: expected a whole number, 1 or more")
        if not entries:
            raise InputError("no images: expected one or more")
        n, by_task = len(entries), Counter(entry.key for entry in entries)
        share = max(1, self._max_queue // 2)
        if n > self._max_queue or max(by_task.values()) > share:
            raise InputError(
                f"{n} requests at once: expected at most {self._max_queue}, which is all that may wait, and "
                f"{share} for one task; send fewer"
            )
        with self._lock:
            if self._closed:
                raise ClosedError("the engine is stopping: it takes no more requests")
            full = self.depth + n > self._max_queue
            if full or any(self._queues.count(k) + m > share for k, m in by_task.items()):
                for entry in entries:
                    self._counts.count(entry.name, "overload")
                wait = min(LONGEST_RETRY, self.depth * self._seconds / self._workers)
                raise OverloadError(
                    f"{self.depth} requests are waiting and {n} more came: expected at most "
                    f"{self._max_queue} in all and {share} for one task; ask again in {wait:.1f} s",
                    retry_after=wait,
                )
            self._reserved += n
            for entry in entries:
                self._want(entry)  # its file is read while the images are prepared

    def _unreserve(self, n: int) -> None:
        with self._lock:
            self._reserved -= n
            self._moved.notify_all()

    def _prepare(self, asked: BatchRequest) -> list[Request]:
        """Prepare images for which places were reserved, and queue them; an image that is bad has failed already."""
        # Tasks often want the same.
        made: dict[tuple[int, Prepares | None, bool], tuple[Tensor, Frame | None]] = {}
        requests = []
        try:
            for image, entry in zip(asked.images, asked.entries, strict=True):
                began = time.perf_counter()
                key = (id(image), entry.preprocessing, entry.outputs.per_pixel)
                if key not in made:
                    try:
                        made[key] = self._input(image, entry)
                    except PiggybackError as error:
                        with self._lock:
                            self._counts.count(entry.name, "error")
                        if asked.failed != "return" or not isinstance(error, DataError):
                            raise
                        bad = Request(entry, None, _NOTHING, asked.top_k, began, began)
                        bad.future.set_exception(error)
                        requests.append(bad)
                        continue
                now = time.perf_counter()
                x, frame = made[key]
                requests.append(Request(entry, image, x, asked.top_k, began, now, frame=frame))
        except BaseException:
            self._unreserve(len(asked.images))
            raise
        good = [request for request in requests if request.input is not _NOTHING]
        self._unreserve(len(asked.images) - len(good))
        self._queue(good)
        return requests

    def _input(self, image: Any, entry: TaskEntry) -> tuple[Tensor, Frame | None]:
        """An image as a task's network takes it, and where the task labels every pixel, its own size."""
        made = prepare(image, entry.preprocessing, max_pixels=self._max_pixels)
        return made, frame_of(image, entry.preprocessing) if entry.outputs.per_pixel else None

    def _queue(self, requests: Sequence[Request]) -> None:
        with self._lock:
            self._reserved -= len(requests)
            if self._stopped:
                raise ClosedError("the engine has stopped: it takes no more requests")
            now = time.perf_counter()
            for request in requests:
                key, request.arrived = request.entry.key, request.arrived or now
                self._want(request.entry)
                self._queues.add(key, request, parked=self._cache.tier(key) == "disk")
            self._work.notify(len(requests))

    def _abandon(
        self, requests: Sequence[Request], outcome: Literal["timeout", "cancelled"]
    ) -> None:
        """Drop requests that nobody waits for any more."""
        with self._lock:
            for request in requests:
                if request.future.cancel():
                    self._drop(request, outcome)
            self._moved.notify_all()

    def _drop(self, request: Request, outcome: Literal["timeout", "cancelled"]) -> None:
        if self._queues.discard(request.entry.key, request):
            request.future.set_running_or_notify_cancel()  # whoever waits for several of them
            self._counts.count(request.entry.name, outcome)

    def _late(self, asked: BatchRequest, timeout: float | None) -> DeadlineError:
        names = ", ".join(dict.fromkeys(entry.name for entry in asked.entries))
        return DeadlineError(
            f"task {names!r}: no answer within {timeout} s, {self.depth} requests are waiting; "
            "give it more time or send less"
        )

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
            self._cache.wrote(lease.key, lease.copy, extra)
            self._cache.make_room(0, self._queues.has)

    def done(self, lease: Lease, seconds: float, answers: Sequence[Answer]) -> None:
        """Take a lease's copy back; ``answers`` are those of the requests that have one."""
        task, size = lease.key[0], len(lease.batch)
        latencies = [answer.timing.total / 1e3 for answer in answers]
        with self._lock:
            self._running -= 1
            self._cache.release(lease.key, lease.copy)
            counts = self._counts
            counts.count(task, "ok", latencies, len(latencies))
            counts.answered(task, [answer.ranking[0] for answer in answers if answer.ranking])
            if len(latencies) < size:
                counts.count(task, "error", n=size - len(latencies))
            counts.hits[lease.tier] += 1
            counts.batch_sizes.add([size])
            self._drop_retired(lease.key)
            self._seconds += 0.1 * (seconds / size - self._seconds)
            if lease.write is not None:
                counts.switches += 1
                if not self._grow and self._cache.has_room_for_copy:
                    self._grow = True
                    self._load.notify()
            self._moved.notify_all()

    def _lease(self) -> Lease | None:
        while taken := self._queues.take(time.perf_counter(), self._cache.is_dense):
            key, batch = taken
            if self._cache.tier(key) == "disk":  # its bits had to go while it waited
                self._queues.put_back(key, batch)
                self._want(batch[0].entry)
                continue
            kept = [r for r in batch if r.future.set_running_or_notify_cancel()]
            if len(kept) < len(batch):
                self._counts.count(key[0], "cancelled", n=len(batch) - len(kept))
                self._moved.notify_all()
            if kept:
                return Lease(key, kept, *self._cache.acquire(key))
        return None

    # -- loaders -------------------------------------------------------------------------------

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
            while (room := self._cache.make_room(packed.nbytes, self._queues.has)) is False:
                if self._stopped:
                    raise ClosedError("the engine has stopped")
                self._moved.wait()
            if room is None:
                raise UnavailableError(
                    f"task {entry.name!r} takes {packed.nbytes} bytes: expected at most what the budget of "
                    f"{self._cache.budget} bytes leaves beside the live copies; give the engine more memory"
                )
            self._cache.put(entry.key, packed)
            now = time.perf_counter()
            for request in self._queues.ready(entry.key):
                request.loaded = now
            self._loading.discard(entry.key)
            self._counts.loads += 1
            self._counts.load_seconds += seconds
            self._work.notify_all()

    def load_failed(self, entry: TaskEntry, error: Exception) -> None:
        """Tell those who wait for a task that it cannot be loaded."""
        with self._lock:
            requests = self._not_loaded(entry)
            self._counts.load_failures += 1
            self._counts.count(entry.name, "error", n=len(requests))
            self._drop_retired(entry.key)
        fail(requests, error)

    def load_replaced(self, entry: TaskEntry, found: TaskEntry) -> None:
        """Queue what waits for ``entry`` anew for ``found``, which its file holds by now."""
        with self._lock:
            requests = self._not_loaded(entry)
            self._drop_retired(entry.key)
            self._reserved += len(requests)
        for request in requests:
            try:
                request.input, request.frame = self._input(request.source, found)
            except Exception as error:  # noqa: BLE001  told to whoever waits for it
                self._unreserve(1)
                fail([request], error)
                continue
            request.entry = found
            try:
                self._queue([request])
            except ClosedError as error:
                fail([request], error)

    def add_copy(self, copy: ModelCopy) -> None:
        """Use one more live copy, if there still is room for it."""
        with self._lock:
            if self._cache.has_room_for_copy:
                self._cache.add_copy(copy)

    def _not_loaded(self, entry: TaskEntry) -> list[Request]:
        """The requests for a task whose loading has come to nothing; they wait no longer."""
        self._loading.discard(entry.key)
        self._moved.notify_all()
        return self._queues.drop(entry.key)

    def _want(self, entry: TaskEntry) -> None:
        """Have a task loaded unless it is in memory or about to be."""
        key = entry.key
        if self._cache.tier(key) == "disk" and key not in self._loads and key not in self._loading:
            self._loads[key] = entry
            self._load.notify()

    # -- tasks ---------------------------------------------------------------------------------

    def retire(self, entry: TaskEntry, gone: bool) -> None:
        """Drop a version that was replaced or, where it is ``gone``, removed, once no requests wait for it."""
        with self._lock:
            self._retired[entry.key] = gone
            self._drop_retired(entry.key)
            self._moved.notify_all()

    def where(self, entry: TaskEntry) -> tuple[Tier, int]:
        """Return a task's tier, and the bytes its packed form takes in memory."""
        return self._cache.tier(entry.key), self._cache.memory(entry.key)

    def stats(self, entries: Collection[TaskEntry]) -> Stats:
        """Return what was done so far, and where ``entries`` are."""
        with self._lock:
            where = Counter(self._cache.tier(entry.key) for entry in entries)
            return Stats(
                **self._counts.snapshot(),
                evictions=dict(self._cache.evictions),
                bytes=self._cache.nbytes,
                budget=self._cache.budget,
                tasks={tier: where[tier] for tier in ("dense", "packed", "disk")},
                queue_depth=self.depth,
                queue_limit=self._max_queue,
            )

    def _drop_retired(self, key: Key) -> None:
        """Drop a retired version, once nobody waits for it and no worker runs it."""
        if (
            key in self._retired
            and not self._queues.has(key)
            and self._cache.forget(key)
            and self._retired.pop(key)
        ):
            self._counts.forget(key[0])


def check_timeout(timeout: float | None) -> None:
    """Raise InputError where ``timeout`` is neither None nor seconds that one can wait for."""
    if timeout is not None:  # below 0: it is too late already
        check_number("timeout", timeout, lambda s: s <= TIMEOUT_MAX, "seconds, or None for ever")


def _results(
    requests: list[Request], failed: Failed, left: Callable[[], float | None]
) -> list[Answer | DataError]:
    """What came of requests, in ``left()`` seconds; raises TimeoutError beyond that."""
    if failed == "skip":  # unless there is no other
        requests = [
            r for r in requests if not (r.future.done() and r.future.exception())
        ] or requests
    found: list[Answer | DataError] = []
    for request in requests:
        error = request.future.exception(left()) if failed == "return" else None
        found.append(error if isinstance(error, DataError) else request.future.result(left()))
    return found
