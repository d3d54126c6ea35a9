"""A worker runs batches; a loader brings tasks into memory. Each is the body of a thread.

Whatever goes wrong in either is told to those who wait for it, and the thread goes on: other tasks do not notice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from piggyback.errors import InputError, PiggybackError, UnavailableError
from piggyback.schemas import Answer, Tier, Timing
from piggyback.serve.replicas.network import Network
from piggyback.serve.replicas.packed import PackedTask
from piggyback.serve.scheduler.queues import Request
from piggyback.serve.scheduler.scheduler import Lease, Scheduler
from piggyback.serve.store.folder import TaskEntry
from piggyback.texts.preprocessing import TextPreprocessing


def use_cores(number: int, started: threading.Barrier) -> None:
    """Let this thread's operations use ``number`` cores, and wait until the engine's other threads have said theirs."""
    torch.set_num_threads(number)
    started.wait()


def work(scheduler: Scheduler, threads: int, started: threading.Barrier) -> None:
    """Answer batches until the engine stops, each with ``threads`` cores."""
    use_cores(threads, started)
    while _work_once(scheduler):
        pass


def load(
    scheduler: Scheduler,
    network: Network,
    read: Callable[[TaskEntry], tuple[TaskEntry, PackedTask]],
    started: threading.Barrier,
) -> None:
    """Bring tasks into memory until the engine stops; ``read`` returns what a file really holds, and that packed."""
    use_cores(1, started)
    while (wanted := scheduler.next_load()) is not None:
        began = time.perf_counter()
        try:
            if not isinstance(wanted, TaskEntry):
                scheduler.add_copy(network.new_copy())
                continue
            found, packed = read(wanted)
            if found.key == wanted.key:
                scheduler.hold(wanted, packed, time.perf_counter() - began)
            else:
                scheduler.load_replaced(wanted, found)
        except Exception as error:
            if isinstance(wanted, TaskEntry):
                scheduler.load_failed(wanted, as_seen(error))
            else:  # the copies that are there have to do
                logging.getLogger(__name__).warning("no more live copies", exc_info=True)


def as_seen(error: Exception) -> Exception:
    """Return the error as those who wait should see it: a lack of memory is not their mistake.

    >>> as_seen(MemoryError())
    UnavailableError('memory is short (MemoryError): ask again, or give the engine a smaller budget')
    """
    # torch's allocator for the CPU raises a plain RuntimeError.
    short = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(
        error
    )
    if isinstance(error, PiggybackError) or not short:
        return error
    made = UnavailableError(
        f"memory is short ({type(error).__name__}): ask again, or give the engine a smaller budget"
    )
    made.__cause__ = error
    return made


def _work_once(scheduler: Scheduler) -> bool:
    """Answer a batch; a function of its own, so that a worker without work holds on to none."""
    lease = scheduler.lease()
    if lease is None:
        return False
    began = time.perf_counter()
    answered = _answer(scheduler, lease, began)
    good = [answer for answer in answered if isinstance(answer, Answer)]
    scheduler.done(lease, time.perf_counter() - began, good)
    for request, answer in zip(lease.batch, answered, strict=True):
        if isinstance(answer, Answer):
            request.future.set_result(answer)
        else:
            request.future.set_exception(answer)
    return True


def _answer(scheduler: Scheduler, lease: Lease, began: float) -> Sequence[Answer | Exception]:
    """Run a batch; an error stands where an answer would."""
    batch = lease.batch
    try:
        if lease.write is not None:
            lease.copy.write(lease.write)
            scheduler.wrote(lease)
    except Exception as error:  # noqa: BLE001
        return [as_seen(error)] * len(batch)
    try:
        return _run(lease, batch, began)
    except Exception as error:  # noqa: BLE001
        if len(batch) == 1:
            return [as_seen(error)]
    # One of them is at fault; the others shall not suffer for it.
    alone: list[Answer | Exception] = []
    for request in batch:
        try:
            alone += _run(lease, [request], began)
        except Exception as error:  # noqa: BLE001
            alone.append(as_seen(error))
    return alone


def _run(lease: Lease, batch: Sequence[Request], began: float) -> list[Answer]:
    inputs = [request.input for request in batch]
    prepared = batch[0].entry.preprocessing
    if isinstance(prepared, TextPreprocessing):
        outputs = lease.copy.run(prepared.collate(inputs))
        return _answers(outputs, batch, lease.tier, began)
    shapes = {tuple(x.shape) for x in inputs}
    if len(shapes) > 1:
        raise InputError(f"inputs of shapes {sorted(shapes)} in one batch: expected the same")
    outputs = lease.copy.run(torch.stack(inputs))
    return _answers(outputs, batch, lease.tier, began)


def _answers(outputs: Tensor, batch: Sequence[Request], tier: Tier, began: float) -> list[Answer]:
    """An answer for each row of ``outputs``, float32 (batch, classes, ...) as the network gives them.

    ``began`` is when the batch was. Raises InputError where there is no number.
    """
    entry = batch[0].entry
    if not bool(outputs.sum().isfinite()):
        raise InputError(
            f"task {entry.name!r}: the network's outputs for this input are not numbers; "
            "expected finite values in the input"
        )
    given = [r.source if r.frame is None else r.frame for r in batch]
    said = entry.outputs.answers(outputs, max(r.top_k for r in batch), given)
    ended = time.perf_counter()
    answers = []
    for request, one in zip(batch, said, strict=True):
        load = max(0.0, request.loaded - request.arrived)
        answers.append(
            Answer(
                task=entry.name,
                version=entry.version,
                **{**dict(one), "ranking": one.ranking[: request.top_k]},
                tier=tier,
                timing=Timing(
                    prepare=1e3 * (request.prepared - request.began),
                    queue=1e3 * (began - request.arrived - load),
                    load=1e3 * load,
                    run=1e3 * (ended - began),
                    total=1e3 * (ended - request.began),
                    batch=len(batch),
                ),
            )
        )
    return answers
