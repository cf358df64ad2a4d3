"""`aios usage`: what was used, and what it cost."""

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import click

from aios_broker.contract.money import shown
from aios_broker.postgres.database import Database
from aios_broker.views.counters import UsageLine, counters, in_order
from aios_broker.views.usage import ALL, SCOPES, By, history, undrained
from aios_broker.views.words import seconds
from aios_cli.session import Operator, command, database_url
from aios_cli.tables import Column, Listing, say


def cost(line: UsageLine) -> str:
    """Return what was paid, in each currency."""
    return ", ".join(shown(nano, currency) for currency, nano in line.use.cost_nano.items()) or "-"


_AMOUNTS = (
    (Column("Tokens", "right"), lambda line: line.use.tokens),
    (Column("Prompt tokens", "right"), lambda line: line.use.prompt_tokens),
    (Column("Cached", "right"), lambda line: line.use.cached_tokens),
    (Column("Slot time", "right"), lambda line: seconds(line.use.ran_s)),
    (Column("Finished", "right"), lambda line: line.use.finished),
    (Column("Failed", "right"), lambda line: line.use.failed),
    (Column("Cost", "right"), cost),
)
USED = Listing[UsageLine](
    (Column("Module"), lambda line: line.module),
    (Column("Tenant", shrinks=True), lambda line: line.subject.tenant if line.subject else ""),
    (Column("Agent", shrinks=True), lambda line: line.subject.agent if line.subject else ""),
    (Column("Program", shrinks=True), lambda line: line.subject.program if line.subject else ""),
    *_AMOUNTS,
)
USED_TOGETHER = Listing[UsageLine](
    (Column("Module"), lambda line: line.module),
    (Column("Core or day", shrinks=True), lambda line: line.core or line.day or "-"),
    *_AMOUNTS,
)


def _show(lines: Sequence[UsageLine]) -> None:
    together = any(line.subject is None for line in lines)
    (USED_TOGETHER if together else USED).show(lines)


@command(_show)
@click.option(
    "--by",
    type=click.Choice(["tenant", "agent", "program", "core", "day"]),
    default="agent",
    show_default=True,
    help="One line for each of these.",
)
@click.option("--hours", type=click.FloatRange(min=0), help="Of the last hours, from the ledger.")
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]),
    help="Since a day, or an hour of it (UTC), from the ledger.",
)
async def usage(
    operator: Operator, by: By, hours: float | None, since: datetime | None
) -> list[UsageLine]:
    """Show what was used: tokens, time of slots, syscalls that finished and failed, and the cost.

    By tenant, agent or program, without a time, these are the counters in Redis, exact up to the
    last slice; those of a program are dropped an hour after it last used anything, those of agents
    and tenants after a week. Else they come from the ledger, by whole hours; what it does not have
    yet is waited for, or said. The cost is that of cores with a price.

    \b
    Examples:
      aios usage --by tenant
      aios usage --by program --hours 24 --json
      aios usage --by core --since 2026-11-01
    """  # noqa: D301 - \b keeps click from wrapping
    if hours is not None and since is not None:
        raise click.UsageError("--hours and --since say the same thing: give one of them")
    when = None if since is None else since.replace(tzinfo=UTC)
    if hours is not None:
        when = datetime.now(UTC) - timedelta(hours=hours)
    if when is None and by in SCOPES:
        lines = await counters(operator.quotas, SCOPES[by])
    else:
        lines = await from_ledger(operator, by, when or ALL)
    return in_order(lines)


async def from_ledger(operator: Operator, by: By, since: datetime) -> list[UsageLine]:
    """Return what the ledger says was used since then.

    Raises:
        InvalidConfig: the kernel keeps no ledger.
        DatabaseUnavailable: Postgres does not answer.
    """
    async with contextlib.aclosing(Database(database_url(), name="aios-usage")) as database:
        missing = await undrained(operator.connection, operator.keys)
        lines = await history(database, operator.keys, by, since)
    if missing:
        say(
            f"{missing} entries of the journal are not in the ledger yet: no scheduler drains it, "
            "or Postgres was away (`aios status`)",
            err=True,
        )
    return lines
