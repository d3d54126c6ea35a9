"""Numbers for Prometheus: what the engine counted, read when they are asked for, and what HTTP counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
        service = self._service
        yield _counters(
            "piggyback_http_requests",
            "HTTP requests; status 499: the client went away.",
            ("route", "method", "status"),
            dict(self._counts.requests),
        )
        in_flight, ready = float(service.in_flight), float(service.status == "ready")
        yield GaugeMetricFamily(
            "piggyback_http_in_flight", "HTTP requests being answered.", value=in_flight
        )
        yield GaugeMetricFamily("piggyback_ready", "1 while the engine answers.", value=ready)
        if service.started is not None:
            yield from engine_metrics(service.started.stats())


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
    yield _counters(
        "piggyback_requests",
        "Images asked about, by task and outcome.",
        ("task", "outcome"),
        stats.requests,
    )
    latency = HistogramMetricFamily(
        "piggyback_latency_seconds", "From the call to the answer, by task.", labels=("task",)
    )
    for task, histogram in stats.latency.items():
        latency.add_metric((task,), _buckets(histogram), histogram.total)
    yield latency
    sizes = HistogramMetricFamily("piggyback_batch_images", "Images answered together.")
    sizes.add_metric((), _buckets(stats.batch_sizes), stats.batch_sizes.total)
    yield sizes
    for name, what, number in (
        ("piggyback_switches", "Batches for which a task was made live.", stats.switches),
        ("piggyback_loads", "Task files read.", stats.loads),
        ("piggyback_load_seconds", "Time spent reading them.", stats.load_seconds),
        ("piggyback_load_failures", "Task files that could not be read.", stats.load_failures),
    ):
        yield CounterMetricFamily(name, what, value=number)
    tier = ("tier",)
    yield _counters("piggyback_batches", "Batches by where their task was.", tier, stats.hits)
    yield _counters("piggyback_evictions", "Put out of memory.", tier, stats.evictions)
    yield _gauges("piggyback_memory_bytes", "Bytes in memory for tasks.", stats.bytes)
    yield _gauges("piggyback_tasks", "Tasks by where they are.", stats.tasks)
    for name, what, number in (
        ("piggyback_memory_budget_bytes", "The most they may be.", stats.budget),
        ("piggyback_queue_depth", "Images that wait.", stats.queue_depth),
        ("piggyback_queue_limit", "The most that may.", stats.queue_limit),
    ):
        yield GaugeMetricFamily(name, what, value=number)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [*(f"{bound:g}" for bound in histogram.bounds), "+Inf"]
    return list(zip(bounds, map(float, histogram.counts), strict=True))


def _counters(
    name: str, what: str, labels: Sequence[str], counts: Mapping[Any, float]
) -> CounterMetricFamily:
    """A counter for each key of ``counts``: a label's value, or a tuple of them."""
    family = CounterMetricFamily(name, what, labels=labels)
    for key, number in counts.items():
        family.add_metric((key,) if isinstance(key, str) else key, number)
    return family


def _gauges(name: str, what: str, by_tier: Mapping[Any, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, what, labels=("tier",))
    for tier, number in by_tier.items():
        family.add_metric((tier,), number)
    return family
