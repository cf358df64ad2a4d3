"""The blocks of all agents in numbers, for tools that watch."""

from __future__ import annotations

from msgspec import Struct

from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Connection


class MemoryTotals(Struct, frozen=True):
    """What is in Redis of agents' memories now, and what happened since it was started."""

    blocks: int = 0
    notes: int = 0  # resident
    used_bytes: int = 0
    hits: int = 0
    faults: int = 0
    swaps: int = 0


async def memory_totals(connection: Connection, keys: Keys) -> MemoryTotals:
    """Return the totals; two short reads."""
    blocks = await connection.execute("HLEN", keys.own("memory:blocks"))
    names = ("notes", "used", "hits", "faults", "swaps")
    values = await connection.execute("HMGET", keys.own("memory:totals"), *names)
    return MemoryTotals(int(blocks), *(int(value or 0) for value in values))
