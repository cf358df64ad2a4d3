"""`aios usage`: what was used, and what it cost."""

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import click

from aios_broker.contract.money import shown
from aios_broker.contract.syscall import MODULES
from aios_broker.ledger.ledger import UsageHistory, UsageRow
from aios_broker.postgres.database import Database
from aios_broker.queues.quota import Quotas, Scope, Subject, Use
from aios_cli.session import Operator, command, database_url
from aios_cli.tables import Column, Listing, say, seconds

By = Literal["tenant", "agent", "program", "core", "day"]
SCOPES: dict[By, Scope] = {"tenant": "tenant", "agent": "agent", "program": "program"}
ALL = datetime(2000, 1, 1, tzinfo=UTC)  # before any ledger begins
DRAIN_LIMIT_S = 3.0  # how long it is waited for what the journal still holds
DRAIN_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class UsageLine:
    """What somebody has used of a module, or what was used on a core or a day."""

    module: str
    subject: Subject | None  # None: all together
    use: Use
    core: str = ""
    day: str = ""  # of UTC


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
        lines = await history(operator, by, when or ALL)
    return sorted(lines, key=_order)


def _order(line: UsageLine) -> tuple[str, str, float, str]:
    return line.module, line.day, -line.use.ran_s, f"{line.subject or line.core}"


async def counters(quotas: Quotas, scope: Scope) -> list[UsageLine]:
    """Return the counters of one scope, of all modules."""
    return [
        UsageLine(module, subject, use)
        for module in MODULES
        for subject, use in (await quotas.usage(module)).by_subject.items()
        if subject.scope == scope
    ]


async def history(operator: Operator, by: By, since: datetime) -> list[UsageLine]:
    """Return what the ledger says was used since then.

    Raises:
        InvalidConfig: the kernel keeps no ledger.
        DatabaseUnavailable: Postgres does not answer.
    """
    async with contextlib.aclosing(Database(database_url(), name="aios-usage")) as database:
        missing = await undrained(operator)
        rows = await UsageHistory(database, operator.keys).since(since)
    if missing:
        say(
            f"{missing} entries of the journal are not in the ledger yet: no scheduler drains it, "
            "or Postgres was away (`aios status`)",
            err=True,
        )
    return grouped(rows, by)


async def undrained(operator: Operator) -> int:
    """Wait until the ledger has what the journal holds now; return how many entries it lacks."""
    connection, journal = operator.connection, operator.keys.journal
    last = await connection.execute("XREVRANGE", journal, "+", "-", "COUNT", 1)
    deadline_s = asyncio.get_running_loop().time() + DRAIN_LIMIT_S
    while last and await connection.execute("XRANGE", journal, "-", last[0][0], "COUNT", 1):
        if asyncio.get_running_loop().time() > deadline_s:
            return int(await connection.execute("XLEN", journal))
        await asyncio.sleep(DRAIN_POLL_S)
    return 0


def grouped(rows: Iterable[UsageRow], by: By) -> list[UsageLine]:
    """Return one line per module and tenant, agent, program, core or day."""
    found: dict[_Key, list[UsageRow]] = {}
    for row in rows:
        found.setdefault(_key(row, by), []).append(row)
    return [
        UsageLine(module, subject, _sum(of), core, day)
        for (module, subject, core, day), of in found.items()
    ]


_Key = tuple[str, Subject | None, str, str]  # module, subject, core, day


def _key(row: UsageRow, by: By) -> _Key:
    match by:
        case "tenant":
            return row.module, Subject.of_tenant(row.tenant), "", ""
        case "agent":
            return row.module, Subject.of_agent(row.agent, row.tenant), "", ""
        case "program":
            return row.module, Subject.of_program(row.program, row.agent, row.tenant), "", ""
        case "core":
            return row.module, None, row.core, ""
        case "day":
            return row.module, None, "", f"{row.hour.astimezone(UTC):%Y-%m-%d}"


def _sum(rows: Sequence[UsageRow]) -> Use:
    total = rows[0]
    for row in rows[1:]:
        total = total.plus(row)
    costs: dict[str, int] = {}
    for row in rows:
        if row.currency:
            costs[row.currency] = costs.get(row.currency, 0) + row.cost_nano
    return Use(
        total.tokens,
        total.prompt_tokens,
        total.ran_ms / 1000,
        total.finished,
        total.failed,
        total.cached_tokens,
        costs,
    )
