"""Agents' tokens, by their digests: a Redis that was emptied gets them back from here."""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from aios_broker.contract.errors import AlreadyExists
from aios_broker.postgres.store import Cursor, Store
from aios_broker.queues.tokens import Identity, Tokens

# One that is there is the same agent's, and its own: its worker died before it could answer.
_PUT = """
    INSERT INTO agent_token (digest, agent_id, expires_at, issued_by)
    VALUES (%s, %s, now() + %s * interval '1 second', %s)
    ON CONFLICT (digest) DO UPDATE SET digest = excluded.digest
     WHERE agent_token.agent_id = excluded.agent_id AND agent_token.revoked_at IS NULL
    RETURNING digest
"""
_REVOKE = """
    UPDATE agent_token SET revoked_at = now() WHERE agent_id = %s AND revoked_at IS NULL
    RETURNING digest
"""
_GOOD = "k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())"
_TOLD = """
    coalesce(b.name, '') AS issued_by, extract(epoch FROM k.created_at)::float8 AS issued_at,
    extract(epoch FROM k.expires_at)::float8 AS expires_at
"""
TOKENS_OF_AGENT = f"""
    SELECT {_TOLD} FROM agent_token k LEFT JOIN agent b ON b.id = k.issued_by
     WHERE k.agent_id = %s AND {_GOOD} ORDER BY k.created_at
"""
_ALL = f"""
    SELECT k.digest AS id, t.name AS tenant, a.name AS agent, {_TOLD},
           extract(epoch FROM k.revoked_at)::float8 AS revoked_at
      FROM agent_token k JOIN agent a ON a.id = k.agent_id JOIN tenant t ON t.id = a.tenant_id
      LEFT JOIN agent b ON b.id = k.issued_by
     WHERE ({_GOOD}) = %(good)s AND (%(tenant)s::text IS NULL OR t.name = %(tenant)s)
       AND (%(agent)s::text IS NULL OR a.name = %(agent)s)
       AND (%(after)s::text[] IS NULL OR ARRAY[t.name, a.name, k.digest] > %(after)s::text[])
     ORDER BY t.name, a.name, k.digest LIMIT %(limit)s
"""
_LACKING = f"SELECT k.digest FROM agent_token k WHERE {_GOOD} AND k.digest <> ALL (%s::text[])"
_LOCKED = f"""
    SELECT k.digest, a.name AS agent, t.name AS tenant,
           extract(epoch FROM k.expires_at)::float8 AS expires_at
      FROM agent_token k JOIN agent a ON a.id = k.agent_id JOIN tenant t ON t.id = a.tenant_id
     WHERE {_GOOD} AND k.digest = ANY (%s::text[]) FOR SHARE OF k
"""
_WORTHLESS = f"SELECT k.digest FROM agent_token k WHERE NOT ({_GOOD}) AND k.digest = ANY (%s)"
# Two days: nobody who entered one before it was revoked has yet to tell Redis; and what was asked
# with it, a day ago at most, is decided with regard to who issued it.
_FORGET = f"""
    DELETE FROM agent_token k WHERE NOT ({_GOOD}) AND k.digest <> ALL (%s::text[])
       AND least(k.revoked_at, k.expires_at) < now() - interval '2 days'
"""


class KnownToken(Struct, frozen=True):
    """A token without the token itself; `id`: its digest."""

    id: str
    tenant: str
    agent: str
    issued_by: str  # the agent that asked for it; empty: the operator
    issued_at: float  # Unix time, s
    expires_at: float | None = None
    revoked_at: float | None = None  # it, and one that has expired, is kept for two days


async def known_tokens(
    cursor: Cursor,
    tenant: str | None,
    agent: str | None = None,
    *,
    limit: int,
    after: tuple[str, str, str] | None = None,
    good: bool = True,
) -> Sequence[KnownToken]:
    """Return good tokens of a tenant, or of all, by agent; or those that are over.

    `after`: tenant, agent and id of the last one of the page before.
    """
    place = None if after is None else list(after)
    values = {"tenant": tenant, "agent": agent, "limit": limit, "after": place, "good": good}
    await cursor.execute(_ALL, values)
    return [msgspec.convert(row._asdict(), KnownToken) for row in await cursor.fetchall()]


async def put_token(
    cursor: Cursor, agent_id: int, digest: str, ttl_s: float | None, *, issued_by: int | None = None
) -> None:
    """Enter a token of an agent; `issued_by`: the agent that gets it, None: the operator.

    Raises:
        AlreadyExists: It is another agent's, or was revoked.
    """
    await cursor.execute(_PUT, (digest, agent_id, ttl_s, issued_by))
    if await cursor.fetchone() is None:
        raise given_out()


def given_out() -> AlreadyExists:
    """Return the error of a token that is another's, or was revoked."""
    return AlreadyExists(
        "this token was given out before", field="body.token_digest", remedy="make a new one"
    )


async def revoke_tokens(cursor: Cursor, agent_id: int) -> list[str]:
    """Make all tokens of an agent worthless; return their digests, which Redis is to forget."""
    await cursor.execute(_REVOKE, (agent_id,))
    return sorted(row.digest for row in await cursor.fetchall())


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
