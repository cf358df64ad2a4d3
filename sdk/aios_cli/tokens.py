"""`aios agents register | token | revoke`: tokens of agents, and of operators of the HTTP API."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import click

from aios_broker.access.audit import AuditLine, append_line
from aios_broker.access.rights import known_agents
from aios_broker.access.tokens import put_token, revoke_tokens
from aios_broker.contract.errors import AlreadyExists, InvalidConfig, UnknownAgent
from aios_broker.contract.names import check_name
from aios_broker.contract.tokens import digest, new_token
from aios_broker.queues.tokens import Identity, Tokens
from aios_broker.views.words import plural
from aios_cli.approvals import decider, kernel_store
from aios_cli.session import Operator, command
from aios_cli.tables import say

EVERYWHERE = "*"  # in place of a tenant in the audit log


@dataclass(frozen=True, slots=True)
class TokenDone:
    """A token that was made, or how many were taken back."""

    agent: str
    tenant: str
    token: str = ""
    revoked: int | None = None


def _show(done: TokenDone) -> None:
    say(done.token or f"{plural(done.revoked or 0, 'token')} of {done.agent} taken back")


_agent = click.argument("agent")
_tenant = click.option("--tenant", default="default", show_default=True, help="Whose agent it is.")
_operator = click.option(
    "--operator",
    "is_operator",
    is_flag=True,
    help="Of an operator of the HTTP API who is called AGENT: it opens everything there.",
)
_ttl = click.option(
    "--ttl-s", type=click.FloatRange(min=1.0), help="It is good for so long; else for ever."
)


@command(_show)
@_agent
@_tenant
@_ttl
async def register(operator: Operator, agent: str, tenant: str, ttl_s: float | None) -> TokenDone:
    """Make a new AGENT known, and print its token, this once.

    Whoever comes by the HTTP API carries one, and so does a job that a stock RQ producer enqueues;
    without it both are refused.

    \b
    Examples:
      aios agents register ada
      aios agents register ada --tenant acme --ttl-s 86400
    """  # noqa: D301 - \b keeps click from wrapping
    whose = _whose(agent, tenant)
    if await _is_known(whose):
        raise AlreadyExists(
            f"{tenant}/{agent} is known already",
            field="agent",
            remedy=f"`aios agents token {agent}` makes one more token for it",
        )
    return await _issue(operator, whose, ttl_s)


@command(_show)
@_agent
@_tenant
@_operator
@_ttl
async def token(
    operator: Operator, agent: str, tenant: str, *, is_operator: bool, ttl_s: float | None
) -> TokenDone:
    """Make one more token for AGENT, which is known, and print it, this once.

    The kernel keeps only a digest of it, in Redis and, where AIOS_DATABASE_URL or the running
    kernel names one, in its database, from where a Redis that was emptied gets it back. Operators'
    tokens are in Redis alone.
    """
    whose = _whose(agent, tenant, is_operator=is_operator)
    await _require_known(whose)
    return await _issue(operator, whose, ttl_s)


@command(_show)
@_agent
@_tenant
@_operator
async def revoke(operator: Operator, agent: str, tenant: str, *, is_operator: bool) -> TokenDone:
    """Make all tokens of AGENT worthless, from its next request on."""
    whose = _whose(agent, tenant, is_operator=is_operator)
    await _require_known(whose)
    digests = await note_token(whose.agent, whose.tenant, None, None)
    tokens = Tokens(operator.connection, operator.keys)
    revoked = await tokens.revoke_all(whose.agent, whose.tenant)
    return TokenDone(whose.agent, whose.tenant, revoked=max(revoked, len(digests)))


def _whose(agent: str, tenant: str, *, is_operator: bool = False) -> Identity:
    """Return whose tokens are meant."""
    check_name("agent", agent)
    check_name("tenant", tenant)
    if is_operator:
        return Identity(f"operator:{agent}", "", None, "operator")
    return Identity(agent, tenant, None, "agent")


async def _require_known(whose: Identity) -> None:
    """Refuse a name that may be a slip: of an agent that nobody has registered."""
    if whose.scope == "agent" and await _is_known(whose) is False:
        raise UnknownAgent(
            f"tenant {whose.tenant!r} has no agent {whose.agent!r}",
            field="agent",
            remedy=f"`aios agents register {whose.agent}` makes it known; "
            "`aios agents list` shows those that are",
        )


async def _is_known(whose: Identity) -> bool | None:
    """Tell whether the database knows an agent; None: the kernel keeps none."""
    try:
        opened = kernel_store()
    except InvalidConfig:
        return None
    async with contextlib.aclosing(opened) as store, store.as_steward() as cursor:
        return bool(await known_agents(cursor, whose.tenant, whose.agent, limit=1))


async def _issue(operator: Operator, whose: Identity, ttl_s: float | None) -> TokenDone:
    issued = new_token()
    await note_token(whose.agent, whose.tenant, digest(issued), ttl_s)
    expires_at = None if ttl_s is None else datetime.now(UTC).timestamp() + ttl_s
    identity = Identity(whose.agent, whose.tenant, expires_at, whose.scope)
    await Tokens(operator.connection, operator.keys).put(digest(issued), identity)
    return TokenDone(whose.agent, whose.tenant, issued)


async def note_token(
    agent: str, tenant: str, token_digest: str | None, ttl_s: float | None
) -> Sequence[str]:
    """Note a new token in the database, or (None) that all are worthless; return those digests."""
    try:
        opened = kernel_store()
    except InvalidConfig:  # a kernel without a database: Redis alone has its tokens
        return ()
    action = "access.token" if token_digest else "access.revoke_token"
    line = AuditLine(tenant or EVERYWHERE, decider(), action, f"agent {agent}", "done")
    revoked: Sequence[str] = ()
    async with contextlib.aclosing(opened) as store:
        whose = await store.vouched(agent, tenant) if tenant else None
        async with store.as_steward() as cursor:
            if whose is not None and token_digest:
                await put_token(cursor, whose.id, token_digest, ttl_s)
            elif whose is not None:
                revoked = await revoke_tokens(cursor, whose.id)
            await append_line(cursor, line)
    return revoked
