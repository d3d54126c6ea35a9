"""What ``predict`` shows: answers and label maps as a table, JSON or CSV."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from piggyback.cli.screen import results, table, write_json
from piggyback.schemas import Said

NONE = "none of these"
Format = Literal["table", "json", "csv"]
"""How answers are written."""


@dataclass(frozen=True)
class FileAnswer:
    """What one task says about one image file, or one text."""

    file: str
    task: str | None
    """None if none was sure enough."""
    said: Said
    """Classes, labels or values, by the task's kind; likeliest first."""
    what: str = "file"
    """What ``file`` is, the path of one or a text: its name in JSON and CSV."""
    error: str = ""
    """Why there is no answer."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        if self.error:
            return {self.what: self.file, "error": self.error}
        said = self.said.model_dump(mode="json", exclude_none=True, include=set(Said.model_fields))
        shown = ("confidence", "abstained", "classes", "labels", "values", "spans")
        said = {key: said[key] for key in shown if key in said}
        return {self.what: self.file, "task": self.task, **said}


def no_answer(file: str, what: str, error: str = "", confidence: float = 0.0) -> FileAnswer:
    """Return what is said of a file or text that has no answer: none was sure enough, or there is an error."""
    return FileAnswer(file, None, Said(confidence=confidence), what, error)


class Mapped(NamedTuple):
    """A label map that was written."""

    file: Path
    place: Path
    shares: Mapping[str, float]
    """Percent of the image by class, largest first."""


def show(answers: Sequence[FileAnswer], how: Format) -> None:
    """Write answers to standard output; errors go into JSON alone, since they were said."""
    if how == "json":
        write_json([one.to_json() for one in answers])
    elif how == "csv":
        titles = _titles(answers)
        _write_csv(titles, [line for one in answers for line in _lines(one, titles[0])])
    else:
        rows = table("+input", "task", "+answer", ">%", "next")
        for one in answers:
            if not one.error:
                words = (NONE, "", "") if one.task is None else _in_words(one.said)
                rows.add_row(one.file, one.task or "", *words)
        results().print(rows)


def _in_words(said: Said) -> tuple[str, str, str]:
    """An answer, its percent, and what else is said."""
    if said.spans is not None:
        marked = [f"{s.text} ({s.label} {100 * s.probability:.1f})" for s in said.spans]
        return ", ".join(marked) or "no spans", "", ""
    if said.values is not None:
        first, *more = [f"{v.name} {v.value:.4g} {v.unit}".rstrip() for v in said.values]
        return first, "", ", ".join(more)
    best, *others = said.ranking
    shown, percent = best.name, f"{100 * best.probability:.1f}"
    if said.labels is not None:
        shown, percent = ", ".join(said.labels) or "none", ""
        others = [one for one in said.ranking if one.name not in said.labels]
    rest = ", ".join(f"{one.name} {100 * one.probability:.1f}" for one in others)
    return f"not sure: {shown}" if said.abstained else shown, percent, rest


def _titles(answers: Sequence[FileAnswer]) -> list[str]:
    """The columns of CSV; those that no answer needs are left out."""
    said = [one.said for one in answers]
    return [
        *(answers[0].what if answers else "file", "task", "rank", "class", "probability"),
        *["abstained"] * any(one.abstained is not None for one in said),
        *["given"] * any(one.labels is not None for one in said),
        *["value", "unit"] * any(one.values is not None for one in said),
        *["start", "end", "span"] * any(one.spans is not None for one in said),
    ]


def _lines(one: FileAnswer, what: str) -> Iterable[Mapping[str, object]]:
    """A line of CSV for each class, label, number and span; a column without a value is empty."""
    said = one.said
    where = {what: one.file, "task": one.task}
    if one.task is None and not one.error:
        yield {**where, "class": NONE}
    for rank, each in enumerate(said.ranking, 1):
        line = {**where, "rank": rank, "class": each.name, "probability": f"{each.probability:.6f}"}
        if said.abstained is not None:
            line["abstained"] = int(said.abstained)
        if said.labels is not None:
            line["given"] = int(each.name in said.labels)
        yield line
    for rank, number in enumerate(said.values or (), 1):
        value = {"class": number.name, "value": f"{number.value:.6g}", "unit": number.unit}
        yield {**where, "rank": rank, **value}
    for rank, span in enumerate(said.spans or (), 1):
        line = {
            **where,
            "rank": rank,
            "class": span.label,
            "probability": f"{span.probability:.6f}",
        }
        yield {**line, "start": span.start, "end": span.end, "span": span.text}


def show_maps(found: Sequence[Mapped], how: Format, top: int) -> None:
    """Write where each map is, and what share of the image its classes take; a table has the ``top`` largest."""
    if how == "json":
        write_json(
            [
                {
                    "file": str(one.file),
                    "labels": str(one.place),
                    "percent": {name: round(share, 4) for name, share in one.shares.items()},
                }
                for one in found
            ]
        )
    elif how == "csv":
        lines = [
            {"file": one.file, "labels": one.place, "class": name, "percent": f"{share:.4f}"}
            for one in found
            for name, share in one.shares.items()
        ]
        _write_csv(["file", "labels", "class", "percent"], lines)
    else:
        rows = table("+image", "+label map", "largest (%)")
        for one in found:
            largest = list(one.shares.items())[:top]
            shares = ", ".join(f"{name} {share:.1f}" for name, share in largest)
            rows.add_row(str(one.file), str(one.place), shares)
        results().print(rows)


def _write_csv(titles: Sequence[str], lines: Iterable[Mapping[str, object]]) -> None:
    # Not by typer, which leaves codes for a terminal out of a name.
    writer = csv.DictWriter(sys.stdout, titles, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
