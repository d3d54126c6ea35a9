"""Plots as matplotlib figures; drawn without pyplot, so nothing global changes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from piggyback.lab.tables.rows import Mean, Row, means
from piggyback.train.checkpoint import write_atomically

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette: distinct for colour-blind readers too."""

_PANELS = 3  # side by side


def accuracy_against_bytes(rows: Sequence[Row]) -> Figure:
    """Return a figure with a panel a task: test accuracy over bytes, one point a method.

    Several seeds give their mean, with the standard deviation as a bar.

    >>> row = Row("signs", "head", 0, 47.0, 47.0, None, 200_000, 9.0)
    >>> len(accuracy_against_bytes([row]).axes)
    1
    """
    points = means(rows)
    tasks = list(dict.fromkeys(point.task for point in points))
    methods = list(dict.fromkeys(point.method for point in points))
    across = min(len(tasks), _PANELS)
    down = -(-len(tasks) // _PANELS)
    figure = Figure(figsize=(4.2 * across, 3.4 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharey=True)
    for at, axes in enumerate(panels.flat):
        if at >= len(tasks):
            axes.remove()
            continue
        _panel(axes, [point for point in points if point.task == tasks[at]], methods)
        axes.set_title(tasks[at])
        if at % _PANELS == 0:
            axes.set_ylabel("test accuracy (%)")
        axes.set_xlabel("bytes on disk")
    return figure


def density_per_layer(tasks: Mapping[str, Mapping[str, float]]) -> Figure:
    """Return a figure with a line a task: percent of weights kept, layer by layer.

    ``tasks`` gives each task's density by weight name, in the backbone's order.

    >>> density_per_layer({"signs": {"conv.weight": 0.98, "fc.weight": 0.9}}).axes[0].get_ylabel()
    'weights kept (%)'
    """
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    axes = figure.subplots()
    names = max((list(layers) for layers in tasks.values()), key=len, default=[])
    for at, (task, layers) in enumerate(tasks.items()):
        places = [names.index(name) for name in layers if name in names]
        kept = [100 * density for name, density in layers.items() if name in names]
        colour = COLOURS[at % len(COLOURS)]
        axes.plot(places, kept, marker="o", markersize=3, linewidth=1, color=colour, label=task)
    every = max(1, -(-len(names) // 14))
    axes.set_xticks(range(0, len(names), every), [_short(n) for n in names[::every]])
    if len(names) > 6:
        axes.tick_params(axis="x", labelrotation=45, labelsize=7)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
    axes.set_ylabel("weights kept (%)")
    axes.set_xlabel("masked layer, from input to output")
    axes.grid(axis="y", alpha=0.3)
    if tasks:
        axes.legend(frameon=False)
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write ``figure`` to ``path`` at 150 dots per inch, in one step; raises CheckpointError."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    write_atomically(path, lambda temporary: _put(temporary, drawn.getvalue()))


def _panel(axes: Axes, points: Sequence[Mean], methods: Sequence[str]) -> None:
    for point in points:
        colour = COLOURS[methods.index(point.method) % len(COLOURS)]
        spread = point.spread if point.seeds > 1 else None
        axes.errorbar(point.bytes, point.accuracy, yerr=spread, fmt="o", color=colour, capsize=3)
        axes.annotate(
            point.method,
            (point.bytes, point.accuracy),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            color=colour,
        )
    sizes = [point.bytes for point in points]
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / 2.5, max(sizes) * 2.5)  # room for the names
    axes.margins(y=0.15)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human_bytes(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def human_bytes(count: float) -> str:
    """Return a size in the unit that suits it, in powers of ten.

    >>> human_bytes(13_600_000), human_bytes(512)
    ('13.6 MB', '512 B')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _short(name: str) -> str:
    return name.removesuffix(".weight")
