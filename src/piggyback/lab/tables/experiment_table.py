"""The table of an experiment: a line a method and backbone, a column a task, beside published numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev

from piggyback.lab.tables.cells import ONE_FILE, CellMean, CellRow, FailedCell, cell_means

Names = tuple[str, str, str]
"""Backbone, task, label: the names of a cell."""


@dataclass(frozen=True)
class TableCell:
    """One method on one task."""

    task: str
    mean: CellMean | None
    """Over the seeds that are done; None for a cell that was not run or failed."""
    errors: tuple[str, ...]
    """Of the seeds that failed."""
    published: float | None
    """Accuracy in percent."""

    @property
    def difference(self) -> float | None:
        """Accuracy minus the published one, in points."""
        return _minus(self.mean.accuracy if self.mean else None, self.published)


@dataclass(frozen=True)
class TableLine:
    """One method with one backbone on all tasks."""

    backbone: str
    label: str
    cells: tuple[TableCell, ...]
    """In the order of the table's tasks."""
    difference: float | None
    """Mean accuracy minus the reference line's with the same backbone, in points."""
    score: float | None
    spread: float | None
    """Standard deviation over seeds of the mean accuracy; None while a seed lacks a task, and for one seed."""

    @property
    def accuracy(self) -> float | None:
        """Mean over all tasks; None while one is missing, since means of other tasks mislead."""
        return _complete([cell.mean.accuracy if cell.mean else None for cell in self.cells])

    @property
    def published(self) -> float | None:
        """Mean of the published accuracies, where every task has one."""
        return _complete([cell.published for cell in self.cells])

    @property
    def bits_per_weight(self) -> float | None:
        """Mean over the tasks that have masks."""
        bits = [cell.mean.bits_per_weight for cell in self.cells if cell.mean]
        known = [value for value in bits if value is not None]
        return mean(known) if known else None

    @property
    def bytes(self) -> float | None:
        """Of all tasks together; None while one is missing."""
        done = [cell.mean for cell in self.cells if cell.mean]
        if len(done) < len(self.cells):
            return None
        sizes = [cell.bytes for cell in done]
        return max(sizes) if done[0].method in ONE_FILE else sum(sizes)


@dataclass(frozen=True)
class ExperimentTable:
    """All lines, those of one backbone together."""

    tasks: tuple[str, ...]
    lines: tuple[TableLine, ...]
    reference: str
    """Label of the lines that differences are taken to."""

    @property
    def backbones(self) -> tuple[str, ...]:
        """Names, in order."""
        return tuple(dict.fromkeys(line.backbone for line in self.lines))

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the methods, in order."""
        return tuple(dict.fromkeys(line.label for line in self.lines))


def experiment_table(
    rows: Iterable[CellRow],
    *,
    planned: Sequence[Names] = (),
    failed: Iterable[FailedCell] = (),
    published: Mapping[Names, float] | None = None,
    scores: Mapping[tuple[str, str], float] | None = None,
    reference: str = "finetune",
) -> ExperimentTable:
    """Return the table of an experiment's cells.

    ``planned`` sets the order, and names cells that may not be there yet; others follow as they come. ``published``
    has accuracies in percent by backbone, task and label; ``scores`` one number a line, by backbone and label.

    >>> row = CellRow("vgg16", "cubs", "masks", "masks", 0, 79.0, 80.0, 0.9, 16_000, 9.5, 0.8)
    >>> table = experiment_table([row], published={("vgg16", "cubs", "masks"): 79.25})
    >>> table.lines[0].cells[0].difference
    -0.25
    """
    rows = list(rows)
    means = {(cell.backbone, cell.task, cell.label): cell for cell in cell_means(rows)}
    errors: dict[Names, list[str]] = {}
    for cell in failed:
        errors.setdefault((cell.backbone, cell.task, cell.label), []).append(cell.error)
    names = list(dict.fromkeys([*planned, *means, *errors]))
    tasks = tuple(dict.fromkeys(task for _, task, _ in names))
    backbones = dict.fromkeys(backbone for backbone, _, _ in names)
    lines = []
    for own in backbones:
        for label in dict.fromkeys(label for backbone, _, label in names if backbone == own):
            cells = tuple(
                TableCell(
                    task,
                    means.get((own, task, label)),
                    tuple(errors.get((own, task, label), ())),
                    (published or {}).get((own, task, label)),
                )
                for task in tasks
            )
            score = (scores or {}).get((own, label))
            mine = [row for row in rows if (row.backbone, row.label) == (own, label)]
            lines.append(TableLine(own, label, cells, None, score, _spread(mine, len(tasks))))
    return ExperimentTable(tasks, _with_differences(lines, reference), reference)


def _with_differences(lines: Sequence[TableLine], reference: str) -> tuple[TableLine, ...]:
    base = {line.backbone: line.accuracy for line in lines if line.label == reference}
    return tuple(
        line
        if line.label == reference
        else replace(line, difference=_minus(line.accuracy, base.get(line.backbone)))
        for line in lines
    )


def _spread(rows: Sequence[CellRow], tasks: int) -> float | None:
    """Of the mean over the tasks, which must all be there with every seed: means of fewer differ more."""
    seeds: dict[int, list[float]] = {}
    for row in rows:
        seeds.setdefault(row.seed, []).append(row.accuracy)
    if len(seeds) < 2 or any(len(found) < tasks for found in seeds.values()):
        return None
    return stdev(mean(found) for found in seeds.values())


def _minus(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else round(value - other, 6)


def _complete(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known and len(known) == len(values) else None
