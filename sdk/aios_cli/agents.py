"""`aios agents`: who there is, and what the operator lets them do."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import click
import msgspec

from aios_broker.access.rights import KnownAgent, Right, known_agents
from aios_broker.contract.names import Owner, check_name
from aios_broker.views.settings import give_right
from aios_cli.agent_stops import resume, suspend
from aios_cli.approvals import as_steward, decider, kernel_store
from aios_cli.session import EXIT_CODES, command
from aios_cli.tables import Column, Listing, say
from aios_cli.tokens import register, revoke, token

AGENTS = Listing[KnownAgent](
    (Column("Agent"), lambda one: f"{one.tenant}/{one.name}"),
    (Column("Administers"), lambda one: "yes" if one.administrator else "-"),
    (Column("Decides"), lambda one: "yes" if one.decides else "-"),
    (Column("Registered by"), lambda one: one.registered_by or "-"),
)
_tenant = click.option("--tenant", default="default", show_default=True, help="Whose agent it is.")
_right = click.argument("right", type=click.Choice(get_args(Right)))


@dataclass(frozen=True, slots=True)
class RightSet:
    """What an agent may do from now on, or no longer."""

    agent: str
    tenant: str
    right: Right
    given: bool


@click.group(epilog=EXIT_CODES)
def agents() -> None:
    """Show agents, register them, make and revoke their tokens, set their rights, suspend them.

    \b
    Examples:
      aios agents register ada          its token, shown this once
      aios agents token ada             one more; `--operator`: for a person
      aios agents allow judge decide
      aios agents suspend ada

    Rights that no agent can give:

    \b
    administer: register agents of its tenant, revoke their tokens, change its groups
    decide: approve or deny what other agents ask for; never what it asked for, by whomever
    """  # noqa: D301 - \b keeps click from wrapping


@command(AGENTS.show, name="list")
@click.option("--tenant", help="Only of this tenant.")
def list_(tenant: str | None) -> Sequence[KnownAgent]:
    """List the agents that are known, with their rights."""
    return as_steward(lambda cursor: known_agents(cursor, tenant))


def _show_set(done: RightSet) -> None:
    may = "may now" if done.given else "may no longer"
    say(f"{done.tenant}/{done.agent} {may} {done.right}")


@command(_show_set)
@click.argument("agent")
@_right
@_tenant
def allow(agent: str, right: str, tenant: str) -> RightSet:
    """Give AGENT a right; one that is not known yet becomes known."""
    return _set(agent, tenant, right, given=True)


@command(_show_set)
@click.argument("agent")
@_right
@_tenant
def forbid(agent: str, right: str, tenant: str) -> RightSet:
    """Take a right from AGENT: what it has decided and what has not run yet is asked for anew."""
    return _set(agent, tenant, right, given=False)


def _set(agent: str, tenant: str, right: str, *, given: bool) -> RightSet:
    check_name("agent", agent)
    check_name("tenant", tenant)
    chosen: Right = msgspec.convert(right, Right)

    async def work() -> None:
        async with contextlib.aclosing(kernel_store()) as store:
            await give_right(store, Owner(tenant, agent), chosen, who=decider(), given=given)

    asyncio.run(work())
    return RightSet(agent, tenant, chosen, given)


for each in (list_, register, token, revoke, allow, forbid, suspend, resume):
    agents.add_command(each)
