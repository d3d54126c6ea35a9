"""Memory of tasks that are held packed, by the process's own account, against their bits, heads and norms."""

from __future__ import annotations

import gc
import os
import time
from dataclasses import dataclass

from benchmarks.measure import Row
from benchmarks.serving_parts import Part
from benchmarks.serving_setup import Bench, apart, engine_of, first_task, folder, inputs, names, rss
from piggyback import Task

AIM = 1.1


@dataclass(frozen=True)
class Held:
    """Bytes."""

    before: int
    """Of the process, with the backbone and one task in a live copy."""
    after: int
    """With all tasks packed."""
    packed: int
    """By the engine's account."""
    dense: int
    """Live copies made meanwhile."""
    tasks: int
    """Of those asked for, how many are in memory."""


def measure(bench: Bench) -> Part:
    """Return one row: how far the process grew when every task was loaded."""
    count = bench.counts()[-1]
    task = first_task(bench)
    bare = bare_bytes(task)
    seen = apart(_load, bench, count)
    grown = seen.after - seen.before - seen.dense
    row = {
        "tasks": count,
        "in memory": seen.tasks,
        "RSS before MiB": round(seen.before / 2**20, 1),
        "RSS after MiB": round(seen.after / 2**20, 1),
        "grown MiB": round(grown / 2**20, 1),
        "engine's account MiB": round(seen.packed / 2**20, 1),
        "bits + heads + norms MiB": round(count * bare / 2**20, 1),
        "bytes a task": round(grown / (count - 1)),
    }
    ours, theirs = grown / 2**20, (count - 1) * bare / 2**20
    check = Row(f"{count} tasks packed", ours / theirs, AIM, ours, theirs, "MiB")
    about = (
        f"N = {task.weights} masked weights: {task.weights / 8:.0f} bytes of bits a task, and "
        f"{bare - task.weights // 8} bytes of head and norms."
    )
    return Part("packed", [row], [check], about)


def bare_bytes(task: Task) -> int:
    """Return N / 8 and the bytes of a task's head and normalisation."""
    tensors = (*task.head.values(), *task.norm.values())
    return task.weights // 8 + sum(t.numel() * t.element_size() for t in tensors)


def _load(bench: Bench, count: int) -> Held:
    """Load every task without running it: a withdrawn request has its task loaded all the same."""
    source = folder(bench, count)
    start = bench.work / f"{source.name}-growing"
    start.mkdir(exist_ok=True)
    first, *others = names(count)
    for file in start.iterdir():
        file.unlink()
    os.link(source / f"{first}.safetensors", start / f"{first}.safetensors")
    with engine_of(bench, start, 8 * 2**30, workers=1) as engine:
        x = inputs(bench, engine.task(first).image_size or bench.size)[0]
        for _ in range(20):
            engine.predict(x, first)
        gc.collect()
        before, dense = rss(), engine.stats().bytes["dense"]
        for name in others:
            os.link(source / f"{name}.safetensors", start / f"{name}.safetensors")
        engine.rescan()
        for name in others:
            future = engine.submit(x, name)
            if not future.cancel():
                future.result(60)
            while engine.task(name).tier == "disk":
                time.sleep(0.002)
        gc.collect()
        stats = engine.stats()
        return Held(
            before,
            rss(),
            stats.bytes["packed"],
            stats.bytes["dense"] - dense,
            stats.tasks["packed"] + stats.tasks["dense"],
        )
