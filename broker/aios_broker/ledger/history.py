"""Read back what happened: transitions from the ledger, and those still in the journal.

The scheduler moves entries from the journal (Redis) to the ledger (Postgres) all the time, commits
there first and trims here afterwards. So the journal is read first: what is in neither reading
does not exist yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from aios_broker.ledger.database import Database
from aios_broker.ledger.journal import Position, Transition, facts_of, read_entry
from aios_broker.queues.connection import Connection
from aios_broker.queues.keys import Keys
from aios_broker.queues.records import Facts

UNKNOWN = Facts(agent="?", kind="?")
PAGE = 20_000  # transitions of one reading; an entry has fewer by far
MAX_CACHED = 100_000  # facts of syscalls that one reading remembers

_facts_decoder = msgspec.json.Decoder(Facts)
_COLUMNS = (
    "t.stream_ms, t.stream_seq, t.ordinal, t.module, t.event, t.job_id, t.attempt, t.who,"
    " t.detail, t.at, t.anomaly, s.agent, s.kind, s.program, s.tenant"
)
_FROM = "FROM transition t LEFT JOIN syscall s USING (job_id) WHERE t.source = %(source)s"
_WANTED = (
    " AND (%(job_id)s::text IS NULL OR starts_with(t.job_id, %(job_id)s))"
    " AND (%(agent)s::text IS NULL OR s.agent = %(agent)s)"
    " AND (%(program)s::text IS NULL OR s.program = %(program)s)"
    " AND (%(tenant)s::text IS NULL OR s.tenant = %(tenant)s)"
    " AND (%(module)s::text IS NULL OR t.module = %(module)s)"
    " AND (%(event)s::text IS NULL OR t.event = %(event)s)"
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which transitions are asked for; None: any."""

    job_id: str | None = None  # or the first digits of one
    agent: str | None = None
    program: str | None = None
    tenant: str | None = None
    module: str | None = None
    event: str | None = None

    def matches(self, seen: Happening) -> bool:
        """Whether a transition is among them."""
        change, facts = seen.transition, seen.facts
        return (
            change.job_id.startswith(self.job_id or "")
            and self.agent in (None, facts.agent)
            and self.program in (None, facts.program)
            and self.tenant in (None, facts.tenant)
            and self.module in (None, change.module)
            and self.event in (None, change.event)
        )


@dataclass(frozen=True, slots=True)
class Happening:
    """A transition, and what is known of its syscall."""

    transition: Transition
    facts: Facts


class History:
    """Reads transitions in their order; for one event loop. Without a database: the journal alone.

    Costs one command to Redis and one query per call.
    """

    def __init__(self, redis: Connection, keys: Keys, database: Database | None = None) -> None:
        self._redis = redis
        self._keys = keys
        self._database = database
        self._facts: dict[str, Facts] = {}

    async def last(self, wanted: Wanted, limit: int) -> list[Happening]:
        """Return the last `limit` transitions that are wanted, oldest first."""
        fresh = await self._in_journal(Position())
        told = await self._in_ledger(wanted, Position(), limit, newest=True)
        found = merged(told, [each for each in fresh if wanted.matches(each)])
        return found[-limit:]

    async def after(self, position: Position) -> list[Happening]:
        """Return what came behind a position, oldest first; whole entries, perhaps not all.

        Call it again with the position of the last one to go on.
        """
        fresh = await self._in_journal(position, PAGE)
        told = await self._in_ledger(Wanted(), position, PAGE, newest=False)
        if len(told) == PAGE:  # there may be more of them: of the last entry, and behind it
            last = told[-1].transition.position
            return [each for each in told if each.transition.position < last]
        return merged(told, fresh)

    async def end(self) -> Position:
        """Return the position of the newest transition."""
        newest = await self.last(Wanted(), 1)
        return newest[-1].transition.position if newest else Position()

    async def _in_journal(self, behind: Position, limit: int = 100_000) -> list[Happening]:
        entries = await self._redis.execute(
            "XRANGE", self._keys.journal, f"({behind}", "+", "COUNT", limit
        )
        changes = [change for entry in entries for change in read_entry(entry)]
        for change in changes:
            facts = facts_of(change)
            if facts is not None:
                self._remember(change.job_id, facts)
        await self._look_up([each.job_id for each in changes if each.job_id not in self._facts])
        return [Happening(each, self._facts.get(each.job_id, UNKNOWN)) for each in changes]

    async def _look_up(self, job_ids: Sequence[str]) -> None:
        """Learn the facts of syscalls that were submitted before what was read."""
        wanted = list(dict.fromkeys(job_ids))
        asked = (self._redis.execute("HGET", self._keys.job(each), "aios_facts") for each in wanted)
        for job_id, data in zip(wanted, await asyncio.gather(*asked), strict=True):
            if data is not None:
                self._remember(job_id, _facts_decoder.decode(data))
        missing = [job_id for job_id in wanted if job_id not in self._facts]
        if self._database is None or not missing:
            return
        async with self._database.transaction() as cursor:
            await cursor.execute(
                "SELECT job_id, agent, kind, program, tenant FROM syscall WHERE job_id = ANY(%s)",
                [missing],
            )
            for job_id, *facts in await cursor.fetchall():
                self._remember(job_id, Facts(*facts))

    async def _in_ledger(
        self, wanted: Wanted, behind: Position, limit: int, *, newest: bool
    ) -> list[Happening]:
        if self._database is None:
            return []
        order = "DESC" if newest else "ASC"
        query = (
            f"SELECT {_COLUMNS} {_FROM} AND (t.stream_ms, t.stream_seq) > (%(ms)s, %(seq)s)"
            f"{_WANTED} ORDER BY t.stream_ms {order}, t.stream_seq {order}, t.ordinal {order}"
            " LIMIT %(limit)s"
        )
        values = {"source": self._keys.prefix, "ms": behind.ms, "seq": behind.seq, "limit": limit}
        values |= {name: getattr(wanted, name) for name in Wanted.__slots__}
        async with self._database.transaction() as cursor:
            await cursor.execute(query.encode(), values)
            rows = await cursor.fetchall()
        found = [
            Happening(
                Transition(Position(row[0], row[1]), *row[2:11]),
                Facts(*row[11:]) if row[11] is not None else UNKNOWN,
            )
            for row in rows
        ]
        return found[::-1] if newest else found

    def _remember(self, job_id: str, facts: Facts) -> None:
        if len(self._facts) >= MAX_CACHED:
            self._facts.clear()
        self._facts[job_id] = facts


def merged(told: Sequence[Happening], fresh: Sequence[Happening]) -> list[Happening]:
    """Return both in order, once each: what was drained between two readings is in both."""
    by_place = {_place(each): each for each in (*told, *fresh)}
    return [by_place[place] for place in sorted(by_place)]


def _place(seen: Happening) -> tuple[Position, int]:
    return seen.transition.position, seen.transition.ordinal
