"""A worker runs batches; a loader brings tasks into memory. Each is the body of a thread.

Whatever goes wrong in either is told to those who wait for it, and the thread goes on: other tasks
shall not notice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

import torch

from piggyback.errors import ClosedError
from piggyback.schemas import Answer
from piggyback.serve.replicas.network import Network
from piggyback.serve.replicas.packed import PackedTask
from piggyback.serve.scheduler.desk import Desk, Lease
from piggyback.serve.scheduler.requests import Request, answer_batch, as_seen, fail, stacked
from piggyback.serve.store.folder import TaskEntry


def use_cores(number: int, started: threading.Barrier) -> None:
    """Let this thread's operations use ``number`` cores, and wait for the engine's other threads to say theirs."""
    torch.set_num_threads(number)
    started.wait()


def work(desk: Desk, threads: int, started: threading.Barrier) -> None:
    """Answer batches until the engine stops, each with ``threads`` cores."""
    use_cores(threads, started)
    while _work_once(desk):
        pass


def load(
    desk: Desk,
    network: Network,
    read: Callable[[TaskEntry], tuple[TaskEntry, PackedTask]],
    again: Callable[[Request, TaskEntry], Request],
    started: threading.Barrier,
) -> None:
    """Bring tasks into memory until the engine stops.

    ``read`` returns what a task's file really holds by then, and its packed form; ``again`` a request made anew for a
    task that was replaced while it waited.
    """
    use_cores(1, started)
    while (wanted := desk.next_load()) is not None:
        if isinstance(wanted, TaskEntry):
            _bring(desk, wanted, read, again)
        else:
            try:
                desk.add_copy(network.new_copy())
            except Exception:  # the copies that are there do
                logging.getLogger(__name__).warning("no more live copies", exc_info=True)


def _work_once(desk: Desk) -> bool:
    """Answer a batch; a function of its own, so that a worker without work holds on to none."""
    lease = desk.lease()
    if lease is None:
        return False
    began = time.perf_counter()
    answered = _answer(desk, lease, began)
    times = [a.timing.total / 1e3 for a in answered if isinstance(a, Answer)]
    desk.done(lease, time.perf_counter() - began, times)
    for request, answer in zip(lease.batch, answered, strict=True):
        if isinstance(answer, Answer):
            request.future.set_result(answer)
        else:
            request.future.set_exception(answer)
    return True


def _answer(desk: Desk, lease: Lease, began: float) -> Sequence[Answer | Exception]:
    """Run a batch; an error stands where an answer would."""
    batch = lease.batch
    try:
        if lease.write is not None:
            lease.copy.write(lease.write)
            desk.wrote(lease)
    except Exception as error:  # noqa: BLE001
        return [as_seen(error)] * len(batch)
    try:
        return _outputs(lease, batch, began)
    except Exception as error:  # noqa: BLE001
        if len(batch) == 1:
            return [as_seen(error)]
    # One of them is at fault; the others shall not suffer for it.
    alone: list[Answer | Exception] = []
    for request in batch:
        try:
            alone += _outputs(lease, [request], began)
        except Exception as error:  # noqa: BLE001
            alone.append(as_seen(error))
    return alone


def _outputs(lease: Lease, batch: list[Request], began: float) -> list[Answer]:
    outputs = lease.copy.run(stacked(batch))
    return answer_batch(outputs, batch, lease.tier, began, time.perf_counter())


def _bring(
    desk: Desk,
    entry: TaskEntry,
    read: Callable[[TaskEntry], tuple[TaskEntry, PackedTask]],
    again: Callable[[Request, TaskEntry], Request],
) -> None:
    """Load a task: those who wait for it go on, or are told why not."""
    began = time.perf_counter()
    try:
        found, packed = read(entry)
        if found.key == entry.key:
            desk.hold(entry, packed, time.perf_counter() - began)
            return
    except Exception as error:  # noqa: BLE001
        fail(desk.unhold(entry, failed=True), as_seen(error))
        return
    for request in desk.unhold(entry, failed=False):  # the file is another by now
        try:
            moved = again(request, found)
        except Exception as error:  # noqa: BLE001
            desk.unreserve(1)
            fail([request], as_seen(error))
            continue
        try:
            desk.submit([moved])
        except ClosedError as error:
            fail([request], error)
