"""`aios quota | usage`: what agents and tenants may use, and what they have used."""

import contextlib
import getpass
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

import click

from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.names import Module
from aios_broker.contract.syscall import MODULES
from aios_broker.ledger.usage import UsageHistory, UsageRow
from aios_broker.postgres.database import Database
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.quota import ANYBODY, QuotaRow, Quotas, Scope, Subject, Use
from aios_cli.lookup import check_name, parse_module
from aios_cli.session import EXIT_CODES, Operator, current_config, find_kernel, with_kernel
from aios_cli.tables import Column, Listing, seconds, show_json

Limits = tuple[Module, QuotaRow]
Line = tuple[str, Subject, Use]  # the module comes first


def _limit(name: str) -> Callable[[Limits], str]:
    """Return what shows one limit of a quota; `-`: none."""

    def shown(limits: Limits) -> str:
        value = getattr(limits[1], name)
        return "-" if value is None else f"{value:g}"

    return shown


def _of_anybody(limits: Limits) -> bool:
    return limits[1].subject == Subject.of_agent(ANYBODY)


QUOTAS = Listing[Limits](
    (Column("Module"), lambda one: one[0]),
    (Column("Scope"), lambda one: one[1].subject.scope),
    (Column("Tenant"), lambda one: "" if _of_anybody(one) else one[1].subject.tenant),
    (Column("Agent"), lambda one: ANYBODY if _of_anybody(one) else one[1].subject.agent),
    (Column("Max queued", "right"), _limit("max_queued")),
    (Column("Max running", "right"), _limit("max_running")),
    (Column("Tokens/min", "right"), _limit("tokens_per_minute")),
    (Column("Slot-s/min", "right"), _limit("slot_seconds_per_minute")),
)
USED = Listing[Line](
    (Column("Module"), lambda line: line[0]),
    (Column("Tenant", shrinks=True), lambda line: line[1].tenant),
    (Column("Agent", shrinks=True), lambda line: line[1].agent),
    (Column("Program", shrinks=True), lambda line: line[1].program),
    (Column("Tokens", "right"), lambda line: line[2].tokens),
    (Column("Prompt tokens", "right"), lambda line: line[2].prompt_tokens),
    (Column("Slot time", "right"), lambda line: seconds(line[2].ran_s)),
    (Column("Finished", "right"), lambda line: line[2].finished),
    (Column("Failed", "right"), lambda line: line[2].failed),
)

_module = click.option("--module", default="llm", show_default=True, help="Of which module.")
_tenant = click.option(
    "--tenant",
    default=None,
    help="The agent's tenant; without AGENT, the tenant itself ('*': each tenant).",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(epilog=EXIT_CODES)
def quota() -> None:
    """Show, set or unset what agents and tenants may use.

    \b
    Examples:
      aios quota set ada --max-queued 100 --max-running 4
      aios quota set '*' --tokens-per-minute 60000        every agent that has none of its own
      aios quota set --tenant acme --slot-seconds-per-minute 120
      aios quota unset ada
    """  # noqa: D301 - \b keeps click from wrapping


@quota.command()
@_json
def show(*, as_json: bool) -> None:
    """Show all quotas, of all modules."""

    async def read(operator: Operator) -> dict[Module, list[QuotaRow]]:
        quotas = Quotas(Functions(operator.connection), operator.keys)
        return {module: await quotas.rows(module) for module in MODULES}

    by_module = with_kernel(read)
    if as_json:
        show_json(by_module)
        return
    QUOTAS.show([(module, row) for module, rows in by_module.items() for row in rows])


@quota.command(name="set")
@click.argument("agent", required=False)
@_tenant
@_module
@click.option("--max-queued", type=click.IntRange(0), help="Syscalls that wait.")
@click.option("--max-running", type=click.IntRange(0), help="Syscalls that run.")
@click.option("--tokens-per-minute", type=click.IntRange(0), help="Output and prompt tokens.")
@click.option("--slot-seconds-per-minute", type=click.FloatRange(0), help="Time of slots.")
@_json
def set_(  # noqa: PLR0913 - one argument per option
    agent: str | None,
    tenant: str | None,
    module: str,
    max_queued: int | None,
    max_running: int | None,
    tokens_per_minute: int | None,
    slot_seconds_per_minute: float | None,
    *,
    as_json: bool,
) -> None:
    """Give AGENT, or a tenant, these limits and no others ('*': each that has none of its own).

    A limit that is left out is that of '*', if it has one. It holds from the next step on.
    """
    chosen = parse_module(module)
    row = QuotaRow(
        _subject(agent, tenant), max_queued, max_running, tokens_per_minute, slot_seconds_per_minute
    )

    async def work(operator: Operator) -> None:
        quotas = Quotas(Functions(operator.connection), operator.keys)
        await quotas.set(chosen, row, who=_operator())

    with_kernel(work)
    if as_json:
        show_json({"module": chosen, "quota": row})
    else:
        QUOTAS.show([(chosen, row)])


@quota.command()
@click.argument("agent", required=False)
@_tenant
@_module
@_json
def unset(agent: str | None, tenant: str | None, module: str, *, as_json: bool) -> None:
    """Take away the limits of AGENT, or of a tenant; those of '*' hold for it then."""
    subject, chosen = _subject(agent, tenant), parse_module(module)

    async def work(operator: Operator) -> bool:
        quotas = Quotas(Functions(operator.connection), operator.keys)
        return await quotas.unset(chosen, subject, who=_operator())

    had = with_kernel(work)
    if as_json:
        show_json({"module": chosen, "subject": subject, "unset": had})
    else:
        click.echo(f"{subject.words} {'has no quota any more' if had else 'had no quota'}")


def _subject(agent: str | None, tenant: str | None) -> Subject:
    """Return whom the arguments name.

    Raises:
        InvalidSyscall: with something that is no name.
    """
    if agent is None and tenant is None:
        raise click.UsageError("name an agent, or a tenant with --tenant")
    for field, value in (("agent", agent), ("tenant", tenant)):
        if value is not None and value != ANYBODY:
            check_name(field, value)
    if agent is None:
        return Subject.of_tenant(tenant or "default")
    return Subject.of_agent(agent, tenant or "default")


def _operator() -> str:
    """Return who is at the keyboard, for the journal."""
    try:
        return getpass.getuser()
    except OSError:  # a uid without a name, as in containers
        return "?"


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

    lines = sorted(with_kernel(read), key=_most_used)
    if as_json:
        show_json(
            [{"module": module, "subject": subject, "use": use} for module, subject, use in lines]
        )
    else:
        USED.show(lines)


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
        key = (row.module, _subject_of(row, scope))
        sums[key] = sums[key].plus(row) if key in sums else row
    return [
        (
            module,
            subject,
            Use(row.tokens, row.prompt_tokens, row.ran_ms / 1000, row.finished, row.failed),
        )
        for (module, subject), row in sums.items()
    ]


def _subject_of(row: UsageRow, scope: Scope) -> Subject:
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
