"""From images to queued requests, and from requests to answers: for callers that block and for event loops.

reserve a place in the queue -> have the task loaded -> prepare the image meanwhile -> queue -> wait
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

from torch import Tensor

from piggyback.errors import ClosedError, DeadlineError, InputError
from piggyback.images.preprocessing import Preprocessing
from piggyback.schemas import Answer
from piggyback.serve.inputs import prepare
from piggyback.serve.scheduler.desk import Desk
from piggyback.serve.scheduler.requests import Request
from piggyback.serve.scheduler.workers import use_cores
from piggyback.serve.store.folder import TaskEntry


class Intake:
    """Takes images in for a desk; event loops have theirs prepared by ``threads`` threads."""

    def __init__(
        self, desk: Desk, max_pixels: int, threads: int, started: threading.Barrier
    ) -> None:
        self._desk, self._max_pixels = desk, max_pixels
        self._preparers = ThreadPoolExecutor(threads, "piggyback-prepare")
        for _ in range(threads):  # none is free before all are there, so each call starts one
            self._preparers.submit(use_cores, 1, started)

    def submit(
        self, images: Sequence[Any], entries: Sequence[TaskEntry], top_k: int
    ) -> list[Request]:
        """Queue an image for each task; raises whatever ``Engine.predict`` does before it waits."""
        self._admit(images, entries, top_k)
        return self._queue(images, entries, top_k)

    def answers(
        self,
        images: Sequence[Any],
        entries: Sequence[TaskEntry],
        top_k: int,
        timeout: float | None,
        skip_failed: bool = False,
    ) -> list[Answer]:
        """Return an answer for each image and its task, blocking for ``timeout`` seconds at most.

        ``skip_failed``: tasks that cannot answer are left out, unless none can.
        """
        until = _end(timeout)
        requests = self.submit(images, entries, top_k)
        try:
            if skip_failed:
                concurrent.futures.wait([request.future for request in requests], _left(until))
                requests = _answered(requests)
            return [request.future.result(_left(until)) for request in requests]
        except concurrent.futures.TimeoutError:
            self._desk.forget(requests, "timeout")
            raise self._late(entries, timeout) from None
        except BaseException:  # one of them failed, or the caller was interrupted
            self._desk.forget(requests, "cancelled")
            raise

    async def answers_async(
        self,
        images: Sequence[Any],
        entries: Sequence[TaskEntry],
        top_k: int,
        timeout: float | None,
        skip_failed: bool = False,
    ) -> list[Answer]:
        """Return what ``answers`` does without blocking the event loop; cancelling it drops what waits."""
        until = _end(timeout)
        self._admit(images, entries, top_k)
        try:
            job = self._preparers.submit(self._queue, images, entries, top_k)
        except RuntimeError as error:  # it was closed just now
            self._desk.unreserve(len(images))
            raise ClosedError("the engine has stopped: it takes no more requests") from error
        try:
            requests = await asyncio.wait_for(asyncio.wrap_future(job), _left(until))
        except TimeoutError:
            self._abandon(job, len(images), "timeout")
            raise self._late(entries, timeout) from None
        except asyncio.CancelledError:
            self._abandon(job, len(images), "cancelled")
            raise
        futures = [asyncio.wrap_future(request.future) for request in requests]
        waiting = asyncio.gather(*futures, return_exceptions=skip_failed)
        try:
            await asyncio.wait_for(waiting, _left(until))
            kept = _answered(requests) if skip_failed else requests
            return [request.future.result() for request in kept]
        except TimeoutError:
            self._desk.forget(requests, "timeout")
            raise self._late(entries, timeout) from None
        except BaseException:  # one of them failed, or the caller went away
            self._desk.forget(requests, "cancelled")
            raise

    def again(self, request: Request, entry: TaskEntry) -> Request:
        """Return the request made anew, for a version of its task that came after it."""
        request.input = prepare(request.source, entry.preprocessing, max_pixels=self._max_pixels)
        request.entry = entry
        return request

    def close(self) -> None:
        """End the threads once they have no more to do."""
        self._preparers.shutdown(wait=False)

    def _admit(self, images: Sequence[Any], entries: Sequence[TaskEntry], top_k: int) -> None:
        """Check what can be checked at once, and reserve places in the queue."""
        if type(top_k) is not int or top_k < 1:
            raise InputError(f"top_k {top_k!r}: expected a whole number, 1 or more")
        if not images:
            raise InputError("no images: expected one or more")
        self._desk.reserve(entries)
        for entry in dict.fromkeys(entries):
            self._desk.want(entry)  # it is read while the images are prepared

    def _queue(
        self, images: Sequence[Any], entries: Sequence[TaskEntry], top_k: int
    ) -> list[Request]:
        """Prepare images, for which places were reserved, and queue them."""
        made: dict[tuple[int, Preprocessing | None], Tensor] = {}  # tasks often want the same
        requests = []
        try:
            for image, entry in zip(images, entries, strict=True):
                began, key = time.perf_counter(), (id(image), entry.preprocessing)
                if key not in made:
                    made[key] = prepare(image, entry.preprocessing, max_pixels=self._max_pixels)
                now = time.perf_counter()
                requests.append(Request(entry, image, made[key], top_k, began, now))
        except BaseException:
            self._desk.unreserve(len(images))
            raise
        self._desk.submit(requests)
        return requests

    def _abandon(
        self, job: Future[list[Request]], n: int, outcome: Literal["timeout", "cancelled"]
    ) -> None:
        """Drop images whose caller has gone, wherever they are by now."""

        def drop(done: Future[list[Request]]) -> None:
            if done.cancelled():  # before it began
                self._desk.unreserve(n)
            elif done.exception() is None:
                self._desk.forget(done.result(), outcome)

        job.add_done_callback(drop)

    def _late(self, entries: Sequence[TaskEntry], timeout: float | None) -> DeadlineError:
        names = ", ".join(dict.fromkeys(entry.name for entry in entries))
        return DeadlineError(
            f"task {names!r}: no answer within {timeout} s, {self._desk.depth} requests are waiting; "
            "give it more time or send less"
        )


def _answered(requests: list[Request]) -> list[Request]:
    """The requests without those that have failed; all of them if there is no other."""
    kept = [r for r in requests if not (r.future.done() and r.future.exception())]
    return kept or requests


def _end(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _left(until: float | None) -> float | None:
    return None if until is None else max(0.0, until - time.monotonic())
