"""Who there is: whoami, register, revoke_token.

Tokens' digests are in Postgres, from where a Redis that was emptied gets them back.
"""

import time

from aios_broker.contract.access import (
    AccessRegister,
    AccessRevokeToken,
    AccessWhoami,
    Acknowledged,
    HeldToken,
    TokenIssued,
    Whoami,
)
from aios_broker.contract.errors import AccessDenied, AlreadyExists, InvalidSyscall
from aios_broker.contract.syscall import Body
from aios_broker.postgres.store import Cursor, Store
from aios_broker.queues.tokens import Identity, Tokens
from aios_workers.approvals.irreversible import Irreversible, Seen, digest_of_parts
from aios_workers.modules.operation import Asked, Work

_GROUPS = """
    SELECT p.name FROM membership m JOIN privilege_group p ON p.id = m.group_id
     WHERE m.agent_id = %s ORDER BY p.name
"""
_RIGHTS = "SELECT administrator, decides FROM agent WHERE id = %s"
_MAKE = """
    INSERT INTO agent (tenant_id, name, registered_by) VALUES (%s, %s, %s)
    ON CONFLICT DO NOTHING RETURNING id
"""
_MAKE_ADMINISTRATOR = "UPDATE agent SET administrator = true WHERE id = %s RETURNING id"
# One that is there is the same agent's, and its own: its worker died before it could answer.
_PUT_TOKEN = """
    INSERT INTO agent_token (digest, agent_id, expires_at, issued_by)
    VALUES (%s, %s, now() + %s * interval '1 second', %s)
    ON CONFLICT (digest) DO UPDATE SET digest = excluded.digest
     WHERE agent_token.agent_id = excluded.agent_id AND agent_token.revoked_at IS NULL
    RETURNING digest
"""
_IS_ISSUED = """
    SELECT FROM agent_token k JOIN agent a ON a.id = k.agent_id
     WHERE k.digest = %s AND a.id = %s AND k.issued_by = %s AND (a.administrator OR NOT %s)
"""
_REVOKE_TOKENS = """
    UPDATE agent_token SET revoked_at = now() WHERE agent_id = %s AND revoked_at IS NULL
    RETURNING digest
"""
_GOOD = "k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())"
_TOKENS = f"""
    SELECT coalesce(b.name, '') AS issued_by, extract(epoch FROM k.created_at)::float8 AS issued_at,
           extract(epoch FROM k.expires_at)::float8 AS expires_at
      FROM agent_token k LEFT JOIN agent b ON b.id = k.issued_by
     WHERE k.agent_id = %s AND {_GOOD} ORDER BY k.created_at
"""
_LACKING_TOKENS = (
    f"SELECT k.digest FROM agent_token k WHERE {_GOOD} AND k.digest <> ALL (%s::text[])"
)
_LOCKED_TOKENS = f"""
    SELECT k.digest, a.name AS agent, t.name AS tenant,
           extract(epoch FROM k.expires_at)::float8 AS expires_at
      FROM agent_token k JOIN agent a ON a.id = k.agent_id JOIN tenant t ON t.id = a.tenant_id
     WHERE {_GOOD} AND k.digest = ANY (%s::text[]) FOR SHARE OF k
"""
_WORTHLESS_TOKENS = (
    f"SELECT k.digest FROM agent_token k WHERE NOT ({_GOOD}) AND k.digest = ANY (%s)"
)
# Two days: nobody who entered one before it was revoked has yet to tell Redis; and what was asked
# with it, a day ago at most, is decided with regard to who issued it.
_FORGET_TOKENS = f"""
    DELETE FROM agent_token k WHERE NOT ({_GOOD}) AND k.digest <> ALL (%s::text[])
       AND least(k.revoked_at, k.expires_at) < now() - interval '2 days'
"""


def denied(what: str) -> AccessDenied:
    """Return the error of what only administrators of the tenant may do."""
    return AccessDenied(
        f"{what} is for administrators of the tenant",
        field="agent",
        remedy="ask one, or have the operator make one: `aios agents allow NAME administer`",
    )


async def whoami(work: Work[AccessWhoami]) -> Whoami:
    """Return who the kernel takes the agent for."""
    agent = work.agent
    groups = tuple(row.name for row in await work.rows(_GROUPS, (agent.id,)))
    [rights] = await work.rows(_RIGHTS, (agent.id,))
    return Whoami(
        agent.name,
        agent.tenant,
        rights.administrator,
        groups,
        decides=rights.decides,
        tokens=tuple(await _good_tokens(work, agent.id)),
    )


async def register(asked: Asked[AccessRegister]) -> TokenIssued:
    """Make an agent known and give it the token whose digest the client sends.

    For one that is known a person is asked: whoever gets a token speaks as that agent, so it is
    remembered who did.
    """
    agent, body = asked.agent, asked.body
    _check_digest(body)
    async with asked.transaction() as work:
        if not await is_administrator(work):
            raise denied("registering agents")
        made = await work.kernel_rows(_MAKE, (agent.tenant_id, body.agent, agent.id))
        named = made[0].id if made else (await work.agent_named(body.agent)).id
        issued = (body.token_digest, named, agent.id, body.administrator)
        is_done = await work.kernel_rows(_IS_ISSUED, issued)
        if not is_done and (body.administrator or not made):  # done: its worker could not answer
            what = await _what_is_given(work, None if made else named)
            seen = Seen("identity", f"agent {named if not made else body.agent}")
            await work.take(Irreversible("privilege", what, (seen,)))
        if not is_done and body.administrator:
            await work.kernel_rows(_MAKE_ADMINISTRATOR, (named,))
        await work.cursor.execute("SET LOCAL ROLE aios_steward")
        await put_token(work.cursor, named, body.token_digest, body.ttl_s, issued_by=agent.id)
        detail = {"administrator": body.administrator, "new": bool(made), "ttl_s": body.ttl_s}
        await work.enter(f"agent {body.agent}", detail)
    asked.services.store.forget(body.agent, agent.tenant)
    expires_at = None if body.ttl_s is None else time.time() + body.ttl_s
    await _tokens(asked).put(body.token_digest, Identity(body.agent, agent.tenant, expires_at))
    return TokenIssued(body.agent, expires_at=expires_at)


def _check_digest(body: AccessRegister) -> None:
    if body.token or not body.token_digest:
        raise InvalidSyscall(
            "a token is made by who asks for it, and only its digest is sent",
            field="body.token_digest",
            remedy="register by the SDK; without it, send BLAKE2b-256 of the new token in hex",
        )


async def revoke_token(asked: Asked[AccessRevokeToken]) -> Acknowledged:
    """Make all tokens of an agent worthless; how many that were only Redis knows."""
    agent, body = asked.agent, asked.body
    async with asked.transaction() as work:
        cursor, named = work.cursor, await work.agent_named(body.agent)
        if named.id != agent.id and not await is_administrator(work):
            raise denied("revoking another agent's tokens")
        await cursor.execute("SET LOCAL ROLE aios_steward")
        revoked = await revoke_tokens(cursor, named.id)
        if revoked and named.id != agent.id:
            seen = Seen(
                "tokens", str(named.id), count=len(revoked), digest=digest_of_parts(revoked)
            )
            what = f"make all {len(revoked)} tokens of agent {body.agent} worthless"
            await work.take(Irreversible("privilege", what, (seen,)))
        await work.enter(f"agent {body.agent}", {})
    count = await _tokens(asked).revoke_all(body.agent, agent.tenant)
    return Acknowledged(changed=count > 0)


def _tokens(asked: Asked[AccessRegister] | Asked[AccessRevokeToken]) -> Tokens:
    return Tokens(asked.services.functions.connection, asked.services.keys)


async def _what_is_given(work: Work[AccessRegister], known: int | None) -> str:
    """Return what a person is asked; `known`: the number of an agent that is there already."""
    name, whom = work.body.agent, work.agent.name
    given = [f"make agent {name} an administrator"] if work.body.administrator else []
    if known is not None:
        good = len(await _good_tokens(work, known))
        given.append(
            f"give {whom} a token of agent {name}, who is known already ({good} others stay good): "
            f"{whom} can then speak as {name}"
        )
    return ", and ".join(given)


async def _good_tokens(work: Work[Body], agent_id: int) -> list[HeldToken]:
    rows = await work.kernel_rows(_TOKENS, (agent_id,))
    return [HeldToken(row.issued_by, row.issued_at, row.expires_at) for row in rows]


async def is_administrator(work: Work[Body]) -> bool:
    """Return whether the agent administers its tenant, by its row as it is now."""
    rows = await work.rows(_RIGHTS, (work.agent.id,))
    return any(row.administrator for row in rows)


async def put_token(
    cursor: Cursor, agent_id: int, digest: str, ttl_s: float | None, *, issued_by: int | None = None
) -> None:
    """Enter a token of an agent; `issued_by`: the agent that gets it, None: the operator.

    Raises:
        AlreadyExists: It is another agent's, or was revoked.
    """
    await cursor.execute(_PUT_TOKEN, (digest, agent_id, ttl_s, issued_by))
    if await cursor.fetchone() is None:
        raise AlreadyExists(
            "this token was given out before",
            field="body.token_digest",
            remedy="make a new one",
        )


async def revoke_tokens(cursor: Cursor, agent_id: int) -> list[str]:
    """Make all tokens of an agent worthless; return their digests, which Redis is to forget."""
    await cursor.execute(_REVOKE_TOKENS, (agent_id,))
    return sorted(row.digest for row in await cursor.fetchall())


async def tidy_tokens(store: Store, tokens: Tokens) -> None:
    """Give Redis what it lacks, and take from it what a crash left after a revocation."""
    known = list(await tokens.digests())
    async with store.as_steward() as cursor:
        await cursor.execute(_LACKING_TOKENS, (known,))
        lacking = [row.digest for row in await cursor.fetchall()]
        await cursor.execute(_LOCKED_TOKENS, (lacking,))  # none of them is revoked meanwhile
        for row in await cursor.fetchall():
            await tokens.restore(row.digest, Identity(row.agent, row.tenant, row.expires_at))
        await cursor.execute(_FORGET_TOKENS, (known,))
        await cursor.execute(_WORTHLESS_TOKENS, (known,))
        worthless = tuple(row.digest for row in await cursor.fetchall())
    await tokens.drop(worthless)
