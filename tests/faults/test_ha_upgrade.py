"""Old and new side by side: each syscall is answered once, whoever submits, runs or reclaims it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import redis

from aios_broker.contract.errors import UnsupportedVersion
from aios_broker.contract.llm import LlmChat, Message
from aios_broker.contract.reply import EchoResult
from aios_broker.contract.syscall import Syscall, new_id
from aios_broker.queues.functions import LIBRARY
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore, SimulatedCoreConfig
from aios_workers.runtime.registry import llm_module, tool_module
from tests.caller import Caller, chat, chat_result, running_worker
from tests.first_release import FirstRelease, OldLease, first_snapshot
from tests.integration.test_scheduler import scheduler
from tests.integration.test_sdk_faults import echo, session_of
from tests.queue_user import queue_user
from tests.waiting import wait_until_async

HEARD_S = 20.0
EACH = 40
CORE = SimulatedCoreConfig(slots=2, end_probability=0.0)
CUT = 10  # tokens

Old = Callable[..., FirstRelease]


@pytest.fixture
def old(redis_url: str) -> Iterator[Old]:
    """Make processes of the first release."""
    made: list[FirstRelease] = []

    def make(module: str = "tool") -> FirstRelease:
        made.append(FirstRelease(redis_url, module))
        return made[-1]

    yield make
    for each in made:
        each.close()


def old_echo(text: str) -> dict[str, object]:
    return {"type": "tool.echo", "text": text}


async def claimed(worker: FirstRelease) -> OldLease:
    leases: list[OldLease] = []

    def has_one() -> bool:
        leases.extend(worker.claim(1))
        return bool(leases)

    await wait_until_async(has_one)
    return leases[0]


async def test_old_and_new_clients_and_workers_share_one_queue(redis_url: str, old: Old) -> None:
    client, worker = old(), old()
    stop = asyncio.Event()
    by_the_old: list[str] = []

    async def work() -> None:
        while not stop.is_set():
            leases = worker.claim(4)
            if leases:
                assert worker.answer(*leases) == [True] * len(leases)
                by_the_old.extend(lease.job_id for lease in leases)
            await asyncio.sleep(0)

    replies: list[dict[str, object]] = []
    async with session_of(redis_url) as session, scheduler(redis_url):
        ids = client.submit(*(old_echo(f"{n}") for n in range(EACH)))
        calls = [session.submit(echo(f"{n}")) for n in range(EACH)]
        await asyncio.gather(*(call.accepted for call in calls))
        first = worker.claim(2)  # each kind of worker has some, however fast the other is
        assert worker.answer(*first) == [True, True]
        async with running_worker(redis_url, "tool", await tool_module(2)):
            working = asyncio.create_task(work())
            async with asyncio.timeout(HEARD_S):
                await asyncio.gather(*(call.ended for call in calls))
            late = client.submit(*(old_echo(f"{n}") for n in range(EACH)))

            def all_heard() -> bool:
                replies.extend(client.heard())
                return len(replies) >= 2 * EACH

            await wait_until_async(all_heard, HEARD_S)
            stop.set()
            await working
        replies.extend(client.heard())

    assert [call.reply.unwrap() for call in calls if call.reply] == [
        EchoResult(f"{n}") for n in range(EACH)
    ]
    assert Counter(reply["id"] for reply in replies) == Counter([*ids, *late])
    assert all("error" not in reply for reply in replies)
    workers = {str(reply["worker"]) for reply in replies}
    assert {name.startswith("old-") for name in workers} == {True, False}
    with redis.Redis.from_url(redis_url) as left:
        assert left.hlen("rq:aios:live:tool") == left.zcard("rq:aios:leases:tool") == 0


async def test_a_new_scheduler_takes_back_what_an_old_worker_dropped(
    redis_url: str, old: Old
) -> None:
    client, dead = old(), old()
    [job_id] = client.submit(old_echo("again"))
    [lease] = dead.claim(1, lease_s=0.05)
    async with scheduler(redis_url), running_worker(redis_url, "tool", await tool_module(2)):
        [reply] = await wait_until_async(client.heard)
    assert (reply["id"], reply["timings"]["attempts"]) == (job_id, 2)  # type: ignore[index]
    assert dead.answer(lease) == [False]
    assert client.heard() == []


async def test_an_old_scheduler_takes_back_what_a_new_worker_dropped(
    redis_url: str, old: Old
) -> None:
    steering, other = old(), old()
    async with session_of(redis_url) as session, queue_user(redis_url, "tool") as user:
        call = session.submit(echo("again"))
        await call.accepted
        [lease] = await user.claim(1, lease_s=0.01)
        epoch, leads = steering.lead(60.0)
        assert leads
        await wait_until_async(lambda: steering.reclaim(epoch))
        assert other.answer(await claimed(other)) == [True]
        await asyncio.wait_for(call.ended, HEARD_S)
        assert await user.finish(lease) == [False]
    assert call.reply is not None
    assert call.reply.unwrap() == EchoResult("again")


async def test_the_lead_passes_from_old_to_new_and_back(redis_url: str, old: Old) -> None:
    steering = old("llm")
    async with queue_user(redis_url) as user:
        ids = await user.submit(1, 2)
        first, leads = steering.lead(0.2)
        assert (leads, (await user.order.lead("new", 60.0)).leading) == (True, False)

        async def takes_over() -> bool:
            return (await user.order.lead("new", 0.2)).leading

        await wait_until_async(takes_over)
        assert not steering.reorder(first, ids[::-1])
        await wait_until_async(lambda: steering.lead(60.0)[1])
        assert not await user.order.reorder(first + 1, [(ids[1], 0.0)])
        assert await user.waiting() == ids


async def test_what_an_old_worker_cannot_read_is_a_typed_error(redis_url: str, old: Old) -> None:
    """Of a payload of version 2: so workers are upgraded before clients use what is new."""
    worker = old("llm")
    body = LlmChat((Message("user", "hi"),), logprobs=True)
    async with session_of(redis_url) as session:
        call = session.submit(Syscall(new_id(), "ada", body))
        await call.accepted
        assert worker.answer(await claimed(worker)) == [True]
        await asyncio.wait_for(call.ended, HEARD_S)
    assert call.reply is not None
    with pytest.raises(UnsupportedVersion, match="reads version 1"):
        call.reply.unwrap()


async def test_a_generation_that_an_old_worker_suspended_goes_on_in_a_new_one(
    redis_url: str, old: Old
) -> None:
    caller, worker = Caller(redis_url), old("llm")
    body = chat("Tell me a story", max_tokens=60, temperature=0.7, seed=7)
    core = SimulatedCore(CORE)
    async with running_worker(redis_url, "llm", await llm_module(core)):
        expected = await caller.chat(body)

    [job_id] = await caller.submit(body)
    lease = await claimed(worker)
    snapshot = first_snapshot(
        core.info.snapshot_model, expected.prompt_ids, expected.output_ids[:CUT], 7
    )
    assert worker.suspend(lease, snapshot, CUT)
    async with running_worker(redis_url, "llm", await llm_module(SimulatedCore(CORE))):
        reply = await caller.hear(job_id)
    await caller.aclose()

    assert chat_result(reply).output_ids == expected.output_ids
    assert reply.timings is not None
    assert (reply.timings.attempts, reply.timings.suspensions) == (2, 1)


async def test_both_libraries_stay_loaded(redis_url: str, old: Old) -> None:
    old()
    async with scheduler(redis_url), queue_user(redis_url) as user:
        await user.submit(0)
        with redis.Redis.from_url(redis_url) as client:
            await wait_until_async(lambda: client.exists("rq:aios:policy:llm"))
            loaded = str(client.function_list())
    assert "aios1_submit" in loaded
    assert f"{LIBRARY}_submit" in loaded
