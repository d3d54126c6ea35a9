"""Tables hold what the rows hold."""

from __future__ import annotations

import csv
import io
import json

import pytest
from rich.console import Console

from piggyback.lab.tables.rows import COLUMNS, Row, means
from piggyback.lab.tables.tables import to_csv, to_json, to_markdown, to_screen


def test_means_over_seeds_keep_the_order_of_tasks_and_methods(rows: list[Row]) -> None:
    found = means(rows)
    assert [(m.task, m.method) for m in found] == [
        (task, method) for task in ("signs", "letters") for method in ("head", "masks", "finetune")
    ]
    assert (found[1].accuracy, found[1].seeds) == (86.0, 2)
    assert found[1].spread == pytest.approx(2**0.5)
    assert (found[0].bits_per_weight, found[1].bits_per_weight) == (None, 0.21)


def test_csv_and_json_hold_every_row(rows: list[Row]) -> None:
    read = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert tuple(read[0]) == COLUMNS
    assert [float(line["accuracy"]) for line in read] == [row.accuracy for row in rows]
    assert [Row(**values) for values in json.loads(to_json(rows))] == rows


def test_markdown_has_a_line_for_each_mean(rows: list[Row]) -> None:
    lines = to_markdown(rows).splitlines()
    assert len(lines) == 2 + 6
    assert lines[3] == "| signs | masks | 86.00 ± 1.41 | 0.210 | 360,000 | 60.5 |"
    assert len({line.count("|") for line in lines}) == 1


def test_screen_table_fits_80_columns(rows: list[Row]) -> None:
    text = io.StringIO()
    Console(file=text, width=80).print(to_screen(rows))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("finetune" in line for line in lines) == 2
