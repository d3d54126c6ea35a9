"""Which task answers: a batch with a task per sample, and the task that is most sure of a sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from piggyback.errors import InputError


@dataclass(frozen=True)
class TaskInference:
    """The task chosen for each sample, and how sure every task was."""

    names: list[str | None]
    """(batch,): the surest task; None where none was sure enough."""
    confidence: Tensor
    """(batch, tasks), in [0, 1]: of a classification 1 - entropy of the outputs / log(classes); see ``kinds``."""
    tasks: tuple[str, ...]
    """The columns of ``confidence``."""


def run_grouped(
    run: Callable[[str, tuple[Any, ...], dict[str, Any]], Tensor],
    tasks: Sequence[str],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> list[Tensor]:
    """Return one output per sample, in order, running every task once on all of its samples.

    Tensors among the arguments are split along their first dimension, the batch; other arguments go along as they are.
    """
    tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
    sizes = {tensor.shape[0] if tensor.ndim else 0 for tensor in tensors}
    if sizes != {len(tasks)}:
        raise InputError(
            f"{len(tasks)} task names for a batch of {sorted(sizes)}: expected one name per sample"
        )
    outputs: dict[int, Tensor] = {}
    for name in dict.fromkeys(tasks):
        rows = [i for i, task in enumerate(tasks) if task == name]

        def part(value: Any, rows: list[int] = rows) -> Any:
            return value[rows] if isinstance(value, Tensor) else value

        output = run(name, tuple(map(part, args)), {k: part(v) for k, v in kwargs.items()})
        if not isinstance(output, Tensor) or output.shape[:1] != (len(rows),):
            raise InputError(
                f"task {name!r} answered with {type(output).__name__}: "
                "a batch of several tasks needs one tensor with a row per sample"
            )
        outputs.update(zip(rows, output, strict=True))
    return [outputs[i] for i in range(len(tasks))]
