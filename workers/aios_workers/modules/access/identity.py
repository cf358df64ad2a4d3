"""Who there is: whoami, register, revoke_token."""

import time

from aios_broker.access.tokens import (
    TOKENS_OF_AGENT,
    given_out,
    put_token,
    revoke_tokens,
)
from aios_broker.contract.access import (
    AccessRegister,
    AccessRevokeToken,
    AccessWhoami,
    Acknowledged,
    HeldToken,
    TokenIssued,
    Whoami,
)
from aios_broker.contract.errors import AccessDenied, InvalidSyscall
from aios_broker.contract.syscall import Body
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
_IS_ISSUED = """
    SELECT FROM agent_token k JOIN agent a ON a.id = k.agent_id
     WHERE k.digest = %s AND a.id = %s AND k.issued_by = %s AND (a.administrator OR NOT %s)
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
    await _refuse_others_token(asked)
    async with asked.transaction() as work:
        if not await is_administrator(work):
            raise denied("registering agents")
        made = await work.kernel_rows(_MAKE, (agent.tenant_id, body.agent, agent.id))
        named = made[0].id if made else (await work.agent_named(body.agent)).id
        issued = (body.token_digest, named, agent.id, body.administrator)
        is_done = await work.kernel_rows(_IS_ISSUED, issued)
        if not is_done and (body.administrator or not made):  # done: its worker could not answer
            what = await _what_is_given(work, None if made else named)
            called = f"the identity of agent {body.agent}"
            seen = Seen("identity", f"agent {named if not made else body.agent}", name=called)
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


async def _refuse_others_token(asked: Asked[AccessRegister]) -> None:
    """Refuse a digest that Redis has for somebody else: operators' tokens are there alone."""
    holder = await _tokens(asked).find(asked.body.token_digest)
    if holder and (holder.agent, holder.tenant) != (asked.body.agent, asked.agent.tenant):
        raise given_out()


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
            digest, called = digest_of_parts(revoked), f"tokens of agent {body.agent}"
            seen = Seen("tokens", str(named.id), count=len(revoked), digest=digest, name=called)
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
    rows = await work.kernel_rows(TOKENS_OF_AGENT, (agent_id,))
    return [HeldToken(row.issued_by, row.issued_at, row.expires_at) for row in rows]


async def is_administrator(work: Work[Body]) -> bool:
    """Return whether the agent administers its tenant, by its row as it is now."""
    rows = await work.rows(_RIGHTS, (work.agent.id,))
    return any(row.administrator for row in rows)
