"""What has not ended, and who serves it: syscalls, programs, queues, cores, from Redis."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from aios_broker.contract.names import Module
from aios_broker.contract.syscall import MODULES
from aios_broker.queues.control import Control
from aios_broker.queues.fleet import WorkerView
from aios_broker.queues.quota import Quotas, Subject, Use
from aios_broker.queues.records import JobView, QueueView
from aios_broker.views.counters import ANYBODYS, OwnerFilter, counters

DEFAULT_LIMIT = 1000  # syscalls of a module
OWNED_STEPS = 8  # of one page: some 4,000 live syscalls are looked at, 8 ms of Redis' time


async def read_jobs(
    control: Control, modules: Sequence[Module] = MODULES, *, limit: int = DEFAULT_LIMIT
) -> list[JobView]:
    """Return the jobs of these modules, at most `limit` of each: first those that run."""
    return [job for module in modules for job in await control.jobs(module, limit=limit)]


async def read_queues(control: Control) -> list[QueueView]:
    """Return every module's queue."""
    return [await control.queue(module) for module in MODULES]


def workers_of_cores(workers: Iterable[WorkerView]) -> Mapping[str, int]:
    """Return how many living workers each core has that has any."""
    return Counter(core for worker in workers for core in worker.cores)


@dataclass(frozen=True, slots=True)
class OwnedJobs:
    """Some of the jobs of an agent or a tenant, in no order; `after`: where to go on, if at all."""

    jobs: Sequence[JobView]
    after: str | None


async def owned_jobs(
    control: Control, subject: Subject, modules: Sequence[Module], limit: int, after: str = ""
) -> OwnedJobs:
    """Return about `limit` jobs of an agent or a tenant, or fewer and where to go on.

    It looks at a few thousand jobs at most, whoever's they are: a page may be empty and not the
    last. Each job that does not end meanwhile comes at least once.

    Raises:
        ValueError: `after` is none that was returned for these modules.
    """
    at, _, cursor = after.partition(":")
    place = modules.index(parsed_module(at, modules)) if after else 0
    cursor = cursor or "0"
    found: list[JobView] = []
    for _ in range(OWNED_STEPS):
        cursor, ids = await control.owned([subject], modules[place], cursor)
        found += await control.jobs_of(ids, modules[place])
        if cursor == "0":
            place += 1
        if place == len(modules):
            return OwnedJobs(found, None)
        if len(found) >= limit:
            break
    return OwnedJobs(found, f"{modules[place]}:{cursor}")


async def jobs_of_owner(
    control: Control, whose: OwnerFilter, modules: Sequence[Module], limit: int
) -> Sequence[JobView]:
    """Return jobs of these agents: of an agent or a tenant in no order, else the heads of queues.

    Of a name without its tenant there may be others' jobs among them.
    """
    if whose.tenant is None:
        return await read_jobs(control, modules, limit=limit)
    subject = (
        Subject.of_tenant(whose.tenant)
        if whose.agent is None
        else Subject.of_agent(whose.agent, whose.tenant)
    )
    return (await owned_jobs(control, subject, modules, limit)).jobs


def parsed_module(name: str, modules: Sequence[Module]) -> Module:
    """Return the module of that name; raise ValueError where there is none."""
    for module in modules:
        if module == name:
            return module
    raise ValueError(name)


@dataclass(frozen=True, slots=True)
class ProgramView:
    """One run of an agent towards a task, with all of its tree: what lives of it, what it used."""

    tenant: str
    agent: str
    program: str
    running: int = 0
    waiting: int = 0  # suspended ones, too
    held: int = 0
    parked: int = 0
    use: Use = field(default_factory=Use)  # of all modules; dropped an hour after the last of it


async def read_programs(
    control: Control, quotas: Quotas, whose: OwnerFilter = ANYBODYS
) -> list[ProgramView]:
    """Return the programs that are alive or were lately, by name.

    Of what is alive the first of each module are counted (`DEFAULT_LIMIT`).
    """
    uses: dict[tuple[str, str, str], Use] = {}
    for line in await counters(quotas, "program", whose):
        assert line.subject is not None
        key = line.subject.tenant, line.subject.agent, line.subject.program
        uses[key] = added(uses.get(key, Use()), line.use)
    states: dict[tuple[str, str, str], Counter[str]] = {}
    for job in await read_jobs(control):
        one = job.metadata
        if whose.has(one.tenant, one.agent):
            states.setdefault((one.tenant, one.agent, one.tree), Counter())[job.state] += 1
    return [
        _program(key, states.get(key, Counter()), uses.get(key, Use()))
        for key in sorted(uses.keys() | states.keys())
    ]


def _program(key: tuple[str, str, str], states: Counter[str], use: Use) -> ProgramView:
    waiting = states["queued"] + states["suspended"]
    return ProgramView(*key, states["running"], waiting, states["held"], states["parked"], use)


def added(one: Use, other: Use) -> Use:
    """Return the sum of both."""
    return Use(
        one.tokens + other.tokens,
        one.prompt_tokens + other.prompt_tokens,
        one.ran_s + other.ran_s,
        one.finished + other.finished,
        one.failed + other.failed,
        one.cached_tokens + other.cached_tokens,
        dict(Counter(one.cost_nano) + Counter(other.cost_nano)),
    )
