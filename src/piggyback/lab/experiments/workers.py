"""Worker processes: jobs side by side, each with a device, or a part of the cores, of its own.

Not ``concurrent.futures``: there a process that dies breaks the whole pool, cannot say how it died, and one that runs
cannot be ended by a public call.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, TypeVar

import torch

Job = TypeVar("Job")
Result = TypeVar("Result")


def side_by_side(
    work: Callable[[Job], Result], jobs: Sequence[Job], workers: int
) -> Generator[tuple[Job, Result | str], None, None]:
    """Yield each job when it has ended, with what ``work`` returned for it, or how its process died.

    A process that dies takes one job with it; the others go on, and another process takes its
    place. Closing the iterator, as Ctrl-C does, ends the processes at once.
    """
    waiting = deque(jobs)
    idle: list[_Worker] = []
    busy: dict[Any, tuple[_Worker, Job]] = {}
    try:
        idle += (_Worker(work, place) for place in places(min(workers, len(jobs))))
        while waiting or busy:
            while waiting and idle:
                worker, job = idle.pop(), waiting.popleft()
                busy[worker.connection] = worker, job
                with contextlib.suppress(ConnectionError):  # dead: reading its answer tells
                    worker.connection.send(job)
            for connection in wait(list(busy)):
                worker, job = busy.pop(connection)
                try:
                    result = worker.connection.recv()
                    idle.append(worker)
                except (EOFError, ConnectionError):
                    result = worker.end()
                    if waiting:
                        idle.append(_Worker(work, worker.place))
                yield job, result
    finally:
        for worker in (*idle, *(worker for worker, _ in busy.values())):
            worker.end()


class Place(NamedTuple):
    """Where a worker computes."""

    device: str | None
    """As CUDA_VISIBLE_DEVICES names it; None without devices."""
    threads: int


def places(workers: int) -> list[Place]:
    """Return where each of ``workers`` computes: the devices that this process may use in turn, and
    an equal part of its threads.
    """
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = named.split(",") if named else [str(index) for index in range(count)]
    threads = max(1, torch.get_num_threads() // workers)
    return [Place(devices[n % count] if count else None, threads) for n in range(workers)]


class _Worker:
    """A process that does one job after the other."""

    def __init__(self, work: Callable[[Any], object], place: Place) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self.place = place
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(work, theirs, place))
        with _ctrl_c_ignored():
            self._process.start()
        theirs.close()  # so that reading from a dead worker ends

    def end(self) -> str:
        """Return how the process ended, which it does now if it has not."""
        self.connection.close()
        self._process.terminate()
        self._process.join()
        code = self._process.exitcode or 0
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        return f"its process died ({how}); not enough memory, perhaps"


def _serve(work: Callable[[Any], object], connection: Connection, place: Place) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if place.device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = place.device  # read when CUDA is first used
    torch.set_num_threads(place.threads)
    while True:
        try:
            job = connection.recv()
        except EOFError:  # the parent has closed its end
            return
        connection.send(work(job))


def _end_with_parent() -> None:
    """A killed run takes its workers along, so that the next one finds its folders unused."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C, which a terminal sends to all: we end them."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
