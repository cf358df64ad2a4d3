"""One program, three ways: compact, on a timeline, and everything that is known of it.

    GET /program?tenant=&agent=&program=&view=&before=

A program is shown with all that stand below it; its syscalls are read from the ledger and, as far
as they have not got there, from the journal.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from aios_broker.contract.errors import InvalidRequest
from aios_broker.contract.names import Name
from aios_broker.contract.syscall import MODULES, Body
from aios_broker.ledger.history import History
from aios_broker.ledger.lives import Life, Stay, lives_of
from aios_broker.ledger.runs import RunFilter, Runs
from aios_broker.queues.records import JobView
from aios_broker.views.texts import Texts, read_texts
from aios_kernel_api.identity import Caller, caller_of
from aios_kernel_api.kernel import Kernel, kernel_of
from aios_kernel_api.page.forms import shows
from aios_kernel_api.page.live import parts_of
from aios_kernel_api.page.pages import live_page, page
from aios_kernel_api.page.parts import Part, address_of, query_from
from aios_kernel_api.rest.views import Who, whose_of

View = Literal["compact", "timeline", "everything"]
VIEWS: tuple[View, ...] = get_args(View)
SYSCALLS: Mapping[View, int] = {"compact": 200, "timeline": 200, "everything": 40}
LIVE_READ = 200  # of the syscalls that have not ended: what they wait for is read of each
TEXT_BYTES = 64 * 1024  # of a request or an answer that is shown
IN_TRACE = 1_000  # syscalls of a file for Perfetto; the command writes any number
WIDTH = 1000  # of a timeline, in units of its own


class ProgramQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which program, how, and which of its syscalls."""

    program: Name
    agent: Who | None = None
    tenant: Who | None = None
    view: View = "compact"
    failed: bool = False  # only what has failed
    before: Annotated[float, Meta(ge=0.0, le=4_000_000_000.0)] | None = None  # Unix time, s


@dataclass(frozen=True, slots=True)
class Bar:
    """A stay as it is drawn on the timeline."""

    x: float
    width: float
    stay: Stay
    lasts_ms: int


@dataclass(frozen=True, slots=True)
class Shown:
    """A syscall as a view shows it."""

    life: Life
    job: JobView | None  # None: it has ended, or is gone
    now_ms: int
    bars: Sequence[Bar]
    texts: Texts

    @property
    def tool(self) -> str:
        """The tool that it calls; the empty string: none."""
        return self.life.metadata.tool or (self.job.tool if self.job else "")

    @property
    def session(self) -> str:
        """The exec session that it is about, as far as that is known."""
        if self.life.metadata.kind == "exec.open":
            return self.life.job_id
        return str(getattr(self._body, "session", ""))

    @property
    def _body(self) -> Body | None:
        return None if self.texts.syscall is None else self.texts.syscall.body

    @property
    def waited_s(self) -> float:
        """How long it waited, all in all."""
        return self.life.waited_ms(self.now_ms) / 1000

    @property
    def ran_s(self) -> float:
        """How long it was in a slot: up to now, by the clock of the queue."""
        return sum(stay.lasts_ms(self.now_ms) for stay in self.life.slices) / 1000

    @property
    def tokens(self) -> int:
        """Output tokens so far: of what runs, up to its last charge."""
        return max(self.life.used.tokens, self.job.tokens if self.job else 0)

    @property
    def began_at_s(self) -> float:
        """When it was submitted, or first seen."""
        return self.life.begins_ms / 1000

    @property
    def request(self) -> object:
        """What was asked, as JSON has it; None: it is not kept."""
        return None if self._body is None else msgspec.to_builtins(self._body)

    @property
    def answer(self) -> object:
        """What was answered, as JSON has it; None: nothing yet, or it is not kept."""
        reply = self.texts.reply
        if reply is None:
            return None
        return msgspec.to_builtins(reply.result if reply.error is None else reply.error)


@dataclass(frozen=True, slots=True)
class Relative:
    """A program that stands above or below the one that is shown."""

    program: str
    syscalls: int
    alive: int


async def read(kernel: Kernel, caller: Caller, query: ProgramQuery) -> dict[str, object]:
    """Return what the templates show of a program."""
    tenant, agent = whose_program(caller, query.tenant, query.agent)
    before = None if query.before is None else datetime.fromtimestamp(query.before, UTC)
    history = History(kernel.connection, kernel.keys, kernel.database)
    runs = Runs(history, kernel.database, kernel.keys.prefix)
    wanted = RunFilter(tenant, agent, query.program, None, before, query.failed)
    run = await runs.newest(wanted, SYSCALLS[query.view])
    now_ms = round((await kernel.fleet.now()).timestamp() * 1000)
    lives = lives_of(run.events)[::-1]
    if query.failed:
        lives = [life for life in lives if life.state == "failed"]
    jobs = await _alive(kernel, lives)
    texts = await _texts(kernel, lives, query.view)
    bars = timeline(lives, now_ms)
    return {
        "tenant": tenant,
        "agent": agent,
        "shown": [
            Shown(life, jobs.get(life.job_id), now_ms, drawn, texts.get(life.job_id, Texts()))
            for life, drawn in zip(lives, bars, strict=True)
        ],
        "parents": parents_of(query.program),
        "children": children_of(query.program, lives),
        "states": Counter(life.state for life in lives),
        "older": None if run.older is None else run.older.timestamp(),
        "spans_s": _spans_ms(lives, now_ms) / 1000,
        "views": VIEWS,
        "width": WIDTH,
        "in_trace": IN_TRACE,
    }


def whose_program(caller: Caller, tenant: str | None, agent: str | None) -> tuple[str, str]:
    """Return whose program is meant; without a name, the caller's own.

    Raises:
        UnknownAgent: of somebody whom the caller may not know of.
        InvalidRequest: an operator does not say whose.
    """
    whose = whose_of(caller, tenant, agent)
    its = whose.agent or (caller.agent if caller.scope != "operator" else None)
    if its is None or whose.tenant is None:
        raise InvalidRequest("nobody is named", field="query.agent", remedy="name the agent")
    return whose.tenant, its


async def _alive(kernel: Kernel, lives: Sequence[Life]) -> dict[str, JobView]:
    """Return how those stand that have not ended."""

    async def read_job(life: Life) -> JobView | None:
        modules = [module for module in MODULES if module == life.module]
        return await kernel.control.job(life.job_id, modules)

    alive = [life for life in lives if life.ends_ms is None][:LIVE_READ]
    jobs = await asyncio.gather(*map(read_job, alive))
    return {job.job_id: job for job in jobs if job is not None}


async def _texts(kernel: Kernel, lives: Sequence[Life], view: View) -> Mapping[str, Texts]:
    if view != "everything":
        return {}
    ids = list(dict.fromkeys(life.job_id for life in lives))
    return await read_texts(kernel.connection, kernel.keys, ids, TEXT_BYTES)


def parents_of(program: str) -> list[str]:
    """Return the programs that one stands below, the highest first."""
    parts = program.split("/")
    return ["/".join(parts[:length]) for length in range(1, len(parts)) if parts[0]]


def children_of(program: str, lives: Sequence[Life]) -> list[Relative]:
    """Return the programs below one that did any of these, by name."""
    its: dict[str, list[Life]] = {}
    for life in lives:
        if life.metadata.program != program:
            its.setdefault(life.metadata.program, []).append(life)
    return [
        Relative(name, len(of), sum(life.ends_ms is None for life in of))
        for name, of in sorted(its.items())
    ]


def timeline(lives: Sequence[Life], now_ms: int) -> list[list[Bar]]:
    """Return the stays of each life as bars on one scale, from the first beginning to the end."""
    first = min((life.begins_ms for life in lives), default=0)
    scale = WIDTH / max(1, _spans_ms(lives, now_ms))
    return [
        [
            Bar(
                round((stay.begins_ms - first) * scale, 2),
                round(max(1.0, lasts_ms * scale), 2),
                stay,
                lasts_ms,
            )
            for stay in life.stays
            for lasts_ms in (stay.lasts_ms(now_ms),)
        ]
        for life in lives
    ]


def _spans_ms(lives: Sequence[Life], now_ms: int) -> int:
    first = min((life.begins_ms for life in lives), default=0)
    return max((life.begins_ms + life.lasts_ms(now_ms) for life in lives), default=0) - first


async def program(request: Request) -> Response:
    """Show a program. Everything is for reading: there nothing goes while somebody reads it."""
    query = query_from(dict(request.query_params), ProgramQuery)
    if query.view != "everything":
        return await live_page(request, "runs/program.html", PART)
    address = address_of(PART.name, query)
    html = await parts_of(request).html(
        kernel_of(request), caller_of(request), address, is_new=True
    )
    return await page(request, "runs/program.html", query=query, part=html)


PART = Part("program", "runs/program_part.html", read, ProgramQuery)
ROUTES = [shows("/program", program)]
