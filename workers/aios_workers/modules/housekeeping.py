"""What the state modules tidy up: rows whose time is over, and what Redis lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aios_broker.periodic import periodic_task
from aios_broker.queues.tokens import Tokens
from aios_workers.modules.access import groups
from aios_workers.modules.access.tokens import tidy_tokens
from aios_workers.modules.services import Services

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


async def tidy(services: Services) -> None:
    """Do it once, over all agents; a bounded part of the notes that have expired."""
    await groups.refresh(services)
    async with services.store.as_steward() as cursor:
        await cursor.execute(_EXPIRED, (EXPIRED_AT_ONCE,))
        for statement in (_OLD_EFFECTS, _OLD_LINKS, _OLD_GRANTS, _OLD_APPROVALS):
            await cursor.execute(statement)
    tokens = Tokens(services.functions.connection, services.keys)
    await tidy_tokens(services.store, tokens)


@asynccontextmanager
async def housekeeping(services: Services) -> AsyncIterator[None]:
    """Tidy again and again for as long as the context is open."""

    async def step() -> float:
        await tidy(services)
        return PAUSE_S

    async with periodic_task("housekeeping", step, "nothing is tidied up"):
        yield
