"""Which task answers: a batch with a task per sample, and the task that is most sure of a sample."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from piggyback.errors import InputError, UnknownTaskError
from piggyback.kinds import KINDS, kind_of
from piggyback.kinds.classification import confidence
from piggyback.taskfile.task import TaskInfo


@dataclass(frozen=True)
class TaskInference:
    """The task chosen for each sample, and how sure every task was."""

    names: list[str | None]
    """(batch,): the surest task; None where none was sure enough."""
    confidence: Tensor
    """(batch, tasks), in [0, 1]: of a classification 1 - entropy of the outputs / log(classes); see ``kinds``."""
    tasks: tuple[str, ...]
    """The columns of ``confidence``."""

    def __repr__(self) -> str:
        return f"TaskInference({len(self.names)} samples, tasks {reprlib.repr(self.tasks)})"


def infer(
    tasks: Mapping[str, TaskInfo], run: Callable[[str], Any], at_least: float
) -> TaskInference:
    """Return the surest task of each sample; ``run`` gives the output of one for the whole batch.

    Raises InputError where ``at_least`` is not in [0, 1], and for a task that labels every pixel.
    """
    if not tasks:
        raise UnknownTaskError("no tasks to choose from: add_task or load_task first")
    if not (isinstance(at_least, (int, float)) and 0 <= at_least <= 1):
        raise InputError(f"at_least {at_least!r}: expected a number from 0 to 1")
    for name, info in tasks.items():
        if info.kind in KINDS and kind_of(info).per_pixel:
            raise InputError(
                f"task {name!r} labels every pixel: no task is inferred from that; choose one by its name"
            )
    names = tuple(tasks)
    sure = torch.stack([_how_sure(run(name), info) for name, info in tasks.items()], dim=1)
    best, which = sure.max(1)
    chosen = [
        names[i] if s >= at_least else None
        for i, s in zip(which.tolist(), best.tolist(), strict=True)
    ]
    return TaskInference(chosen, sure, names)


def _how_sure(output: Any, info: TaskInfo) -> Tensor:
    """How sure a task is of each sample, by its kind; one that no kind knows is taken for a classification."""
    kind = kind_of(info) if info.kind in KINDS and info.classes else None
    if kind is not None and isinstance(output, Tensor) and output.ndim == kind.dimensions:
        return kind.confidence(output)
    return confidence(output)


def run_grouped(
    run: Callable[[str, tuple[Any, ...], dict[str, Any]], Tensor],
    tasks: Sequence[str],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> list[Tensor]:
    """Return one output per sample, in order, running every task once on all of its samples.

    Tensors among the arguments, also in their lists and dicts, are split along their first dimension, the batch; other
    arguments go along as they are.
    """
    given = _tensors([*args, *kwargs.values()])
    sizes = {tensor.shape[0] if tensor.ndim else 0 for tensor in given}
    if sizes != {len(tasks)}:
        raise InputError(
            f"{len(tasks)} task names for a batch of {sorted(sizes)}: expected one name per sample"
        )
    outputs: dict[int, Tensor] = {}
    for name in dict.fromkeys(tasks):
        rows = [i for i, task in enumerate(tasks) if task == name]
        output = run(name, _rows(args, rows), _rows(dict(kwargs), rows))
        if not isinstance(output, Tensor) or output.shape[:1] != (len(rows),):
            raise InputError(
                f"task {name!r} answered with {type(output).__name__}: "
                "a batch of several tasks needs one tensor with a row per sample"
            )
        outputs.update(zip(rows, output, strict=True))
    return [outputs[i] for i in range(len(tasks))]


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, also in its lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif type(value) in (list, tuple, dict):
        for each in value.values() if type(value) is dict else value:
            yield from _tensors(each)


def _rows(value: Any, rows: list[int]) -> Any:
    """The value with these rows of all its tensors."""
    if isinstance(value, Tensor):
        return value[rows]
    if type(value) is dict:
        return {key: _rows(each, rows) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_rows(each, rows) for each in value)
    return value
