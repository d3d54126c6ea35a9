"""Plots show every point and leave matplotlib as it was."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import pytest
from PIL import Image

from piggyback.lab.tables.plots import (
    accuracy_against_bytes,
    density_per_layer,
    human_bytes,
    save_png,
)
from piggyback.lab.tables.rows import Row


def test_accuracy_has_a_panel_a_task_and_a_point_a_method(rows: list[Row]) -> None:
    figure = accuracy_against_bytes(rows)
    assert [axes.get_title() for axes in figure.axes] == ["signs", "letters"]
    for axes, masks in zip(figure.axes, (86.0, 99.0), strict=True):
        assert {text.get_text() for text in axes.texts} == {"head", "masks", "finetune"}
        points = [tuple(point) for line in axes.lines for point in line.get_xydata()]
        assert (360_000.0, masks) in points
        assert axes.get_xscale() == "log"


def test_density_has_a_line_a_task() -> None:
    layers = {f"blocks.{i}.conv.weight": 1 - i / 50 for i in range(30)}
    figure = density_per_layer({"signs": layers, "letters": {"blocks.3.conv.weight": 0.5}})
    (axes,) = figure.axes
    signs, letters = axes.lines
    assert list(signs.get_ydata()) == pytest.approx([100 - 2 * i for i in range(30)])
    assert (list(letters.get_xdata()), list(letters.get_ydata())) == ([3], [50.0])
    assert len(axes.get_xticks()) <= 15


def test_plots_are_written_without_touching_global_state(rows: list[Row], tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    had_pyplot = "matplotlib.pyplot" in sys.modules
    save_png(accuracy_against_bytes(rows), tmp_path / "deep" / "a.png")
    save_png(density_per_layer({}), tmp_path / "b.png")
    assert Image.open(tmp_path / "deep" / "a.png").size[0] > 800
    assert Image.open(tmp_path / "b.png").format == "PNG"
    assert dict(mpl.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e12, "2.5e+03 GB")]
)
def test_sizes_are_in_the_unit_that_suits_them(count: float, text: str) -> None:
    assert human_bytes(count) == text
