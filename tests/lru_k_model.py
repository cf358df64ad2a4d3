"""LRU-K as O'Neil, O'Neil and Weikum (1993) define it, in plain Python: what the block must equal.

Slow and obvious on purpose: every question is answered by looking at all notes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

RETAIN_US = 3_600_000_000
MAX_RETAINED = 4096


@dataclass
class Page:
    """What is known of one note: its references, and its content while it is resident."""

    last_us: int
    hist_us: list[int]  # the latest uncorrelated references, newest first, at most K
    version: int = 0
    size_bytes: int = 0


@dataclass
class LruK:
    """A block of notes under LRU-K, without a server and without a time of its own."""

    limit_bytes: int
    k: int
    correlated_us: int
    high: float
    low: float
    resident: dict[str, Page] = field(default_factory=dict)
    retained: dict[str, Page] = field(default_factory=dict)
    hits: int = 0
    faults: int = 0
    swaps: int = 0

    @property
    def used_bytes(self) -> int:
        return sum(page.size_bytes for page in self.resident.values())

    def read(self, name: str, now_us: int) -> int | None:
        """Return the version of a resident note; None: a miss."""
        page = self.resident.get(name)
        if page is None:
            return None
        self._refer(page, now_us, resident=True)
        self.hits += 1
        return page.version

    def touch(self, names: list[str], now_us: int) -> int:
        """Refer to those that are resident."""
        found = [self.resident[name] for name in names if name in self.resident]
        for page in found:
            self._refer(page, now_us, resident=True)
        return len(found)

    def put(self, name: str, version: int, size_bytes: int, now_us: int, *, fault: bool) -> str:
        """Take a note in, or say why not."""
        page = self.resident.get(name)
        before_bytes = page.size_bytes if page else 0
        if self.used_bytes - before_bytes + size_bytes > self.limit_bytes:
            return "full"
        if page is None:
            page = self._taken_back(name, now_us)
        else:
            self._refer(page, now_us, resident=True)
        page.version, page.size_bytes = version, size_bytes
        self.resident[name] = page
        self.faults += fault
        return "over" if self.used_bytes > self.high * self.limit_bytes else "ok"

    def invalidate(self, names: list[str], now_us: int, *, forget: bool) -> None:
        """Take notes out that change."""
        for name in names:
            page = self.resident.pop(name, None)
            if page is not None:
                self._retain(name, page, now_us)
            if forget:
                self.retained.pop(name, None)

    def victims(self, now_us: int, *, goes_on: bool) -> list[str]:
        """Return the notes that leave, first ones first."""
        line = self.low if goes_on else self.high
        if self.used_bytes <= line * self.limit_bytes:
            return []
        surplus = self.used_bytes - self.low * self.limit_bytes
        found = []
        for name in sorted(self.resident, key=lambda name: self._leaves(name, now_us)):
            if surplus <= 0:
                break
            surplus -= self.resident[name].size_bytes
            found.append(name)
        return found

    def free(self, names: list[str], now_us: int) -> None:
        """Take out those that were named."""
        for name in names:
            page = self.resident.pop(name, None)
            if page is not None:
                self._retain(name, page, now_us)
                self.swaps += 1

    def _leaves(self, name: str, now_us: int) -> tuple[int, int, str]:
        """Return the sort key: infinite distance, then the greatest, then what was just used."""
        page = self.resident[name]
        if now_us - page.last_us <= self.correlated_us:
            return (2, page.last_us, name)
        if len(page.hist_us) < self.k:
            return (0, page.last_us, name)
        return (1, page.hist_us[self.k - 1], name)

    def _refer(self, page: Page, now_us: int, *, resident: bool) -> None:
        now_us = max(now_us, page.last_us)
        if now_us - page.last_us > self.correlated_us:
            period_us = page.last_us - page.hist_us[0] if resident else 0
            older = [moment + period_us for moment in page.hist_us]
            page.hist_us = [now_us, *older][: self.k]
        page.last_us = now_us

    def _taken_back(self, name: str, now_us: int) -> Page:
        page = self.retained.pop(name, None)
        if page is None or now_us - page.last_us > RETAIN_US:
            return Page(now_us, [now_us])
        self._refer(page, now_us, resident=False)
        return page

    def _retain(self, name: str, page: Page, now_us: int) -> None:
        self.retained[name] = page
        self.retained = {
            key: kept for key, kept in self.retained.items() if now_us - kept.last_us <= RETAIN_US
        }
        while len(self.retained) > MAX_RETAINED:
            del self.retained[min(self.retained, key=lambda key: (self.retained[key].last_us, key))]
