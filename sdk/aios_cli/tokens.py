"""`aios token`: tokens of agents, and of operators of the HTTP API."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import click

from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.names import Owner, check_name
from aios_broker.postgres.store import Store
from aios_broker.queues.tokens import Tokens
from aios_broker.views.rights import issue_token, take_tokens_back
from aios_broker.views.words import plural
from aios_cli.approvals import decider, kernel_store
from aios_cli.session import Operator, command
from aios_cli.tables import say


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
    whose, tokens = Owner(tenant, agent), Tokens(operator.connection, operator.keys)
    async with _opened_store() as store:
        if revoke:
            revoked = await take_tokens_back(store, tokens, whose, who=decider())
            return TokenDone(agent, tenant, revoked=revoked)
        issued = await issue_token(store, tokens, whose, who=decider(), ttl_s=ttl_s)
    return TokenDone(agent, tenant, issued)


@contextlib.asynccontextmanager
async def _opened_store() -> AsyncIterator[Store | None]:
    """Yield the kernel's database; None: it keeps none, and Redis alone has its tokens."""
    try:
        store = kernel_store()
    except InvalidConfig:
        yield None
        return
    async with contextlib.aclosing(store):
        yield store
