"""`aios usage`: what tenants, agents and programs have used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import click

from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.syscall import MODULES
from aios_broker.ledger.usage import UsageHistory, UsageRow
from aios_broker.postgres.database import Database
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.quota import Quotas, Scope, Subject, Use
from aios_cli.human import seconds
from aios_cli.operator import Operator
from aios_cli.session import EXIT_CODES, with_kernel
from aios_cli.settings import current_config, find_kernel
from aios_cli.tables import Column, show_json, show_table

COLUMNS = (
    Column("Module"),
    Column("Tenant", shrinks=True),
    Column("Agent", shrinks=True),
    Column("Program", shrinks=True),
    Column("Tokens", "right"),
    Column("Prompt tokens", "right"),
    Column("Slot time", "right"),
    Column("Finished", "right"),
    Column("Failed", "right"),
)
Line = tuple[str, Subject, Use]  # the module comes first


@click.command(epilog=EXIT_CODES)
@click.option(
    "--by",
    "scope",
    type=click.Choice(["tenant", "agent", "program"]),
    default="agent",
    show_default=True,
    help="One line for each of these.",
)
@click.option("--hours", type=click.FloatRange(min=0), help="Of the last hours, from the ledger.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def usage(scope: Scope, hours: float | None, *, as_json: bool) -> None:
    """Show what was used: tokens, time of slots, syscalls that finished and failed.

    Without --hours these are the counters in Redis, exact up to the last slice; those of a program
    are dropped an hour after it last used anything, those of agents and tenants after a week. With
    --hours they come from the ledger, by whole hours, a second or so behind.

    \b
    Examples:
      aios usage --by tenant
      aios usage --by program --hours 24 --json
    """  # noqa: D301 - \b keeps click from wrapping

    async def read(operator: Operator) -> list[Line]:
        if hours is None:
            return await counters(Quotas(Functions(operator.connection), operator.keys), scope)
        return await history(operator.keys, scope, hours)

    lines = sorted(with_kernel(read, as_json=as_json), key=_most_used)
    if as_json:
        show_json(
            [{"module": module, "subject": subject, "use": use} for module, subject, use in lines]
        )
    else:
        show_table(COLUMNS, [cells_of(line) for line in lines])


async def counters(quotas: Quotas, scope: Scope) -> list[Line]:
    """Return the counters of one scope, of all modules."""
    return [
        (module, subject, use)
        for module in MODULES
        for subject, use in (await quotas.usage(module)).by_subject.items()
        if subject.scope == scope
    ]


async def history(keys: Keys, scope: Scope, hours: float) -> list[Line]:
    """Return what the ledger says was used in the last hours.

    Raises:
        InvalidConfig: the kernel keeps no ledger.
        DatabaseUnavailable: Postgres does not answer.
    """
    database_url = current_config().database_url or find_kernel().database_url
    if database_url is None:
        raise InvalidConfig(
            "the kernel keeps no ledger",
            field="AIOS_DATABASE_URL",
            remedy="set it; without --hours the counters are shown",
        )
    async with contextlib.aclosing(Database(database_url, name="aios-usage")) as database:
        rows = await UsageHistory(database, keys).since(datetime.now(UTC) - timedelta(hours=hours))
    return grouped(rows, scope)


def grouped(rows: Iterable[UsageRow], scope: Scope) -> list[Line]:
    """Return one line per module and tenant, agent or program."""
    sums: dict[tuple[str, Subject], UsageRow] = {}
    for row in rows:
        key = (row.module, _subject(row, scope))
        sums[key] = sums[key].plus(row) if key in sums else row
    return [
        (
            module,
            subject,
            Use(row.tokens, row.prompt_tokens, row.ran_ms / 1000, row.finished, row.failed),
        )
        for (module, subject), row in sums.items()
    ]


def cells_of(line: Line) -> list[str]:
    """Return one row of the table."""
    module, subject, use = line
    return [
        module,
        subject.tenant,
        subject.agent,
        subject.program,
        str(use.tokens),
        str(use.prompt_tokens),
        seconds(use.ran_s),
        str(use.finished),
        str(use.failed),
    ]


def _subject(row: UsageRow, scope: Scope) -> Subject:
    match scope:
        case "tenant":
            return Subject.of_tenant(row.tenant)
        case "agent":
            return Subject.of_agent(row.agent, row.tenant)
        case "program":
            return Subject.of_program(row.program, row.agent, row.tenant)


def _most_used(line: Line) -> tuple[str, float, str]:
    module, subject, use = line
    return module, -use.ran_s, str(subject)
