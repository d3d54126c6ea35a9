"""Many replicas' reports as one engine's: where a task is best, and how much was done in all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from piggyback.schemas import TaskStatus, Tier
from piggyback.serve.stats import Histogram, Stats

K = TypeVar("K")

BEST: tuple[Tier, ...] = ("dense", "packed", "disk")


def merge_tasks(replicas: Iterable[Sequence[TaskStatus]]) -> dict[str, TaskStatus]:
    """Return each task once, by name: in the tier where it is answered soonest, its bytes of all replicas.

    >>> from piggyback.schemas import TaskStatus
    >>> said = dict(name="a", version="v", kind="classification", classes=(), file_bytes=9, image_size=None)
    >>> disk = TaskStatus(**said, memory_bytes=0, tier="disk")
    >>> dense = TaskStatus(**said, memory_bytes=5, tier="dense")
    >>> merged = merge_tasks([[disk], [dense]])["a"]
    >>> merged.tier, merged.memory_bytes
    ('dense', 5)
    """
    found: dict[str, TaskStatus] = {}
    for status in (status for tasks in replicas for status in tasks):
        held = found.setdefault(status.name, status)
        if held is not status:
            best = min(held, status, key=lambda s: BEST.index(s.tier))
            found[status.name] = best.model_copy(
                update={"memory_bytes": held.memory_bytes + status.memory_bytes}
            )
    return dict(sorted(found.items()))


def merge_stats(all_stats: Sequence[Stats], tasks: Iterable[TaskStatus]) -> Stats:
    """Return the sums over replicas, one or more; ``tasks`` are the merged ones, each counted once."""
    tiers: dict[Tier, int] = dict.fromkeys(BEST, 0)
    for status in tasks:
        tiers[status.tier] += 1
    names = {name for stats in all_stats for name in stats.latency}
    return Stats(
        requests=_sum(stats.requests for stats in all_stats),
        latency={
            name: add([stats.latency[name] for stats in all_stats if name in stats.latency])
            for name in sorted(names)
        },
        batch_sizes=add([stats.batch_sizes for stats in all_stats]),
        switches=sum(stats.switches for stats in all_stats),
        hits=_sum(stats.hits for stats in all_stats),
        loads=sum(stats.loads for stats in all_stats),
        load_seconds=sum(stats.load_seconds for stats in all_stats),
        load_failures=sum(stats.load_failures for stats in all_stats),
        evictions=_sum(stats.evictions for stats in all_stats),
        bytes=_sum(stats.bytes for stats in all_stats),
        budget=sum(stats.budget for stats in all_stats),
        tasks=tiers,
        queue_depth=sum(stats.queue_depth for stats in all_stats),
        queue_limit=sum(stats.queue_limit for stats in all_stats),
    )


def past(stats: Stats) -> Stats:
    """Return what a replica that is gone did: its counts stay, what it held is no more.

    Counters that fell when a replica goes would look like a restart to whoever reads them.
    """
    return replace(stats, bytes={}, budget=0, tasks={}, queue_depth=0, queue_limit=0)


def add(histograms: Sequence[Histogram]) -> Histogram:
    """Return the histogram of all values; all have the same bounds.

    >>> add([Histogram((1.0,), (1, 2), 4.0), Histogram((1.0,), (0, 1), 2.0)])
    Histogram(bounds=(1.0,), counts=(1, 3), total=6.0)
    """
    columns = zip(*(h.counts for h in histograms), strict=True)
    total = sum(h.total for h in histograms)
    return Histogram(histograms[0].bounds, tuple(map(sum, columns)), total)


def _sum(maps: Iterable[Mapping[K, int]]) -> dict[K, int]:
    total: Counter[K] = Counter()
    for one in maps:
        total.update(one)
    return dict(total)
