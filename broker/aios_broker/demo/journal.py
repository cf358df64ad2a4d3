"""The kernel's journal as the demo reads it: events in order, and the slices they make."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aios_broker.queues.connection import Connection
from aios_broker.queues.keys import Keys

BATCH = 10_000  # entries of one read
_ENDS_SLICE = frozenset({"yield", "hold", "finish", "fail", "cancel", "reclaim"})


@dataclass(frozen=True, slots=True)
class JournalEvent:
    """One transition. `at_s`: seconds since 1970, by Redis' clock."""

    at_s: float
    event: str
    job_id: str
    worker: str


@dataclass(frozen=True, slots=True)
class Slice:
    """One stretch for which a worker held a job. `lane` counts a worker's slots from 0."""

    job_id: str
    worker: str
    lane: int
    start_s: float
    end_s: float
    ended_by: str


class JournalReader:
    """Reads the journal on from the moment that it was made."""

    def __init__(self, connection: Connection, keys: Keys) -> None:
        self._connection = connection
        self._key = keys.journal
        self._last = ""

    async def skip(self) -> None:
        """Leave out everything that is there now."""
        entries = await self._connection.execute("XREVRANGE", self._key, "+", "-", "COUNT", 1)
        self._last = entries[0][0].decode() if entries else "0-0"

    async def read(self) -> list[JournalEvent]:
        """Return what came since the last call."""
        if not self._last:
            await self.skip()
        events: list[JournalEvent] = []
        while True:
            entries = await self._connection.execute(
                "XRANGE", self._key, f"({self._last}", "+", "COUNT", BATCH
            )
            for entry_id, fields in entries:
                self._last = entry_id.decode()
                events += _events(self._last, fields)
            if len(entries) < BATCH:
                return events


def slices_of(events: Iterable[JournalEvent]) -> list[Slice]:
    """Return the slices that the events make, in the order in which they ended."""
    running: dict[str, tuple[str, int, float]] = {}
    found: list[Slice] = []
    for event in events:
        if event.event in _ENDS_SLICE and event.job_id in running:
            worker, lane, start_s = running.pop(event.job_id)
            found.append(Slice(event.job_id, worker, lane, start_s, event.at_s, event.event))
        elif event.event == "claim":
            taken = {lane for worker, lane, _ in running.values() if worker == event.worker}
            lane = next(lane for lane in range(len(taken) + 1) if lane not in taken)
            running[event.job_id] = (event.worker, lane, event.at_s)
    return found


def _events(entry_id: str, fields: list[bytes]) -> list[JournalEvent]:
    """Read one entry: `q` is the module, `t` a transition per line, tabs between its parts."""
    at_s = int(entry_id.partition("-")[0]) / 1000
    named = {fields[i]: fields[i + 1] for i in range(0, len(fields), 2)}
    events = []
    for line in named.get(b"t", b"").decode().split("\n"):
        parts = line.split("\t")
        if len(parts) >= 4:
            event, job_id, _attempt, worker = parts[:4]
            events.append(JournalEvent(at_s, event, job_id, worker))
    return events
