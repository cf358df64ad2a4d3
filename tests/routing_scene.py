"""Cores, and syscalls that wait for them: what the tests of routing begin from."""

from aios_broker.contract.cores import CoreCard
from aios_broker.contract.syscall import known_needs, new_id
from aios_broker.ledger.journal import parse_entry
from aios_broker.queues.keys import Keys
from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.records import JobMetadata, Submission, Suspension
from tests.queue_user import DATA, LEASE_S, QueueUser, submitted

BIG = CoreCard(name="big", model="qwen", aliases=("gpt-4o",), default=True)
TWIN = CoreCard(name="twin", model="qwen", aliases=("gpt-4o",))
TINY = CoreCard(name="tiny", model="smollm", aliases=("gpt-4o-mini",))
KEY = Keys().journal


def job_of(core: str = "", *, program: str = "main", client: str = "me") -> Submission:
    needs = known_needs(f"core:{core}" if core else "")
    return Submission(new_id(), DATA, JobMetadata("ada", "llm.chat", program), client, needs)


async def submit(user: QueueUser, *cores: str, program: str = "main") -> list[str]:
    jobs = [job_of(core, program=program) for core in cores]
    await submitted(user.queue, jobs)
    return [job.job_id for job in jobs]


async def listed(user: QueueUser, core: str = "") -> list[str]:
    key = user.keys.queue(f"llm.{core}" if core else "llm")
    return [job_id.decode() for job_id in await user.redis.execute("LRANGE", key, 0, -1)]


async def dies(user: QueueUser, core: str) -> None:
    """Let the workers of a core be silent for longer than they may."""
    for field in await user.redis.execute("HKEYS", user.keys.own("core_workers")):
        if field.decode().split()[0] == core:
            await user.redis.execute("HSET", user.keys.own("core_workers"), field, "1 2")


async def lost(user: QueueUser, epoch: int) -> None:
    """Let the leases of all that runs be over, and be taken back."""
    leases = await user.redis.execute("ZRANGE", user.keys.own("leases:llm"), 0, -1)
    for member in leases:
        await user.redis.execute("ZADD", user.keys.own("leases:llm"), 1, member)
    assert await user.order.reclaim(epoch) == len(leases)


async def give(user: QueueUser, giver: str, to: str) -> str:
    """Let a core give away what it takes next, as a fallback does; return its id."""
    [lease] = await user.claim(1, giver)
    away = Suspension(lease, None, 0.5, core=to)
    settled = await user.queue.suspend(giver, [away], ClaimRequest(0, LEASE_S, (giver,)))
    assert settled.accepted == [True]
    return lease.job_id


async def waits_since(user: QueueUser, *ages_s: tuple[str, int]) -> None:
    """Let jobs have waited for so long already."""
    for job_id, age_s in ages_s:
        await user.redis.execute("HINCRBY", user.keys.job(job_id), "aios_ready_ms", -1000 * age_s)


async def journal(user: QueueUser, event: str) -> list[tuple[str, str]]:
    """Return the id and the detail of each transition of a kind."""
    entries = [parse_entry(entry) for entry in await user.redis.execute("XRANGE", KEY, "-", "+")]
    lines = [line for entry in entries if entry is not None for line in entry.lines()]
    return [(job_id, detail) for name, job_id, _, _, detail in lines if name == event]


async def take(user: QueueUser, *cores: str, want: int = 1) -> list[str]:
    return [lease.job_id for lease in await user.claim(want, *cores)]
