"""Who there is: whoami, register, revoke_token."""

from __future__ import annotations

import time

from aios_broker.contract.access import (
    AccessRegister,
    AccessRevokeToken,
    Acknowledged,
    TokenIssued,
    Whoami,
)
from aios_broker.contract.errors import AccessDenied
from aios_broker.contract.reply import Result
from aios_broker.queues.tokens import Identity, Tokens, digest
from aios_broker.store.audit import AuditLine, append_line
from aios_broker.store.session import AgentRow, Cursor, only_row
from aios_broker.store.tokens import put_token, revoke_tokens
from aios_workers.gate import Irreversible
from aios_workers.state_ground import StateGround
from aios_workers.state_handler import Asked

_GROUPS = """
    SELECT p.name FROM membership m JOIN privilege_group p ON p.id = m.group_id
     WHERE m.agent_id = %s ORDER BY p.name
"""
_HAS_ADMINISTRATOR = (
    "SELECT EXISTS (SELECT FROM agent WHERE tenant_id = %s AND administrator) AS has"
)
_TENANT_LOCK = "SELECT id FROM tenant WHERE id = %s FOR UPDATE"
_REGISTER = """
    INSERT INTO agent (tenant_id, name, administrator) VALUES (%s, %s, %s)
    ON CONFLICT (tenant_id, name) DO UPDATE
       SET administrator = agent.administrator OR excluded.administrator
    RETURNING id, administrator
"""


def denied(what: str) -> AccessDenied:
    """Return the error of what only administrators of the tenant may do."""
    return AccessDenied(f"{what} is for administrators of the tenant", field="agent",
                        remedy="ask one of them")  # fmt: skip


class Identities:
    """Agents and their tokens."""

    def __init__(self, ground: StateGround) -> None:
        self._ground = ground
        self._tokens = Tokens(ground.functions.connection, ground.keys)

    async def whoami(self, asked: Asked) -> Result:
        """Return who the kernel takes the agent for."""
        agent = asked.agent
        async with self._ground.store.as_agent(agent) as cursor:
            await cursor.execute(_GROUPS, (agent.id,))
            groups = tuple(row.name for row in await cursor.fetchall())
            await cursor.execute("SELECT administrator FROM agent WHERE id = %s", (agent.id,))
            row = await cursor.fetchone()
        return Whoami(agent.name, agent.tenant, bool(row and row.administrator), groups)

    async def register(self, asked: Asked) -> Result:
        """Make an agent known and give it a new token.

        The token is nowhere but in the answer: run again after a crash, there is another one, and
        nobody has ever heard the first.
        """
        body: AccessRegister = asked.body
        agent, token = asked.agent, Tokens.new()
        async with self._ground.store.as_agent(agent) as cursor:
            is_first = await self._check_may_register(cursor, asked)
            await cursor.execute("SET LOCAL ROLE aios_steward")
            administrator = is_first or body.administrator
            await cursor.execute(_REGISTER, (agent.tenant_id, body.agent, administrator))
            row = await only_row(cursor)
            await put_token(cursor, row.id, digest(token), body.ttl_s)
            await append_line(cursor, AuditLine(
                agent.tenant, agent.name, "access.register", f"agent {body.agent}", "done",
                asked.syscall.id, {"administrator": row.administrator, "ttl_s": body.ttl_s},
            ))  # fmt: skip
        self._ground.store.forget(body.agent, agent.tenant)
        expires_at = None if body.ttl_s is None else time.time() + body.ttl_s
        await self._tokens.put(token, Identity(body.agent, agent.tenant, expires_at))
        return TokenIssued(body.agent, token, expires_at)

    async def revoke_token(self, asked: Asked) -> Result:
        """Make all tokens of an agent worthless."""
        body: AccessRevokeToken = asked.body
        agent = asked.agent
        named = await self._ground.store.agent(body.agent, agent.tenant)
        async with self._ground.store.as_agent(agent) as cursor:
            if named.id != agent.id and not await is_administrator(cursor, agent):
                raise denied("revoking another agent's tokens")
            await cursor.execute("SET LOCAL ROLE aios_steward")
            await revoke_tokens(cursor, named.id)
            await append_line(cursor, AuditLine(
                agent.tenant, agent.name, "access.revoke_token", f"agent {body.agent}", "done",
                asked.syscall.id,
            ))  # fmt: skip
        count = await self._tokens.revoke_all(body.agent, agent.tenant)
        return Acknowledged(changed=count > 0)

    async def _check_may_register(self, cursor: Cursor, asked: Asked) -> bool:
        """Return whether it is the tenant's first administrator who is registered."""
        agent, body = asked.agent, asked.body
        if await is_administrator(cursor, agent):
            if body.administrator:
                await self._ground.gate.check(
                    cursor, agent, asked.syscall, body,
                    Irreversible("privilege", f"make agent {body.agent} an administrator"),
                )  # fmt: skip
            return False
        await cursor.execute("SET LOCAL ROLE aios_steward")
        await cursor.execute(_TENANT_LOCK, (agent.tenant_id,))  # two at once: one is the first
        await cursor.execute(_HAS_ADMINISTRATOR, (agent.tenant_id,))
        row = await only_row(cursor)
        if row.has:
            raise denied("registering agents")
        return True


async def is_administrator(cursor: Cursor, agent: AgentRow) -> bool:
    """Return whether an agent administers its tenant, by its row as it is now."""
    await cursor.execute("SELECT administrator FROM agent WHERE id = %s", (agent.id,))
    row = await cursor.fetchone()
    return bool(row and row.administrator)
