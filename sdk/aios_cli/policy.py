"""`aios policy | quota`: who goes first, and who may use how much."""

import contextlib
import getpass
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from aios_broker.contract.errors import InvalidConfig, Unavailable
from aios_broker.contract.money import nano_of
from aios_broker.contract.names import Module
from aios_broker.contract.syscall import MODULES
from aios_broker.postgres.database import Database
from aios_broker.queues.quota import ANYBODY, BUDGET_WINDOWS, Budget, QuotaRow, Subject
from aios_broker.queues.records import PolicyRow
from aios_broker.views.settings import (
    SUSPENDED_FOR,
    currency_of_prices,
    quota_subject,
    remember_spent,
    set_policy,
)
from aios_cli.call import given
from aios_cli.object_limits import limit, limits_
from aios_cli.session import EXIT_CODES, Operator, command, database_url
from aios_cli.syscalls import ModuleName
from aios_cli.tables import Column, Listing, say


def _quantum(row: PolicyRow) -> str:
    return "-" if row.preempt == "none" else f"{row.quantum_s:g} s or {row.quantum_tokens} tokens"


POLICIES = Listing[tuple[Module, PolicyRow]](
    (Column("Module"), lambda one: one[0]),
    (Column("Policy"), lambda one: one[1].name),
    (Column("Suspended for"), lambda one: SUSPENDED_FOR[one[1].preempt]),
    (Column("Quantum"), lambda one: _quantum(one[1])),
    (Column("Max waiting", "right"), lambda one: one[1].max_waiting),
    (Column("Max losses", "right"), lambda one: one[1].max_losses),
    (Column("Unserved core"), lambda one: one[1].unserved_core + "s"),
)


def _show_policies(rows: Mapping[Module, PolicyRow]) -> None:
    POLICIES.show(list(rows.items()))


@command(_show_policies)
@click.argument("name", required=False)
@click.option("--module", type=ModuleName(), help="Of this module alone; without it, of all.")
@click.option(
    "--quantum-s", type=click.FloatRange(min=0.001), help="A slice ends after so many seconds ..."
)
@click.option("--quantum-tokens", type=click.IntRange(min=1), help="... or so many output tokens.")
@click.option(
    "--unserved",
    "unserved_core",
    type=click.Choice(["wait", "refuse"]),
    help="A syscall whose core has no worker waits for one, or is refused.",
)
async def policy(
    operator: Operator, name: str | None, module: Module | None, **changed: float | str | None
) -> dict[Module, PolicyRow]:
    """Show the scheduling policy, or change it: to NAME, its quanta, or what is refused.

    \b
    fifo      first come, first served, to the end
    rr        everybody in turn, a slice each
    priority  the lowest nice value first; a second of waiting weighs as much as one nice level

    \b
    Example:
      aios policy priority --module llm --quantum-s 0.25
    """  # noqa: D301 - \b keeps click from wrapping
    modules = (module,) if module else MODULES
    return await set_policy(operator.control, modules, given(changed), name, field="NAME")


Limits = tuple[Module, QuotaRow]


def _limit(name: str) -> Callable[[Limits], str]:
    """Return what shows one limit of a quota; `-`: none."""

    def shown(limits: Limits) -> str:
        value = getattr(limits[1], name)
        if value is None:
            return "-"
        return str(value) if isinstance(value, Budget) else f"{value:g}"

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
    (Column("Per day", "right"), _limit("budget_per_day")),
    (Column("Per month", "right"), _limit("budget_per_month")),
    (Column("Min nice", "right"), _limit("min_nice")),
    (Column("Contexts", "right"), _limit("max_contexts")),
    (Column("Their bytes", "right"), _limit("max_context_bytes")),
    (Column("Unread", "right"), _limit("max_unread")),
)


class Amount(click.ParamType[int]):
    """An amount of money, in billionths of its currency."""

    name = "amount"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Read what a person wrote, such as 2.50."""
        try:
            return value if isinstance(value, int) else nano_of(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


_module = click.option(
    "--module", type=ModuleName(), default="llm", show_default=True, help="Of which module."
)
_tenant = click.option(
    "--tenant",
    default=None,
    help="The agent's tenant; without AGENT, the tenant itself ('*': each tenant).",
)


@click.group(epilog=EXIT_CODES)
def quota() -> None:
    """Show, set or unset what agents and tenants may use.

    \b
    Examples:
      aios quota set ada --max-queued 100 --max-running 4
      aios quota set '*' --tokens-per-minute 60000        every agent that has none of its own
      aios quota set pager --min-nice -10                 it may go before others
      aios quota set --tenant acme --slot-seconds-per-minute 120
      aios quota set --tenant acme --budget-per-month 250 --currency EUR
      aios quota unset ada
      aios quota limit notes 5000 --agent ada             how much it may keep
    """  # noqa: D301 - \b keeps click from wrapping


def _show_quotas(by_module: Mapping[Module, Sequence[QuotaRow]]) -> None:
    QUOTAS.show([(module, row) for module, rows in by_module.items() for row in rows])


@command(_show_quotas)
async def show(operator: Operator) -> dict[Module, list[QuotaRow]]:
    """Show all quotas, of all modules."""
    return {module: await operator.quotas.rows(module) for module in MODULES}


def _show_set(done: Mapping[str, Any]) -> None:
    QUOTAS.show([(done["module"], done["quota"])])


@command(_show_set, name="set")
@click.argument("agent", required=False)
@_tenant
@_module
@click.option("--max-queued", type=click.IntRange(0), help="Syscalls that wait.")
@click.option("--max-running", type=click.IntRange(0), help="Syscalls that run.")
@click.option("--tokens-per-minute", type=click.IntRange(0), help="Output and prompt tokens.")
@click.option("--slot-seconds-per-minute", type=click.FloatRange(0), help="Time of slots.")
@click.option("--budget-per-day", type=Amount(), help="Money, on cores with a price; UTC days.")
@click.option("--budget-per-month", type=Amount(), help="The same, by months of the calendar.")
@click.option(
    "--min-nice", type=click.IntRange(-20, 0), help="The least nice value; 0 where none is set."
)
@click.option("--max-contexts", type=click.IntRange(0), help="Stored contexts; 1,000.")
@click.option("--max-context-bytes", type=click.IntRange(0), help="Of all of them; 256 MiB.")
@click.option(
    "--max-unread", type=click.IntRange(0), help="Replies a client leaves unread; 10,000."
)
@click.option("--currency", help="Of the budgets; without it, that of the cores' prices.")
async def set_(
    operator: Operator,
    agent: str | None,
    tenant: str | None,
    module: Module,
    currency: str | None,
    **limits: float | None,
) -> dict[str, Any]:
    """Give AGENT, or a tenant, these limits and no others ('*': each that has none of its own).

    A limit that is left out is that of '*', if it has one. It holds from the next step on.
    """
    chosen: dict[str, Any] = limits
    if any(chosen[name] is not None for name in BUDGET_WINDOWS):
        paid_in = await currency_of_prices(operator.rates, currency, field="--currency")
        for name in BUDGET_WINDOWS:
            chosen[name] = None if chosen[name] is None else Budget(chosen[name], paid_in)
    row = QuotaRow(_subject(agent, tenant), **chosen)
    await operator.quotas.set(module, row, who=_operator())
    if row.budget_per_day or row.budget_per_month:
        await _remember_spent(operator, module)
    return {"module": module, "quota": row}


async def _remember_spent(operator: Operator, module: Module) -> None:
    """Let a new budget count what was spent before, also where Redis has lost it."""
    try:
        async with contextlib.aclosing(Database(database_url(), name="aios-quota")) as database:
            await remember_spent(operator.quotas, module, database, operator.keys)
    except (InvalidConfig, Unavailable) as error:
        why = f"what was spent before counts as far as Redis knows it: {error}"
        say(why, err=True)


def _show_unset(done: Mapping[str, Any]) -> None:
    say(f"{done['subject'].words} {'has no quota any more' if done['unset'] else 'had no quota'}")


@command(_show_unset)
@click.argument("agent", required=False)
@_tenant
@_module
async def unset(
    operator: Operator, agent: str | None, tenant: str | None, module: Module
) -> dict[str, Any]:
    """Take away the limits of AGENT, or of a tenant; those of '*' hold for it then."""
    subject = _subject(agent, tenant)
    had = await operator.quotas.unset(module, subject, who=_operator())
    return {"module": module, "subject": subject, "unset": had}


for _each in (show, set_, unset, limits_, limit):
    quota.add_command(_each)


def _subject(agent: str | None, tenant: str | None) -> Subject:
    """Return whom the arguments name; raise as `quota_subject`."""
    if agent is None and tenant is None:
        raise click.UsageError("name an agent, or a tenant with --tenant")
    return quota_subject(agent, tenant)


def _operator() -> str:
    """Return who is at the keyboard, for the journal."""
    try:
        return getpass.getuser()
    except OSError:  # a uid without a name, as in containers
        return "?"
