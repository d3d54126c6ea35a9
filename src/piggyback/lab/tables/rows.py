"""One row a run: what every comparison table is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from statistics import mean, stdev
from typing import Any

from piggyback.train.result import TrainResult


@dataclass(frozen=True)
class Row:
    """One method on one task with one seed."""

    task: str
    method: str
    seed: int
    accuracy: float
    """Percent, on test."""
    val_accuracy: float
    """Percent, on val."""
    bits_per_weight: float | None
    """Mask bytes on disk * 8 / masked weights; None for methods without masks."""
    bytes: int
    """Of the task file, or of the fine-tuned copy."""
    seconds: float
    """Training and choosing the epoch."""
    verdict: str = field(default="", kw_only=True)
    """Of masks that masked nothing or collapsed: a line that says so and what to do."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


COLUMNS = tuple(column.name for column in fields(Row))


@dataclass(frozen=True)
class Mean:
    """A task's method over all its seeds."""

    task: str
    method: str
    seeds: int
    accuracy: float
    spread: float
    """Standard deviation of the accuracy over seeds; 0 for one seed."""
    bits_per_weight: float | None
    bytes: float
    seconds: float
    verdicts: tuple[str, ...] = field(default=(), kw_only=True)
    """Of its runs, each once."""


def row_of(result: TrainResult) -> Row:
    """Return a run's row, rounded to what its digits mean."""
    bits = result.bits_per_weight
    return Row(
        task=result.name,
        method=result.method,
        seed=result.seed,
        accuracy=round(result.accuracy, 4),
        val_accuracy=round(result.val_accuracy, 4),
        bits_per_weight=None if bits is None else round(bits, 5),
        bytes=result.bytes,
        seconds=round(result.seconds, 2),
        verdict=result.verdict,
    )


def means(rows: Sequence[Row]) -> list[Mean]:
    """Return one mean for each (task, method), in the order they first appear.

    >>> rows = [Row("signs", "head", seed, 50.0 + seed, 50.0, None, 100, 1.0) for seed in (0, 2)]
    >>> means(rows)[0].accuracy
    51.0
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.task, row.method), []).append(row)
    return [_mean(group) for group in groups.values()]


def _mean(rows: Sequence[Row]) -> Mean:
    accuracies = [row.accuracy for row in rows]
    bits = [row.bits_per_weight for row in rows if row.bits_per_weight is not None]
    return Mean(
        task=rows[0].task,
        method=rows[0].method,
        seeds=len(rows),
        accuracy=mean(accuracies),
        spread=stdev(accuracies) if len(rows) > 1 else 0.0,
        bits_per_weight=mean(bits) if bits else None,
        bytes=mean(row.bytes for row in rows),
        seconds=mean(row.seconds for row in rows),
        verdicts=tuple(dict.fromkeys(row.verdict for row in rows if row.verdict)),
    )
