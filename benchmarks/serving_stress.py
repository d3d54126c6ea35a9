"""Stress: a million calls from 16 threads over tasks whose answers name them, and memory after many evictions."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.measure import Row
from benchmarks.serving_parts import Part
from benchmarks.serving_setup import Bench, apart, engine_of, folder, inputs, names, rss, say, sizes
from benchmarks.serving_telling import INPUT, Telling, expected, write_tasks
from piggyback.serve.engine import Engine
from piggyback.serve.options import EngineOptions

THREADS, TASKS = 16, 50
IN_MEMORY, PACKED = TASKS + TASKS // 3 + 2, 25
"""Budgets, in packed tasks: for the bits of all and live copies of some; for those of half, others wait on disk."""
WARM_UP = 0.2
"""Evictions before memory is measured, of those after: allocators keep what they once had."""
AIM = 1.02


@dataclass(frozen=True)
class Counted:
    """What a run of calls came to."""

    calls: int
    wrong: int
    evictions: int
    seconds: float
    before: int = 0
    """Bytes of the process."""
    after: int = 0


def measure(bench: Bench) -> Part:
    """Return a row of calls with room for all bits, and rows of calls with evictions; wrong answers are counted."""
    calls = 4_000 if bench.quick else bench.calls
    evictions = 300 if bench.quick else bench.evictions
    found = {
        "calls, all tasks in memory": apart(telling_calls, calls),
        "calls, half of the tasks on disk": apart(telling_evictions, evictions),
        f"calls one by one, {'test_resnet' if bench.quick else bench.backbone}": apart(
            network_evictions, bench, evictions
        ),
    }
    rows, checks = [], []
    for what, seen in found.items():
        say(f"stress: {what}: {seen}")
        rows.append(
            {
                "what": what,
                "calls": seen.calls,
                "calls/s": round(seen.calls / seen.seconds),
                "wrong answers": seen.wrong,
                "evictions": seen.evictions,
                "RSS before MiB": round(seen.before / 2**20, 1),
                "RSS after MiB": round(seen.after / 2**20, 1),
            }
        )
        checks.append(Row(f"wrong answers, {what}", seen.wrong, 0.0, seen.wrong, 0.0, "answers"))
        if seen.before:
            ratio, ours, theirs = seen.after / seen.before, seen.after / 2**20, seen.before / 2**20
            note = f"{seen.evictions} evictions"
            checks.append(Row(f"RSS, {what}", ratio, AIM, ours, theirs, "MiB", note=note))
    return Part("stress", rows, checks, f"{THREADS} threads, {TASKS} tiny tasks; seeded.")


def telling_calls(calls: int) -> Counted:
    """Return what ``calls`` calls came to on an engine that holds all bits and few live copies."""
    with tempfile.TemporaryDirectory() as place:
        write_tasks(Path(place), TASKS)
        with _engine(Path(place), IN_MEMORY) as engine:
            start = time.perf_counter()
            wrong = _ask(engine, calls, seed=0)
            seconds = time.perf_counter() - start
            return Counted(calls, wrong, sum(engine.stats().evictions.values()), seconds)


def telling_evictions(evictions: int) -> Counted:
    """Return what calls came to on an engine with room for half of the tasks' bits, until so many had to go."""
    with tempfile.TemporaryDirectory() as place:
        write_tasks(Path(place), TASKS)
        with _engine(Path(place), PACKED) as engine:
            calls, wrong = _until(engine, round(WARM_UP * evictions), 0)
            before, gone = _resident(), engine.stats().evictions["packed"]
            start = time.perf_counter()
            more, also_wrong = _until(engine, gone + evictions, calls)
            seconds = time.perf_counter() - start
            gone = engine.stats().evictions["packed"] - gone
            return Counted(more, wrong + also_wrong, gone, seconds, before, _resident())


def network_evictions(bench: Bench, evictions: int) -> Counted:
    """Return the same for the benchmark's own network, whose tasks are asked in turn; answers are not checked."""
    count = 6 if bench.quick else 20
    source = folder(bench, count)
    with engine_of(bench, source) as engine:
        x = inputs(bench, engine.task(names(1)[0]).image_size or bench.size)[0]
        memory = sizes(engine, x).room(count // 2, workers=1)
    with engine_of(bench, source, memory, workers=1) as engine:
        tasks, warm = names(count), round(WARM_UP * evictions)
        before, start, base = 0, 0.0, 0
        for turn in range(warm + evictions + count):
            if turn == warm + count:
                before, start = _resident(), time.perf_counter()
                base = engine.stats().evictions["packed"]
            engine.predict(x, tasks[turn % count])
        seconds = time.perf_counter() - start
        gone = engine.stats().evictions["packed"] - base
        return Counted(evictions, 0, gone, seconds, before, _resident())


def _engine(place: Path, packed: int) -> Engine:
    """An engine with room for a live copy a worker and about so many packed tasks."""
    options = EngineOptions(watch_s=0.0, device="cpu", workers=2)
    with Engine(Telling(), place, "1GiB", options) as engine:
        memory = sizes(engine, INPUT).room(packed)
    return Engine(Telling(), place, memory, options)


def _until(engine: Engine, evictions: int, seed: int) -> tuple[int, int]:
    """Calls until ``evictions`` tasks' bits have gone, and how many answers were wrong."""
    calls = wrong = 0
    while engine.stats().evictions.get("packed", 0) < evictions:
        wrong += _ask(engine, 100 * THREADS, seed + calls)
        calls += 100 * THREADS
    return calls, wrong


def _ask(engine: Engine, calls: int, seed: int) -> int:
    """Ask random tasks from many threads; the number of answers that were not the task's own."""
    rights = {f"t{i}": expected(f"t{i}") for i in range(TASKS)}

    def some(number: int) -> int:
        rng = np.random.default_rng((seed, number))
        asked: Sequence[int] = rng.integers(TASKS, size=calls // THREADS).tolist()
        wrong = 0
        for i in asked:
            answer = engine.predict(INPUT, f"t{i}", top_k=1)
            wrong += answer.task != f"t{i}" or answer.classes[0] != rights[f"t{i}"]
        return wrong

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(some, range(THREADS)))


def _resident() -> int:
    gc.collect()
    return rss()
