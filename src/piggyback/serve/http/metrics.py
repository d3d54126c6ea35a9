"""Numbers for Prometheus: what the engine counted, read when they are asked for, and what HTTP counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from piggyback.serve.http.service import Service
from piggyback.serve.stats import Histogram, Stats

KIND = "text/plain; version=0.0.4; charset=utf-8"

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "none"})


class HttpCounts:
    """Requests by route, method and status; labels come from small fixed sets only."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, str]] = Counter()

    def add(self, route: str, method: str, status: int) -> None:
        """Count a request; status 0: the client was gone before it ended."""
        known = method if method in _METHODS else "other"
        self.requests[route, known, str(status or 499)] += 1


class ServiceCollector(Collector):
    """Turns the engine's snapshot into metrics; nothing is counted twice."""

    def __init__(self, service: Service, counts: HttpCounts) -> None:
        self._service = service
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """Return every metric as it is now."""
        requests = CounterMetricFamily(
            "piggyback_http_requests",
            "HTTP requests; status 499: the client went away.",
            labels=("route", "method", "status"),
        )
        for labels, number in dict(self._counts.requests).items():
            requests.add_metric(labels, number)
        yield requests
        yield _gauge(
            "piggyback_http_in_flight", "HTTP requests being answered.", self._service.in_flight
        )
        yield _gauge(
            "piggyback_ready", "1 while the engine answers.", self._service.status == "ready"
        )
        engine = self._service.counted
        if engine is not None:
            yield from engine_metrics(engine.stats())


def registry(service: Service, counts: HttpCounts) -> CollectorRegistry:
    """Return a registry of one server's own, apart from the process's."""
    found = CollectorRegistry(auto_describe=False)
    found.register(ServiceCollector(service, counts))
    return found


def exposition(found: CollectorRegistry) -> bytes:
    """Return the metrics as Prometheus reads them."""
    text: bytes = generate_latest(found)
    return text


def engine_metrics(stats: Stats) -> Iterator[Metric]:
    """Return an engine's metrics."""
    requests = CounterMetricFamily(
        "piggyback_requests", "Images asked about, by task and outcome.", labels=("task", "outcome")
    )
    for labels, number in stats.requests.items():
        requests.add_metric(labels, number)
    yield requests
    latency = HistogramMetricFamily(
        "piggyback_latency_seconds", "From the call to the answer, by task.", labels=("task",)
    )
    for task, histogram in stats.latency.items():
        latency.add_metric((task,), _buckets(histogram), histogram.total)
    yield latency
    sizes = HistogramMetricFamily("piggyback_batch_images", "Images answered together.")
    sizes.add_metric((), _buckets(stats.batch_sizes), stats.batch_sizes.total)
    yield sizes
    yield _counter("piggyback_switches", "Batches for which a task was made live.", stats.switches)
    yield _counters(
        "piggyback_batches", "Batches by where their task was.", "tier", stats.hits.items()
    )
    yield _counter("piggyback_loads", "Task files read.", stats.loads)
    yield _counter("piggyback_load_seconds", "Time spent reading them.", stats.load_seconds)
    yield _counter(
        "piggyback_load_failures", "Task files that could not be read.", stats.load_failures
    )
    yield _counters("piggyback_evictions", "Put out of memory.", "tier", stats.evictions.items())
    held = GaugeMetricFamily(
        "piggyback_memory_bytes", "Bytes in memory for tasks.", labels=("tier",)
    )
    for tier, number in stats.bytes.items():
        held.add_metric((tier,), number)
    yield held
    yield _gauge("piggyback_memory_budget_bytes", "The most they may be.", stats.budget)
    tasks = GaugeMetricFamily("piggyback_tasks", "Tasks by where they are.", labels=("tier",))
    for place, number in stats.tasks.items():
        tasks.add_metric((place,), number)
    yield tasks
    yield _gauge("piggyback_queue_depth", "Images that wait.", stats.queue_depth)
    yield _gauge("piggyback_queue_limit", "The most that may.", stats.queue_limit)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [*(f"{bound:g}" for bound in histogram.bounds), "+Inf"]
    return list(zip(bounds, map(float, histogram.counts), strict=True))


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(name, what, value=value)


def _counter(name: str, what: str, value: float) -> Metric:
    return CounterMetricFamily(name, what, value=value)


def _counters(name: str, what: str, label: str, values: Iterable[tuple[str, int]]) -> Metric:
    family = CounterMetricFamily(name, what, labels=(label,))
    for key, number in values:
        family.add_metric((key,), number)
    return family
