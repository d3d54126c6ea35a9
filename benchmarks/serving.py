"""How the engine serves: load, comparisons, memory, HTTP. ``python -m benchmarks.serving [SECTION ...]``."""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.measure import Settings, machine
from benchmarks.serving_parts import Part, read
from benchmarks.serving_report import plot, put_into, screen
from benchmarks.serving_setup import Bench, say

SECTIONS = ("load", "against", "tricks", "cold", "stress", "packed", "http")
"""Modules ``benchmarks.serving_NAME``, each with ``measure(bench)``."""
QUICK = {"seconds": 0.3, "settle": 0.1, "repeats": 1, "memory": "64MiB"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sections that are named, all by default; return the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}: expected {', '.join(SECTIONS)}")
    if options.work is None:
        with tempfile.TemporaryDirectory() as place:
            _run(options, Path(place))
    else:
        _run(options, options.work)
    return 0


def _run(options: argparse.Namespace, work: Path) -> None:
    sections = options.sections or SECTIONS
    named = {name for name in Bench.__dataclass_fields__ if hasattr(options, name)}
    values = {name: getattr(options, name) for name in named if getattr(options, name) is not None}
    bench = Bench(**{**(QUICK if options.quick else {}), **values, "work": work})
    on = machine(Settings(torch.device(bench.device), bench.quick))
    found: dict[str, Part] = {}
    for section in () if options.report else sections:
        start = time.perf_counter()
        part = importlib.import_module(f"benchmarks.serving_{section}").measure(bench)
        found[section] = replace(part, on=on)
        print(screen(found[section]), flush=True)
        say(f"{section}: {time.perf_counter() - start:.0f} s")
        if options.out:
            found[section].write(options.out)
    if options.out:  # what earlier runs left is reported too
        for section in SECTIONS:
            part = found.get(section) or read(options.out, section)
            if part is not None:
                found[section] = part
    parts = [found[section] for section in SECTIONS if section in found]
    if options.plot:
        plot(parts, options.plot)
    if options.markdown:
        put_into(options.markdown, parts, options.plot)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--out", type=Path, help="folder for a JSON file a section")
    parser.add_argument("--markdown", type=Path, help="put the tables into this page")
    parser.add_argument("--plot", type=Path, help="draw this PNG")
    parser.add_argument(
        "--report", action="store_true", help="measure nothing: report what is in --out"
    )
    parser.add_argument("--work", type=Path, help="keep task files here for the next run")
    parser.add_argument("--quick", action="store_true", help="toy sizes: shows that it runs")
    parser.add_argument("--task", type=Path, help="a trained task to make the others from")
    parser.add_argument("--backbone", help="default: efficientnet_lite0")
    parser.add_argument("--size", type=int, help="side of the images in pixels; default: 64")
    parser.add_argument("--memory", help="the engine's budget; default: 2GiB")
    parser.add_argument("--bound", help="for whole networks in memory; default: 4GiB")
    parser.add_argument("--device", help="default: cpu")
    parser.add_argument("--seconds", type=float, help="of each measurement; default: 3")
    parser.add_argument("--repeats", type=int, help="rounds; default: 3")
    parser.add_argument("--calls", type=int, help="of the stress test; default: 1000000")
    parser.add_argument("--evictions", type=int, help="of the stress test; default: 10000")
    parser.add_argument("--seed", type=int, help="default: 0")
    return parser


if __name__ == "__main__":
    sys.exit(main())
