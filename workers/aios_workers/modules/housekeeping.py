"""What the state modules tidy up: rows whose time is over, and what Redis lost."""

from __future__ import annotations

from aios_broker.postgres.session import Store
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.tokens import Identity, Tokens
from aios_workers.modules.access.token_rows import lacking_tokens, worthless_tokens
from aios_workers.modules.memory.note_rows import delete_expired

EXPIRED_AT_ONCE = 1_000  # notes of one transaction
# A syscall lives for a day at most (its deadline): after two nobody runs it again.
_OLD_EFFECTS = "DELETE FROM effect WHERE at < now() - interval '2 days'"
_OLD_LINKS = "DELETE FROM share_link WHERE expires_at < now()"
# The audit log keeps what was asked and decided; the arguments of a write may be 4 MiB.
_OLD_APPROVALS = """
    DELETE FROM approval WHERE state IN ('used', 'denied', 'expired')
       AND expires_at < now() - interval '30 days'
"""
_OLD_GRANTS = "DELETE FROM access_grant WHERE expires_at < now()"


class Housekeeping:
    """Tidies the tables of all agents, and gives a Redis that was emptied its tokens back."""

    def __init__(self, store: Store, functions: Functions, keys: Keys) -> None:
        self._store = store
        self._tokens = Tokens(functions.connection, keys)

    async def tidy(self) -> None:
        """Do it once; a bounded part of the notes that have expired."""
        async with self._store.as_steward() as cursor:
            await delete_expired(cursor, EXPIRED_AT_ONCE)
            for statement in (_OLD_EFFECTS, _OLD_LINKS, _OLD_GRANTS, _OLD_APPROVALS):
                await cursor.execute(statement)
        await self._tidy_tokens()

    async def _tidy_tokens(self) -> None:
        """Give Redis what it lacks, and take from it what a crash left after a revocation."""
        known = await self._tokens.digests()
        async with self._store.as_steward() as cursor:
            for token in await lacking_tokens(cursor, known):
                identity = Identity(token.agent, token.tenant, token.expires_at)
                await self._tokens.restore(token.digest, identity)
            worthless = await worthless_tokens(cursor, known)
        await self._tokens.drop(worthless)
