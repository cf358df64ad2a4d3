"""`aios quota limit | limits`: how much agents and tenants may have of what can be piled up."""

import asyncio
import contextlib
from collections.abc import Sequence

import click

from aios_broker.contract.limits import DEFAULT_LIMITS, OBJECT_KINDS, ObjectKind
from aios_broker.contract.names import check_name
from aios_cli.approvals import as_steward, kernel_store
from aios_cli.session import command
from aios_cli.tables import Column, Listing
from aios_workers.modules.access.limits import LimitRow, limits, set_limit, unset_limit


def _whose(row: LimitRow) -> str:
    if row.agent:
        return f"agent {row.tenant}/{row.agent}"
    of = DEFAULT_LIMITS[row.kind].of
    each = "each agent" if of == "agent" else "each tenant"
    if not row.tenant:
        return each
    return f"{each} of {row.tenant}" if of == "agent" else f"tenant {row.tenant}"


LIMITS = Listing[LimitRow](
    (Column("Of"), _whose),
    (Column("What"), lambda one: DEFAULT_LIMITS[one.kind].words),
    (Column("Kind"), lambda one: one.kind),
    (Column("Most", "right"), lambda one: one.most),
)


@command(LIMITS.show, name="limits")
def limits_() -> Sequence[LimitRow]:
    """Show how much agents and tenants may have: notes, files, links, grants and so on."""
    return as_steward(limits)


@command(LIMITS.show)
@click.argument("kind", type=click.Choice(OBJECT_KINDS))
@click.argument("most", type=click.IntRange(0), required=False)
@click.option("--agent", help="Of this agent alone.")
@click.option(
    "--tenant", help="The agent's tenant; without --agent, each of its agents, or itself."
)
def limit(
    kind: ObjectKind, most: int | None, agent: str | None, tenant: str | None
) -> Sequence[LimitRow]:
    """Say how many of a KIND an agent, a tenant or else everybody may have; no MOST: the default.

    It holds from the next one on: what is there already stays. An agent's own limit goes before its
    tenant's, and that before everybody's.

    \b
    Examples:
      aios quota limit notes 5000 --agent ada
      aios quota limit directories 200 --tenant acme
      aios quota limit links 100
    """  # noqa: D301 - \b keeps click from wrapping
    if agent is not None:
        check_name("agent", agent)
        if DEFAULT_LIMITS[kind].of == "tenant":
            raise click.UsageError(f"{kind} are a tenant's: leave --agent out, give --tenant")
    if tenant is not None:
        check_name("tenant", tenant)
    whose = tenant or ("default" if agent else "")
    row = LimitRow(whose, agent or "", kind, most or 0)

    async def work() -> list[LimitRow]:
        async with contextlib.aclosing(kernel_store()) as store:
            if most is None:
                await unset_limit(store, row)
            else:
                await set_limit(store, row)
            async with store.as_steward() as cursor:
                rows = await limits(cursor)
        return [one for one in rows if one.kind == kind]

    return asyncio.run(work())
