"""One image on its way through the engine, and what becomes of a batch of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from piggyback.errors import InputError, PiggybackError, UnavailableError
from piggyback.schemas import Answer, RankedClass, Tier, Timing
from piggyback.serve.store.folder import TaskEntry


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
    future: Future[Answer] = field(default_factory=Future)


def answer_batch(
    outputs: Tensor, batch: Sequence[Request], tier: Tier, began: float, ended: float
) -> list[Answer]:
    """Return an answer for each row of ``outputs``, float32 (batch, classes) before the softmax.

    Its confidence is that of ``tasks.routing``, from the probabilities that are needed anyway.
    ``began`` and ``ended`` are when the batch was run. Raises InputError where there is no number.
    """
    classes, entry = outputs.shape[1], batch[0].entry
    names = entry.classes or tuple(map(str, range(classes)))
    chances = outputs.softmax(1)
    values, order = chances.topk(min(max(r.top_k for r in batch), classes), dim=1)
    entropies = torch.special.entr(chances).sum(1).tolist()
    answers = []
    rows = zip(batch, values.tolist(), order.tolist(), entropies, strict=True)
    for request, row, best, entropy in rows:
        if not math.isfinite(row[0]):
            raise InputError(
                f"task {entry.name!r}: the network's outputs for this input are no numbers; "
                "expected finite values in the input"
            )
        k = request.top_k
        answers.append(
            Answer(
                task=entry.name,
                version=entry.version,
                ranking=tuple(
                    [
                        RankedClass(name=names[i], probability=chance)
                        for i, chance in zip(best[:k], row[:k], strict=True)
                    ]
                ),
                confidence=max(0.0, 1.0 - entropy / math.log(classes)) if classes > 1 else 0.0,
                tier=tier,
                timing=_timing(request, began, ended, len(batch)),
            )
        )
    return answers


def stacked(batch: Sequence[Request]) -> Tensor:
    """Return the inputs of a batch as one tensor; raises InputError where they differ in shape."""
    shapes = {tuple(request.input.shape) for request in batch}
    if len(shapes) > 1:
        raise InputError(f"inputs of shapes {sorted(shapes)} in one batch: expected the same")
    return torch.stack([request.input for request in batch])


def fail(requests: Sequence[Request], error: Exception) -> None:
    """Tell those who wait for ``requests`` why there is no answer."""
    for request in requests:
        if request.future.set_running_or_notify_cancel():
            request.future.set_exception(error)


def as_seen(error: Exception) -> Exception:
    """Return the error as those who wait should see it: that memory is short is not their mistake.

    >>> as_seen(MemoryError())
    UnavailableError('memory is short (MemoryError): ask again, or give the engine a smaller budget')
    """
    if isinstance(error, PiggybackError):
        return error
    # torch's allocator for the CPU raises a plain RuntimeError
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error):
        made = UnavailableError(
            f"memory is short ({type(error).__name__}): ask again, or give the engine a smaller budget"
        )
        made.__cause__ = error
        return made
    return error


def _timing(request: Request, began: float, ended: float, batch: int) -> Timing:
    load = max(0.0, request.loaded - request.arrived)
    return Timing(
        prepare=1e3 * (request.prepared - request.began),
        queue=1e3 * (began - request.arrived - load),
        load=1e3 * load,
        run=1e3 * (ended - began),
        total=1e3 * (ended - request.began),
        batch=batch,
    )
