"""Plots of results as matplotlib figures; drawn without pyplot, so nothing global changes.

a table of results     error and density per task, accuracy against bytes
numbers by task,label  density per layer, learning curves
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from piggyback.lab.tables.formats import human_bytes
from piggyback.lab.tables.rows import Mean, Row
from piggyback.lab.tables.table import ResultTable, result_table
from piggyback.train.checkpoint import write_file

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette: distinct for colour-blind readers too."""
Numbers = Mapping[tuple[str, str], Mapping[Any, float]]
"""By (task, label), then by what is drawn to the right."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_DASHES = ("-", "--", ":")
_HATCHES = ("", "////", "....")
_ACROSS = 4  # panels side by side
_WIDEST = 0.2  # bar, where the distance between groups is 1
_PUBLISHED = "published"


def error_per_task(table: ResultTable, measure: str = "accuracy") -> Figure:
    """Return a figure of bars, a group per task and a bar per method: 100 - accuracy, in percent.

    Several seeds give their mean, with the standard deviation as a bar; a black line is the published error. Each
    backbone has a panel. ``measure`` names what is taken from 100, such as ``mean IoU``.

    >>> error_per_task(_example()).axes[0].get_ylabel()
    'error (%)'
    """
    label = "error (%)" if measure == "accuracy" else f"100 - {measure} (%)"
    return _bars(table, lambda mean: 100 - mean.accuracy, label, errors=True)


def density_per_task(table: ResultTable) -> Figure:
    """Return a figure of bars: percent of weights kept by each method that has masks.

    >>> density_per_task(_example()).axes[0].get_ylabel()
    'weights kept (%)'
    """

    def kept(mean: Mean) -> float | None:
        return None if mean.density is None else 100 * mean.density

    return _bars(table, kept, "weights kept (%)", errors=False)


def accuracy_against_bytes(table: ResultTable, measure: str = "accuracy") -> Figure:
    """Return a figure with a panel per task: test accuracy over bytes, one point per method.

    >>> accuracy_against_bytes(_example()).axes[0].get_xscale()
    'log'
    """
    panels = [(backbone, task) for backbone in table.backbones for task in table.tasks]
    figure, grid = _panels(len(panels))
    for axes, (backbone, task) in zip(grid, panels, strict=True):
        for line in table.lines:
            mean = line.cells[table.tasks.index(task)].mean
            if line.backbone != backbone or mean is None:
                continue
            axes.errorbar(
                mean.bytes,
                mean.accuracy,
                yerr=mean.spread if mean.seeds > 1 else None,
                capsize=3,
                linestyle="none",
                label=line.label,
                **_marker(table.labels.index(line.label)),
            )
        axes.set_xscale("log")
        axes.margins(x=0.12, y=0.15)
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human_bytes(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
        axes.set_title(f"{backbone}: {task}" if len(table.backbones) > 1 else task)
    _name_axes(figure, "bytes on disk", f"{measure} (%)")
    _add_legend(figure, table.labels)
    return figure


def density_per_layer(layers: Numbers) -> Figure:
    """Return a figure with a panel per task and a line per method: percent kept, layer by layer.

    ``layers`` gives densities by (task, label), then by weight name in the backbone's order.

    >>> layers = {("cubs", "masks"): {"conv.weight": 0.98, "fc.weight": 0.9}}
    >>> density_per_layer(layers).axes[0].get_title()
    'cubs'
    """
    names = max((list(found) for found in layers.values()), key=len, default=[])
    place = {name: at for at, name in enumerate(names, 1)}
    numbered = {
        key: {place[name]: 100 * kept for name, kept in found.items() if name in place}
        for key, found in layers.items()
    }
    return _lines(numbered, "masked layer, from input to output", "weights kept (%)", points=True)


def learning_curves(curves: Numbers, measure: str = "accuracy") -> Figure:
    """Return a figure with a panel per task and a line per method: val accuracy, epoch by epoch.

    ``curves`` gives percent by (task, label), then by the number of training steps made.

    >>> learning_curves({("cubs", "masks"): {10: 20.0, 20: 41.5}}).axes[0].get_title()
    'cubs'
    """
    return _lines(curves, "training steps", f"val {measure} (%)", points=False)


def save_png(figure: Figure, path: Path) -> None:
    """Write ``figure`` to ``path`` at 150 dots per inch, in one step; raises CheckpointError."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    write_file(path, drawn.getvalue())


def _bars(
    table: ResultTable, value: Callable[[Mean], float | None], name: str, *, errors: bool
) -> Figure:
    """A panel per backbone, a group per task, a bar for each method that has a value somewhere.

    ``errors``: with the spread over seeds and the published error.
    """
    known = {
        line.label
        for line in table.lines
        for cell in line.cells
        if cell.mean and value(cell.mean) is not None
    }
    labels = [label for label in table.labels if label in known]
    groups, down = len(table.tasks), max(1, len(table.backbones))
    across = max(5.0, min(16.0, 1.5 + 0.2 * groups * (len(labels) + 1)))
    figure = Figure(figsize=(across, 1.0 + 2.6 * down), layout="constrained")
    panels = figure.subplots(down, 1, squeeze=False)[:, 0]
    width = min(_WIDEST, 0.84 / max(1, len(labels)))
    for axes, backbone in zip(panels, table.backbones, strict=False):
        for line in table.lines:
            if line.backbone != backbone or line.label not in labels:
                continue
            look = _bar(table.labels.index(line.label))
            left = (labels.index(line.label) - (len(labels) - 1) / 2) * width
            for middle, cell in enumerate(line.cells):
                at, height = middle + left, value(cell.mean) if cell.mean else None
                if height is None or cell.mean is None:
                    _gap(axes, at, "failed" if cell.errors else "none")
                else:
                    spread = cell.mean.spread if errors and cell.mean.seeds > 1 else None
                    axes.bar(at, height, 0.92 * width, yerr=spread, label=line.label, **look)
                if errors and cell.published is not None:
                    ends, error = (at - width / 2, at + width / 2), 100 - cell.published
                    axes.plot(ends, (error, error), color="black", label=_PUBLISHED)
        slanted = {"rotation": 20, "ha": "right"} if groups > 6 else {}  # names of sets are long
        axes.set_xticks(range(groups), table.tasks, **slanted)
        axes.set_xlim(-0.5, max(1, groups) - 0.5)
        axes.set_axisbelow(True)
        axes.grid(axis="y", alpha=0.3)
        if len(table.backbones) > 1:
            axes.set_title(backbone)
    for axes in panels:
        axes.set_ylabel(name)
    _add_legend(figure, labels)
    return figure


def _lines(numbers: Numbers, below: str, left: str, *, points: bool) -> Figure:
    """A panel per task, a line per method; ``points``: with a marker at each number."""
    tasks = list(dict.fromkeys(task for task, _ in numbers))
    labels = list(dict.fromkeys(label for _, label in numbers))
    figure, grid = _panels(len(tasks))
    for axes, task in zip(grid, tasks, strict=True):
        for (own, label), found in numbers.items():
            if own != task:
                continue
            at = labels.index(label)
            style = _marker(at) | ({"markersize": 3} if points else {"marker": None})
            style["linestyle"] = _DASHES[at // len(COLOURS) % len(_DASHES)]
            axes.plot(list(found), list(found.values()), linewidth=1, label=label, **style)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.grid(alpha=0.3)
        axes.set_title(task)
    _name_axes(figure, below, left)
    _add_legend(figure, labels)
    return figure


def _bar(at: int) -> dict[str, Any]:
    """The look of the bars of method number ``at``: hatched where colours repeat."""
    return {
        "color": COLOURS[at % len(COLOURS)],
        "hatch": _HATCHES[at // len(COLOURS) % len(_HATCHES)],
        "edgecolor": "white",
        "linewidth": 0,
        "error_kw": {"elinewidth": 0.8, "ecolor": "0.3"},
    }


def _gap(axes: Axes, at: float, text: str) -> None:
    """Say why there is no bar: a gap alone would read as an error of nothing."""
    axes.annotate(
        text,
        (at, 0),
        xytext=(0, 3),
        textcoords="offset points",
        rotation=90,
        ha="center",
        fontsize=6,
        color="0.4",
    )


def _marker(at: int) -> dict[str, Any]:
    """The look of the method number ``at``: hollow from the seventh on, where colours repeat."""
    colour = COLOURS[at % len(COLOURS)]
    return {
        "color": colour,
        "marker": _MARKERS[at % len(_MARKERS)],
        "markersize": 6,
        "markerfacecolor": "white" if at // len(COLOURS) % 2 else colour,
    }


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels, a few side by side."""
    across = min(max(count, 1), _ACROSS)
    down = -(-max(count, 1) // _ACROSS)
    figure = Figure(figsize=(max(5.0, 3.3 * across), 0.8 + 2.6 * down), layout="constrained")
    grid = list(figure.subplots(down, across, squeeze=False).flat)
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]


def _name_axes(figure: Figure, below: str, left: str) -> None:
    """Name the axes once for all panels."""
    if figure.axes:
        figure.supxlabel(below, fontsize="medium")
        figure.supylabel(left, fontsize="medium")


def _add_legend(figure: Figure, labels: Sequence[str]) -> None:
    """Name the methods once, above all panels."""
    found: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    known = [label for label in [*labels, _PUBLISHED] if label in found]
    if known:
        room = int(figure.get_figwidth() / (0.65 + 0.09 * max(map(len, known))))
        across = min(len(known), max(1, room))
        rows = -(-len(known) // across)
        figure.set_figheight(figure.get_figheight() + 0.22 * rows)  # panels keep their height
        figure.legend(
            [found[label] for label in known],
            known,
            loc="outside upper center",
            ncols=across,
            frameon=False,
        )


def _example() -> ResultTable:
    """A table of one cell, for the examples above."""
    row = Row("vgg16", "cubs", "masks", "masks", 0, 79.0, 80.0, 0.9, 16_000, 9.5, 0.8)
    return result_table([row])
