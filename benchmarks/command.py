"""The command line: which benchmarks to run, where, and where the numbers go."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from benchmarks.measure import Row, Settings, machine

NAMES = (
    "step", "images", "memory", "switch", "forward", "mask_bytes", "file_ready", "release", "startup",
)  # fmt: skip
"""Modules of this package, each with ``rows(settings)``."""
BEGIN, END = "<!-- numbers: begin -->", "<!-- numbers: end -->"


def main(*names: str, argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks of these names, or those that ``--only`` picks; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--markdown", type=Path, help="put the table into this page")
    parser.add_argument("--quick", action="store_true", help="toy sizes: shows that it runs")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="on a busy machine: one thread, and the time that it ran, not the time on the clock",
    )
    if len(names) > 1:
        parser.add_argument("--only", action="append", choices=names, help="repeatable")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no such device")
    if options.cpu_time and options.device != "cpu":
        parser.error("--cpu-time: the device's time is not the processor's; leave it out")
    if options.threads or options.cpu_time:
        torch.set_num_threads(1 if options.cpu_time else options.threads)
    clock = time.thread_time if options.cpu_time else time.perf_counter
    settings = Settings(torch.device(options.device), options.quick, clock)
    place = machine(settings)
    print(", ".join(f"{key} {value}" for key, value in place.items()), flush=True)
    rows: list[Row] = []
    for name in getattr(options, "only", None) or names:
        for row in importlib.import_module(f"benchmarks.{name}").rows(settings):
            print(_line(row), flush=True)
            rows.append(row)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        found = [{**row.to_json(), "on": place} for row in rows]
        options.json.write_text(json.dumps(found, indent=1))
    if options.markdown:
        told = ", ".join(f"{key} {value}" for key, value in place.items())
        put_between(options.markdown, BEGIN, END, "\n".join([f"{told}.", "", *ratio_table(rows)]))
    return 0


def ratio_table(rows: Iterable[Row], digits: int = 3) -> list[str]:
    """Return the lines of a table in Markdown; a ratio that misses its aim is bold."""
    lines = ["| what | ratio | aim | ours | theirs | unit | |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        bold = "" if row.meets else "**"
        lines.append(
            f"| {row.name} | {bold}{row.ratio:.3f}{bold} | {row.sign} {row.aim:g} "
            f"| {row.ours:.{digits}f} | {row.theirs:.{digits}f} | {row.unit} | {row.note} |"
        )
    return lines


def put_between(page: Path, begin: str, end: str, text: str) -> None:
    """Put ``text`` between a page's two marks, in place of what stood there."""
    before, first, rest = page.read_text(encoding="utf-8").partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        sys.exit(f"the page has no lines {begin} and {end} to put the table between")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def _line(row: Row) -> str:
    return (
        f"{row.name:<36} {row.ratio:6.3f}  aim {row.sign} {row.aim:<5g} "
        f"{row.ours:9.3f} / {row.theirs:9.3f} {row.unit:<9}{'' if row.meets else '  MISSED'}"
    )
