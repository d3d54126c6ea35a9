"""Rows: what each run measured, and their means over seeds. Every table and plot is made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, NonNegativeInt
from pydantic.dataclasses import dataclass as checked

from piggyback.errors import InputError
from piggyback.kinds import score_name

if TYPE_CHECKING:  # tables need no torch
    from piggyback.train.result import TrainResult

PACKNET = "packnet"
"""The one method that learns several tasks in turn, so it is not among the training methods of one task."""
ONE_FILE = frozenset({PACKNET})
"""Methods whose tasks share one growing file: a row's bytes count all tasks up to its own."""


@checked(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Row:
    """One method on one task with one backbone and one seed; pydantic's ValueError for what cannot be.

    >>> row = Row("vgg16", "cubs", "masks", "masks", 0, 79.0, 80.0, 0.9, 16_000, 9.5, 0.8)
    >>> Row(**row.to_json()) == row
    True
    """

    backbone: str
    """Its name in the manifest; empty outside an experiment."""
    task: str
    label: str
    """The name of the method's line in the table, such as ``masks ternary``."""
    method: str
    seed: NonNegativeInt
    accuracy: float
    """Percent, on test: what ``measure`` says, higher is better."""
    val_accuracy: float
    """Percent, on val, by which the epoch and the trial were chosen."""
    bits_per_weight: float | None
    """Mask bytes on disk * 8 / masked weights; None for methods without masks."""
    bytes: NonNegativeInt
    """Of the task file or of the trained copy; of all tasks so far for methods in ``ONE_FILE``."""
    seconds: float
    """Training and choosing the epoch, of the chosen trial."""
    density: float | None = None
    """Fraction of the masked weights that is kept, from 0 to 1; None for methods without masks."""
    trials: NonNegativeInt = 1
    """Settings that were tried for this row."""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """The settings of the trial that was best on val, plain JSON."""
    verdict: str = ""
    """Of masks that masked nothing or collapsed: a line that says so and what to do."""
    measure: str = "accuracy"
    """What the score of this kind of task is called, such as ``mean IoU``."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name, plain JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Failure:
    """A cell of the table whose run ended in an error."""

    backbone: str
    task: str
    label: str
    error: str
    """One line."""


@dataclass(frozen=True)
class Mean:
    """One method on one task with one backbone, over all its seeds."""

    backbone: str
    task: str
    label: str
    method: str
    seeds: int
    accuracy: float
    spread: float
    """Standard deviation of the accuracy over seeds; 0 for one seed."""
    bits_per_weight: float | None
    bytes: float
    seconds: float
    density: float | None
    trials: int
    """Largest number of settings that were tried for one of the seeds."""
    verdicts: tuple[str, ...]
    """Of its runs, each once."""
    measure: str = "accuracy"


def row_of(
    result: TrainResult,
    backbone: str = "",
    label: str = "",
    trials: int = 1,
    chosen: Mapping[str, Any] | None = None,
) -> Row:
    """Return a run's row, rounded to what its digits mean; ``label`` is by default the method."""
    task = result.task
    return Row(
        backbone=backbone,
        task=result.name,
        label=label or result.method,
        method=result.method,
        seed=result.seed,
        accuracy=round(result.accuracy, 4),
        val_accuracy=round(result.val_accuracy, 4),
        bits_per_weight=result.bits_per_weight,
        bytes=result.bytes,
        seconds=round(result.seconds, 2),
        density=task.density if task is not None and task.masks else None,
        trials=trials,
        chosen=dict(chosen or {}),
        verdict=result.verdict,
        measure=score_name(result.kind),
    )


def measured(rows: Iterable[Row | Mean]) -> str:
    """Return what the rows' scores are called together: "score" where kinds differ, "accuracy" without rows.

    >>> measured([])
    'accuracy'
    """
    names = {row.measure for row in rows} or {"accuracy"}
    return names.pop() if len(names) == 1 else "score"


def means(rows: Iterable[Row]) -> list[Mean]:
    """Return one mean for each (backbone, task, label), in the order they first appear.

    Raises InputError where a seed appears twice, which would count it twice.

    >>> rows = [Row("vgg16", "cubs", "head", "head", s, 50.0 + s, 50.0, None, 9, 1.0) for s in (0, 2)]
    >>> means(rows)[0].accuracy
    51.0
    """
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.backbone, row.task, row.label), []).append(row)
    return [_mean(group) for group in groups.values()]


def _mean(rows: list[Row]) -> Mean:
    first = rows[0]
    name = f"{first.label} on {first.task}" + (first.backbone and f" with {first.backbone}")
    if len({row.seed for row in rows}) < len(rows):
        raise InputError(f"{name}: expected each seed once, found {[row.seed for row in rows]}")
    if len(found := sorted({row.method for row in rows})) > 1:
        raise InputError(f"{name}: expected one method per label, found {', '.join(found)}")
    accuracies = [row.accuracy for row in rows]
    return Mean(
        backbone=first.backbone,
        task=first.task,
        label=first.label,
        method=first.method,
        seeds=len(rows),
        accuracy=mean(accuracies),
        spread=stdev(accuracies) if len(rows) > 1 else 0.0,
        bits_per_weight=mean_of_known(row.bits_per_weight for row in rows),
        bytes=mean(row.bytes for row in rows),
        seconds=mean(row.seconds for row in rows),
        density=mean_of_known(row.density for row in rows),
        trials=max(row.trials for row in rows),
        verdicts=tuple(dict.fromkeys(row.verdict for row in rows if row.verdict)),
        measure=first.measure,
    )


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None; None where all are.

    >>> mean_of_known([1.0, None, 2.0])
    1.5
    """
    known = [value for value in values if value is not None]
    return mean(known) if known else None
