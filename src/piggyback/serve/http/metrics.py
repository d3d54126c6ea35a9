"""Numbers for Prometheus: what the engine counted, read when they are asked for, and what HTTP counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from piggyback.names import plain
from piggyback.serve.http.service import Service
from piggyback.serve.stats import Histogram, Stats

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


class Metrics(Collector):
    """Counts requests, and turns them and the engine's snapshot into metrics; nothing is counted twice."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self.registry = CollectorRegistry(auto_describe=False)
        """Of this one server, apart from the process's."""
        self.registry.register(self)

    def count(self, route: str, method: str, status: int) -> None:
        """Count a request, by labels from small fixed sets; status 0: the client was gone before it ended."""
        known = method if method in _METHODS else "other"
        self._requests[route, known, str(status or 499)] += 1

    def collect(self) -> Iterator[Metric]:
        """Return every metric as it is now."""
        service, requests = self._service, dict(self._requests)
        labels = ("route", "method", "status")
        yield _counter(
            "http_requests", "HTTP requests; 499: the client went away.", requests, labels
        )
        yield _gauge("http_in_flight", "HTTP requests being answered.", service.in_flight)
        yield _gauge("ready", "1 while the engine answers.", service.status == "ready")
        if service.started is not None:
            there = service.started.problem is None
            yield _gauge("tasks_reachable", "1 while the tasks' folder can be listed.", there)
            yield from _engine_metrics(service.started.stats())


def _engine_metrics(stats: Stats) -> Iterator[Metric]:
    tier = ("tier",)
    by_task = ("task", "outcome")
    yield _counter("requests", "Images asked about, by task and outcome.", stats.requests, by_task)
    yield _by_task("latency_seconds", "From the call to the answer, by task.", stats.latency)
    named = {(task, plain(name)): n for (task, name), n in stats.answers.items()}
    what = "Answers by their likeliest class; beyond 2000 classes of all tasks: (others)."
    yield _counter("answers", what, named, ("task", "class"))
    what = "Probability of the likeliest class, by task."
    yield _by_task("top_probability", what, stats.chances)
    what = "Task files added, replaced, removed, refused."
    yield _counter("task_files", what, stats.files, ("change",))
    sizes = HistogramMetricFamily("piggyback_batch_images", "Images answered together.")
    sizes.add_metric((), _buckets(stats.batch_sizes), stats.batch_sizes.total)
    yield sizes
    yield _counter("switches", "Batches for which a task was made live.", stats.switches)
    yield _counter("batches", "Batches by where their task was.", stats.hits, tier)
    yield _counter("loads", "Task files read.", stats.loads)
    yield _counter("load_seconds", "Time spent reading them.", stats.load_seconds)
    yield _counter("load_failures", "Task files that could not be read.", stats.load_failures)
    yield _counter("evictions", "Evictions from memory.", stats.evictions, tier)
    yield _gauge("memory_bytes", "Bytes in memory for tasks.", stats.bytes, tier)
    yield _gauge("memory_budget_bytes", "The most they may be.", stats.budget)
    yield _gauge("tasks", "Tasks by where they are.", stats.tasks, tier)
    yield _gauge("queue_depth", "Queued images.", stats.queue_depth)
    yield _gauge("queue_limit", "The most that may.", stats.queue_limit)


def _by_task(name: str, what: str, found: Mapping[str, Histogram]) -> Metric:
    family = HistogramMetricFamily(f"piggyback_{name}", what, labels=("task",))
    for task, histogram in found.items():
        family.add_metric((task,), _buckets(histogram), histogram.total)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [*(f"{bound:g}" for bound in histogram.bounds), "+Inf"]
    return list(zip(bounds, map(float, histogram.counts), strict=True))


def _counter(name: str, what: str, value: Any, labels: Sequence[str] = ()) -> Metric:
    return _filled(CounterMetricFamily(f"piggyback_{name}", what, labels=labels), value)


def _gauge(name: str, what: str, value: Any, labels: Sequence[str] = ()) -> Metric:
    return _filled(GaugeMetricFamily(f"piggyback_{name}", what, labels=labels), value)


def _filled(family: Any, value: Any) -> Metric:
    """A family with one number, or with one for each key of a mapping: a label's value, or a tuple of them."""
    values = value if isinstance(value, Mapping) else {(): value}
    for key, number in values.items():
        family.add_metric((key,) if isinstance(key, str) else key, float(number))
    found: Metric = family
    return found
