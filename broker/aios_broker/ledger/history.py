"""Read back what happened: transitions from the ledger, and those still in the journal.

The scheduler moves entries from the journal (Redis) to the ledger (Postgres) all the time, commits
there first and trims here afterwards. So the journal is read first: what is in neither reading
does not exist yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from aios_broker.ledger.archive import Archive
from aios_broker.ledger.journal import Position, metadata_of, read_entry
from aios_broker.ledger.wanted import UNKNOWN, Happening, KnownMetadata, Wanted
from aios_broker.postgres.database import Database
from aios_broker.queues.keys import Keys
from aios_broker.queues.records import JobMetadata
from aios_broker.redis.connection import Connection

__all__ = ["UNKNOWN", "Happening", "History", "Wanted", "merged"]

PAGE = 20_000  # entries of one reading that follows

_metadata_decoder = msgspec.json.Decoder(JobMetadata)


class History:
    """Reads transitions in their order; for one event loop. Without a database: the journal alone.

    Costs one command to Redis and a few queries per call.
    """

    def __init__(self, redis: Connection, keys: Keys, database: Database | None = None) -> None:
        self._redis = redis
        self._keys = keys
        self._known = KnownMetadata()
        self._archive = Archive(database, keys.prefix, self._known) if database else None

    async def last(self, wanted: Wanted, limit: int) -> list[Happening]:
        """Return the last `limit` transitions that are wanted, oldest first."""
        fresh = await self._in_journal(Position())
        told = await self._archive.last(wanted, limit) if self._archive and limit else []
        found = merged(told, [each for each in fresh if wanted.matches(each)])
        return found[-limit:] if limit else []

    async def after(self, position: Position) -> list[Happening]:
        """Return what came behind a position, oldest first; whole entries, perhaps not all.

        Call it again with the position of the last one to go on.
        """
        fresh = await self._in_journal(position, PAGE)
        if self._archive is None:
            return fresh
        changes, are_all = await self._archive.after(position)
        told = await self._archive.told(changes)
        return merged(told, fresh) if are_all else told

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
            metadata = metadata_of(change)
            if metadata is not None:
                self._known.remember(change.job_id, metadata)
        await self._look_up([each.job_id for each in changes])
        return [Happening(each, self._known.of(each.job_id)) for each in changes]

    async def _look_up(self, job_ids: Sequence[str]) -> None:
        """Learn the metadata of syscalls that were submitted before what was read."""
        wanted = self._known.missing(job_ids)
        asked = (
            self._redis.execute("HGET", self._keys.job(each), "aios_metadata") for each in wanted
        )
        for job_id, data in zip(wanted, await asyncio.gather(*asked), strict=True):
            if data is not None:
                self._known.remember(job_id, _metadata_decoder.decode(data))
        if self._archive is not None:
            await self._archive.look_up(wanted)


def merged(told: Sequence[Happening], fresh: Sequence[Happening]) -> list[Happening]:
    """Return both in order, once each: what was drained between two readings is in both."""
    by_place = {each.place: each for each in (*told, *fresh)}
    return [by_place[place] for place in sorted(by_place)]
