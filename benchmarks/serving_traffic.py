"""Traffic: who is asked when, in a stated order, and what was seen of the answers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving_setup import Bench, rss, say
from piggyback.errors import OverloadError
from piggyback.serve.engine import Engine

Kind = Literal["uniform", "zipf"]
KINDS: tuple[Kind, ...] = ("uniform", "zipf")
Case = TypeVar("Case")
LAST_S = 60.0
"""For which answers are waited after a measurement."""


class Side(Protocol):
    """Something that answers, and counts what it does."""

    def submit(self, image: Any, task: str) -> Future[Any]:
        """Queue an image; raises OverloadError."""

    def counts(self) -> dict[str, float]:
        """Return running totals: batches, images, switches, and batches by tier; and bytes as they are."""


class EngineSide:
    """The engine, asked with inputs that are ready; with ``loop``, from an event loop, which prepares images."""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._engine, self._loop = engine, loop

    def submit(self, image: Any, task: str) -> Future[Any]:
        """Queue an image; raises OverloadError."""
        if self._loop is None:
            return self._engine.submit(image, task)
        return asyncio.run_coroutine_threadsafe(self._engine.predict_async(image, task), self._loop)

    def counts(self) -> dict[str, float]:
        """Return the engine's own counts."""
        stats = self._engine.stats()
        return {
            "batches": stats.batch_sizes.counts[-1],
            "images": stats.batch_sizes.total,
            "switches": stats.switches,
            **{tier: stats.hits.get(tier, 0) for tier in ("dense", "packed", "disk")},
            "loads": stats.loads,
            "dense_bytes": stats.bytes["dense"],
            "packed_bytes": stats.bytes["packed"],
        }


@dataclass(frozen=True)
class Seen:
    """What was measured in one window."""

    offered: float
    """Requests a second."""
    answered: float
    p50: float
    """Milliseconds from the moment a request was due to its answer."""
    p99: float
    batch: float = 0.0
    """Images a batch."""
    switches: float = 0.0
    """Of 100 batches, how many had to write a task first."""
    tiers: dict[str, float] = field(default_factory=dict)
    """Share of batches by where their task was."""
    refused: int = 0
    errors: int = 0
    rss: float = 0.0
    """MiB of the process."""
    dense: float = 0.0
    """MiB of live copies."""
    packed: float = 0.0
    """MiB of packed tasks."""


def chances(kind: Kind, count: int) -> NDArray[np.float64]:
    """Return how likely each task is to be asked: all alike, or by Zipf's law with exponent 1.

    >>> chances("zipf", 2).tolist()
    [0.6666666666666666, 0.3333333333333333]
    """
    weights = np.ones(count) if kind == "uniform" else 1 / np.arange(1, count + 1)
    return weights / weights.sum()


def arrivals(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Return when requests are due: a Poisson process of ``rate`` a second, for ``seconds``.

    >>> len(arrivals(1000.0, 2.0, seed=0))
    1963
    """
    rng = np.random.default_rng(seed)
    count = int(rate * seconds + 10 * (rate * seconds) ** 0.5 + 10)
    times = np.cumsum(rng.exponential(1 / rate, count))
    return times[times < seconds]


def offer(
    side: Side,
    names: Sequence[str],
    kind: Kind,
    rate: float,
    images: Sequence[Any],
    *,
    seconds: float,
    settle: float,
    seed: int,
    burst: int = 0,
) -> Seen:
    """Return what is seen in ``seconds`` of open-loop traffic, after ``settle`` seconds of the same.

    ``burst`` requests come at the very beginning, to fill a queue that the traffic keeps full. Requests are
    sent when they are due whether or not earlier ones were answered, and a request that could only be sent late
    is counted as late. What still waits at the end is dropped.
    """
    due = np.concatenate([np.zeros(burst), arrivals(rate, settle + seconds, seed)])
    rng = np.random.default_rng(seed + 1)
    tasks = rng.choice(len(names), len(due), p=chances(kind, len(names)))
    ended: list[tuple[float, float, BaseException | None]] = []
    futures: list[Future[Any]] = []
    refused, before = 0, side.counts()
    begun = False
    start = time.perf_counter() + 0.01
    for number, (at, task) in enumerate(zip(due.tolist(), tasks.tolist(), strict=True)):
        if not begun and at >= settle:
            begun, before, refused = True, side.counts(), 0
        rest = start + at - time.perf_counter()
        if rest > 0:
            time.sleep(rest)
        try:
            future = side.submit(images[number % len(images)], names[task])
        except OverloadError:
            refused += 1
            continue
        future.add_done_callback(partial(_ended, ended, start + at))
        futures.append(future)
    rest = start + settle + seconds - time.perf_counter()
    time.sleep(max(0.0, rest))
    after, stop = side.counts(), time.perf_counter()
    took = stop - start - settle
    memory = rss()
    overloaded = rest < -0.5 or sum(not f.done() for f in futures) > 256
    for future in futures if overloaded else ():
        future.cancel()
    wait(futures, LAST_S)
    return _seen(ended, before, after, (start + settle, stop), took, rate, refused, memory)


def rounds(
    bench: Bench,
    cases: Mapping[Case, tuple[Side, Sequence[str], Kind]],
    rate: float,
    images: Sequence[Any],
    burst: int = 0,
) -> dict[Case, list[Seen]]:
    """Return what is seen of each case, a server with the tasks it is asked for, in rounds of turns.

    Every other round goes backwards, so that a machine that is slower for a while is slower for all.
    """
    found: dict[Case, list[Seen]] = {case: [] for case in cases}
    for turn in range(bench.repeats):
        for case in list(cases) if turn % 2 == 0 else list(cases)[::-1]:
            seen = offer(
                *cases[case],
                rate,
                images,
                seconds=bench.seconds,
                settle=bench.settle,
                seed=bench.seed + 10 * turn,
                burst=burst,
            )
            found[case].append(seen)
            say(f"{case}: {seen.answered:.0f}/s of {rate:.0f}/s")
    return found


def closed(
    ask: Any, callers: int, names: Sequence[str], images: Sequence[Any], seconds: float, seed: int
) -> tuple[float, list[float]]:
    """Return answers a second, and milliseconds of each, of ``callers`` threads that ask as soon as they are answered.

    ``ask`` is called with an image and a task's name.
    """
    stop = threading.Event()

    def call(number: int) -> list[float]:
        rng = np.random.default_rng(seed + number)
        order = rng.integers(len(names), size=4096).tolist()
        times: list[float] = []
        while not stop.is_set():
            began = time.perf_counter()
            turn = len(times)
            ask(images[turn % len(images)], names[order[turn % 4096]])
            times.append(1e3 * (time.perf_counter() - began))
        return times

    with ThreadPoolExecutor(callers) as threads:
        start = time.perf_counter()
        calls = [threads.submit(call, i) for i in range(callers)]
        time.sleep(seconds)
        stop.set()
        found = [ms for job in calls for ms in job.result()]
        return len(found) / (time.perf_counter() - start), found


def capacity(side: Side, name: str, images: Sequence[Any], seconds: float) -> float:
    """Return answers a second of one task whose queue is never empty."""
    stop = time.perf_counter() + seconds
    waiting: list[Future[Any]] = []
    answered, start = 0, time.perf_counter()
    while time.perf_counter() < stop:
        while len(waiting) < 512:
            waiting.append(side.submit(images[len(waiting) % len(images)], name))
        wait(waiting[:32], LAST_S)
        left = [f for f in waiting if not f.done()]
        answered += len(waiting) - len(left)
        waiting = left
    took = time.perf_counter() - start
    wait(waiting, LAST_S)
    return answered / took


def middle(parts: Sequence[Seen]) -> Seen:
    """Return the median of each number, of several windows of the same kind."""
    tiers = {key: median(p.tiers.get(key, 0.0) for p in parts) for key in parts[0].tiers}
    numbers = {
        name: median(getattr(p, name) for p in parts)
        for name in Seen.__dataclass_fields__
        if name != "tiers"
    }
    return Seen(**numbers, tiers=tiers)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that ``share`` of ``values`` are at most; NaN where there is none."""
    return float(np.percentile(values, 100 * share)) if len(values) else float("nan")


def _ended(
    ended: list[tuple[float, float, BaseException | None]], due: float, future: Future[Any]
) -> None:
    if not future.cancelled():
        ended.append((due, time.perf_counter(), future.exception()))


def _seen(
    ended: Sequence[tuple[float, float, BaseException | None]],
    before: dict[str, float],
    after: dict[str, float],
    window: tuple[float, float],
    took: float,
    rate: float,
    refused: int,
    memory: int,
) -> Seen:
    inside = [e for e in ended if window[0] <= e[1] < window[1]]
    good = [e for e in inside if e[2] is None]
    late = sum(isinstance(e[2], OverloadError) for e in inside)
    did = {key: after[key] - before[key] for key in after}
    batches = max(1.0, did.get("batches", 0.0))
    latencies = [1e3 * (end - due) for due, end, _ in good]
    return Seen(
        offered=rate,
        answered=len(good) / took,
        p50=percentile(latencies, 0.5),
        p99=percentile(latencies, 0.99),
        batch=did.get("images", 0.0) / batches,
        switches=100 * did.get("switches", 0.0) / batches,
        tiers={t: did[t] / batches for t in ("dense", "packed", "disk") if t in did},
        refused=refused + late,
        errors=len(inside) - len(good) - late,
        rss=memory / 2**20,
        dense=after.get("dense_bytes", 0.0) / 2**20,
        packed=after.get("packed_bytes", 0.0) / 2**20,
    )
