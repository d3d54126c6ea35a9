"""Worker processes: jobs side by side, each with a device, or a part of the cores, of its own.

Not ``concurrent.futures``: there a process that dies breaks the whole pool, cannot say how it died, and one that runs
cannot be ended by a public call. Each job has a process of its own, which gives back all its memory.
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

    A process that dies takes one job with it; the others go on. Closing the iterator, as Ctrl-C does, ends the
    processes at once.
    """
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    waiting, idle = deque(jobs), places(min(workers, len(jobs)))
    busy: dict[Any, tuple[Any, Job, Place]] = {}
    try:
        while waiting or busy:
            while waiting and idle:
                job, place = waiting.popleft(), idle.pop()
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(work, job, place, theirs))
                with _ctrl_c_ignored():
                    process.start()
                theirs.close()  # so that reading from a dead process ends
                busy[ours] = process, job, place
            ended: list[Any] = wait(list(busy))
            for connection in ended:
                process, job, place = busy.pop(connection)
                try:
                    result = connection.recv()
                    process.join()
                except (EOFError, ConnectionError):
                    process.join()
                    code = process.exitcode
                    how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
                    result = f"its process died ({how}); not enough memory, perhaps"
                idle.append(place)
                yield job, result
    finally:
        for process, *_ in busy.values():
            process.terminate()
            process.join()


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


def _serve(work: Callable[[Any], object], job: Any, place: Place, connection: Connection) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if place.device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = place.device  # read when CUDA is first used
    torch.set_num_threads(place.threads)
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
