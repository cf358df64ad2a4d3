"""`aios quota`: what agents and tenants may use."""

from __future__ import annotations

import getpass

import click

from aios_broker.contract.names import Module
from aios_broker.contract.syscall import MODULES
from aios_broker.queues.functions import Functions
from aios_broker.queues.quota import ANYBODY, QuotaRow, Quotas, Subject
from aios_cli.lookup import check_name, parse_module
from aios_cli.operator import Operator
from aios_cli.session import EXIT_CODES, with_kernel
from aios_cli.tables import Column, show_json, show_table

COLUMNS = (
    Column("Module"),
    Column("Scope"),
    Column("Tenant"),
    Column("Agent"),
    Column("Max queued", "right"),
    Column("Max running", "right"),
    Column("Tokens/min", "right"),
    Column("Slot-s/min", "right"),
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

    by_module = with_kernel(read, as_json=as_json)
    if as_json:
        show_json(by_module)
        return
    show_table(
        COLUMNS, [cells_of(module, row) for module, rows in by_module.items() for row in rows]
    )


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

    with_kernel(work, as_json=as_json)
    if as_json:
        show_json({"module": chosen, "quota": row})
    else:
        show_table(COLUMNS, [cells_of(chosen, row)])


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

    had = with_kernel(work, as_json=as_json)
    if as_json:
        show_json({"module": chosen, "subject": subject, "unset": had})
    else:
        click.echo(f"{subject.words} {'has no quota any more' if had else 'had no quota'}")


def cells_of(module: Module, row: QuotaRow) -> list[str]:
    """Return one row of the table."""
    limits = (row.max_queued, row.max_running, row.tokens_per_minute, row.slot_seconds_per_minute)
    agent = ANYBODY if row.subject == Subject.of_agent(ANYBODY) else row.subject.agent
    tenant = "" if agent == ANYBODY else row.subject.tenant
    return [
        module,
        row.subject.scope,
        tenant,
        agent,
        *("-" if limit is None else f"{limit:g}" for limit in limits),
    ]


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
