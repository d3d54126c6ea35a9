"""The table of an experiment shows what was measured, what was published, and what is missing."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from piggyback.lab.tables.cells import FailedCell
from piggyback.lab.tables.experiment_table import ExperimentTable, TableLine, experiment_table
from piggyback.lab.tables.experiment_tables import (
    COLUMNS,
    experiment_csv,
    experiment_json,
    experiment_markdown,
    experiment_screen,
)
from support.experiment_cells import METHODS, cells

FAILED = FailedCell("lite0", "letters", "lora", "lora", 0, "out of | memory")


def line_of(table: ExperimentTable, label: str) -> TableLine:
    (found,) = [line for line in table.lines if line.label == label]
    return found


def on_screen(table: ExperimentTable, width: int) -> str:
    text = io.StringIO()
    Console(file=text, width=width).print(experiment_screen(table, "[all] of it"))
    return text.getvalue()


def test_lines_sum_up_all_tasks() -> None:
    table = experiment_table(cells())
    assert (table.tasks, table.backbones) == (("signs", "letters"), ("lite0",))
    masks = line_of(table, "masks ternary")
    assert (masks.accuracy, masks.difference, masks.bits_per_weight) == (85.0, 1.0, 0.6)
    assert masks.bytes == 2 * 1_100_000 + 1000
    assert line_of(table, "finetune").difference is None


def test_bytes_of_one_growing_file_are_not_added_up() -> None:
    assert line_of(experiment_table(cells()), "packnet").bytes == 13_701_000


def test_differences_are_to_the_reference_of_the_same_backbone() -> None:
    rows = cells(backbones=("lite0", "vgg16"))
    rows = [replace(r, accuracy=r.accuracy - 20 * (r.backbone == "vgg16")) for r in rows]
    table = experiment_table(rows, reference="head")
    assert [line.difference for line in table.lines if line.label == "finetune"] == [30.0, 30.0]


def test_nothing_is_summed_up_while_a_task_is_missing() -> None:
    rows = [row for row in cells() if (row.task, row.label) != ("letters", "finetune")]
    table = experiment_table(rows)
    tuned = line_of(table, "finetune")
    assert (tuned.accuracy, tuned.bytes) == (None, None)
    assert line_of(table, "masks").difference is None
    line = next(x for x in experiment_markdown(table).splitlines() if "| finetune |" in x)
    assert line == "| lite0 | finetune | 89.00 ± 1.41 | - | - | - | - | - |"


def test_the_mean_has_the_spread_of_each_seeds_mean() -> None:
    # One seed is 2 better on one task and 2 worse on the other: the mean of the tasks does not move.
    apart = [replace(r, accuracy=r.accuracy + 4 * (r.task == "signs") * r.seed) for r in cells()]
    line = line_of(experiment_table(apart), "masks")
    assert line.spread == 0
    assert [cell.mean and cell.mean.spread for cell in line.cells] == [pytest.approx(2**0.5)] * 2
    assert line_of(experiment_table(cells(seeds=[0])), "masks").spread is None
    lost = [row for row in cells() if (row.task, row.seed) != ("letters", 1)]
    table = experiment_table(lost)
    assert line_of(table, "masks").spread is None
    assert "| 88.00 ± 1.41 | 79.00 | 83.50 |" in experiment_markdown(table).replace("*", "")


def test_planned_cells_set_the_order_and_are_shown_as_missing() -> None:
    planned = [
        ("lite0", task, label) for task in ("letters", "signs") for label in ("lora", "masks")
    ]
    table = experiment_table(cells(), planned=planned)
    assert table.tasks == ("letters", "signs")
    assert table.labels[:2] == ("lora", "masks")
    text = experiment_markdown(table)
    assert "| lite0 | lora | - | - | - | - | - | - |" in text
    assert not any(cell.mean for cell in line_of(table, "lora").cells)


def test_markdown_marks_the_best_of_each_column() -> None:
    lines = experiment_markdown(experiment_table(cells())).splitlines()
    assert len(lines) == 2 + len(METHODS)
    assert len({line.count("|") for line in lines}) == 1
    ternary = (
        "| **90.00** ± 1.41 | **80.00** ± 1.41 | **85.00** ± 1.41 | +1.00 | 0.600 | 2,201,000 |"
    )
    assert f"| lite0 | masks ternary {ternary}" in lines
    assert sum("**" in line for line in lines) == 1


def test_equal_values_share_the_mark_and_a_lone_one_has_none() -> None:
    rows = cells(seeds=[0], tasks=["signs"])
    equal = [replace(row, accuracy=50.001 + i / 1000) for i, row in enumerate(rows)]
    text = experiment_markdown(experiment_table(equal))
    assert text.count("**50.0") == 2 * len(rows)  # in the task's column and in the mean's
    assert "**" not in experiment_markdown(experiment_table(rows[:1]))


def test_failed_cells_say_so() -> None:
    table = experiment_table(cells(), failed=[FAILED])
    text = experiment_markdown(table)
    assert "| lite0 | lora | - | failed | - | - | - | - |" in text
    assert "- failed: lora on letters with lite0: out of \\| memory" in text
    assert "failed: lora on letters with lite0: out of | memory" in on_screen(table, 120)
    half = experiment_table(cells(), failed=[replace(FAILED, label="masks", seed=2)])
    assert "78.00 ± 1.41 (1 failed)" in experiment_markdown(half)


def test_published_numbers_stand_beside_the_measured_ones() -> None:
    known = {
        ("lite0", "signs", "masks"): 88.5,
        ("lite0", "letters", "masks"): 77.5,
        ("lite0", "signs", "lora"): 70.0,
    }
    table = experiment_table(cells(), published=known, planned=[("lite0", "signs", "lora")])
    masks = line_of(table, "masks")
    assert [cell.difference for cell in masks.cells] == [-0.5, 0.5]
    assert masks.published == 83.0
    text = experiment_markdown(table)
    assert "88.00 ± 1.41<br>published 88.50 (-0.50)" in text
    assert "83.00 ± 1.41<br>published 83.00 (+0.00)" in text
    assert "-<br>published 70.00 |" in text  # what was published and is not measured yet
    assert "(88.50 -0.50)" in on_screen(table, 100)
    assert "In brackets" in on_screen(table, 100)
    assert "In brackets" not in on_screen(experiment_table(cells()), 100)


def test_scores_get_a_column() -> None:
    table = experiment_table(cells(), scores={("lite0", "masks"): 2838.4})
    header, _, *lines = experiment_markdown(table).splitlines()
    assert "| score |" in header
    assert [line.split("|")[7].strip() for line in lines] == ["-", "-", "2838", "-", "-"]


def test_csv_has_a_line_a_cell() -> None:
    table = experiment_table(
        cells(), failed=[FAILED], published={("lite0", "signs", "masks"): 88.5}
    )
    read = list(csv.DictReader(io.StringIO(experiment_csv(table))))
    assert tuple(read[0]) == COLUMNS
    assert len(read) == 2 * (len(METHODS) + 1)
    found = {(line["task"], line["label"]): line for line in read}
    masks = found["signs", "masks"]
    assert (masks["accuracy"], masks["difference"], masks["density"]) == ("88.0", "-0.5", "0.875")
    lost = found["letters", "lora"]
    assert (lost["accuracy"], lost["bytes"], lost["seeds"], lost["failed"]) == ("", "", "0", "1")


def test_json_holds_the_same() -> None:
    table = experiment_table(cells(), failed=[FAILED])
    read = json.loads(experiment_json(table))
    assert read["tasks"] == ["signs", "letters"]
    lora = read["lines"][-1]
    assert (lora["label"], lora["accuracy"]) == ("lora", None)
    assert lora["cells"][1]["errors"] == ["out of | memory"]
    assert read["lines"][2]["cells"][0]["accuracy"] == 88.0
    assert read["lines"][2]["spread"] == pytest.approx(2**0.5)


@pytest.mark.parametrize("width", [60, 80, 150])
@pytest.mark.parametrize("count", [2, 10])
def test_screen_is_cut_into_parts_that_fit(width: int, count: int) -> None:
    tasks = [f"decathlon-{i}" for i in range(count)]
    table = experiment_table(cells(tasks), published={("lite0", tasks[0], "masks"): 88.5})
    text = on_screen(table, width)
    assert max(map(len, text.splitlines())) <= width
    for name in (*tasks, "mean", "finetune", "13.7 MB", "[all] of it"):
        assert name in text
    assert "…" not in text
    in_one_part = text.count(" method ") == 1
    assert in_one_part == (count == 2 and width > 60)


def test_screen_names_backbones_where_there_are_several() -> None:
    text = on_screen(experiment_table(cells(backbones=("lite0", "vgg16"))), 100)
    assert "backbone" in text
    assert text.count("vgg16") == len(METHODS)
    assert "backbone" not in on_screen(experiment_table(cells()), 100)


def test_an_empty_experiment_has_a_table() -> None:
    table = experiment_table([])
    assert len(experiment_markdown(table).splitlines()) == 2
    assert len(experiment_csv(table).splitlines()) == 1
    assert json.loads(experiment_json(table))["lines"] == []
    assert "method" in on_screen(table, 80)
