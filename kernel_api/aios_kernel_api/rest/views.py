"""What people see of a kernel, and set in it: an agent its own, an operator all.

The readings are those of `aios ps`, `aios queues`, `aios usage` and so on (`aios_broker.views`).
Of another tenant nothing is told, not even that it is there.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Generic, TypeVar

from msgspec import Meta, Struct, structs

from aios_broker.access.requests import find_approvals
from aios_broker.contract.errors import InvalidSyscall, UnknownAgent, UnknownSyscall
from aios_broker.contract.names import Module, Name
from aios_broker.contract.syscall import MODULES, State
from aios_broker.queues.fleet import WorkerView
from aios_broker.queues.quota import Subject
from aios_broker.queues.records import JobView, QueueView
from aios_broker.views.counters import OwnerFilter, UsageLine, counters, in_order
from aios_broker.views.live import (
    ProgramView,
    owned_jobs,
    read_jobs,
    read_programs,
    read_queues,
    workers_of_cores,
)
from aios_broker.views.usage import ALL, SCOPES, By, history, undrained
from aios_broker.views.why import Explanation, explain, surroundings
from aios_kernel_api.identity import Caller
from aios_kernel_api.operations import Answer, Asked, NoQuery, Operation, route_of

T = TypeVar("T")
Limit = Annotated[int, Meta(ge=1, le=1_000, description="at most so many")]
Place = Annotated[str, Meta(max_length=300, description="`next` of the page before")]
Who = Annotated[str, Meta(min_length=1, max_length=128)]


class Page(Struct, Generic[T], frozen=True):
    """Some of a list, and where it goes on: give `next` as `after`. None: that was the last."""

    items: Sequence[T]
    next: str | None = None


class PageQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which page of a list."""

    limit: Limit = 100
    after: Place | None = None


class OwnerQuery(PageQuery, frozen=True, kw_only=True):
    """A page, of whom: who may see more than its own says so."""

    tenant: Who | None = None
    agent: Who | None = None


def whose_of(caller: Caller, tenant: str | None, agent: str | None) -> OwnerFilter:
    """Return of whom something is shown.

    Raises:
        UnknownAgent: of somebody whom the caller may not know of.
    """
    if caller.scope == "operator":
        return OwnerFilter(tenant or ("default" if agent else None), agent)
    if tenant not in (None, caller.tenant):
        raise _unknown("tenant", tenant)
    if caller.scope == "administrator":
        return OwnerFilter(caller.tenant, agent)
    if agent not in (None, caller.agent):
        raise _unknown("agent", agent)
    return OwnerFilter(caller.tenant, caller.agent)


def tenant_of(caller: Caller, tenant: str | None) -> str | None:
    """Return of which tenant something is shown, whoever's it is there; None: of all.

    Raises:
        UnknownAgent: of a tenant that the caller may not know of.
    """
    return whose_of(caller, tenant, None).tenant


def _unknown(what: str, name: str | None) -> UnknownAgent:
    return UnknownAgent(
        f"no {what} {name!r} is known to you", field=what, remedy=f"leave {what} out, or correct it"
    )


def page_of(items: Sequence[T], names: Sequence[str], paged: PageQuery) -> Page[T]:
    """Return a page of a list that is in the order of its items' names."""
    first = 0
    if paged.after is not None:
        first = sum(name <= paged.after for name in names)
    last = first + paged.limit
    return Page(items[first:last], names[last - 1] if last < len(items) else None)


def cut_page(found: Sequence[T], limit: int, name_of: Callable[[T], str]) -> Page[T]:
    """Return a page of a list of which one more than `limit` was asked for."""
    page = found[:limit]
    return Page(page, name_of(page[-1]) if len(found) > limit else None)


# What has not ended.


class SyscallQuery(OwnerQuery, frozen=True, kw_only=True):
    """Which syscalls."""

    module: Module | None = None
    program: Name | None = None
    state: State | None = None


async def syscalls(asked: Asked[SyscallQuery, None]) -> Page[JobView]:
    """Return syscalls that have not ended."""
    query, control = asked.query, asked.kernel.control
    whose = whose_of(asked.caller, query.tenant, query.agent)
    modules = (query.module,) if query.module else MODULES
    after = None
    if whose.tenant is None:
        jobs: Sequence[JobView] = await read_jobs(control, modules, limit=query.limit)
    else:
        subject = (
            Subject.of_agent(whose.agent, whose.tenant)
            if whose.agent is not None
            else Subject.of_tenant(whose.tenant)
        )
        try:
            owned = await owned_jobs(control, subject, modules, query.limit, query.after or "")
        except ValueError as error:
            raise InvalidSyscall(
                f"{query.after!r} is no place in this list",
                field="after",
                remedy="give `next` of the page before, and ask for the same",
            ) from error
        jobs, after = owned.jobs, owned.after
    found = [
        job
        for job in jobs
        if query.program in (None, job.metadata.program, job.metadata.tree)
        and query.state in (None, job.state)
    ]
    return Page(found, after)


async def why(asked: Asked[NoQuery, None]) -> Explanation:
    """Return the rule that keeps a syscall where it is."""
    kernel, syscall_id = asked.kernel, asked.path["id"]
    job = await kernel.control.job(syscall_id)
    if job is None:
        raise UnknownSyscall(
            "no syscall of this id is alive",
            field="id",
            remedy="its reply says how it ended, where that is kept: GET /v1/syscalls/{id}",
        )
    approval = None
    if job.state == "parked":
        async with kernel.needed_store.as_steward() as cursor:
            approval = next(iter(await find_approvals(cursor, job.job_id, 1)), None)
    return explain(job, await surroundings(kernel.functions, kernel.keys, job, approval))


async def programs(asked: Asked[OwnerQuery, None]) -> Page[ProgramView]:
    """Return programs that are alive, or were lately."""
    whose = whose_of(asked.caller, asked.query.tenant, asked.query.agent)
    found = await read_programs(asked.kernel.control, asked.kernel.quotas, whose)
    names = [f"{one.tenant} {one.agent} {one.program}" for one in found]
    return page_of(found, names, asked.query)


# Who serves.


class Queues(Struct, frozen=True):
    """Each module's queue, and whether anybody orders and serves them."""

    items: Sequence[QueueView]
    suspended: bool  # `rq suspend`: workers take nothing new
    scheduler: str | None  # who leads; None: nobody


async def queues(asked: Asked[NoQuery, None]) -> Queues:
    """Return each module's queue."""
    fleet = asked.kernel.fleet
    return Queues(
        await read_queues(asked.kernel.control),
        await fleet.suspended(),
        await fleet.leading_scheduler(),
    )


async def workers(asked: Asked[NoQuery, None]) -> Page[WorkerView]:
    """Return the workers that live."""
    return Page(await asked.kernel.fleet.live_workers())


class CoreLine(Struct, frozen=True, omit_defaults=True):
    """A core that may be named; how busy it is only the operator is told."""

    name: str
    model: str
    kind: str
    served: bool  # by a living worker
    default: bool = False
    aliases: Sequence[str] = ()
    fallback: Sequence[str] = ()
    context_tokens: int = 0  # 0: not known
    generates: bool = True
    preemptible: bool = True
    currency: str = ""
    slots: int | None = None  # of its living workers together
    workers: int | None = None
    waiting: int | None = None
    running: int | None = None


async def cores(asked: Asked[NoQuery, None]) -> Page[CoreLine]:
    """Return the cores."""
    alive = workers_of_cores(await asked.kernel.fleet.live_workers())
    lines = []
    for view in await asked.kernel.control.cores():
        card = view.card
        line = CoreLine(
            card.name,
            card.model,
            card.kind,
            view.slots is not None,
            card.default,
            card.aliases,
            card.fallback,
            card.context_tokens,
            card.generates,
            card.preemptible,
            card.currency,
        )
        if asked.caller.scope == "operator":
            line = structs.replace(
                line,
                slots=view.slots or 0,
                workers=alive.get(card.name, 0),
                waiting=view.waiting,
                running=view.running,
            )
        lines.append(line)
    return Page(lines)


# What was used, and what may be.


Since = Annotated[
    float,
    Meta(ge=0.0, le=4_000_000_000.0, description="Unix time, s: by whole hours, from the ledger"),
]


class UsageQuery(OwnerQuery, frozen=True, kw_only=True):
    """Whose use, put together how, since when."""

    by: By = "agent"
    since: Since | None = None


class UsagePage(Struct, frozen=True):
    """What was used; `undrained`: entries of the journal that the ledger has not yet."""

    items: Sequence[UsageLine]
    next: str | None = None
    undrained: int = 0


async def usage(asked: Asked[UsageQuery, None]) -> UsagePage:
    """Return what was used, and what it cost."""
    query, kernel = asked.query, asked.kernel
    whose = whose_of(asked.caller, query.tenant, query.agent)
    missing = 0
    if query.since is None and query.by in SCOPES:
        lines = await counters(kernel.quotas, SCOPES[query.by], whose)
    else:
        since = ALL if query.since is None else datetime.fromtimestamp(query.since, UTC)
        missing = await undrained(kernel.connection, kernel.keys)
        lines = await history(kernel.needed_database, kernel.keys, query.by, since, whose)
    found = in_order(lines)
    names = [f"{number:09}" for number in range(len(found))]
    page = page_of(found, names, query)
    return UsagePage(page.items, page.next, missing)


OPERATIONS = (
    (
        Operation(
            method="GET",
            path="/v1/syscalls",
            tag="What runs",
            words="List syscalls that have not ended",
            more="An operator who names nobody sees the first of each queue in the order in which "
            "they run; everybody else what is theirs, in no order.",
            scope="agent",
            query=SyscallQuery,
            answers={200: Answer(words="Syscalls", kind=Page[JobView])},
            errors=(404,),
        ),
        syscalls,
    ),
    (
        Operation(
            method="GET",
            path="/v1/syscalls/{id}/why",
            tag="What runs",
            words="Say why a syscall waits: which rule keeps it, and the rule's numbers",
            more="For operators: it names others that run.",
            scope="operator",
            answers={200: Answer(words="The rule", kind=Explanation)},
            errors=(404, 501),
        ),
        why,
    ),
    (
        Operation(
            method="GET",
            path="/v1/programs",
            tag="What runs",
            words="List programs that are alive, or used something in the last hour",
            scope="agent",
            query=OwnerQuery,
            answers={200: Answer(words="Programs, by name", kind=Page[ProgramView])},
            errors=(404,),
        ),
        programs,
    ),
    (
        Operation(
            method="GET",
            path="/v1/queues",
            tag="The fleet",
            words="Show each module's queue, and those of the cores",
            scope="operator",
            answers={200: Answer(words="Queues", kind=Queues)},
        ),
        queues,
    ),
    (
        Operation(
            method="GET",
            path="/v1/workers",
            tag="The fleet",
            words="List the workers that live",
            scope="operator",
            answers={200: Answer(words="Workers", kind=Page[WorkerView])},
        ),
        workers,
    ),
    (
        Operation(
            method="GET",
            path="/v1/cores",
            tag="The fleet",
            words="List the cores that a syscall may name",
            scope="agent",
            answers={200: Answer(words="Cores, by name", kind=Page[CoreLine])},
        ),
        cores,
    ),
    (
        Operation(
            method="GET",
            path="/v1/usage",
            tag="Use and quotas",
            words="Show what was used, and what it cost",
            more="Without `since`, by tenant, agent or program: the counters, exact up to the last "
            "slice. Else from the ledger, by whole hours.",
            scope="agent",
            query=UsageQuery,
            answers={200: Answer(words="Lines, of each module", kind=UsagePage)},
            errors=(404, 501),
        ),
        usage,
    ),
)
ROUTES = [route_of(operation, handler) for operation, handler in OPERATIONS]
