"""Tools and exec sessions at a glance: what each is, what of it runs, what it failed with last.

What runs is read from the head of the tool module's queue, failures from the newest that are kept
(an hour): so reading it costs the same however much waits.
"""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime

import msgspec
from msgspec import Struct, structs

from aios_broker.contract.errors import KernelError
from aios_broker.contract.exec import ExecSession
from aios_broker.contract.names import Module
from aios_broker.contract.reply import decode_reply
from aios_broker.contract.tools import ParallelLimits, ToolCard
from aios_broker.queues.admission import Admission, ResourceRow
from aios_broker.queues.control import Control
from aios_broker.queues.exec_sessions import SessionRecord, SessionRecords
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.records import JobView, read_metadata
from aios_broker.queues.tool_cards import ToolCards
from aios_broker.redis.connection import Answer
from aios_broker.views.counters import OwnerFilter
from aios_broker.views.live import jobs_of_owner

MODULE: Module = "tool"
JOBS_LIMIT = 500  # of the module: those that run, and the head of what waits
FAILURES_READ = 100  # the newest of the module, whoever's they are
_NEED = f"{MODULE}:"
_FIELDS = ("aios_metadata", "aios_needs", "aios_reply", "status", "ended_at")


class ToolPlaces(Struct, frozen=True, kw_only=True):
    """How many calls of a tool run, and how many may; neither tenant nor agent: of everybody's."""

    tenant: str | None = None
    agent: str | None = None
    taken: int
    limit: int | None = None  # None: any number


class ToolCall(Struct, frozen=True, kw_only=True):
    """A call that runs."""

    id: str
    tenant: str
    agent: str
    program: str
    worker: str
    ran_s: float  # up to now


class ToolFailure(Struct, frozen=True, kw_only=True):
    """How a call failed."""

    id: str
    tenant: str
    agent: str
    program: str
    code: str
    message: str
    at: float  # Unix time, s


class ToolView(Struct, frozen=True, kw_only=True):
    """A tool, and as much of its use as who looks may know of."""

    card: ToolCard
    places: tuple[ToolPlaces, ...]
    calls: tuple[ToolCall, ...] = ()
    waiting: int = 0
    last_failure: ToolFailure | None = None  # within an hour


class SessionView(Struct, frozen=True, kw_only=True):
    """An exec session, and whose it is."""

    tenant: str
    agent: str
    session: ExecSession


class ToolReader:
    """Reads the tools and the sessions of one kernel."""

    def __init__(self, functions: Functions, keys: Keys) -> None:
        self._connection = functions.connection
        self._keys = keys
        self._control = Control(functions, keys)
        self._admission = Admission(functions, keys)
        self._cards = ToolCards(self._connection, keys)
        self._records = SessionRecords(self._connection, keys)

    async def tools(self, whose: OwnerFilter) -> list[ToolView]:
        """Return all tools, by name, with the calls of these agents."""
        jobs = await jobs_of_owner(self._control, whose, (MODULE,), JOBS_LIMIT)
        jobs = [job for job in jobs if whose.has(job.metadata.tenant, job.metadata.agent)]
        held = await self._admission.resources(MODULE) if whose.tenant is None else []
        failures = await self._failures(whose)
        return [
            ToolView(
                card=card,
                places=_places(card, whose, held, _called(jobs, card.name, "running")),
                calls=tuple(map(_call, _called(jobs, card.name, "running"))),
                waiting=len(_called(jobs, card.name, "queued", "suspended")),
                last_failure=failures.get(card.name),
            )
            for card in await self._cards.all()
        ]

    async def sessions(self, whose: OwnerFilter) -> list[SessionView]:
        """Return the sessions of these agents, in no order; those that are lost, too."""
        if whose.tenant is None:
            found = await self._records.all()
        else:
            found = {whose.tenant: await self._records.of_tenant(whose.tenant)}
        hosts = {each.host for records in found.values() for each in records}
        alive = {host for host in hosts if await self._records.lives(host)}
        return [
            SessionView(tenant=tenant, agent=each.agent, session=_as_it_is(each, alive))
            for tenant, records in found.items()
            for each in records
            if whose.has(tenant, each.agent)
        ]

    async def _failures(self, whose: OwnerFilter) -> dict[str, ToolFailure]:
        """Return the last failure of each tool that these agents' calls met."""
        key = self._keys.own(f"failures:{MODULE}")
        entries = await self._connection.execute("LRANGE", key, str(-FAILURES_READ), "-1")
        ids = [entry.decode().split(" ", 2)[-1] for entry in entries]
        rows = await asyncio.gather(*map(self._ended, ids))
        found: dict[str, ToolFailure] = {}
        for job_id, row in zip(ids, rows, strict=True):  # oldest first: the newest one stays
            tool, failure = _failure(job_id, row)
            if failure is not None and whose.has(failure.tenant, failure.agent):
                found[tool] = failure
        return found

    async def _ended(self, job_id: str) -> Answer:
        return await self._connection.execute("HMGET", self._keys.job(job_id), *_FIELDS)


def _called(jobs: Iterable[JobView], tool: str, *states: str) -> list[JobView]:
    """Return the calls of a tool in these states."""
    return [job for job in jobs if job.state in states and job.tool == tool]


def _call(job: JobView) -> ToolCall:
    known = job.metadata
    return ToolCall(
        id=job.job_id,
        tenant=known.tenant,
        agent=known.agent,
        program=known.program,
        worker=job.worker,
        ran_s=max(0.0, job.age_s - job.queued_s),
    )


def _places(
    card: ToolCard, whose: OwnerFilter, held: Sequence[ResourceRow], running: Sequence[JobView]
) -> tuple[ToolPlaces, ...]:
    """Return the places at a tool of whom they are shown to: what others hold an agent is not told.

    An operator sees those of everybody, and those of tenants and agents that hold some.
    """
    most = card.parallel
    if whose.tenant is not None:
        limit = most.tenant if whose.agent is None else most.agent
        own = ToolPlaces(
            tenant=whose.tenant, agent=whose.agent, taken=len(running), limit=limit or None
        )
        return (own,)
    rows = [
        ToolPlaces(
            tenant=row.resource.tenant or None,
            agent=row.resource.agent or None,
            taken=len(row.holders),
            limit=row.limit,
        )
        for row in held
        if row.resource.kind == MODULE and row.resource.name == card.name
    ]
    if all(row.tenant for row in rows):
        rows.append(ToolPlaces(taken=0, limit=most.tool or None))
    return tuple(sorted(rows, key=lambda row: (row.tenant or "", row.agent or "")))


def limits_words(most: ParallelLimits) -> str:
    """Return how many calls of a tool may run at once, such as `4, 1 per agent`."""
    told = [str(most.tool)] if most.tool else []
    told += [f"{most.tenant} per tenant"] if most.tenant else []
    told += [f"{most.agent} per agent"] if most.agent else []
    return ", ".join(told) or "any number"


def _failure(job_id: str, row: Answer) -> tuple[str, ToolFailure | None]:
    """Return which tool a call was of, and how it failed; None: it runs again, or is no call."""
    metadata, needs, reply, status, ended_at = (field or b"" for field in row)
    tool = next((each[len(_NEED) :] for each in needs.decode().split() if each[:5] == _NEED), "")
    error = None
    with suppress(KernelError, msgspec.DecodeError):
        error = decode_reply(reply).error if reply else None
    if not tool or error is None or error.code == "cancelled" or status != b"failed":
        return "", None
    known = read_metadata(metadata)
    return tool, ToolFailure(
        id=job_id,
        tenant=known.tenant,
        agent=known.agent,
        program=known.program,
        code=error.code,
        message=error.message,
        at=_unix_s(ended_at),
    )


def _unix_s(iso: bytes) -> float:
    try:
        return datetime.fromisoformat(iso.decode()).timestamp()
    except ValueError:  # a stock tool wrote it
        return 0.0


def _as_it_is(record: SessionRecord, alive: set[str]) -> ExecSession:
    """Return a session; one whose host has died is lost, whether that was written down or not."""
    session = record.session
    if session.state == "lost" or record.host in alive:
        return session
    return structs.replace(session, state="lost", reason="its worker died")
