"""Plots of an experiment show every value once and nothing that was not measured."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise

import matplotlib as mpl
import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from PIL import Image

from piggyback.lab.tables.plots import (
    accuracy_against_bytes,
    density_per_layer,
    density_per_task,
    error_per_task,
    learning_curves,
    save_all,
)
from piggyback.lab.tables.table import result_table
from support.experiment_rows import METHODS, rows

LABELS = [label for label, *_ in METHODS]


def bars(figure: Figure, at: int = 0) -> dict[str, list[float]]:
    """Heights by label, in the order of the tasks."""
    found: dict[str, list[float]] = {}
    for container in figure.axes[at].containers:
        if isinstance(container, BarContainer):
            found.setdefault(container.get_label(), []).append(container.patches[0].get_height())
    return found


def legend(figure: Figure) -> list[str]:
    (made,) = figure.legends
    return [text.get_text() for text in made.get_texts()]


def test_errors_have_a_bar_per_method_and_task():
    figure = error_per_task(result_table(rows()))
    assert bars(figure)["masks"] == [12.0, 22.0]
    assert list(bars(figure)) == legend(figure) == LABELS
    ticks = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert ticks == ["signs", "letters"]


def test_bars_do_not_overlap_and_what_is_missing_has_none():
    found = rows([f"t{i}" for i in range(10)])
    figure = error_per_task(
        result_table(row for row in found if (row.task, row.label) != ("t1", "masks"))
    )
    patches = [p for c in figure.axes[0].containers if isinstance(c, BarContainer) for p in c]
    ends = sorted((p.get_x(), p.get_x() + p.get_width()) for p in patches)
    assert len(ends) == 10 * len(METHODS) - 1
    assert all(right <= left for (_, right), (left, _) in pairwise(ends))


def test_published_errors_are_lines_and_a_backbone_has_a_panel():
    known = {("vgg16", "letters", "masks"): 77.5}
    made = [replace(row, measure="mean IoU") for row in rows(backbones=("lite0", "vgg16"))]
    table = result_table(made, published=known)
    figure = error_per_task(table)
    assert [axes.get_title() for axes in figure.axes] == ["lite0", "vgg16"]
    assert figure.axes[1].get_ylabel() == "100 - mean IoU (%)"
    (line,) = [x for x in figure.axes[1].lines if x.get_label() == "published"]
    assert list(line.get_ydata()) == [22.5, 22.5]
    assert legend(figure) == [*LABELS, "published"]


def test_only_methods_with_masks_have_a_density():
    figure = density_per_task(result_table(rows()))
    assert bars(figure) == {"masks": [87.5, 87.5], "masks ternary": [80.0, 80.0]}


def test_accuracy_has_a_panel_per_task_and_a_point_per_method():
    figure = accuracy_against_bytes(result_table(rows()))
    assert [axes.get_title() for axes in figure.axes] == ["signs", "letters"]
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "log"]
    points = [tuple(p) for line in figure.axes[1].lines for p in line.get_xydata()]
    assert (641_000.0, 78.0) in points
    assert legend(figure) == LABELS
    assert figure.get_supylabel() == "accuracy (%)"


def test_scores_of_several_kinds_are_named_by_task():
    made = [replace(row, measure={"signs": "R2"}.get(row.task, "span F1")) for row in rows()]
    figure = accuracy_against_bytes(result_table(made))
    assert [axes.get_title() for axes in figure.axes] == ["signs, R2 (%)", "letters, span F1 (%)"]
    assert figure.get_supylabel() == "score (%)"
    assert error_per_task(result_table(made)).axes[0].get_ylabel() == "100 - score (%)"


def test_methods_look_different():
    methods = [f"m{i}" for i in range(10)]
    made = [replace(rows(["signs"], [0])[0], label=label) for label in methods]
    figure = accuracy_against_bytes(result_table(made))
    looks = {
        (line.get_color(), line.get_marker(), line.get_markerfacecolor())
        for line in figure.axes[0].lines
    }
    assert len(looks) == len(methods)
    drawn = error_per_task(result_table(made)).axes[0].patches
    assert len({(patch.get_facecolor(), patch.get_hatch()) for patch in drawn}) == len(methods)


def test_lines_have_a_panel_per_task_and_a_colour_per_method():
    layers = {f"conv{i}.weight": 1 - i / 50 for i in range(30)}
    figure = density_per_layer(
        {
            ("signs", "masks"): layers,
            ("signs", "ternary"): {"conv3.weight": 0.5},
            ("letters", "masks"): layers,
        }
    )
    signs, letters = figure.axes
    assert (signs.get_title(), letters.get_title()) == ("signs", "letters")
    masks, ternary = signs.lines
    assert list(masks.get_ydata()) == pytest.approx([100 - 2 * i for i in range(30)])
    assert (list(ternary.get_xdata()), list(ternary.get_ydata())) == ([4], [50.0])
    assert masks.get_color() == letters.lines[0].get_color() != ternary.get_color()
    assert legend(figure) == ["masks", "ternary"]
    (axes,) = learning_curves({("signs", "masks"): {10: 50.0, 20: 60.0}}, "mean IoU").axes
    assert axes.lines[0].get_xydata().tolist() == [[10, 50.0], [20, 60.0]]


def test_plots_are_written_without_touching_global_state(tmp_path):
    before, had_pyplot = dict(mpl.rcParams), "matplotlib.pyplot" in sys.modules
    save_all(tmp_path, {}, {"error.png": error_per_task(result_table(rows()))})
    assert Image.open(tmp_path / "error.png").size[0] >= 750
    assert dict(mpl.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


def test_an_empty_experiment_has_plots():
    table = result_table([])
    for figure in (
        error_per_task(table),
        density_per_task(table),
        accuracy_against_bytes(table),
        density_per_layer({}),
    ):
        assert not figure.legends
        figure.draw_without_rendering()
