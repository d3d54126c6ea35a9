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
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from piggyback.kinds.tokens import spans_of
from piggyback.lab.tables.plots import COLOURS, save_all
from piggyback.names import plain
from piggyback.texts.words import spaced_words
from piggyback.train.report import Number, Report, in_digits

SHEET = 24
"""Pictures on the contact sheet."""
ACROSS = 6
LONG = 500
"""Letters of a text on the page."""
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
img[src='wrong.png'] { max-height: none } .texts td, .texts th { text-align: left; vertical-align: top }
mark small { color: #555 } .quiet { color: #666 }
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

    ``picture`` is None for texts, whose names say it all, also of the most confident mistakes;
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
        "index.html": _page(report, about, list(drawn), other, names if picture is None else ()),
    }
    return [path.name for path in save_all(folder, texts, drawn)]


# -- tables ----------------------------------------------------------------------------------------


def _class_table(report: Report) -> list[list[object]]:
    """Titles, then a row for each class, label or output."""
    titles = list(next(iter(report.rows.values()), {}))
    rows: list[list[object]] = [[n, *map(_short, row.values())] for n, row in report.rows.items()]
    return [["class", *titles], *rows]


def _answer_table(report: Report, names: Sequence[str]) -> list[list[object]]:
    """Titles, then a row for each sample: what it is, and what it was called."""
    outcome, rows = report.outcome, list[list[object]]()
    if outcome.kind == "segmentation":
        right = outcome.truth.diagonal(axis1=1, axis2=2).sum(1) / np.maximum(
            outcome.truth.sum((1, 2)), 1
        )
        rows = [[n, f"{r:.6f}"] for n, r in zip(names, right, strict=True)]
        return [["sample", "pixels right"], *rows]
    if outcome.kind == "tokens":
        rows = [[n, *each[[1, 2, 0]]] for n, each in zip(names, outcome.truth.sum(1), strict=True)]
        return [["sample", "spans", "found", "right"], *rows]
    for i, name in enumerate(names):
        rows.append([name, *_truth_and_answer(report, i)])
        if report.confidence is not None:
            rows[-1].append(f"{report.confidence[i]:.6f}")
    titles: list[object] = ["sample", "truth", "answer", "probability", "confidence"]
    return [titles[: len(rows[0])], *rows]


def _truth_and_answer(report: Report, i: int) -> tuple[str, str, str]:
    """In words: what sample ``i`` is, what it was called, and how surely, or how far off."""
    outcome = report.outcome
    row, truth = outcome.answers[i], outcome.truth[i]
    if outcome.kind == "classification":
        return outcome.classes[truth], outcome.classes[row.argmax()], f"{row.max():.6f}"
    if outcome.kind == "multilabel":
        given = outcome.given[i]
        sure = np.where(given, row, 1 - row)

        def listed(those: Any) -> str:
            return (
                ", ".join(n for n, yes in zip(outcome.classes, those, strict=True) if yes) or "none"
            )

        return listed(truth), listed(given), f"{sure.min():.6f}"
    return ", ".join(f"{v:.4g}" for v in truth), ", ".join(f"{v:.4g}" for v in row), ""


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(_cell, row) for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    """A cell that no spreadsheet takes for a formula; report.json has every name as it is.

    >>> _cell("=HYPERLINK(A1)"), _cell("-0.5"), _cell(2)
    ("'=HYPERLINK(A1)", '-0.5', 2)
    """
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def _short(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.0f}" if value == int(value) and abs(value) >= 1000 else f"{value:.4g}"


# -- pictures --------------------------------------------------------------------------------------


def _confusion(report: Report) -> Figure | None:
    """Rows are what samples are, columns what they were called, in percent of the row."""
    if report.counts is None:
        return None
    counts, classes = report.counts, report.outcome.classes
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(max(4.0, 1.8 + 0.3 * len(classes)), 13.0)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(shown, ax=axes, label="% of the class", shrink=0.8)
    if len(classes) <= NAMED:
        places, size = range(len(classes)), 8 if len(classes) > 15 else 9
        drawn = [_drawn(name) for name in classes]
        axes.set_xticks(places, drawn, rotation=90, fontsize=size)
        axes.set_yticks(places, drawn, fontsize=size)
    if len(classes) <= ACROSS * 2:
        for (i, j), share in np.ndenumerate(shares):
            if share >= 0.5:
                ink = "white" if share > 60 else "black"
                axes.text(j, i, f"{share:.0f}", ha="center", va="center", fontsize=8, color=ink)
    axes.set_xlabel("called")
    axes.set_ylabel("truth")
    return figure


def _calibration(report: Report) -> Figure | None:
    """The reliability plot: how often answers are right, by their probability."""
    found = report.calibration
    if found is None:
        return None
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 100], [0, 100], color="0.6", linewidth=1, linestyle="--")
    width = 100 / len(found.counts)
    middles = [width * (i + 0.5) for i in range(len(found.counts))]
    bars = upper.bar(middles, [100 * v for v in found.accuracy], 0.92 * width, color=COLOURS[0])
    for bar, count in zip(bars, found.counts, strict=True):
        bar.set_alpha(0.4 if count >= FEW else 0.12)
    upper.plot(
        [100 * v for v in found.confidence],
        [100 * v for v in found.accuracy],
        "o",
        color=COLOURS[0],
    )
    upper.set_ylabel("right (%)")
    upper.set_title(f"calibration error {100 * found.ece:.1f} %", fontsize="medium")
    lower.bar(middles, found.counts, 0.92 * width, color="0.6")
    lower.set_ylabel("answers")
    lower.set_xlabel("probability (%)")
    return figure


def _coverage(report: Report) -> Figure | None:
    """How accurate the surest answers are, by how many of them are given."""
    if report.coverage is None:
        return None
    _, share, right = report.coverage
    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(100 * share, 100 * right, color=COLOURS[0])
    axes.set_xlim(0, 100)
    axes.set_ylim(top=101)
    axes.grid(alpha=0.3)
    axes.set_xlabel("answers given, the surest first (%)")
    axes.set_ylabel("of these right (%)")
    return figure


def _scatter(report: Report) -> Figure | None:
    """Numbers found against true ones, a panel for each output."""
    outcome = report.outcome
    if outcome.kind != "regression":
        return None
    across = min(len(outcome.classes), 4)
    down = -(-len(outcome.classes) // across)
    figure = Figure(figsize=(3.8 * across, 3.6 * down), layout="constrained")
    for i, axes in enumerate(figure.subplots(down, across, squeeze=False).flat):
        if i >= len(outcome.classes):
            axes.remove()
            continue
        truth, found = outcome.truth[:, i], outcome.answers[:, i]
        ends = [min(truth.min(), found.min()), max(truth.max(), found.max())]
        axes.plot(ends, ends, color="0.6", linewidth=1, linestyle="--")
        axes.plot(truth, found, ".", color=COLOURS[0], alpha=0.5)
        unit = f" ({outcome.units[i]})" if outcome.units and outcome.units[i] else ""
        axes.set_title(_drawn(f"{outcome.classes[i]}{unit}"), fontsize="medium")
        axes.set_xlabel("truth")
        axes.set_ylabel("found")
    return figure


def _sheet(report: Report, names: Sequence[str], picture: Picture | None) -> Figure | None:
    """The contact sheet: the most confident mistakes, each with what it is and what it was called."""
    chosen = list(report.wrong[:SHEET])
    if not chosen or picture is None:
        return None
    down = -(-len(chosen) // ACROSS)
    figure = Figure(figsize=(2.1 * ACROSS, 2.6 * down), layout="constrained")
    for place, axes in enumerate(figure.subplots(down, ACROSS, squeeze=False).flat):
        axes.axis("off")
        if place < len(chosen):
            axes.imshow(picture(chosen[place]))
            axes.set_title(_caption(report, names, chosen[place]), fontsize=10, parse_math=False)
    return figure


def _caption(report: Report, names: Sequence[str], i: int) -> str:
    if report.outcome.kind == "segmentation":
        counts = report.outcome.truth[i]
        return f"{_cut(Path(names[i]).name)}\n{100 * np.trace(counts) / max(counts.sum(), 1):.1f} % right"
    truth, answer, sure = _truth_and_answer(report, i)
    if report.outcome.kind == "classification":
        return f"{_cut(truth)}\ncalled {_cut(answer)}, {100 * float(sure):.1f} %"
    return f"is {_cut(truth)}\nsaid {_cut(answer)}"


def _cut(text: str, most: int = 24) -> str:
    text = plain(text)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _drawn(name: str) -> str:
    """A name for matplotlib, which takes what is between two dollars for a formula."""
    return plain(name).replace("$", r"\$")


# -- the page --------------------------------------------------------------------------------------

_HEADINGS = {
    "confusion.png": ("Confusion", "Rows are what samples are, columns what they were called."),
    "calibration.png": (
        "Calibration",
        "Answers on the line are right as often as their probability says.",
    ),
    "coverage.png": (
        "Coverage",
        "What is gained by leaving out the answers of least confidence, which is 1 - entropy / log(classes).",
    ),
    "scatter.png": ("Found against true", "Points on the line are exact."),
    "wrong.png": (
        "Worst answers",
        "The most confident mistakes, the numbers that are furthest off, or the texts with most wrong spans, first.",
    ),
}


def _page(
    report: Report,
    about: Mapping[str, str],
    pictures: Sequence[str],
    other: Mapping[str, Any] | None,
    texts: Sequence[str],
) -> str:
    """The page: no scripts, and nothing from elsewhere."""
    title = _shown(f"{report.outcome.task}: {len(report.outcome)} samples")
    facts = " &middot; ".join(f"{_shown(k)} {_shown(v)}" for k, v in about.items())
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>",
        f"<h1>{title}</h1><p class=quiet>{facts}</p>",
        _table([["", "", "95 % interval"], *map(_number_row, report.numbers.items())]),
        *(f"<p>{_shown(sentence)}</p>" for sentence in report.sentences),
    ]
    if other is not None:
        parts += ["<h2>Compared</h2>", _comparison(other)]
    for name in pictures:
        heading, text = _HEADINGS[name]
        parts.append(f"<h2>{heading}</h2><p class=quiet>{text}</p><img src={name} alt='{heading}'>")
    if texts and report.wrong:
        heading, text = _HEADINGS["wrong.png"]
        parts += [f"<h2>{heading}</h2><p class=quiet>{text}</p>", _texts(report, texts)]
    parts += ["<h2>By class</h2>", _table(_class_table(report)), "</html>"]
    return "\n".join(parts)


def _texts(report: Report, texts: Sequence[str]) -> str:
    """The worst answers to texts: the text, what it is and what it was called, or its words marked in both ways."""
    worst, tags = report.wrong[:SHEET], report.outcome.tags
    if tags:
        marked = [[_marked(texts[i], each) for each in tags[i]] for i in worst]
        return _markup([["truth", "answer"], *marked], "texts")
    cells = [[_cut(texts[i], LONG), *_truth_and_answer(report, i)] for i in worst]
    shown = [list(map(_shown, row)) for row in cells]
    return _markup([["text", "truth", "answer", "probability"], *shown], "texts")


def _marked(text: str, tags: Sequence[str]) -> str:
    """A text with its spans marked, each with its type, as markup."""
    words, parts, at = spaced_words(text), list[str](), 0
    for first, end, label in spans_of(tags):
        start, stop = words[first][0], words[end - 1][1]
        span = f"<mark>{_shown(text[start:stop])} <small>{_shown(label)}</small></mark>"
        parts += [_shown(text[at:start]), span]
        at = stop
    return "".join([*parts, _shown(text[at:])])


def _number_row(item: tuple[str, Number]) -> list[object]:
    name, number = item
    low, high = number.interval or (math.nan, math.nan)
    between = "" if math.isnan(low) else f"{low:.4g} to {high:.4g}"
    return [
        name.replace("_", " "),
        "-" if math.isnan(number.value) else f"{number.value:.4g} {number.unit}",
        between,
    ]


def _comparison(other: Mapping[str, Any]) -> str:
    score, _, one, two = list(other)[:4]
    gap = other["difference"]
    rows: list[list[object]] = [
        ["", str(other[score])],
        [one, f"{in_digits(other[one])} %"],
        [two, f"{in_digits(other[two])} %"],
        [
            "difference (95 % interval)",
            f"{in_digits(gap['value'])} ({in_digits(gap['low'])} to {in_digits(gap['high'])})",
        ],
    ]
    if (test := other.get("mcnemar")) is not None:
        only = f"{test['only_first_right']} / {test['only_second_right']}"
        rows += [
            ["right by one of them only", only],
            ["McNemar's exact test", f"p = {test['p']:.3g}"],
        ]
    return _table(rows)


def _table(rows: Sequence[Sequence[object]]) -> str:
    return _markup([[_shown(str(cell)) for cell in row] for row in rows])


def _markup(rows: Sequence[Sequence[str]], style: str = "") -> str:
    """A table of cells that are markup already, titles first."""
    head, *body = [
        "".join(f"<{tag}>{cell}</{tag}>" for cell in row)
        for tag, row in zip(("th", *["td"] * (len(rows) - 1)), rows, strict=True)
    ]
    lines = "".join(f"<tr>{line}</tr>" for line in body)
    return f"<table class='{style}'><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _shown(text: str) -> str:
    """Text for a page: neither markup, nor characters that reorder the line."""
    return html.escape(plain(text))
