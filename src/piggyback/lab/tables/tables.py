"""Comparison tables as CSV, JSON, Markdown, and for the terminal."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from rich import box
from rich.table import Table

from piggyback.lab.tables.rows import COLUMNS, Row, means


def to_csv(rows: Sequence[Row]) -> str:
    """Return a header and a line a row; an empty cell where there are no masks.

    >>> print(to_csv([Row("signs", "head", 0, 50.5, 51.0, None, 1200, 3.5)]).split()[1])
    signs,head,0,50.5,51.0,,1200,3.5,
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.to_json() for row in rows)
    return text.getvalue()


def to_json(rows: Sequence[Row]) -> str:
    """Return a JSON list with an object a row, whose keys are ``COLUMNS``."""
    return json.dumps([row.to_json() for row in rows], indent=2) + "\n"


def to_markdown(rows: Sequence[Row]) -> str:
    """Return the table of means over seeds in Markdown; with one seed, of the rows.

    >>> print(to_markdown([Row("signs", "head", 0, 50.5, 51.0, None, 1200, 3.5)]))
    | task | method | accuracy (%) | bits per weight | bytes | seconds |
    |---|---|--:|--:|--:|--:|
    | signs | head | 50.50 | - | 1,200 | 3.5 |
    <BLANKLINE>
    """
    lines = [f"| {' | '.join(_TITLES)} |", "|---|---|" + "--:|" * (len(_TITLES) - 2)]
    lines += [f"| {' | '.join(cells)} |" for cells in _cells(rows)]
    return "\n".join([*lines, *(f"\n{line}" for line in verdicts(rows))]) + "\n"


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Return a line for each task and method whose masks did not learn, and what to do.

    >>> row = Row("signs", "masks", 0, 50.5, 51.0, 0.0, 1200, 3.5, verdict="masked nothing: ...")
    >>> verdicts([row])
    ['signs masks: masked nothing: ...']
    """
    return [
        f"{mean.task} {mean.method}: {verdict}" for mean in means(rows) for verdict in mean.verdicts
    ]


def to_screen(rows: Sequence[Row], title: str | None = None) -> Table:
    """Return the same table for a rich console."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(_TITLES):
        table.add_column(name, justify="left" if index < 2 else "right", overflow="fold")
    last = None
    for cells in _cells(rows):
        if last not in (None, cells[0]):
            table.add_section()
        table.add_row(*cells)
        last = cells[0]
    table.caption = "\n".join(verdicts(rows)) or None
    table.caption_justify = "left"
    return table


_TITLES = ("task", "method", "accuracy (%)", "bits per weight", "bytes", "seconds")


def _cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    return [
        (
            mean.task,
            mean.method,
            f"{mean.accuracy:.2f}" + (f" ± {mean.spread:.2f}" if mean.seeds > 1 else ""),
            "-" if mean.bits_per_weight is None else f"{mean.bits_per_weight:.3f}",
            f"{mean.bytes:,.0f}",
            f"{mean.seconds:.1f}",
        )
        for mean in means(rows)
    ]
