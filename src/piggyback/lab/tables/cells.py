"""Cells of an experiment: one method on one task with one backbone and one seed, and their means."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from statistics import mean
from typing import Any, TypeVar

from piggyback.errors import InputError, near_misses
from piggyback.lab.tables.rows import Mean, Row, means

ONE_FILE = frozenset({"packnet"})
"""Methods whose tasks share one growing file: a cell's bytes count all tasks up to it."""


@dataclass(frozen=True)
class CellRow:
    """What one cell measured."""

    backbone: str
    task: str
    label: str
    """The manifest's name for the method, such as ``masks ternary``."""
    method: str
    seed: int
    accuracy: float
    """Percent, on test; mean IoU for segmentation."""
    val_accuracy: float
    """Percent, on val, by which the epoch and the trial were chosen."""
    bits_per_weight: float | None
    """Mask bytes on disk * 8 / masked weights; None for methods without masks."""
    bytes: int
    """Of the task file or of the trained copy; of all tasks so far for methods in ``ONE_FILE``."""
    seconds: float
    """Training and choosing the epoch, of the chosen trial."""
    density: float | None = None
    """Fraction of the masked weights that is kept, from 0 to 1; None for methods without masks."""
    trials: int = 1
    """Settings that were tried for this cell."""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """The settings of the trial that was best on val, plain JSON."""
    verdict: str = ""
    """As ``Row.verdict``."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name, plain JSON."""
        return asdict(self)

    @staticmethod
    def from_json(values: object) -> CellRow:
        """Return the row that ``to_json`` wrote; raises InputError for anything else.

        >>> row = CellRow("vgg16", "cubs", "masks", "masks", 0, 79.0, 80.0, 0.9, 16_000, 9.5, 0.8)
        >>> CellRow.from_json(row.to_json()) == row
        True
        """
        return _read(CellRow, values)

    def row(self) -> Row:
        """Return the part of it that comparison tables have."""
        return Row(**{name: getattr(self, name) for name in _ROW})


@dataclass(frozen=True)
class FailedCell:
    """A cell that ended in an error."""

    backbone: str
    task: str
    label: str
    method: str
    seed: int
    error: str
    """One line."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)

    @staticmethod
    def from_json(values: object) -> FailedCell:
        """Return the cell that ``to_json`` wrote; raises InputError for anything else."""
        return _read(FailedCell, values)


@dataclass(frozen=True)
class CellMean(Mean):
    """A cell over all its seeds."""

    backbone: str
    label: str
    density: float | None
    trials: int
    """Largest number of settings tried for one of the seeds."""


def cell_means(rows: Iterable[CellRow]) -> list[CellMean]:
    """Return one mean for each (backbone, task, label), in the order they first appear.

    Raises InputError where a seed is there twice, which would count it twice.

    >>> row = CellRow("vgg16", "cubs", "masks", "masks", 0, 79.0, 80.0, 0.9, 16_000, 9.5, 0.8)
    >>> cell_means([row])[0].density
    0.8
    """
    groups: dict[tuple[str, str, str], list[CellRow]] = {}
    for row in rows:
        groups.setdefault((row.backbone, row.task, row.label), []).append(row)
    return [_mean(group) for group in groups.values()]


_ROW = tuple(f.name for f in fields(Row))
_COUNTS = ("seed", "bytes", "trials")
_NUMBERS = ("accuracy", "val_accuracy", "seconds")
_MAYBE = ("bits_per_weight", "density")
_Cell = TypeVar("_Cell", CellRow, FailedCell)


def _mean(rows: Sequence[CellRow]) -> CellMean:
    first = rows[0]
    name = f"{first.label} on {first.task} with {first.backbone}"
    if len({row.seed for row in rows}) < len(rows):
        raise InputError(f"{name}: expected each seed once, found {[row.seed for row in rows]}")
    if len({row.method for row in rows}) > 1:
        found = sorted({row.method for row in rows})
        raise InputError(f"{name}: expected one method a label, found {', '.join(found)}")
    densities = [row.density for row in rows if row.density is not None]
    (over_seeds,) = means([row.row() for row in rows])
    return CellMean(
        **vars(over_seeds),
        backbone=first.backbone,
        label=first.label,
        density=mean(densities) if densities else None,
        trials=max(row.trials for row in rows),
    )


def _read(kind: type[_Cell], values: object) -> _Cell:
    names = [f.name for f in fields(kind)]
    if not isinstance(values, Mapping):
        raise InputError(f"cell: expected an object with {', '.join(names)}, found {values!r:.80}")
    for name in values:
        if name not in names:
            raise InputError(
                f"cell: unknown key {name!r}{near_misses(str(name), names)}; "
                f"expected {', '.join(names)}"
            )
    for name in names:
        if name not in values and name != "verdict":  # which cells of before 2026-11 do not have
            raise InputError(f"cell: expected {name!r}, found only {', '.join(map(str, values))}")
        _check(name, values[name])
    return kind(**values)


def _check(name: str, value: object) -> None:
    if name == "chosen":
        good, expected = isinstance(value, Mapping), "an object"
    elif name in _COUNTS:
        good, expected = type(value) is int and value >= 0, "an integer from 0"
    elif name in _NUMBERS or name in _MAYBE:
        number = type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
        good, expected = number or (value is None and name in _MAYBE), "a finite number"
    else:
        good, expected = isinstance(value, str), "a text"
    if not good:
        raise InputError(f"cell: {name}: expected {expected}, found {value!r:.80}")
