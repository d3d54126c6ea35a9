"""Tables show what was measured, what was published, and what is missing; in every format the same."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest
from rich.console import Console, ConsoleRenderable

from piggyback.lab.tables.formats import (
    COLUMNS,
    RUN_COLUMNS,
    runs_csv,
    runs_json,
    runs_markdown,
    runs_screen,
    table_csv,
    table_json,
    table_markdown,
    table_screen,
)
from piggyback.lab.tables.rows import Failure
from piggyback.lab.tables.table import Line, ResultTable, result_table
from piggyback.names import human_bytes
from support.experiment_rows import METHODS, rows

FAILED = Failure("lite0", "letters", "lora", "out of | memory")


def line_of(table: ResultTable, label: str) -> Line:
    (found,) = [line for line in table.lines if line.label == label]
    return found


def on_screen(shown: ConsoleRenderable, width: int) -> str:
    text = io.StringIO()
    Console(file=text, width=width).print(shown)
    return text.getvalue()


def test_lines_sum_up_all_tasks() -> None:
    table = result_table(rows())
    assert (table.tasks, table.backbones) == (("signs", "letters"), ("lite0",))
    masks = line_of(table, "masks ternary")
    assert (masks.accuracy, masks.bits_per_weight) == (85.0, 0.6)
    assert masks.bytes == 2 * 1_100_000 + 1000
    assert line_of(table, "packnet").bytes == 13_701_000  # one growing file is not added up
    assert table.difference(masks) == 1.0
    assert table.difference(line_of(table, "finetune")) is None


def test_differences_are_to_the_reference_of_the_same_backbone() -> None:
    found = rows(backbones=("lite0", "vgg16"))
    found = [replace(r, accuracy=r.accuracy - 20 * (r.backbone == "vgg16")) for r in found]
    table = result_table(found, reference="head")
    tuned = [line for line in table.lines if line.label == "finetune"]
    assert [table.difference(line) for line in tuned] == [30.0, 30.0]


def test_nothing_is_summed_up_while_a_task_is_missing() -> None:
    table = result_table(r for r in rows() if (r.task, r.label) != ("letters", "finetune"))
    tuned = line_of(table, "finetune")
    assert (tuned.accuracy, tuned.bytes) == (None, None)
    assert table.difference(line_of(table, "masks")) is None
    assert "| lite0 | finetune | 89.00 ± 1.41 | - | - | - | - | - |" in table_markdown(table)


def test_the_mean_has_the_spread_of_each_seeds_mean() -> None:
    # One seed is 2 better on one task and 2 worse on the other: the mean of the tasks does not move.
    apart = [replace(r, accuracy=r.accuracy + 4 * (r.task == "signs") * r.seed) for r in rows()]
    line = line_of(result_table(apart), "masks")
    assert line.spread == 0
    assert [cell.mean and cell.mean.spread for cell in line.cells] == [pytest.approx(2**0.5)] * 2
    assert line_of(result_table(rows(seeds=[0])), "masks").spread is None
    table = result_table(r for r in rows() if (r.task, r.seed) != ("letters", 1))
    assert line_of(table, "masks").spread is None
    assert "| 88.00 ± 1.41 | 79.00 | 83.50 |" in table_markdown(table).replace("*", "")


def test_planned_cells_set_the_order_and_are_shown_as_missing() -> None:
    planned = [
        ("lite0", task, label) for task in ("letters", "signs") for label in ("lora", "masks")
    ]
    table = result_table(rows(), planned=planned)
    assert table.tasks == ("letters", "signs")
    assert table.labels[:2] == ("lora", "masks")
    assert "| lite0 | lora | - | - | - | - | - | - |" in table_markdown(table)


def test_markdown_marks_the_best_of_each_column() -> None:
    lines = table_markdown(result_table(rows())).splitlines()
    assert len(lines) == 2 + len(METHODS)
    bold = [line for line in lines if "**" in line]
    assert len(bold) == 1
    assert "| masks ternary | **90.00** ± 1.41 | **80.00** ± 1.41 | **85.00** ± 1.41 |" in bold[0]
    equal = [replace(row, accuracy=50.001 + i / 1000) for i, row in enumerate(rows(seeds=[0])[:2])]
    assert table_markdown(result_table(equal)).count("**50.00**") == 4  # as it is shown
    assert "**" not in table_markdown(result_table(equal[:1]))


def test_failed_cells_say_so() -> None:
    table = result_table(rows(), failed=[FAILED])
    text = table_markdown(table)
    assert "| lite0 | lora | - | failed | - | - | - | - |" in text
    assert "- failed: lora on letters with lite0: out of \\| memory" in text
    assert "lora on letters with lite0: out of | memory" in on_screen(table_screen(table), 120)
    half = result_table(rows(), failed=[replace(FAILED, label="masks")])
    assert "78.00 ± 1.41 (1 failed)" in table_markdown(half)


def test_published_numbers_stand_beside_the_measured_ones() -> None:
    known = {
        ("lite0", "signs", "masks"): 88.5,
        ("lite0", "letters", "masks"): 77.5,
        ("lite0", "signs", "lora"): 70.0,
    }
    table = result_table(rows(), published=known, planned=[("lite0", "signs", "lora")])
    masks = line_of(table, "masks")
    assert [cell.difference for cell in masks.cells] == [-0.5, 0.5]
    assert masks.published == 83.0
    text = table_markdown(table)
    assert "88.00 ± 1.41<br>published 88.50 (-0.50)" in text
    assert "83.00 ± 1.41<br>published 83.00 (+0.00)" in text
    assert "-<br>published 70.00 |" in text  # what was published and is not measured yet
    shown = on_screen(table_screen(table), 100)
    assert "(88.50 -0.50)" in shown
    assert "In brackets" in shown
    assert "In brackets" not in on_screen(table_screen(result_table(rows())), 100)


def test_scores_get_a_column() -> None:
    table = result_table(rows(), scores={("lite0", "masks"): 2838.4})
    header, _, *lines = table_markdown(table).splitlines()
    assert "| score |" in header
    assert [line.split("|")[7].strip() for line in lines] == ["-", "-", "2838", "-", "-"]


def test_csv_and_json_have_every_cell() -> None:
    table = result_table(rows(), failed=[FAILED], published={("lite0", "signs", "masks"): 88.5})
    read = list(csv.DictReader(io.StringIO(table_csv(table))))
    assert tuple(read[0]) == COLUMNS
    assert len(read) == 2 * (len(METHODS) + 1)
    found = {(line["task"], line["label"]): line for line in read}
    masks = found["signs", "masks"]
    assert (masks["accuracy"], masks["difference"], masks["density"]) == ("88.0", "-0.5", "0.875")
    lost = found["letters", "lora"]
    assert (lost["accuracy"], lost["bytes"], lost["seeds"], lost["failed"]) == ("", "", "0", "1")
    content = json.loads(table_json(table))
    assert content["tasks"] == ["signs", "letters"]
    lora = content["lines"][-1]
    assert (lora["label"], lora["accuracy"]) == ("lora", None)
    assert lora["cells"][1]["errors"] == ["out of | memory"]
    assert content["lines"][2]["cells"][0]["accuracy"] == 88.0
    assert content["lines"][2]["spread"] == pytest.approx(2**0.5)


@pytest.mark.parametrize("width", [60, 80, 150])
@pytest.mark.parametrize("count", [2, 10])
def test_screen_is_cut_into_parts_that_fit(width: int, count: int) -> None:
    tasks = [f"decathlon-{i}" for i in range(count)]
    table = result_table(rows(tasks), published={("lite0", tasks[0], "masks"): 88.5})
    text = on_screen(table_screen(table, "[all] of it"), width)
    assert max(map(len, text.splitlines())) <= width
    for name in (*tasks, "mean", "finetune", "13.7 MB", "[all] of it"):
        assert name in text
    assert "…" not in text
    in_one_part = text.count(" method ") == 1
    assert in_one_part == (count == 2 and width > 60)


def test_screen_names_backbones_where_there_are_several() -> None:
    text = on_screen(table_screen(result_table(rows(backbones=("lite0", "vgg16")))), 100)
    assert "backbone" in text
    assert text.count("vgg16") == len(METHODS)
    assert "backbone" not in on_screen(table_screen(result_table(rows())), 100)


def test_an_empty_experiment_has_a_table() -> None:
    table = result_table([])
    assert len(table_markdown(table).splitlines()) == 2
    assert len(table_csv(table).splitlines()) == 1
    assert json.loads(table_json(table))["lines"] == []
    assert "method" in on_screen(table_screen(table), 80)


def test_runs_have_a_line_each_in_csv_and_json_and_their_mean_in_markdown() -> None:
    runs = [replace(row, verdict="collapsed" * (row.label == "masks")) for row in rows()]
    read = list(csv.DictReader(io.StringIO(runs_csv(runs))))
    assert tuple(read[0]) == RUN_COLUMNS
    assert [float(line["accuracy"]) for line in read] == [row.accuracy for row in runs]
    assert [one["bytes"] for one in json.loads(runs_json(runs))] == [row.bytes for row in runs]
    third = json.loads(runs_json([replace(runs[0], bits_per_weight=1 / 3)]))
    assert third[0]["bits_per_weight"] == 0.33333
    lines = runs_markdown(runs).splitlines()
    assert lines[4] == "| signs | masks | 88.00 ± 1.41 | 0.300 | 640,000 | 60.5 |"
    assert lines.count("signs masks: collapsed") == 1
    shown = on_screen(runs_screen(runs), 80)
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("finetune") == 2
    assert "signs masks: collapsed" in shown


def test_scores_have_their_kinds_name_and_the_highest_is_the_best() -> None:
    heights = [
        replace(row, measure="R2", accuracy=score)
        for row, score in zip(
            rows(tasks=("heights",), seeds=(0,)), (-40, 5, 62.5, -3, 0), strict=True
        )
    ]
    assert runs_markdown(heights).startswith("| task | method | R2 (%) |")
    assert "R2 (%)" in on_screen(runs_screen(heights), 80)
    runs = [*rows(tasks=("signs",), seeds=(0,)), *heights]
    lines = runs_markdown(runs).splitlines()
    assert lines[0].startswith("| task | method | score (%) |")
    assert lines[2].startswith("| signs | head | accuracy 60.00 |")
    assert lines[9].startswith("| heights | masks | R2 62.50 |")
    table = table_markdown(result_table(runs)).splitlines()
    assert table[0].startswith("| backbone | method | signs | heights, R2 (%) | mean |")
    assert [line.split("**")[1] for line in table if "62.50" in line] == ["62.50"]
    assert sum("**62.50**" in line for line in table) == 1
    assert {one["measure"] for one in json.loads(runs_json(runs))} == {"accuracy", "R2"}


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e12, "2.5e+03 GB")]
)
def test_sizes_are_in_the_unit_that_suits_them(count: float, text: str) -> None:
    assert human_bytes(count) == text
