"""What an engine has done, counted as it goes and read as one snapshot."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from itertools import accumulate
from operator import add
from typing import Any, Literal

from piggyback.schemas import RankedClass, Tier

Outcome = Literal["ok", "error", "timeout", "cancelled", "overload"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
CHANCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
MOST_CLASSES = 2000
"""Classes of all tasks together that are counted by name; those that are first answered later share ``OTHERS``."""
OTHERS = "(others)"


@dataclass(frozen=True)
class Histogram:
    """How many values were at most each bound."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    """Cumulative, one a bound, then one of all values."""
    total: float
    """Sum of the values."""

    def __add__(self, other: Histogram) -> Histogram:
        """Return the histogram of the values of both; they have the same bounds.

        >>> Histogram((1.0,), (1, 2), 4.0) + Histogram((1.0,), (0, 1), 2.0)
        Histogram(bounds=(1.0,), counts=(1, 3), total=6.0)
        """
        counts = tuple(map(add, self.counts, other.counts))
        return Histogram(self.bounds, counts, self.total + other.total)


@dataclass(frozen=True)
class Stats:
    """An engine's state and what it did since it started."""

    requests: Mapping[tuple[str, Outcome], int]
    """By task."""
    latency: Mapping[str, Histogram]
    """Seconds from the call to the answer, by task."""
    batch_sizes: Histogram
    switches: int
    """Batches for which a task was written into a live copy."""
    hits: Mapping[Tier, int]
    """Batches, by where their task was."""
    loads: int
    load_seconds: float
    load_failures: int
    evictions: Mapping[Literal["dense", "packed"], int]
    bytes: Mapping[Literal["dense", "packed"], int]
    budget: int
    tasks: Mapping[Tier, int]
    queue_depth: int
    queue_limit: int
    answers: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """By task and its likeliest class."""
    chances: Mapping[str, Histogram] = field(default_factory=dict)
    """The likeliest class's probability, by task."""
    files: Mapping[str, int] = field(default_factory=dict)
    """Task files added, replaced, removed and refused."""

    def __add__(self, other: Stats) -> Stats:
        """Return what two engines did and hold together."""
        names = [one.name for one in fields(self)]
        return Stats(**{n: _sum(getattr(self, n), getattr(other, n)) for n in names})


class Tally:
    """Values sorted into the buckets of a histogram.

    >>> tally = Tally((1, 2))
    >>> tally.add([1, 3])
    >>> tally.histogram()
    Histogram(bounds=(1, 2), counts=(1, 1, 2), total=4)
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total: float = 0

    def add(self, values: Iterable[float]) -> None:
        """Count some values."""
        for value in values:
            self._counts[bisect_left(self._bounds, value)] += 1
            self._total += value

    def histogram(self) -> Histogram:
        """Return what was counted so far."""
        return Histogram(self._bounds, tuple(accumulate(self._counts)), self._total)


class Counts:
    """The running counts; not safe for threads, the engine holds its lock."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, Outcome]] = Counter()
        self.hits: Counter[Tier] = Counter()
        self.batch_sizes = Tally(BATCHES)
        self.switches = self.loads = self.load_failures = 0
        self.load_seconds = 0.0
        self._latency: dict[str, Tally] = {}
        self._answers: Counter[tuple[str, str]] = Counter()
        self._chances: dict[str, Tally] = {}

    def count(
        self, task: str, outcome: Outcome, latencies: Iterable[float] = (), n: int = 1
    ) -> None:
        """Count ``n`` requests that ended so, and how long those with an answer took."""
        self.requests[task, outcome] += n
        self._latency.setdefault(task, Tally(SECONDS)).add(latencies)

    def answered(self, task: str, likeliest: Iterable[RankedClass]) -> None:
        """Count what a task answered: a class that all images get, or probabilities that fall, tell of new images."""
        chances = self._chances.setdefault(task, Tally(CHANCES))
        for one in likeliest:
            key = (task, one.name)
            if key not in self._answers and len(self._answers) >= MOST_CLASSES:
                key = (task, OTHERS)
            self._answers[key] += 1
            chances.add([one.probability])

    def forget(self, task: str) -> None:
        """Stop telling of a task that is no more: what was counted would stay for ever."""
        self._latency.pop(task, None)
        self._chances.pop(task, None)
        for counts in (self.requests, self._answers):
            for key in [key for key in counts if key[0] == task]:
                del counts[key]

    def snapshot(self) -> dict[str, Any]:
        """Return what was counted so far, by the names of ``Stats``."""
        return {
            "requests": dict(self.requests),
            "latency": {task: tally.histogram() for task, tally in self._latency.items()},
            "answers": dict(self._answers),
            "chances": {task: tally.histogram() for task, tally in self._chances.items()},
            "batch_sizes": self.batch_sizes.histogram(),
            "switches": self.switches,
            "hits": dict(self.hits),
            "loads": self.loads,
            "load_seconds": self.load_seconds,
            "load_failures": self.load_failures,
        }


def _sum(one: Any, other: Any) -> Any:
    """Numbers and histograms added, mappings key by key."""
    if not isinstance(one, Mapping):
        return one + other
    both = {key: _sum(one[key], other[key]) for key in one.keys() & other.keys()}
    return {**one, **other, **both}
