"""What the state modules tidy up: rows whose time is over, and what Redis lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aios_broker.postgres.session import Store
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.tokens import Tokens
from aios_workers.modules.access.groups import refresh_groups
from aios_workers.modules.access.tokens import tidy_tokens
from aios_workers.runtime.periodic import on_duty

PAUSE_S = 30.0
EXPIRED_AT_ONCE = 1_000  # notes of one transaction
_EXPIRED = """
    WITH gone AS (
        DELETE FROM note WHERE id IN (
            SELECT id FROM note WHERE expires_at <= now() LIMIT %s FOR UPDATE SKIP LOCKED)
        RETURNING id
    )
    DELETE FROM access_grant WHERE object_kind = 'note' AND object_id IN (SELECT id FROM gone)
"""
# A syscall lives for a day at most (its deadline): after two nobody runs it again.
_OLD_EFFECTS = "DELETE FROM effect WHERE at < now() - interval '2 days'"
_OLD_LINKS = "DELETE FROM share_link WHERE expires_at < now()"
# The audit log keeps what was asked and decided; the arguments of a write may be 4 MiB.
_OLD_APPROVALS = """
    DELETE FROM approval WHERE state IN ('used', 'denied', 'expired')
       AND expires_at < now() - interval '30 days'
"""
_OLD_GRANTS = "DELETE FROM access_grant WHERE expires_at < now()"


async def tidy(store: Store, functions: Functions, keys: Keys) -> None:
    """Do it once, over all agents; a bounded part of the notes that have expired."""
    await refresh_groups(store, functions.connection, keys)
    async with store.as_steward() as cursor:
        await cursor.execute(_EXPIRED, (EXPIRED_AT_ONCE,))
        for statement in (_OLD_EFFECTS, _OLD_LINKS, _OLD_GRANTS, _OLD_APPROVALS):
            await cursor.execute(statement)
    await tidy_tokens(store, Tokens(functions.connection, keys))


@asynccontextmanager
async def housekeeping(store: Store, functions: Functions, keys: Keys) -> AsyncIterator[None]:
    """Tidy again and again for as long as the context is open."""

    async def step() -> float:
        await tidy(store, functions, keys)
        return PAUSE_S

    async with on_duty("housekeeping", step, "nothing is tidied up"):
        yield
