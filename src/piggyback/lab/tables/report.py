"""A report as a folder: report.json, classes.csv, answers.csv, and index.html with its pictures.

confusion.png   calibration.png   coverage.png   scatter.png   wrong.png     those that the kind of task has
"""

from __future__ import annotations

import csv
import html
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from piggyback.lab.tables.plots import COLOURS, panels, save_all
from piggyback.train.report import Number, Report

SHEET = 24
"""Pictures on the contact sheet."""
ACROSS = 6
NAMED = 40
"""Classes up to which a confusion matrix has their names at its sides."""
FEW = 10
"""Answers below which a bin of the reliability plot is pale: chance decides its height."""
Picture = Callable[[int], Any]
"""Takes the number of a sample, returns its picture, uint8 (h, w, 3)."""

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .2rem .8rem .2rem 0; text-align: right }
th:first-child, td:first-child { text-align: left } thead th { border-bottom: 1px solid #999 }
tbody tr:nth-child(even) { background: #f5f5f5 } img { max-width: 100%; max-height: 30rem }
img[src='wrong.png'] { max-height: none } .quiet { color: #666 }
"""


def write_report(
    folder: Path,
    report: Report,
    names: Sequence[str],
    picture: Picture | None,
    about: Mapping[str, str],
    other: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write ``folder`` and return the names of its files.

    ``picture`` is None for texts, whose names say it all;
    ``names`` are those of the samples, ``about`` says what was measured, ``other`` is what ``compared`` found.
    Raises CheckpointError where it cannot be written.
    """
    figures = {
        "confusion.png": _confusion(report),
        "calibration.png": _calibration(report),
        "coverage.png": _coverage(report),
        "scatter.png": _scatter(report),
        "wrong.png": _sheet(report, names, picture),
    }
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    found = {"about": dict(about), **report.to_json()}
    if other is not None:
        found["compared"] = dict(other)
    texts = {
        "report.json": json.dumps(found, indent=1, allow_nan=False),
        "classes.csv": _csv(_class_table(report)),
        "answers.csv": _csv(_answer_table(report, names)),
        "index.html": _page(report, about, list(drawn), other),
    }
    return [path.name for path in save_all(folder, texts, drawn)]


# -- tables ----------------------------------------------------------------------------------------


def _class_table(report: Report) -> list[Any]:
    """Titles, then a row for each class, label or output."""
    titles = list(next(iter(report.rows.values()), {}))
    rows: list[Any] = [[n, *map(_short, row.values())] for n, row in report.rows.items()]
    return [["class", *titles], *rows]


def _answer_table(report: Report, names: Sequence[str]) -> list[Any]:
    """Titles, then a row for each sample: what it is, and what it was called."""
    if report.outcome.kind == "segmentation":
        right = _pixels_right(report)
        pixels: list[Any] = [[n, f"{r:.6f}"] for n, r in zip(names, right, strict=True)]
        return [["sample", "pixels right"], *pixels]
    found = [[name, *_truth_and_answer(report, i)] for i, name in enumerate(names)]
    return [["sample", "truth", "answer", "confidence"], *found]


def _pixels_right(report: Report) -> Any:
    """Of each sample of a segmentation, the share of its pixels."""
    counts = report.outcome.truth
    return counts.diagonal(axis1=1, axis2=2).sum(1) / np.maximum(counts.sum((1, 2)), 1)


def _truth_and_answer(report: Report, i: int) -> tuple[str, str, str]:
    """In words: what sample ``i`` is, what it was called, and how surely."""
    outcome = report.outcome
    row, truth = outcome.answers[i], outcome.truth[i]
    if outcome.kind == "classification":
        return outcome.classes[truth], outcome.classes[row.argmax()], f"{row.max():.6f}"
    if outcome.kind == "multilabel":
        given = outcome.given[i]
        sure = np.where(given, row, 1 - row).min()
        was, called = (", ".join(compress(outcome.classes, those)) for those in (truth, given))
        return was or "none", called or "none", f"{sure:.6f}"
    return ", ".join(f"{v:.4g}" for v in truth), ", ".join(f"{v:.4g}" for v in row), ""


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _short(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.0f}" if value == int(value) and abs(value) >= 1000 else f"{value:.4g}"


# -- pictures --------------------------------------------------------------------------------------


def _figure(width: float, height: float, below: str, left: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(below)
    axes.set_ylabel(left)
    return figure, axes


def _confusion(report: Report) -> Figure | None:
    """Rows are what samples are, columns what they were called, in percent of the row."""
    if report.counts is None:
        return None
    counts, classes = report.counts, report.outcome.classes
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(max(4.0, 1.8 + 0.3 * len(classes)), 13.0)
    figure, axes = _figure(side + 1, side, "called", "truth")
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(shown, ax=axes, label="% of the class", shrink=0.8)
    if len(classes) <= NAMED:
        axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=8)
        axes.set_yticks(range(len(classes)), classes, fontsize=8)
    if len(classes) <= ACROSS * 2:
        for (i, j), share in np.ndenumerate(shares):
            if share >= 0.5:
                ink = "white" if share > 60 else "black"
                axes.text(j, i, f"{share:.0f}", ha="center", va="center", fontsize=8, color=ink)
    return figure


def _calibration(report: Report) -> Figure | None:
    """The reliability plot: how often answers are right, by their confidence."""
    found = report.calibration
    if found is None:
        return None
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 100], [0, 100], color="0.6", linewidth=1, linestyle="--")
    width = 100 / len(found.counts)
    middles = [width * (i + 0.5) for i in range(len(found.counts))]
    right = [100 * v for v in found.accuracy]
    for bar, count in zip(
        upper.bar(middles, right, 0.92 * width, color=COLOURS[0]), found.counts, strict=True
    ):
        bar.set_alpha(0.4 if count >= FEW else 0.12)
    upper.plot([100 * v for v in found.confidence], right, "o", color=COLOURS[0])
    upper.set_ylabel("right (%)")
    upper.set_title(f"calibration error {100 * found.ece:.1f} %", fontsize="medium")
    lower.bar(middles, found.counts, 0.92 * width, color="0.6")
    lower.set_ylabel("answers")
    lower.set_xlabel("confidence (%)")
    return figure


def _coverage(report: Report) -> Figure | None:
    """How accurate the surest answers are, by how many of them are given."""
    if report.coverage is None:
        return None
    _, share, right = report.coverage
    figure, axes = _figure(4.6, 3.4, "answers given, the surest first (%)", "of these right (%)")
    axes.plot(100 * share, 100 * right, color=COLOURS[0])
    axes.set_xlim(0, 100)
    axes.set_ylim(top=101)
    axes.grid(alpha=0.3)
    return figure


def _scatter(report: Report) -> Figure | None:
    """Numbers found against true ones, a panel for each output."""
    outcome = report.outcome
    if outcome.kind != "regression":
        return None
    titles = [
        f"{name} ({unit})" if unit else name
        for name, unit in zip(
            outcome.classes, outcome.units or [""] * len(outcome.classes), strict=True
        )
    ]
    figure, grid = panels(titles)
    for axes, truth, found in zip(grid, outcome.truth.T, outcome.answers.T, strict=True):
        ends = [min(truth.min(), found.min()), max(truth.max(), found.max())]
        axes.plot(ends, ends, color="0.6", linewidth=1, linestyle="--")
        axes.plot(truth, found, ".", color=COLOURS[0], alpha=0.5)
    figure.supxlabel("truth", fontsize="medium")
    figure.supylabel("found", fontsize="medium")
    return figure


def _sheet(report: Report, names: Sequence[str], picture: Picture | None) -> Figure | None:
    """The contact sheet: the surest mistakes, each with what it is and what it was called."""
    chosen = list(report.wrong[:SHEET])
    if not chosen or picture is None:
        return None
    down = -(-len(chosen) // ACROSS)
    figure = Figure(figsize=(2.1 * ACROSS, 2.6 * down), layout="constrained")
    grid = figure.subplots(down, ACROSS, squeeze=False).flat
    for axes in grid:
        axes.axis("off")
    for axes, i in zip(grid, chosen, strict=False):
        axes.imshow(picture(i))
        axes.set_title(_caption(report, names, i), fontsize=10, parse_math=False)
    return figure


def _caption(report: Report, names: Sequence[str], i: int) -> str:
    if report.outcome.kind == "segmentation":
        return f"{_cut(Path(names[i]).name)}\n{100 * _pixels_right(report)[i]:.1f} % right"
    truth, answer, sure = _truth_and_answer(report, i)
    more = f", {100 * float(sure):.1f} %" if report.outcome.kind == "classification" else ""
    return f"is {_cut(truth)}\ncalled {_cut(answer)}{more}"


def _cut(text: str, most: int = 24) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


# -- the page --------------------------------------------------------------------------------------

_HEADINGS = {
    "confusion.png": ("Confusion", "Rows are what samples are, columns what they were called."),
    "calibration.png": (
        "Calibration",
        "Answers on the line are right as often as their confidence says.",
    ),
    "coverage.png": ("Coverage", "What is gained by leaving the least sure answers out."),
    "scatter.png": ("Found against true", "Points on the line are exact."),
    "wrong.png": (
        "Worst answers",
        "The surest mistakes, or the numbers that are furthest off, first.",
    ),
}


def _page(
    report: Report,
    about: Mapping[str, str],
    pictures: Sequence[str],
    other: Mapping[str, Any] | None,
) -> str:
    """The page: no scripts, and nothing from elsewhere."""
    title = html.escape(f"{report.outcome.task}: {len(report.outcome)} samples")
    facts = " &middot; ".join(f"{html.escape(k)} {html.escape(v)}" for k, v in about.items())
    numbers = [_number_row(name, number) for name, number in report.numbers.items()]
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>",
        f"<h1>{title}</h1><p class=quiet>{facts}</p>",
        _table([["", "", "95 % interval"], *numbers]),
        *(f"<p>{html.escape(sentence)}</p>" for sentence in report.sentences),
    ]
    if other is not None:
        parts += ["<h2>Compared</h2>", _table(_comparison(other))]
    for name in pictures:
        heading, text = _HEADINGS[name]
        parts.append(f"<h2>{heading}</h2><p class=quiet>{text}</p><img src={name} alt='{heading}'>")
    parts += ["<h2>By class</h2>", _table(_class_table(report)), "</html>"]
    return "\n".join(parts)


def _number_row(name: str, number: Number) -> list[object]:
    value = "-" if math.isnan(number.value) else f"{number.value:.4g} {number.unit}"
    low, high = number.interval or (math.nan, math.nan)
    between = "" if math.isnan(low) else f"{low:.4g} to {high:.4g}"
    return [name.replace("_", " "), value, between]


def _comparison(other: Mapping[str, Any]) -> list[Any]:
    score, _, one, two = list(other)[:4]
    gap, test = other["difference"], other.get("mcnemar")
    between = f"{gap['value']:.2f} ({gap['low']:.2f} to {gap['high']:.2f})"
    rows: list[Any] = [
        ["", other[score]],
        *([name, f"{other[name]:.2f} %"] for name in (one, two)),
        ["difference (95 % interval)", between],
    ]
    if test is not None:
        only = f"{test['only_first_right']} / {test['only_second_right']}"
        rows.append(["right by one of them only", only])
        rows.append(["McNemar's exact test", f"p = {test['p']:.3g}"])
    return rows


def _table(rows: Sequence[Sequence[object]]) -> str:
    head, *body = (
        "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in row)
        for tag, row in zip(["th", *["td"] * (len(rows) - 1)], rows, strict=True)
    )
    lines = "".join(f"<tr>{line}</tr>" for line in body)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
