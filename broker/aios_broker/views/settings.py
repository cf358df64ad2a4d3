"""What an operator sets while a kernel runs: policies, quotas, rights, what waits for approval."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from aios_broker.access.deciders import Decider
from aios_broker.access.requests import Decision, check_alive, decide
from aios_broker.access.rights import Right, set_right
from aios_broker.contract.access import Approval
from aios_broker.contract.errors import InvalidConfig, InvalidSyscall
from aios_broker.contract.names import Module, Owner, check_name
from aios_broker.contract.syscall import module_of
from aios_broker.ledger.ledger import UsageHistory
from aios_broker.postgres.database import Database
from aios_broker.postgres.store import Store
from aios_broker.queues.control import Control
from aios_broker.queues.keys import Keys
from aios_broker.queues.quota import ANYBODY, Quotas, Subject
from aios_broker.queues.rate_limits import Rates
from aios_broker.queues.records import PolicyRow
from aios_broker.scheduler.policy import policy_named

# What each policy does, for who chooses one.
POLICIES = {
    "fifo": "first come, first served, to the end",
    "rr": "everybody in turn, a slice each",
    "priority": "the lowest nice value first; a second of waiting weighs as much as one nice level",
}
# For whom a running generation is suspended at the end of a slice.
SUSPENDED_FOR = {"none": "nobody", "waiting": "whoever waits", "score": "lower scores"}


async def set_policy(
    control: Control,
    modules: Sequence[Module],
    changes: Mapping[str, Any],
    name: str | None,
    *,
    field: str,
) -> dict[Module, PolicyRow]:
    """Change the policies of modules, and return them; without a change they stay as they are.

    Args:
        control: Of the kernel.
        modules: Whose policies.
        changes: Fields of `PolicyRow` that change.
        name: Another policy; it says itself whom it suspends.
        field: What an error calls the name.

    Raises:
        InvalidConfig: no policy has this name.
    """
    wanted = dict(changes)
    if name is not None:
        chosen = policy_named(name, field=field)
        wanted |= {"name": chosen.name, "preempt": chosen.preempt}
    rows = {}
    for one in modules:
        before = await control.policy(one)
        rows[one] = replace(before, **wanted)
        if rows[one] != before:
            await control.set_policy(one, rows[one])
    return rows


def quota_subject(agent: str | None, tenant: str | None) -> Subject:
    """Return whose a quota is; `*` is each one that has none of its own.

    Raises:
        InvalidSyscall: neither is named, or with something that is no name.
    """
    if agent is None and tenant is None:
        raise InvalidSyscall(
            "nobody is named", field="agent", remedy="name an agent, or a tenant alone"
        )
    for field, value in (("agent", agent), ("tenant", tenant)):
        if value is not None and value != ANYBODY:
            check_name(field, value)
    if agent is None:
        return Subject.of_tenant(tenant or "default")
    return Subject.of_agent(agent, tenant or "default")


async def currency_of_prices(rates: Rates, wanted: str | None, *, field: str) -> str:
    """Return the currency that budgets are in: the one of the prices that workers have told.

    Raises:
        InvalidConfig: no core has a price, or none in the wanted currency: such a budget would
            never be used up.
    """
    paid_in = sorted({each.currency for each in await rates.terms() if each.currency})
    if wanted is None and len(paid_in) == 1:
        return paid_in[0]
    if wanted in paid_in:
        return str(wanted)
    raise InvalidConfig(
        f"cores are paid in {', '.join(paid_in)}" if paid_in else "no core has a price",
        field=field,
        remedy="use one of these" if paid_in else "give a core a price in cores.toml, and start it",
    )


async def remember_spent(quotas: Quotas, module: Module, database: Database, keys: Keys) -> None:
    """Let a new budget count what was spent before, also where Redis has lost it.

    Raises:
        DatabaseUnavailable: What was spent before counts as far as Redis knows it.
    """
    spent = await UsageHistory(database, keys).spent(module, datetime.now(UTC))
    await quotas.remember_spent(module, spent)


async def give_right(store: Store, whose: Owner, right: Right, *, who: str, given: bool) -> None:
    """Give an agent a right, or take it away; one that is not known yet becomes known."""
    known = await store.vouched(whose.agent, whose.tenant)
    async with store.as_steward() as cursor:
        await set_right(cursor, known, right, who, given=given)


async def decide_as_operator(
    store: Store, control: Control, approval_id: str, who: str, decision: Decision
) -> Approval:
    """Decide about what waits for a person, and let it go on; raise as `decide` does."""
    async with store.as_steward() as cursor:
        decided = await decide(cursor, approval_id, Decider(who), decision)
        await check_alive(control, decided)
    # The kernel's own sweep does it within a second where this fails.
    module = msgspec.convert(module_of(decided.kind), Module)
    await control.unpark([decided.syscall_id], module=module)
    return decided
