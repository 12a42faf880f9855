"""Counters of a server for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily

BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)  # seconds
OUTCOMES = ("accepted", "rejected", "done", "failed", "cancelled")

Gauges = Mapping[str, tuple[str, float]]  # name -> (help, value)

__all__ = ["CONTENT_TYPE", "Metrics"]


class Metrics:
    """What happened since the server started.

    gauges: what can be measured at this moment, asked at every page.
    """

    def __init__(self, gauges: Callable[[], Gauges] = dict):
        # Of its own: several services in one process count for themselves.
        self._registry = CollectorRegistry()
        disable_created_metrics()
        self._generations = Counter(
            "realcustom_generations", "Generations by what became of them.", ["outcome"], registry=self._registry
        )
        for outcome in OUTCOMES:
            self._generations.labels(outcome)
        self._runs = Histogram(
            "realcustom_run_seconds", "Seconds of one run of the engine.", buckets=BUCKETS, registry=self._registry
        )
        self._gauges = gauges
        self._registry.register(self)

    def count(self, outcome: str) -> None:
        """One more generation was accepted, rejected, done, failed or cancelled."""
        self._generations.labels(outcome).inc()

    def observe(self, seconds: float) -> None:
        """One run of the engine took `seconds`."""
        self._runs.observe(seconds)

    def text(self) -> str:
        """The page that Prometheus reads."""
        return generate_latest(self._registry).decode()

    def describe(self) -> list[GaugeMetricFamily]:
        """Prometheus asks this at registration, when nothing can be measured yet."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges of this moment."""
        for name, (text, value) in self._gauges().items():
            yield GaugeMetricFamily(name, text, value=value)
