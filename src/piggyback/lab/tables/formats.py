"""Tables as text: Markdown, CSV, JSON, and for the terminal.

``runs_...`` has a line per task and method: what ``train``, ``compare`` and ``quickstart`` show.
``table_...`` has a line per method and a column per task: what ``experiment`` shows.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderResult
from rich.table import Table
from rich.text import Text

from piggyback.lab.tables.rows import Row, means, measured
from piggyback.lab.tables.table import Cell, Line, ResultTable
from piggyback.names import human_bytes, plain

RUN_COLUMNS = (
    "task", "method", "seed", "accuracy", "val_accuracy", "bits_per_weight", "bytes", "seconds", "verdict", "measure",
)  # fmt: skip
"""Of the CSV and JSON of runs."""
COLUMNS = (
    "backbone", "task", "label", "method", "seeds", "failed", "accuracy", "spread", "published",
    "difference", "bits_per_weight", "bytes", "density", "seconds", "trials",
)  # fmt: skip
"""Of the CSV of an experiment and of the cells in its JSON; ``difference`` is to the published accuracy."""


@dataclass(frozen=True)
class Entry:
    """What stands in one place of a table."""

    value: str
    spread: str = ""
    published: str = ""
    difference: str = ""
    """To the published number."""
    best: bool = False
    """Whether it is the best of its column."""

    def markdown(self) -> str:
        """Return it in one line."""
        value = _escaped(self.value)
        text = f"**{value}**" if self.best else value
        text += f" {self.spread}" if self.spread else ""
        if self.published:
            text += f"<br>published {self.published}"
            text += f" ({self.difference})" if self.difference else ""
        return text

    def rich(self) -> Text:
        """Return it for the terminal, in up to three lines."""
        text = Text(plain(self.value), style="bold" if self.best else "")
        if self.spread:
            text.append(f"\n{self.spread}", style="dim")
        if self.published:
            known = f"{self.published} {self.difference}".strip()
            text.append(f"\n({known})", style="dim")
        return text


@dataclass(frozen=True)
class Grid:
    """A table before it is written: names on the left, numbers on the right."""

    titles: list[str]
    lines: list[list[Entry]]
    names: int = 2
    """Columns of names."""
    summary: int = 0
    """Columns at the right end that the terminal keeps together."""
    heading: str = ""
    notes: Sequence[str] = ()
    """Lines below the table, on the terminal only."""

    def markdown(self) -> str:
        """Return the table in Markdown."""
        head = "|---" * self.names + "|--:" * (len(self.titles) - self.names) + "|"
        rows = [self.titles, *([entry.markdown() for entry in line] for line in self.lines)]
        text = [f"| {' | '.join(row)} |" for row in rows]
        return "\n".join([text[0], head, *text[1:]]) + "\n"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table for a terminal, in parts with the same names where it is too wide."""
        if self.heading:
            yield Text(plain(self.heading), style="bold")
        end = len(self.titles) - self.summary
        part = names = list(range(self.names))
        boundless = options.update(max_width=10_000)
        for group in [
            *([at] for at in range(self.names, end)),
            list(range(end, end + self.summary)),
        ]:
            wider = console.measure(self._part([*part, *group]), options=boundless)
            if part != names and wider.maximum > options.max_width:
                yield self._part(part)
                part = names
            part = [*part, *group]
        yield self._part(part)
        yield from (Text(plain(line)) for line in self.notes)

    def _part(self, columns: Sequence[int]) -> Table:
        made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for at in columns:
            side: Any = "left" if at < self.names else "right"
            made.add_column(Text(self.titles[at]), justify=side, no_wrap=True)
        above = None
        for line in self.lines:
            if self.names > 1 and above not in (None, line[0].value):
                made.add_section()
            made.add_row(*(line[at].rich() for at in columns))
            above = line[0].value
        return made


def runs_csv(rows: Sequence[Row]) -> str:
    """Return a header and a line per run; an empty field where there are no masks.

    >>> print(runs_csv([Row("", "signs", "head", "head", 0, 50.5, 51.0, None, 1200, 3.5)]).split()[1])
    signs,head,0,50.5,51.0,,1200,3.5,,accuracy
    """
    return _csv(RUN_COLUMNS, map(run_record, rows))


def runs_json(rows: Sequence[Row]) -> str:
    """Return a JSON list with an object per run, whose keys are ``RUN_COLUMNS``."""
    return json.dumps([run_record(row) for row in rows], indent=2) + "\n"


def run_record(row: Row) -> dict[str, Any]:
    """Return what tables of runs say about one, by column."""
    record = {name: getattr(row, name) for name in RUN_COLUMNS}
    if row.bits_per_weight is not None:
        record["bits_per_weight"] = round(row.bits_per_weight, 5)
    return record


def runs_markdown(rows: Sequence[Row]) -> str:
    """Return the table of means over seeds in Markdown; below it, what went wrong with masks.

    >>> print(runs_markdown([Row("", "signs", "head", "head", 0, 50.5, 51.0, None, 1200, 3.5)]))
    | task | method | accuracy (%) | bits per weight | bytes | seconds |
    |---|---|--:|--:|--:|--:|
    | signs | head | 50.50 | - | 1,200 | 3.5 |
    <BLANKLINE>
    """
    return runs_screen(rows).markdown() + "".join(f"\n{line}\n" for line in verdicts(rows))


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Return a line for each task and method whose masks did not learn, and what to do.

    >>> row = Row("", "signs", "masks", "masks", 0, 50.5, 51.0, 0.0, 99, 3.5, verdict="masked nothing")
    >>> verdicts([row])
    ['signs masks: masked nothing']
    """
    return [
        f"{mean.task} {mean.label}: {verdict}" for mean in means(rows) for verdict in mean.verdicts
    ]


def runs_screen(rows: Sequence[Row]) -> Grid:
    """Return the table of means over seeds for a rich console."""
    measure = measured(rows)
    titles = ["task", "method", f"{measure} (%)", "bits per weight", "bytes", "seconds"]
    lines = [
        (
            mean.task,
            mean.method,
            ("" if mean.measure == measure else f"{mean.measure} ")
            + f"{mean.accuracy:.2f}"
            + (f" ± {mean.spread:.2f}" if mean.seeds > 1 else ""),
            _number(mean.bits_per_weight, ".3f"),
            f"{mean.bytes:,.0f}",
            f"{mean.seconds:.1f}",
        )
        for mean in means(rows)
    ]
    return Grid(titles, [[Entry(text) for text in line] for line in lines], notes=verdicts(rows))


def table_csv(table: ResultTable) -> str:
    """Return a header and a line per cell, with empty fields for what is not known.

    >>> from piggyback.lab.tables.table import result_table
    >>> row = Row("vgg16", "cubs", "head", "head", 0, 79.0, 80.0, None, 1200, 9.5)
    >>> print(table_csv(result_table([row])).splitlines()[1])
    vgg16,cubs,head,head,1,0,79.0,0.0,,,,1200,,9.5,1
    """
    return _csv(COLUMNS, (_record(line, cell) for line in table.lines for cell in line.cells))


def table_json(table: ResultTable) -> str:
    """Return the tasks and the lines as a JSON object; null for what is not known."""
    lines = [
        {
            "backbone": line.backbone,
            "label": line.label,
            "accuracy": line.accuracy,
            "spread": line.spread,
            "difference": table.difference(line),
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


def table_markdown(table: ResultTable) -> str:
    """Return the table in Markdown: the best of each column bold, ``-`` for what is not there.

    Below it, a line for each error.

    >>> from piggyback.lab.tables.table import result_table
    >>> row = Row("vgg16", "cubs", "head", "head", 0, 79.0, 80.0, None, 1200, 9.5)
    >>> print(table_markdown(result_table([row])))
    | backbone | method | cubs | mean | vs finetune | bits per weight | bytes |
    |---|---|--:|--:|--:|--:|--:|
    | vgg16 | head | 79.00 | 79.00 | - | - | 1,200 |
    <BLANKLINE>
    """
    problems = [f"- {_escaped(problem)}\n" for problem in _problems(table)]
    return _grid(table).markdown() + "".join(["\n", *problems] if problems else [])


def table_screen(table: ResultTable, title: str = "") -> ConsoleRenderable:
    """Return the same table for a rich console; the backbone is named where there are several."""
    grid = _grid(table, human_bytes)
    first = 0 if len(table.backbones) > 1 else 1
    notes = list(_problems(table))
    if any(cell.published is not None for line in table.lines for cell in line.cells):
        notes.insert(0, "In brackets: the published accuracy, and the difference to it.")
    return Grid(
        [title.replace("vs ", "vs\n").replace("per ", "per\n") for title in grid.titles[first:]],
        [line[first:] for line in grid.lines],
        names=2 - first,
        summary=len(grid.titles) - 2 - len(table.tasks),
        heading=title,
        notes=notes,
    )


def _grid(table: ResultTable, size: Callable[[float], str] = "{:,.0f}".format) -> Grid:
    scored = any(line.score is not None for line in table.lines)
    best = {name: _best(table, name) for name in table.backbones}
    lines = []
    for line in table.lines:
        columns = zip(_values(line), best[line.backbone], strict=True)
        *marks, of_mean, of_score = [v is not None and v == top for v, top in columns]
        spread = "" if line.spread is None else f"± {line.spread:.2f}"
        beside = _beside(line.published, line.accuracy)
        entries = [
            Entry(line.backbone),
            Entry(line.label),
            *(_entry(cell, mark) for cell, mark in zip(line.cells, marks, strict=True)),
            Entry(_number(line.accuracy), spread, *beside, of_mean),
            Entry(_signed(table.difference(line)) or "-"),
            *[Entry(_number(line.score, ".0f"), best=of_score)] * scored,
            Entry(_number(line.bits_per_weight, ".3f")),
            Entry("-" if line.bytes is None else size(line.bytes)),
        ]
        lines.append(entries)
    tail = ["mean", f"vs {table.reference}", *["score"] * scored, "bits per weight", "bytes"]
    titles = ["backbone", "method", *map(table.title, table.tasks), *tail]
    return Grid(titles, lines)


def _values(line: Line) -> list[float | None]:
    """What can be the best of its column, as it is shown: tasks, mean, score."""
    found = [*(cell.accuracy for cell in line.cells), line.accuracy]
    shown = [None if value is None else round(value, 2) for value in found]
    return [*shown, None if line.score is None else round(line.score)]


def _best(table: ResultTable, backbone: str) -> list[float | None]:
    """The largest value of each column, where there are several to choose from."""
    lines = [_values(line) for line in table.lines if line.backbone == backbone]
    known = [
        [value for value in column if value is not None] for column in zip(*lines, strict=True)
    ]
    return [max(column) if len(column) > 1 else None for column in known]


def _entry(cell: Cell, best: bool) -> Entry:
    beside = _beside(cell.published, cell.accuracy)
    if cell.mean is None:
        return Entry("failed" if cell.errors else "-", "", *beside)
    spread = [f"± {cell.mean.spread:.2f}"] if cell.mean.seeds > 1 else []
    spread += [f"({len(cell.errors)} failed)"] if cell.errors else []
    return Entry(_number(cell.accuracy), " ".join(spread), *beside, best)


def _beside(published: float | None, accuracy: float | None) -> tuple[str, str]:
    """The published number, and the difference to it."""
    if published is None:
        return "", ""
    return _number(published), _signed(None if accuracy is None else accuracy - published)


def _problems(table: ResultTable) -> Iterator[str]:
    for line in table.lines:
        for cell in line.cells:
            for error in dict.fromkeys(cell.errors):
                where = f"{line.label} on {cell.task} with {line.backbone}"
                yield f"failed: {where}: {' '.join(error.split())}"


def _record(line: Line, cell: Cell) -> dict[str, Any]:
    record: dict[str, Any] = dict.fromkeys(COLUMNS)
    if cell.mean is not None:
        record |= {name: getattr(cell.mean, name) for name in COLUMNS if hasattr(cell.mean, name)}
    own = {"backbone": line.backbone, "task": cell.task, "label": line.label}
    beside = {"published": cell.published, "difference": cell.difference}
    seeds = 0 if cell.mean is None else cell.mean.seeds
    return record | own | beside | {"seeds": seeds, "failed": len(cell.errors)}


def _csv(columns: Sequence[str], records: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def _signed(value: float | None) -> str:
    return "" if value is None else f"{round(value, 2) + 0.0:+.2f}"  # -0.0 + 0.0 is 0.0


def _escaped(text: str) -> str:
    """A name or an error, which must not break the table or become markup."""
    return text.replace("|", "\\|").replace("<", "&lt;")
