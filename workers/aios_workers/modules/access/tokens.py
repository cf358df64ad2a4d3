"""Tokens' digests in Postgres, from where a Redis that was emptied gets them back."""

from __future__ import annotations

from aios_broker.postgres.session import Cursor, Store
from aios_broker.queues.tokens import Identity, Tokens

_PUT = """
    INSERT INTO agent_token (digest, agent_id, expires_at)
    VALUES (%s, %s, now() + %s * interval '1 second')
"""
_REVOKE = "UPDATE agent_token SET revoked_at = now() WHERE agent_id = %s AND revoked_at IS NULL"
_GOOD = "k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())"
_LACKING = f"SELECT k.digest FROM agent_token k WHERE {_GOOD} AND k.digest <> ALL (%s::text[])"
_LOCKED = f"""
    SELECT k.digest, a.name AS agent, t.name AS tenant,
           extract(epoch FROM k.expires_at)::float8 AS expires_at
      FROM agent_token k JOIN agent a ON a.id = k.agent_id JOIN tenant t ON t.id = a.tenant_id
     WHERE {_GOOD} AND k.digest = ANY (%s::text[]) FOR SHARE OF k
"""
_WORTHLESS = f"SELECT k.digest FROM agent_token k WHERE NOT ({_GOOD}) AND k.digest = ANY (%s)"
# A day: nobody who entered one before it was revoked has yet to tell Redis.
_FORGET = f"""
    DELETE FROM agent_token k WHERE NOT ({_GOOD}) AND k.digest <> ALL (%s::text[])
       AND least(k.revoked_at, k.expires_at) < now() - interval '1 day'
"""


async def put_token(cursor: Cursor, agent_id: int, digest: str, ttl_s: float | None) -> None:
    """Enter a token of an agent."""
    await cursor.execute(_PUT, (digest, agent_id, ttl_s))


async def revoke_tokens(cursor: Cursor, agent_id: int) -> None:
    """Make all tokens of an agent worthless; Redis is to be told when that is committed."""
    await cursor.execute(_REVOKE, (agent_id,))


async def tidy_tokens(store: Store, tokens: Tokens) -> None:
    """Give Redis what it lacks, and take from it what a crash left after a revocation."""
    known = list(await tokens.digests())
    async with store.as_steward() as cursor:
        await cursor.execute(_LACKING, (known,))
        lacking = [row.digest for row in await cursor.fetchall()]
        await cursor.execute(_LOCKED, (lacking,))  # none of them is revoked meanwhile
        for row in await cursor.fetchall():
            await tokens.restore(row.digest, Identity(row.agent, row.tenant, row.expires_at))
        await cursor.execute(_FORGET, (known,))
        await cursor.execute(_WORTHLESS, (known,))
        worthless = tuple(row.digest for row in await cursor.fetchall())
    await tokens.drop(worthless)
