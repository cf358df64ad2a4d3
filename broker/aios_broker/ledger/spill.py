"""Snapshots under a byte budget: what Redis has no room for goes to Postgres, oldest first.

A snapshot is stored in Postgres first and then dropped from Redis, if it has not changed: who
dies in between leaves one copy too many, never one too few.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from aios_broker.postgres.database import SERVICE_TIMEOUT_S, Database
from aios_broker.queues.order import Order
from aios_broker.redis.connection import Connection

BATCH_SNAPSHOTS = 64  # per transaction
BATCH_BYTES = 32 * 1024 * 1024
MOVED = b"0"  # the size in Redis of a snapshot that only Postgres holds (spill.lua)


@dataclass(frozen=True, slots=True)
class Spilled:
    """What one spill moved."""

    snapshots: int = 0
    moved_bytes: int = 0
    over_bytes: int = 0  # how far over the budget Redis is now


class Spill:
    """Keeps the snapshots in Redis under their budget."""

    def __init__(self, redis: Connection, database: Database, order: Order) -> None:
        self._redis = redis
        self._database = database
        self._order = order

    async def run(self, epoch: int, budget_bytes: int) -> Spilled:
        """Move the oldest snapshots that are over the budget, at most one batch.

        Costs one command to Redis while there is room.

        Raises:
            DatabaseUnavailable: nothing was moved; Redis keeps them all.
        """
        over_bytes = await self._total() - budget_bytes
        if over_bytes <= 0:
            return Spilled()
        snapshots = await self._oldest(over_bytes)
        if not snapshots:
            return Spilled(over_bytes=over_bytes)
        await self._store(snapshots)
        dropped = await self._order.spill(
            epoch,
            [
                (job_id, hashlib.sha1(data, usedforsecurity=False).hexdigest())
                for job_id, data in snapshots
            ],
        )
        kept = [job_id for (job_id, _), gone in zip(snapshots, dropped, strict=True) if not gone]
        await self._forget(kept)
        moved = [len(data) for (_, data), gone in zip(snapshots, dropped, strict=True) if gone]
        return Spilled(len(moved), sum(moved), await self._total() - budget_bytes)

    async def _total(self) -> int:
        return int(await self._redis.execute("GET", self._order.keys.own("snapshot_total")) or 0)

    async def _oldest(self, over_bytes: int) -> list[tuple[str, bytes]]:
        """Return the oldest snapshots, as many as are over the budget, up to a batch.

        One that is listed and not there comes as b"": the spill step takes it off the books.
        """
        keys = self._order.keys
        ids = await self._redis.execute("ZRANGE", keys.own("snapshots"), 0, BATCH_SNAPSHOTS - 1)
        found: list[tuple[str, bytes]] = []
        size_bytes, limit_bytes = 0, min(over_bytes, BATCH_BYTES)
        for job_id in (raw.decode() for raw in ids):
            data: bytes = await self._redis.execute("GET", keys.snapshot(job_id)) or b""
            found.append((job_id, data))
            size_bytes += len(data)
            if size_bytes >= limit_bytes:
                break
        return found

    async def _store(self, snapshots: Sequence[tuple[str, bytes]]) -> None:
        async with self._database.transaction() as cursor:
            await cursor.executemany(
                "INSERT INTO snapshot (job_id, bytes, stored_at) VALUES (%s, %s, now())"
                " ON CONFLICT (job_id) DO UPDATE"
                " SET bytes = excluded.bytes, stored_at = excluded.stored_at",
                [(job_id, data) for job_id, data in snapshots if data],
            )

    async def _forget(self, job_ids: Sequence[str]) -> None:
        """Drop copies of snapshots that stayed in Redis, or whose syscall has ended meanwhile.

        Not those that another scheduler, which leads by now, has moved: its copy is the only one.
        """
        if not job_ids:
            return
        sizes = await self._redis.execute("HMGET", self._order.keys.own("snapshot_bytes"), *job_ids)
        job_ids = [job_id for job_id, size in zip(job_ids, sizes, strict=True) if size != MOVED]
        async with self._database.transaction() as cursor:
            await cursor.execute("DELETE FROM snapshot WHERE job_id = ANY(%s)", [list(job_ids)])


async def load_spilled(database_url: str, job_id: str) -> bytes | None:
    """Return a snapshot that was moved to Postgres, or None where there is none.

    For workers: when a lease says `has_snapshot` and Redis has none. Opens a connection of its
    own; rare.

    Raises:
        DatabaseUnavailable: Postgres does not answer.
    """
    database = Database(database_url, name="aios-worker", limit_s=SERVICE_TIMEOUT_S)
    try:
        async with database.transaction() as cursor:
            await cursor.execute("SELECT bytes FROM snapshot WHERE job_id = %s", [job_id])
            row = await cursor.fetchone()
    finally:
        await database.aclose()
    return bytes(row[0]) if row else None
