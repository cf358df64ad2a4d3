"""What this process of the API has served, in Prometheus' terms.

Labels are routes as the table of routes has them, methods and statuses: nothing that a client sends
makes a series of its own.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

# Until an answer begins. A wait for a syscall is one, too: hence the long ones.
BOUNDS_S = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)
NO_ROUTE = "none"  # the route of a request that no route takes
CUT_OFF = 499  # the status of a request whose client left, or that was cut off, without an answer


@dataclass(slots=True)
class Served:
    """One request, as long as it is open."""

    status: int = CUT_OFF
    begun_after_s: float | None = None  # None: its answer has not begun
    _since_s: float = field(default_factory=time.monotonic)

    def begin(self, status: int) -> None:
        """Note that its answer begins."""
        self.status = status
        self.begun_after_s = time.monotonic() - self._since_s


@dataclass(slots=True)
class _Times:
    """How long the answers of one route took to begin."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds


class ApiStats:
    """Counted since the process began. Read from another thread, which changes nothing."""

    def __init__(self) -> None:
        self._ended: Counter[tuple[str, str, int]] = Counter()  # by method, route and status
        self._times: dict[str, _Times] = {}  # by route
        self._open: Counter[str] = Counter()  # by route

    @contextmanager
    def request(self, method: str, route: str) -> Iterator[Served]:
        """Count a request, which is open for the length of a block."""
        served = Served()
        self._open[route] += 1
        try:
            yield served
        finally:
            self._open[route] -= 1
            self._ended[method, route, served.status] += 1
            if served.begun_after_s is not None:
                self._times.setdefault(route, _Times()).add(served.begun_after_s)

    def unrouted(self, status: int) -> None:
        """Count a request that no route takes."""
        self._ended["", NO_ROUTE, status] += 1

    def metrics(self) -> Iterable[Metric]:
        """Yield what was counted."""
        ended = CounterMetricFamily(
            "aios_api_requests",
            "Requests that ended; status 499: without an answer.",
            labels=["method", "route", "status"],
        )
        for (method, route, status), count in sorted(self._ended.copy().items()):
            ended.add_metric([method, route, str(status)], count)
        yield ended
        yield from self._open_requests()
        yield from self._seconds()

    def _open_requests(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(
            "aios_api_open_requests",
            "Requests that are open; a stream is one for as long as it lasts.",
            labels=["route"],
        )
        for route, count in sorted(self._open.copy().items()):
            family.add_metric([route], count)
        yield family

    def _seconds(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(
            "aios_api_answer_seconds", "Time until an answer began.", labels=["route"]
        )
        for route, times in sorted(self._times.copy().items()):
            total, buckets = 0, list[tuple[str, float]]()
            bounds = (*map(str, BOUNDS_S), "+Inf")
            for bound, count in zip(bounds, times.counts, strict=True):
                total += count
                buckets.append((bound, total))
            family.add_metric([route], buckets, times.sum_s)
        yield family
