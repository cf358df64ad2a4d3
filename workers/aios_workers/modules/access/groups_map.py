"""The privilege groups as a hash map in Redis: `<tenant>/<agent>` to the names of its groups.

It is written after each change and compared with Postgres from time to time; a crash between the
two leaves it behind for that long. Nothing is permitted because of it alone.
"""

from __future__ import annotations

import msgspec

from aios_broker.postgres.session import Store
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys

_ALL = """
    SELECT t.name || '/' || a.name AS agent, array_agg(p.name ORDER BY p.name) AS groups
      FROM membership m JOIN agent a ON a.id = m.agent_id JOIN tenant t ON t.id = a.tenant_id
      JOIN privilege_group p ON p.id = m.group_id GROUP BY 1
"""
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('aios.groups', 0))"


class GroupsMap:
    """Keeps the map as Postgres has it."""

    def __init__(self, store: Store, functions: Functions, keys: Keys) -> None:
        self._store = store
        self._connection = functions.connection
        self._key = keys.own("groups")

    async def refresh(self) -> int:
        """Make the map what Postgres says; return how many of its fields were not."""
        async with self._store.as_steward() as cursor:
            await cursor.execute(_LOCK)  # an older view never overwrites a newer one
            await cursor.execute(_ALL)
            truth = {
                row.agent.encode(): msgspec.json.encode(row.groups)
                for row in await cursor.fetchall()
            }
            flat = await self._connection.execute("HGETALL", self._key)
            shown = (
                dict(zip(flat[::2], flat[1::2], strict=True)) if isinstance(flat, list) else flat
            )
            wrong = [
                (agent, groups) for agent, groups in truth.items() if shown.get(agent) != groups
            ]
            gone = [agent for agent in shown if agent not in truth]
            if wrong:
                await self._connection.execute(
                    "HSET", self._key, *(part for pair in wrong for part in pair)
                )
            if gone:
                await self._connection.execute("HDEL", self._key, *gone)
        return len(wrong) + len(gone)
