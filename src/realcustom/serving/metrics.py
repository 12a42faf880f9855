"""Counters of a server in Prometheus' text format."""

from __future__ import annotations

import threading
from collections.abc import Mapping

BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)  # seconds
OUTCOMES = ("accepted", "rejected", "done", "failed", "cancelled")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What happened since the server started."""

    def __init__(self):
        self._lock = threading.Lock()
        self._outcomes = dict.fromkeys(OUTCOMES, 0)
        self._buckets = [0] * len(BUCKETS)
        self._seconds = 0.0
        self._runs = 0
        self._made = 0

    def count(self, outcome: str) -> None:
        """One more generation was accepted, rejected, done, failed or cancelled."""
        with self._lock:
            self._outcomes[outcome] = self._outcomes.get(outcome, 0) + 1

    def observe(self, seconds: float, made: int) -> None:
        """One run of the engine took `seconds` and finished `made` generations."""
        with self._lock:
            self._runs += 1
            self._made += made
            self._seconds += seconds
            for index, bound in enumerate(BUCKETS):
                self._buckets[index] += seconds <= bound

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """The page that Prometheus reads; `gauges` are name -> (help, value) of this moment."""
        with self._lock:
            lines = _head("realcustom_generations_total", "counter", "Generations by what became of them.")
            lines += [f'realcustom_generations_total{{outcome="{k}"}} {n}' for k, n in self._outcomes.items()]
            lines += _head("realcustom_run_seconds", "histogram", "Seconds of one run of the engine.")
            pairs = zip(BUCKETS, self._buckets, strict=True)
            lines += [f'realcustom_run_seconds_bucket{{le="{bound:g}"}} {count}' for bound, count in pairs]
            lines.append(f'realcustom_run_seconds_bucket{{le="+Inf"}} {self._runs}')
            lines += [f"realcustom_run_seconds_sum {self._seconds:.6f}", f"realcustom_run_seconds_count {self._runs}"]
        for name, (text, value) in gauges.items():
            lines += [*_head(name, "gauge", text), f"{name} {value:g}"]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
