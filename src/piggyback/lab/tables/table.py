"""The table of results: a line per method and backbone, a column per task, beside published numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from piggyback.lab.tables.rows import (
    ONE_FILE,
    Failure,
    Mean,
    Row,
    mean_of_known,
    means,
    measured,
)

Names = tuple[str, str, str]
"""Backbone, task, label: the names of a cell."""


@dataclass(frozen=True)
class Cell:
    """One method on one task."""

    task: str
    mean: Mean | None
    """Over the seeds that are done; None for a cell that was not run or failed."""
    errors: tuple[str, ...]
    """Of the seeds that failed."""
    published: float | None
    """Accuracy in percent."""

    @property
    def accuracy(self) -> float | None:
        """Percent, over the seeds that are done."""
        return self.mean.accuracy if self.mean else None

    @property
    def difference(self) -> float | None:
        """Accuracy minus the published one, in points."""
        return _minus(self.accuracy, self.published)


@dataclass(frozen=True)
class Line:
    """One method with one backbone on all tasks."""

    backbone: str
    label: str
    cells: tuple[Cell, ...]
    """In the order of the table's tasks."""
    score: float | None
    spread: float | None
    """Standard deviation over seeds of the mean accuracy; None while a seed lacks a task, and for one seed."""

    @property
    def accuracy(self) -> float | None:
        """Mean over all tasks; None while one is missing, since means of other tasks mislead."""
        return _complete(cell.accuracy for cell in self.cells)

    @property
    def published(self) -> float | None:
        """Mean of the published accuracies, where every task has one."""
        return _complete(cell.published for cell in self.cells)

    @property
    def bits_per_weight(self) -> float | None:
        """Mean over the tasks that have masks."""
        return mean_of_known(cell.mean.bits_per_weight for cell in self.cells if cell.mean)

    @property
    def bytes(self) -> float | None:
        """Of all tasks together; None while one is missing."""
        done = [cell.mean for cell in self.cells if cell.mean]
        if len(done) < len(self.cells):
            return None
        sizes = [cell.bytes for cell in done]
        return max(sizes) if done[0].method in ONE_FILE else sum(sizes)


@dataclass(frozen=True)
class ResultTable:
    """All lines, those of one backbone together."""

    tasks: tuple[str, ...]
    lines: tuple[Line, ...]
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

    @property
    def measure(self) -> str:
        """What the scores are called, as ``measured`` has it."""
        return measured(cell.mean for line in self.lines for cell in line.cells if cell.mean)

    def title(self, task: str) -> str:
        """Return a task's name, with what its scores are called where that is not the accuracy."""
        column = [line.cells[self.tasks.index(task)].mean for line in self.lines]
        name = measured(mean for mean in column if mean)
        return task if name == "accuracy" else f"{task}, {name} (%)"

    def difference(self, line: Line) -> float | None:
        """Return a line's mean accuracy minus the reference line's with the same backbone, in points."""
        base = {own.backbone: own.accuracy for own in self.lines if own.label == self.reference}
        if line.label == self.reference:
            return None
        return _minus(line.accuracy, base.get(line.backbone))


def result_table(
    rows: Iterable[Row],
    *,
    planned: Sequence[Names] = (),
    failed: Iterable[Failure] = (),
    published: Mapping[Names, float] | None = None,
    scores: Mapping[tuple[str, str], float] | None = None,
    reference: str = "finetune",
) -> ResultTable:
    """Return the table of an experiment's rows.

    ``planned`` sets the order, and names cells that may not be there yet; others follow as they come. ``published``
    has accuracies in percent by backbone, task and label; ``scores`` one number per line, by backbone and label.

    >>> row = Row("vgg16", "cubs", "masks", "masks", 0, 79.0, 80.0, 0.9, 16_000, 9.5, 0.8)
    >>> table = result_table([row], published={("vgg16", "cubs", "masks"): 79.25})
    >>> table.lines[0].cells[0].difference
    -0.25
    """
    rows = list(rows)
    found = {(one.backbone, one.task, one.label): one for one in means(rows)}
    errors: dict[Names, list[str]] = {}
    for failure in failed:
        names = (failure.backbone, failure.task, failure.label)
        errors.setdefault(names, []).append(failure.error)
    known = list(dict.fromkeys([*planned, *found, *errors]))
    tasks = tuple(dict.fromkeys(task for _, task, _ in known))
    backbones = dict.fromkeys(backbone for backbone, _, _ in known)
    lines = []
    for own in backbones:
        for label in dict.fromkeys(label for backbone, _, label in known if backbone == own):
            cells = tuple(
                Cell(
                    task,
                    found.get((own, task, label)),
                    tuple(errors.get((own, task, label), ())),
                    (published or {}).get((own, task, label)),
                )
                for task in tasks
            )
            mine = [row for row in rows if (row.backbone, row.label) == (own, label)]
            score = (scores or {}).get((own, label))
            lines.append(Line(own, label, cells, score, _spread(mine, len(tasks))))
    return ResultTable(tasks, tuple(lines), reference)


def _spread(rows: Sequence[Row], tasks: int) -> float | None:
    """Of the mean over the tasks, which must all be there with every seed: means of fewer differ more."""
    seeds: dict[int, list[float]] = {}
    for row in rows:
        seeds.setdefault(row.seed, []).append(row.accuracy)
    if len(seeds) < 2 or any(len(found) < tasks for found in seeds.values()):
        return None
    return stdev(mean(found) for found in seeds.values())


def _minus(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else round(value - other, 6)


def _complete(values: Iterable[float | None]) -> float | None:
    found = list(values)
    return None if None in found else mean_of_known(found)
