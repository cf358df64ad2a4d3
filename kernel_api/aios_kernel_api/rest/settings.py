"""What an operator sets while the kernel runs: policies and quotas; agents see their own quotas."""

from typing import Annotated, Literal

from msgspec import Meta, Struct, structs

from aios_broker.contract.errors import InvalidConfig, InvalidSyscall
from aios_broker.contract.money import nano_of
from aios_broker.contract.names import Module
from aios_broker.contract.syscall import MODULES
from aios_broker.queues.quota import ANYBODY, Budget, QuotaRow, Subject
from aios_broker.queues.rate_limits import Rates
from aios_broker.queues.records import PolicyRow
from aios_broker.views.counters import OwnerFilter
from aios_broker.views.settings import (
    currency_of_prices,
    quota_subject,
    remember_spent,
    set_policy,
)
from aios_kernel_api.operations import Answer, Asked, NoQuery, Operation, route_of
from aios_kernel_api.rest.views import Page, PageQuery, Who, page_of, whose_of

Policies = dict[Module, PolicyRow]
Whole = Annotated[int, Meta(ge=0, le=2**53)]
Amount = Annotated[str, Meta(max_length=40, description="money, such as 2.50")]


class PolicyQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of which module; none: of all."""

    module: Module | None = None


class PolicyChange(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What changes of a policy; the rest stays as it is."""

    name: Annotated[str, Meta(max_length=64)] | None = None
    quantum_s: Annotated[float, Meta(ge=0.001, le=86_400.0)] | None = None
    quantum_tokens: Annotated[int, Meta(ge=1, le=2**31)] | None = None
    unserved_core: Literal["wait", "refuse"] | None = None


class QuotaLine(Struct, frozen=True):
    """The limits of somebody in a module; `*` as a name: of each who has none of its own."""

    module: Module
    quota: QuotaRow


class QuotaSetting(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of an agent or, without one, of a tenant: these and no others."""

    module: Module = "llm"
    tenant: Who | None = None
    agent: Who | None = None
    max_queued: Whole | None = None
    max_running: Whole | None = None
    tokens_per_minute: Whole | None = None
    slot_seconds_per_minute: Annotated[float, Meta(ge=0.0, le=1e9)] | None = None
    budget_per_day: Amount | None = None
    budget_per_month: Amount | None = None
    currency: Annotated[str, Meta(pattern=r"^[A-Z]{3}\Z")] | None = None  # of the budgets
    min_nice: Annotated[int, Meta(ge=-20, le=0)] | None = None
    max_contexts: Whole | None = None
    max_context_bytes: Whole | None = None
    max_unread: Whole | None = None


class QuotaQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose limits go."""

    module: Module = "llm"
    tenant: Who | None = None
    agent: Who | None = None


class QuotaRemoval(Struct, frozen=True):
    """Whether there was anything to take away."""

    changed: bool


async def policy(asked: Asked[PolicyQuery, None]) -> Policies:
    """Return the policies that are in force."""
    modules = (asked.query.module,) if asked.query.module else MODULES
    return {module: await asked.kernel.control.policy(module) for module in modules}


async def change_policy(asked: Asked[PolicyQuery, PolicyChange]) -> Policies:
    """Change policies; the scheduler and the workers follow from their next step on."""
    modules = (asked.query.module,) if asked.query.module else MODULES
    changes = {
        name: value
        for name, value in structs.asdict(asked.body).items()
        if name != "name" and value is not None
    }
    try:
        return await set_policy(
            asked.kernel.control, modules, changes, asked.body.name, field="name"
        )
    except InvalidConfig as error:
        raise _unfit(error) from error


async def quotas(asked: Asked[PageQuery, None]) -> Page[QuotaLine]:
    """Return quotas: those that hold for who asks, or all."""
    whose = whose_of(asked.caller, None, None)
    lines = {
        f"{module} {row.subject}": QuotaLine(module, row)
        for module in MODULES
        for row in await asked.kernel.quotas.rows(module)
        if _holds(row.subject, whose)
    }
    names = sorted(lines)
    return page_of([lines[name] for name in names], names, asked.query)


def _holds(subject: Subject, whose: OwnerFilter) -> bool:
    """Tell whether a quota says something of one of these."""
    if whose.tenant is None or subject.tenant == ANYBODY:
        return True
    if subject.tenant != whose.tenant:
        return False
    return subject.scope == "tenant" or whose.agent in (None, subject.agent)


async def set_quota(asked: Asked[NoQuery, QuotaSetting]) -> QuotaLine:
    """Give an agent or a tenant limits."""
    kernel, body = asked.kernel, asked.body
    row = QuotaRow(
        quota_subject(body.agent, body.tenant),
        body.max_queued,
        body.max_running,
        body.tokens_per_minute,
        body.slot_seconds_per_minute,
        await _budget(asked, "budget_per_day", body.budget_per_day),
        await _budget(asked, "budget_per_month", body.budget_per_month),
        body.min_nice,
        body.max_contexts,
        body.max_context_bytes,
        body.max_unread,
    )
    await kernel.quotas.set(body.module, row, who=asked.caller.agent)
    if row.budget_per_day or row.budget_per_month:
        await remember_spent(kernel.quotas, body.module, kernel.needed_database, kernel.keys)
    return QuotaLine(body.module, row)


async def _budget(
    asked: Asked[NoQuery, QuotaSetting], field: str, amount: str | None
) -> Budget | None:
    if amount is None:
        return None
    try:
        nano = nano_of(amount)
    except ValueError as error:
        raise InvalidSyscall(f"{error}", field=field, remedy="write it like 2.50") from error
    try:
        paid_in = await currency_of_prices(
            Rates(asked.kernel.functions, asked.kernel.keys), asked.body.currency, field="currency"
        )
    except InvalidConfig as error:
        raise _unfit(error) from error
    return Budget(nano, paid_in)


def _unfit(error: InvalidConfig) -> InvalidSyscall:
    """Return the error of a request for something that this kernel cannot be set to."""
    return InvalidSyscall(error.message, field=error.field, remedy=error.remedy)


async def unset_quota(asked: Asked[QuotaQuery, None]) -> QuotaRemoval:
    """Take the limits of an agent or a tenant away."""
    query = asked.query
    subject = quota_subject(query.agent, query.tenant)
    had = await asked.kernel.quotas.unset(query.module, subject, who=asked.caller.agent)
    return QuotaRemoval(had)


OPERATIONS = (
    (
        Operation(
            method="GET",
            path="/v1/policy",
            tag="The fleet",
            words="Show the scheduling policies that are in force",
            scope="operator",
            query=PolicyQuery,
            answers={200: Answer(words="Policies, by module", kind=Policies)},
        ),
        policy,
    ),
    (
        Operation(
            method="PATCH",
            path="/v1/policy",
            tag="The fleet",
            words="Change the policy of a module, or of all",
            scope="operator",
            query=PolicyQuery,
            body=PolicyChange,
            body_example={"name": "priority", "quantum_s": 0.25},
            answers={200: Answer(words="The policies as they are now", kind=Policies)},
        ),
        change_policy,
    ),
    (
        Operation(
            method="GET",
            path="/v1/quotas",
            tag="Use and quotas",
            words="List the quotas that hold for you; for an operator all",
            scope="agent",
            query=PageQuery,
            answers={200: Answer(words="Quotas, by module", kind=Page[QuotaLine])},
        ),
        quotas,
    ),
    (
        Operation(
            method="PUT",
            path="/v1/quotas",
            tag="Use and quotas",
            words="Give an agent or a tenant these limits and no others",
            more="It holds from the next step on. `*` as a name: each that has none of its own.",
            scope="operator",
            body=QuotaSetting,
            body_example={"agent": "ada", "max_queued": 100, "max_running": 4},
            answers={200: Answer(words="The quota as it is now", kind=QuotaLine)},
            errors=(501,),
        ),
        set_quota,
    ),
    (
        Operation(
            method="DELETE",
            path="/v1/quotas",
            tag="Use and quotas",
            words="Take away the limits of an agent or a tenant",
            scope="operator",
            query=QuotaQuery,
            answers={200: Answer(words="Whether it had any", kind=QuotaRemoval)},
        ),
        unset_quota,
    ),
)
ROUTES = [route_of(operation, handler) for operation, handler in OPERATIONS]
