"""Tables and the plot of what was measured, of all parts that a folder holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import put_between, ratio_table
from benchmarks.serving_parts import Part

BEGIN, END = "<!-- serving: begin -->", "<!-- serving: end -->"
TITLES = {
    "load": "Load: 1 to 1000 tasks",
    "against": "Against doing without masks",
    "tricks": "What each way of running the network gives",
    "cold": "A hot task while cold ones load",
    "stress": "A million calls, ten thousand evictions",
    "packed": "Tasks held packed",
    "http": "Over HTTP",
}


def screen(part: Part) -> str:
    """Return a part as lines for a terminal."""
    lines = [f"{TITLES[part.section]}. {part.about}"]
    for columns, rows in _tables(part.rows):
        cells = [columns, *[[_cell(row.get(c, "")) for c in columns] for row in rows]]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            pairs = zip(row, widths, strict=True)
            lines.append("  ".join(cell.rjust(width) for cell, width in pairs))
    for check in part.checks:
        verdict = "" if check.meets else "  MISSED"
        lines.append(f"{check.name}: {check.ratio:.3f}, aim {check.sign} {check.aim:g}{verdict}")
    return "\n".join(lines)


def markdown(parts: Sequence[Part]) -> str:
    """Return all parts as Markdown: what is held against an aim first."""
    checks = [row for part in parts for row in part.checks]
    lines = ["A ratio in bold misses its aim.", "", *ratio_table(checks, digits=2)]
    for part in parts:
        lines += ["", f"### {TITLES[part.section]}", "", part.about]
        for columns, rows in _tables(part.rows):
            lines += ["", _line(columns), _line(["---"] * len(columns))]
            lines += [_line([_cell(row.get(c, "")) for c in columns]) for row in rows]
        lines += ["", "Measured on " + ", ".join(f"{k} {v}" for k, v in part.on.items()) + "."]
    return "\n".join(lines)


def put_into(page: Path, parts: Sequence[Part], picture: Path | None = None) -> None:
    """Put the tables, and a picture above them, between a page's two marks."""
    text = markdown(parts)
    if picture is not None:
        place = Path(os.path.relpath(picture, page.parent)).as_posix()
        text = f"![Throughput and latency by the number of tasks]({place})\n\n{text}"
    put_between(page, BEGIN, END, text)


def plot(parts: Sequence[Part], path: Path) -> None:
    """Draw throughput and latency by the number of tasks, and the servers without masks, as a PNG."""
    from matplotlib.figure import Figure  # as slow to import as a network is to load

    by_name = {part.section: part for part in parts}
    figure = Figure(figsize=(13, 4), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    load = by_name["load"].rows if "load" in by_name else ()
    for kind, marker in (("uniform", "o"), ("zipf", "s")):
        for axes, regime, values in (
            (first, "saturation", ("answered/s",)),
            (second, "equal", ("p50 ms", "p99 ms")),
        ):
            rows = [r for r in load if r["regime"] == regime and r["traffic"] in ("one", kind)]
            for value, style in zip(values, ("-", "--"), strict=False):
                label = kind if len(values) == 1 else f"{kind}, {value[:3]}"
                asked, heights = [r["tasks"] for r in rows], [r[value] for r in rows]
                axes.plot(asked, heights, style, marker=marker, label=label)
    first.set(title="Answers a second, at saturation", xlabel="tasks", xscale="log", ylim=(0, None))
    second.set(title="Milliseconds, at equal load", xlabel="tasks", xscale="log", yscale="log")
    rows = (
        [r for r in by_name["against"].rows if r["traffic"] == "uniform"]
        if "against" in by_name
        else []
    )
    labels = [row["server"].replace(" from", "\nfrom") for row in rows]
    third.barh(labels[::-1], [row["answered/s"] for row in rows][::-1])
    third.set_title("Answers a second, by server")
    counts = sorted({row["tasks"] for row in load})
    for axes in (first, second):
        if load:
            axes.set_xticks(counts, map(str, counts))
            axes.set_xticks([], minor=True)
            axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _tables(rows: Sequence[dict[str, Any]]) -> list[tuple[list[str], list[dict[str, Any]]]]:
    """Neighbouring rows with the same columns as one table."""
    found: list[tuple[list[str], list[dict[str, Any]]]] = []
    for row in rows:
        if not found or found[-1][0] != list(row):
            found.append((list(row), []))
        found[-1][1].append(row)
    return found


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(value: Any) -> str:
    return "" if value is None else str(value)
