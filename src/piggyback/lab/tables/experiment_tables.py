"""The table of an experiment as Markdown, CSV, JSON, and for the terminal."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderResult
from rich.table import Table
from rich.text import Text

from piggyback.lab.tables.experiment_table import ExperimentTable, TableCell, TableLine
from piggyback.lab.tables.plots import human_bytes

COLUMNS = (
    "backbone", "task", "label", "method", "seeds", "failed", "accuracy", "spread", "published",
    "difference", "bits_per_weight", "bytes", "density", "seconds", "trials",
)  # fmt: skip
"""Of the CSV and of the cells in the JSON; ``difference`` is to the published accuracy."""


def experiment_csv(table: ExperimentTable) -> str:
    """Return a header and a line a cell, with empty fields for what is not known.

    >>> from piggyback.lab.tables.cells import CellRow
    >>> from piggyback.lab.tables.experiment_table import experiment_table
    >>> row = CellRow("vgg16", "cubs", "head", "head", 0, 79.0, 80.0, None, 1200, 9.5)
    >>> print(experiment_csv(experiment_table([row])).splitlines()[1])
    vgg16,cubs,head,head,1,0,79.0,0.0,,,,1200,,9.5,1
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for line in table.lines:
        writer.writerows(_record(line, cell) for cell in line.cells)
    return text.getvalue()


def experiment_json(table: ExperimentTable) -> str:
    """Return the tasks and the lines as a JSON object; null for what is not known."""
    lines = [
        {
            "backbone": line.backbone,
            "label": line.label,
            "accuracy": line.accuracy,
            "spread": line.spread,
            "difference": line.difference,
            "published": line.published,
            "score": line.score,
            "bits_per_weight": line.bits_per_weight,
            "bytes": line.bytes,
            "cells": [_record(line, cell) | {"errors": cell.errors} for cell in line.cells],
        }
        for line in table.lines
    ]
    content = {"tasks": table.tasks, "reference": table.reference, "lines": lines}
    return json.dumps(content, indent=2) + "\n"


def experiment_markdown(table: ExperimentTable) -> str:
    """Return the table in Markdown: the best of each column bold, ``-`` for what is not there.

    Below it, a line for each error.

    >>> from piggyback.lab.tables.cells import CellRow
    >>> from piggyback.lab.tables.experiment_table import experiment_table
    >>> row = CellRow("vgg16", "cubs", "head", "head", 0, 79.0, 80.0, None, 1200, 9.5)
    >>> print(experiment_markdown(experiment_table([row])))
    | backbone | method | cubs | mean | vs finetune | bits per weight | bytes |
    |---|---|--:|--:|--:|--:|--:|
    | vgg16 | head | 79.00 | 79.00 | - | - | 1,200 |
    <BLANKLINE>
    """
    titles = _titles(table)
    text = [_md_line(titles), "|---|---|" + "--:|" * (len(titles) - 2)]
    text += [_md_line([entry.markdown() for entry in line]) for line in _grid(table)]
    if problems := list(_problems(table)):
        text += ["", *(f"- {_escaped(problem)}" for problem in problems)]
    return "\n".join(text) + "\n"


def experiment_screen(table: ExperimentTable, title: str = "") -> ConsoleRenderable:
    """Return the same table for a rich console: in parts, one below the other, where it is too wide."""
    return _Screen(table, title)


@dataclass(frozen=True)
class _Screen:
    table: ExperimentTable
    title: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the parts, what brackets mean, and the errors."""
        if self.title:
            yield Text(self.title, style="bold")
        names, *groups = self._groups()
        part: list[_Column] = []
        for group in groups:
            if part and _width([*names, *part, *group]) > options.max_width:
                yield _part([*names, *part])
                part = []
            part += group
        yield _part([*names, *part])
        if any(cell.published is not None for line in self.table.lines for cell in line.cells):
            yield Text("In brackets: the published accuracy, and the difference to it.")
        for problem in _problems(self.table):
            yield Text(problem)

    def _groups(self) -> list[list[_Column]]:
        """The names, which every part has; each task; and what sums them up, kept together."""
        lines = list(_grid(self.table, human_bytes))
        titles = [t.replace("vs ", "vs\n").replace("per ", "per\n") for t in _titles(self.table)]
        columns = [
            _Column(title, [line[at].rich() for line in lines]) for at, title in enumerate(titles)
        ]
        names = columns[:2] if len(self.table.backbones) > 1 else columns[1:2]
        end = 2 + len(self.table.tasks)
        return [names, *([column] for column in columns[2:end]), columns[end:]]


@dataclass(frozen=True)
class _Column:
    title: str
    texts: list[Text]

    @property
    def width(self) -> int:
        lines = [line for text in (Text(self.title), *self.texts) for line in text.split()]
        return max((line.cell_len for line in lines), default=0)


def _width(columns: Sequence[_Column]) -> int:
    return sum(column.width for column in columns) + 2 * len(columns)  # as _part pads them


def _part(columns: Sequence[_Column]) -> Table:
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        left = column.title in ("backbone", "method")
        made.add_column(Text(column.title), justify="left" if left else "right", no_wrap=True)
    for texts in zip(*(column.texts for column in columns), strict=True):
        made.add_row(*texts)
    return made


@dataclass(frozen=True)
class _Entry:
    """What stands in one place of the table."""

    value: str
    spread: str = ""
    published: str = ""
    difference: str = ""
    best: bool = False

    def markdown(self) -> str:
        value = _escaped(self.value)
        text = f"**{value}**" if self.best else value
        text += f" {self.spread}" if self.spread else ""
        if self.published:
            text += f"<br>published {self.published}"
            text += f" ({self.difference})" if self.difference else ""
        return text

    def rich(self) -> Text:
        text = Text(self.value, style="bold" if self.best else "")
        if self.spread:
            text.append(f"\n{self.spread}", style="dim")
        if self.published:
            known = f"{self.published} {self.difference}".strip()
            text.append(f"\n({known})", style="dim")
        return text


def _titles(table: ExperimentTable) -> list[str]:
    score = ["score"] if _scored(table) else []
    difference = f"vs {table.reference}"
    tail = ["mean", difference, *score, "bits per weight", "bytes"]
    return ["backbone", "method", *table.tasks, *tail]


def _grid(
    table: ExperimentTable, size: Callable[[float], str] = "{:,.0f}".format
) -> Iterator[list[_Entry]]:
    best = {name: _best(table, name) for name in table.backbones}
    for line in table.lines:
        columns = list(zip(_values(line), best[line.backbone], strict=True))
        marked = [value is not None and value == top for value, top in columns]
        cells = [_entry(cell, mark) for cell, mark in zip(line.cells, marked[:-2], strict=True)]
        score = _Entry(_number(line.score, ".0f"), best=marked[-1])
        spread = "" if line.spread is None else f"± {line.spread:.2f}"
        beside = _beside(line.published, line.accuracy)
        yield [
            _Entry(line.backbone),
            _Entry(line.label),
            *cells,
            _Entry(_number(line.accuracy), spread, *beside, marked[-2]),
            _Entry("-" if line.difference is None else _signed(line.difference)),
            *([score] if _scored(table) else []),
            _Entry(_number(line.bits_per_weight, ".3f")),
            _Entry("-" if line.bytes is None else size(line.bytes)),
        ]


def _values(line: TableLine) -> list[float | None]:
    """What can be the best of its column, as it is shown: tasks, mean, score."""
    found = [*(cell.mean.accuracy if cell.mean else None for cell in line.cells), line.accuracy]
    shown = [None if value is None else round(value, 2) for value in found]
    return [*shown, None if line.score is None else round(line.score)]


def _best(table: ExperimentTable, backbone: str) -> list[float | None]:
    """The largest value of each column, where there are several to choose from."""
    lines = [_values(line) for line in table.lines if line.backbone == backbone]
    columns = [
        [value for value in column if value is not None] for column in zip(*lines, strict=True)
    ]
    return [max(column) if len(column) > 1 else None for column in columns]


def _entry(cell: TableCell, best: bool) -> _Entry:
    if cell.mean is None:
        return _Entry("failed" if cell.errors else "-", "", *_beside(cell.published, None))
    spread = f"± {cell.mean.spread:.2f}" if cell.mean.seeds > 1 else ""
    if cell.errors:
        spread += f"{' ' if spread else ''}({len(cell.errors)} failed)"
    beside = _beside(cell.published, cell.mean.accuracy)
    return _Entry(f"{cell.mean.accuracy:.2f}", spread, *beside, best)


def _beside(published: float | None, accuracy: float | None) -> tuple[str, str]:
    """The published number, and the difference to it."""
    if published is None:
        return "", ""
    return _number(published), "" if accuracy is None else _signed(accuracy - published)


def _problems(table: ExperimentTable) -> Iterator[str]:
    for line in table.lines:
        for cell in line.cells:
            for error in dict.fromkeys(cell.errors):
                where = f"{line.label} on {cell.task} with {line.backbone}"
                yield f"failed: {where}: {' '.join(error.split())}"


def _record(line: TableLine, cell: TableCell) -> dict[str, Any]:
    mean = cell.mean
    return {
        "backbone": line.backbone,
        "task": cell.task,
        "label": line.label,
        "method": mean.method if mean else None,
        "seeds": mean.seeds if mean else 0,
        "failed": len(cell.errors),
        "accuracy": mean.accuracy if mean else None,
        "spread": mean.spread if mean else None,
        "published": cell.published,
        "difference": cell.difference,
        "bits_per_weight": mean.bits_per_weight if mean else None,
        "bytes": mean.bytes if mean else None,
        "density": mean.density if mean else None,
        "seconds": mean.seconds if mean else None,
        "trials": mean.trials if mean else None,
    }


def _scored(table: ExperimentTable) -> bool:
    return any(line.score is not None for line in table.lines)


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # -0.0 + 0.0 is 0.0


def _md_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """A name or an error, which must not break the table or become markup."""
    return text.replace("|", "\\|").replace("<", "&lt;")
