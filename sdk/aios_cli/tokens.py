"""`aios token`: tokens of agents, and of operators of the HTTP API."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import click

from aios_broker.access.audit import AuditLine, append_line
from aios_broker.access.tokens import put_token, revoke_tokens
from aios_broker.contract.errors import InvalidConfig
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


@command(_show)
@click.argument("agent")
@click.option("--tenant", default="default", show_default=True, help="Whose agent it is.")
@click.option(
    "--operator",
    "is_operator",
    is_flag=True,
    help="For an operator of the HTTP API who is called AGENT: it opens everything there.",
)
@click.option(
    "--ttl-s", type=click.FloatRange(min=1.0), help="It is good for so long; else for ever."
)
@click.option("--revoke", is_flag=True, help="Make all tokens of AGENT worthless instead.")
async def token(
    operator: Operator,
    agent: str,
    tenant: str,
    *,
    is_operator: bool,
    ttl_s: float | None,
    revoke: bool,
) -> TokenDone:
    """Issue a token for AGENT and print it, this once.

    Whoever comes by the HTTP API carries one, and so does a job that a stock RQ producer enqueues;
    without it both are refused. The kernel keeps only a digest of it, in Redis and, where
    AIOS_DATABASE_URL or the running kernel names one, in its database, from where a Redis that was
    emptied gets it back. Operators' tokens are in Redis alone.
    """
    check_name("agent", agent)
    check_name("tenant", tenant)
    if is_operator:
        agent, tenant = f"operator:{agent}", ""
    tokens = Tokens(operator.connection, operator.keys)
    if revoke:
        digests = await note_token(agent, tenant, None, None)
        revoked = await tokens.revoke_all(agent, tenant)
        return TokenDone(agent, tenant, revoked=max(revoked, len(digests)))
    issued = new_token()
    await note_token(agent, tenant, digest(issued), ttl_s)
    expires_at = None if ttl_s is None else datetime.now(UTC).timestamp() + ttl_s
    identity = Identity(agent, tenant, expires_at, "operator" if is_operator else "agent")
    await tokens.put(digest(issued), identity)
    return TokenDone(agent, tenant, issued)


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
