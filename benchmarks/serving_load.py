"""Load: 1 to 1000 tasks on one engine, at saturation and at equal load; tasks in turns, medians of rounds."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from statistics import median
from typing import Any

from benchmarks.measure import Row
from benchmarks.serving_parts import Part, traffic_row
from benchmarks.serving_setup import (
    Bench,
    apart,
    bring,
    engine_of,
    folder,
    inputs,
    jpegs,
    names,
    rss,
    say,
)
from benchmarks.serving_traffic import KINDS, EngineSide, Kind, Seen, capacity, middle, rounds

SATURATION, EQUAL = 2.0, 0.7
"""Of what one task is answered at most: offered in each regime."""
AIMS: dict[str, float] = {"uniform": 0.8, "zipf": 0.9}
FULL = 1000
"""Requests that come at once at the beginning of a run at saturation: nearly all that a queue takes."""
Case = tuple[int, Kind]


def measure(bench: Bench) -> Part:
    """Return a row for each number of tasks, traffic and regime; (a), one task alone, is among them."""
    counts = bench.counts()
    everyone = names(counts[-1])
    with engine_of(bench, folder(bench, counts[-1])) as engine:
        side = engine.task(everyone[0]).image_size or bench.size
        images = inputs(bench, side)
        bring(engine, everyone, images[0])
        asked = EngineSide(engine)
        top = capacity(asked, everyone[0], images, bench.seconds)
        say(f"load: {engine.speed}; one task alone: {top:.0f}/s")
        cases: list[Case] = [(1, "uniform"), *product(counts[1:], KINDS)]
        asks = {(n, kind): (asked, names(n), kind) for n, kind in cases}
        found = {
            "saturation": rounds(bench, asks, SATURATION * top, images, FULL),
            "equal": rounds(bench, asks, EQUAL * top, images),
        }
        rows = [
            traffic_row(regime=regime, tasks=n, traffic="one" if n == 1 else kind, seen=middle(s))
            for regime, parts in found.items()
            for (n, kind), s in parts.items()
        ]
        with event_loop() as loop:
            files = jpegs(bench, side)
            many = bench.many()
            ask = (EngineSide(engine, loop), names(many), KINDS[0])
            (seen,) = rounds(bench, {"JPEG": ask}, EQUAL * top, files).values()
        rows.append(
            traffic_row(regime="equal, JPEG", tasks=many, traffic=KINDS[0], seen=middle(seen))
        )
        about = f"{engine.source}, {side} px, {engine.speed}; budget {bench.memory}."
    for count in counts:
        rows.append({"regime": "memory", "tasks": count, **apart(_memory, bench, count)})
    return Part("load", rows, _checks(found, bench.many()), about)


def _checks(found: dict[str, dict[Case, list[Seen]]], many: int) -> list[Row]:
    """Throughput with many tasks against one task's in the same round."""
    rows = []
    for regime, parts in found.items():
        alone = [seen.answered for seen in parts[1, "uniform"]]
        for kind in KINDS:
            ours = [seen.answered for seen in parts[many, kind]]
            ratio = median(a / b for a, b in zip(ours, alone, strict=True))
            rows.append(
                Row(
                    f"{many} tasks, {kind}, {regime}",
                    ratio,
                    AIMS[kind],
                    median(ours),
                    median(alone),
                    "answers/s",
                    at_least=True,
                    note="against one task alone on the same engine",
                )
            )
    return rows


def _memory(bench: Bench, count: int) -> dict[str, Any]:
    """What a process takes that has asked each of ``count`` tasks once."""
    with engine_of(bench, folder(bench, count)) as engine:
        side = engine.task(names(1)[0]).image_size or bench.size
        bring(engine, names(count), inputs(bench, side)[0])
        held = engine.stats().bytes
        return {
            "RSS MiB": round(rss() / 2**20),
            "dense MiB": round(held["dense"] / 2**20),
            "packed MiB": round(held["packed"] / 2**20),
        }


@contextmanager
def event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
