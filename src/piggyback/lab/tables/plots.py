"""Plots of results as matplotlib figures; drawn without pyplot, so nothing global changes.

a table of results     error and density per task, accuracy against bytes
numbers by task,label  density per layer, learning curves
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from piggyback.lab.tables.rows import Mean, Row
from piggyback.lab.tables.table import ResultTable, result_table
from piggyback.names import human_bytes
from piggyback.taskfile.disk import write_file
from piggyback.train.device import processes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette: distinct for colour-blind readers too."""
Numbers = Mapping[tuple[str, str], Mapping[Any, float]]
"""By (task, label), then by what is drawn to the right."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_DASHES = ("-", "--", ":")
_HATCHES = ("", "////", "....")
_ACROSS = 4  # panels side by side


def error_per_task(table: ResultTable) -> Figure:
    """Return a figure of bars, a group per task and a bar per method: 100 - accuracy, in percent.

    Several seeds give their mean, with the standard deviation as a bar; a black line is the published error. Each
    backbone has a panel. What is taken from 100 is the table's measure, such as ``mean IoU``.

    >>> error_per_task(_example()).axes[0].get_ylabel()
    'error (%)'
    """
    label = "error (%)" if table.measure == "accuracy" else f"100 - {table.measure} (%)"
    return _bars(table, lambda mean: 100 - mean.accuracy, label, errors=True)


def density_per_task(table: ResultTable) -> Figure:
    """Return a figure of bars: percent of weights kept by each method that has masks.

    >>> density_per_task(_example()).axes[0].get_ylabel()
    'weights kept (%)'
    """

    def kept(mean: Mean) -> float | None:
        return None if mean.density is None else 100 * mean.density

    return _bars(table, kept, "weights kept (%)", errors=False)


def accuracy_against_bytes(table: ResultTable) -> Figure:
    """Return a figure with a panel per task: its score on test over bytes, one point per method.

    >>> accuracy_against_bytes(_example()).axes[0].get_xscale()
    'log'
    """
    several = len(table.backbones) > 1
    cells = [(backbone, task) for backbone in table.backbones for task in table.tasks]
    names = {task: table.title(task) if table.measure == "score" else task for task in table.tasks}
    figure, grid = panels([f"{b}: {names[t]}" if several else names[t] for b, t in cells])
    for axes, (backbone, task) in zip(grid, cells, strict=True):
        for line in table.lines:
            mean = line.cells[table.tasks.index(task)].mean
            if line.backbone == backbone and mean is not None:
                spread = mean.spread if mean.seeds > 1 else None
                look = _look(table.labels.index(line.label)) | {"linestyle": "none"}
                axes.errorbar(
                    mean.bytes, mean.accuracy, spread, capsize=3, label=line.label, **look
                )
        axes.set_xscale("log")
        axes.margins(x=0.12, y=0.15)
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human_bytes(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    return _finished(figure, "bytes on disk", f"{table.measure} (%)")


def density_per_layer(layers: Numbers) -> Figure:
    """Return a figure with a panel per task and a line per method: percent kept, layer by layer.

    ``layers`` gives densities by (task, label), then by weight name in the backbone's order.

    >>> layers = {("cubs", "masks"): {"conv.weight": 0.98, "fc.weight": 0.9}}
    >>> density_per_layer(layers).axes[0].get_title()
    'cubs'
    """
    names = max((list(found) for found in layers.values()), key=len, default=[])
    numbered = {
        key: {names.index(name) + 1: 100 * kept for name, kept in found.items() if name in names}
        for key, found in layers.items()
    }
    return _lines(numbered, "masked layer, from input to output", "weights kept (%)", "o")


def learning_curves(curves: Numbers, measure: str = "accuracy") -> Figure:
    """Return a figure with a panel per task and a line per method: val accuracy, epoch by epoch.

    ``curves`` gives percent by (task, label), then by the number of training steps made.

    >>> learning_curves({("cubs", "masks"): {10: 20.0, 20: 41.5}}).axes[0].get_title()
    'cubs'
    """
    return _lines(curves, "training steps", f"val {measure} (%)", "")


def save_all(
    folder: Path, texts: Mapping[str, str], figures: Mapping[str, Figure]
) -> tuple[Path, ...]:
    """Return the paths of all texts and figures, by their names in ``folder``, after writing each in one step.

    Figures have 150 dots per inch. Where several processes train together, one writes. Raises CheckpointError.
    """
    if processes().is_main_process:
        for name, text in texts.items():
            write_file(folder / name, text)
        for name, figure in figures.items():
            drawn = io.BytesIO()
            figure.savefig(drawn, format="png", dpi=150)
            write_file(folder / name, drawn.getvalue())
    return tuple(folder / name for name in (*texts, *figures))


def _bars(
    table: ResultTable, value: Callable[[Mean], float | None], name: str, *, errors: bool
) -> Figure:
    """A panel per backbone, a group per task, a bar for each method that has a value somewhere.

    ``errors``: with the spread over seeds and the published error.
    """
    heights = {
        (line.backbone, line.label): [
            value(cell.mean) if cell.mean else None for cell in line.cells
        ]
        for line in table.lines
    }
    known = {label for (_, label), found in heights.items() if set(found) != {None}}
    labels = [label for label in table.labels if label in known]
    groups, down = len(table.tasks), max(1, len(table.backbones))
    across = max(5.0, min(16.0, 1.5 + 0.2 * groups * (len(labels) + 1)))
    figure = Figure(figsize=(across, 1.5 + 2.6 * down), layout="constrained")
    by_name = dict(
        zip(table.backbones, figure.subplots(down, 1, squeeze=False)[:, 0], strict=False)
    )
    width = min(0.2, 0.84 / max(1, len(labels)))  # the distance between groups is 1
    for line in table.lines:
        if line.label not in labels:
            continue
        axes, at = by_name[line.backbone], table.labels.index(line.label)
        left = (labels.index(line.label) - (len(labels) - 1) / 2) * width
        for middle, cell in enumerate(line.cells):
            height = heights[line.backbone, line.label][middle]
            if height is not None and cell.mean is not None:
                axes.bar(
                    middle + left,
                    height,
                    0.92 * width,
                    yerr=cell.mean.spread if errors and cell.mean.seeds > 1 else None,
                    label=line.label,
                    color=COLOURS[at % len(COLOURS)],
                    hatch=_HATCHES[at // len(COLOURS) % len(_HATCHES)],
                    edgecolor="white",
                )
            if errors and cell.published is not None:
                ends = (middle + left - width / 2, middle + left + width / 2)
                axes.plot(ends, [100 - cell.published] * 2, color="black", label="published")
    slanted = {"rotation": 20, "ha": "right"} if groups > 6 else {}  # names of sets are long
    for backbone, axes in by_name.items():
        axes.set_xticks(range(groups), table.tasks, **slanted)
        axes.set_xlim(-0.5, groups - 0.5)
        axes.set_ylabel(name)
        if len(by_name) > 1:
            axes.set_title(backbone)
    return _finished(figure)


def _lines(numbers: Numbers, below: str, left: str, marker: str) -> Figure:
    """A panel per task, a line per method."""
    tasks = list(dict.fromkeys(task for task, _ in numbers))
    labels = list(dict.fromkeys(label for _, label in numbers))
    figure, grid = panels(tasks)
    for (task, label), found in numbers.items():
        at = labels.index(label)
        look = _look(at) | {"marker": marker, "markersize": 3}
        look["linestyle"] = _DASHES[at // len(COLOURS) % len(_DASHES)]
        axes = grid[tasks.index(task)]
        axes.plot(list(found), list(found.values()), linewidth=1, label=label, **look)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    return _finished(figure, below, left)


def _look(at: int) -> dict[str, Any]:
    """The look of the method number ``at``: hollow from the seventh on, where colours repeat."""
    colour = COLOURS[at % len(COLOURS)]
    hollow = at // len(COLOURS) % 2
    return {
        "color": colour,
        "marker": _MARKERS[at % len(_MARKERS)],
        "markerfacecolor": "white" if hollow else colour,
    }


def panels(titles: list[str]) -> tuple[Figure, list[Axes]]:
    """Return a figure with a panel for each of ``titles``, a few side by side."""
    across = min(max(len(titles), 1), _ACROSS)
    down = -(-max(len(titles), 1) // _ACROSS)
    figure = Figure(figsize=(max(5.0, 3.3 * across), 1.3 + 2.6 * down), layout="constrained")
    grid = list(figure.subplots(down, across, squeeze=False).flat)
    for axes in grid[len(titles) :]:
        axes.remove()
    for axes, title in zip(grid, titles, strict=False):
        axes.set_title(title)
    return figure, grid[: len(titles)]


def _finished(figure: Figure, below: str = "", left: str = "") -> Figure:
    """The figure with a grid, and with axes and methods named once for all panels."""
    figure.supxlabel(below, fontsize="medium")
    figure.supylabel(left, fontsize="medium")
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        axes.set_axisbelow(True)
        axes.grid(alpha=0.3)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if "published" in handles:
        handles["published"] = handles.pop("published")  # last
    if handles:
        room = int(figure.get_figwidth() / (0.65 + 0.09 * max(map(len, handles))))
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside upper center",
            ncols=max(1, min(len(handles), room)),
            frameon=False,
        )
    return figure


def _example() -> ResultTable:
    """A table of one cell, for the examples above."""
    row = Row("vgg16", "cubs", "masks", "masks", 0, 79.0, 80.0, 0.9, 16_000, 9.5, 0.8)
    return result_table([row])
