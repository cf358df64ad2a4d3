"""Programs at a glance: where each one stands, what it waits for, what it has used; newest first.

What is alive comes from Redis (the first of each module), what has ended from the ledger (the
newest): so reading it costs the same however much waits.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from aios_broker.contract.names import Module, Owner, tree_of
from aios_broker.contract.syscall import MODULES
from aios_broker.ledger.programs import RecentProgram, recent_programs
from aios_broker.postgres.database import Database
from aios_broker.queues.admission import Admission
from aios_broker.queues.budgets import BudgetStanding, tightest_budgets
from aios_broker.queues.control import Control
from aios_broker.queues.fleet import Fleet
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.quota import Quotas, Subject, Use
from aios_broker.queues.records import JobView
from aios_broker.views.counters import OwnerFilter
from aios_broker.views.live import added, jobs_of_owner
from aios_broker.views.why import Explanation, Surroundings, explain

ProgramState = Literal["parked", "running", "waiting", "held", "failed", "done"]
METERED: Module = "llm"  # whose calls cost money
JOBS_LIMIT = 500  # of each module: the head of what waits
Key = tuple[str, str, str]  # tenant, agent, tree


@dataclass(frozen=True, slots=True)
class ProgramRow:
    """One program with all of its tree."""

    tenant: str
    agent: str
    program: str
    age_s: float  # since it submitted something last
    jobs: Sequence[JobView] = ()  # of those that are alive, as far as they were read
    alive: int = 0
    finished: int = 0  # of its newest syscalls
    failed: int = 0
    error: str | None = None  # the code of the last failure
    use: Use = field(default_factory=Use)
    budget: BudgetStanding | None = None  # of its agent or tenant, that is used up most
    why: Explanation | None = None  # what the first of those that wait waits for

    @property
    def key(self) -> Key:
        """Its names."""
        return self.tenant, self.agent, self.program

    @property
    def states(self) -> Counter[str]:
        """How many of its syscalls are in which state."""
        return Counter(job.state for job in self.jobs)

    @property
    def state(self) -> ProgramState:
        """The one word for it: what needs a person before what runs, before what waits."""
        states = self.states
        if states["parked"]:
            return "parked"
        if states["running"]:
            return "running"
        if states["queued"] or states["suspended"] or (self.alive and not self.jobs):
            return "waiting"
        if states["held"]:
            return "held"
        return "failed" if self.error else "done"

    @property
    def modules(self) -> Sequence[str]:
        """Where something of it is alive."""
        return sorted({job.module for job in self.jobs})

    @property
    def cores(self) -> Sequence[str]:
        """The cores on which something of it is alive."""
        return sorted({job.core for job in self.jobs if job.core})

    @property
    def slices(self) -> int:
        """Slices of what is alive."""
        return sum(job.slices + (job.state == "running") for job in self.jobs)

    @property
    def waited_s(self) -> float:
        """The longest wait of what is alive."""
        return max((job.queued_s for job in self.jobs), default=0.0)

    @property
    def first_waiting(self) -> JobView | None:
        """What of it a person has to decide, else what is taken next, or else is kept out."""
        kept = [job for job in self.jobs if job.state != "running"]
        return min(
            kept,
            key=lambda job: (job.state != "parked", job.position is None, job.position or 0),
            default=None,
        )


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which programs."""

    whose: OwnerFilter
    state: ProgramState | None = None
    program: str | None = None
    core: str | None = None
    failed: bool = False  # such as have failed lately, whatever they do now

    def has(self, row: ProgramRow) -> bool:
        """Tell whether a program is wanted."""
        return (
            self.state in (None, row.state)
            and (self.program is None or self.program in row.program)
            and (self.core is None or self.core in row.cores)
            and (not self.failed or row.failed > 0)
        )


@dataclass(frozen=True, slots=True)
class Programs:
    """A page of programs, newest first."""

    rows: Sequence[ProgramRow]
    total: int  # of those that are wanted
    counts: Mapping[str, int]  # by state, of all that may be seen


class ProgramReader:
    """Reads programs of one kernel."""

    def __init__(self, functions: Functions, keys: Keys, database: Database | None) -> None:
        self._control = Control(functions, keys)
        self._fleet = Fleet(functions.connection, keys)
        self._quotas = Quotas(functions, keys)
        self._admission = Admission(functions, keys)
        self._database = database

    async def page(self, wanted: Wanted, first: int, length: int) -> Programs:
        """Return `length` of the programs that are wanted, from the `first` on."""
        jobs = await jobs_of_owner(self._control, wanted.whose, MODULES, JOBS_LIMIT)
        rows = await self._rows(wanted.whose, jobs)
        found = sorted((row for row in rows if wanted.has(row)), key=lambda row: row.age_s)
        page = await self._with_use(found[first : first + length])
        return Programs(
            await self._with_why(page, jobs), len(found), Counter(row.state for row in rows)
        )

    async def _rows(self, whose: OwnerFilter, jobs: Sequence[JobView]) -> list[ProgramRow]:
        now = await self._fleet.now()
        rows: dict[Key, ProgramRow] = {}
        if self._database is not None:
            for each in await recent_programs(self._database, whose.tenant, whose.agent):
                row = _of_ledger(each, max(0.0, (now - each.last_at).total_seconds()))
                rows[row.key] = _together(rows[row.key], row) if row.key in rows else row
        alive: dict[Key, list[JobView]] = {}
        for job in jobs:
            known = job.metadata
            if whose.has(known.tenant, known.agent):
                alive.setdefault((known.tenant, known.agent, known.tree), []).append(job)
        for key, its in alive.items():
            age_s = min(job.age_s for job in its)
            row = rows.get(key) or ProgramRow(*key, age_s)
            rows[key] = replace(
                row, jobs=its, age_s=min(age_s, row.age_s), alive=max(row.alive, len(its))
            )
        return list(rows.values())

    async def _with_use(self, rows: Sequence[ProgramRow]) -> list[ProgramRow]:
        subjects = [Subject.of_program(row.program, row.agent, row.tenant) for row in rows]
        uses = [Use()] * len(rows)
        for module in MODULES:
            view = await self._quotas.usage(module, subjects)
            uses = [added(use, view.of(one)) for use, one in zip(uses, subjects, strict=True)]
        owners = {Owner(row.tenant, row.agent) for row in rows}
        budgets = await tightest_budgets(self._quotas, METERED, owners, await self._fleet.now())
        return [
            replace(row, use=use, budget=budgets.get(Owner(row.tenant, row.agent)))
            for row, use in zip(rows, uses, strict=True)
        ]

    async def _with_why(
        self, rows: Sequence[ProgramRow], jobs: Sequence[JobView]
    ) -> list[ProgramRow]:
        around: dict[str, Surroundings] = {}
        explained = []
        for row in rows:
            job = row.first_waiting
            if job is not None:
                if job.module not in around:
                    around[job.module] = await self._around(job, jobs)
                row = replace(row, why=await self._why(job, around[job.module]))
            explained.append(row)
        return explained

    async def _around(self, job: JobView, jobs: Sequence[JobView]) -> Surroundings:
        module = _module_of(job)
        workers = await self._fleet.live_workers()
        return Surroundings(
            policy=await self._control.policy(module),
            jobs=[other for other in jobs if other.module == module],
            workers=[worker for worker in workers if worker.module == module],
            fleet_suspended=await self._fleet.suspended(),
            scheduler=await self._fleet.leading_scheduler(),
        )

    async def _why(self, job: JobView, around: Surroundings) -> Explanation:
        if job.position is not None:
            barrier = await self._admission.barrier(_module_of(job), job.job_id)
            around = replace(around, barrier=barrier)
        return explain(job, around)


def _module_of(job: JobView) -> Module:
    return next(module for module in MODULES if module == job.module)


def _of_ledger(recent: RecentProgram, age_s: float) -> ProgramRow:
    return ProgramRow(
        recent.tenant,
        recent.agent,
        tree_of(recent.program),
        age_s,
        alive=recent.alive,
        finished=recent.finished,
        failed=recent.failed,
        error=recent.error,
    )


def _together(one: ProgramRow, other: ProgramRow) -> ProgramRow:
    """Return two programs of one tree as one."""
    return replace(
        one,
        age_s=min(one.age_s, other.age_s),
        alive=one.alive + other.alive,
        finished=one.finished + other.finished,
        failed=one.failed + other.failed,
        error=one.error or other.error,
    )
