"""A hot task's p99 while cold tasks are read from disk without a pause, against the same traffic without."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from itertools import cycle
from statistics import median
from typing import Any, Literal

from benchmarks.measure import Row
from benchmarks.serving_parts import Part, traffic_row
from benchmarks.serving_setup import Bench, engine_of, folder, inputs, names, say, sizes
from benchmarks.serving_traffic import EngineSide, Seen, capacity, middle, offer
from piggyback.serve.engine import Engine

AIM = 1.2
STARTING_S = 8.0
"""For the process that decodes files."""
SHARE = 0.3
"""Of what the hot task alone is answered at most: its rate."""
Way = Literal["none", "loaded", "answered"]
WAYS: tuple[Way, ...] = ("none", "loaded", "answered")


def measure(bench: Bench) -> Part:
    """Return a row without cold tasks, one with tasks that are only loaded, one with tasks that answer as well."""
    count = bench.many()
    hot, *cold = names(count)
    with engine_of(bench, folder(bench, 1)) as engine:
        side = engine.task(hot).image_size or bench.size
        images = inputs(bench, side)
        memory = sizes(engine, images[0]).room(count // 3)
    with engine_of(bench, folder(bench, count), memory, decode_apart=True) as engine:
        time.sleep(STARTING_S)
        asked = EngineSide(engine)
        engine.predict(images[0], hot)
        rate = SHARE * capacity(asked, hot, images, bench.seconds)
        found: dict[Way, list[Seen]] = {way: [] for way in WAYS}
        loads: dict[Way, list[float]] = {way: [] for way in WAYS}
        for turn in range(2 * bench.repeats):
            for way in WAYS if turn % 2 == 0 else WAYS[::-1]:
                before = engine.stats().loads
                with _Cold(engine, cold, images[0], way):
                    seen = offer(
                        asked,
                        [hot],
                        "uniform",
                        rate,
                        images,
                        seconds=2 * bench.seconds,
                        settle=bench.settle,
                        seed=bench.seed + 10 * turn,
                    )
                found[way].append(seen)
                took = 2 * bench.seconds + bench.settle
                loads[way].append((engine.stats().loads - before) / took)
                say(f"cold: {way}: p99 {seen.p99:.1f} ms, {loads[way][-1]:.1f} loads/s")
        about = (
            f"One hot task at {rate:.0f} requests a second, {len(cold)} cold ones in turn, one always "
            f"on its way; budget {memory} bytes, files in the system's cache; {engine.speed}."
        )
    rows = [
        traffic_row(cold=way, **{"loads/s": round(median(loads[way]), 1)}, seen=middle(found[way]))
        for way in WAYS
    ]
    return Part("cold", rows, _checks(found), about)


def _checks(found: dict[Way, list[Seen]]) -> list[Row]:
    without = [seen.p99 for seen in found["none"]]
    rows = []
    for way in WAYS[1:]:
        ours = [seen.p99 for seen in found[way]]
        ratio = median(a / b for a, b in zip(ours, without, strict=True))
        note = "cold tasks answer too" if way == "answered" else "cold requests are withdrawn"
        name = f"hot task's p99, cold tasks {way}"
        rows.append(Row(name, ratio, AIM, median(ours), median(without), "ms", note=note))
    return rows


class _Cold:
    """Has cold tasks loaded one after the other, for as long as the block lasts."""

    def __init__(self, engine: Engine, tasks: Sequence[str], image: Any, way: Way) -> None:
        self._engine, self._tasks, self._image, self._way = engine, tasks, image, way
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        for task in cycle(self._tasks):
            if self._stop.is_set() or self._way == "none":
                return
            if self._engine.task(task).tier != "disk":
                self._stop.wait(0.001)
                continue
            future = self._engine.submit(self._image, task)
            if self._way == "answered":
                future.result(60)
                continue
            future.cancel()  # it is loaded all the same
            while self._engine.task(task).tier == "disk" and not self._stop.wait(0.001):
                pass
