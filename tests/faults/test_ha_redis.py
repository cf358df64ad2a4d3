"""Redis is emptied, full, killed or hangs: nobody waits for ever, and it goes on by itself."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aios_broker.client.session import Limits
from aios_broker.contract.errors import RedisFull, RedisUnavailable
from aios_broker.queues.records import WorkerCard
from aios_broker.redis.channel import Channel
from aios_broker.redis.connection import Connection
from aios_sdk import AsyncAgent
from aios_workers.runtime.registry import tool_module
from tests.caller import running_worker
from tests.integration.test_sdk_faults import echo, session_of
from tests.queue_user import QueueUser, queue_user
from tests.redis_nodes import RedisNode, running
from tests.scheduler_scene import scheduler
from tests.session_user import sent
from tests.waiting import AT_ONCE_S, wait_until_async

HEARD_S = 30.0
LEADERSHIP_S = 2.0  # the lease of a scheduler, unless set
IMPATIENT = Limits(recheck_s=0.5, patience_s=0.5, cancel_s=0.5)
EIGHT_KIB = "x" * 8_192


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RedisNode]:
    node = RedisNode(tmp_path / "redis", "--maxmemory-policy", "noeviction")
    with running([node]):
        yield node


def empty(node: RedisNode) -> None:
    """Take all data and all functions away."""
    node.run("FLUSHALL")
    node.run("FUNCTION", "FLUSH")


@asynccontextmanager
async def kernel(node: RedisNode) -> AsyncIterator[None]:
    async with (
        scheduler(node.url),
        running_worker(node.url, "tool", await tool_module(8)) as _,
    ):
        await wait_until_async(lambda: node.run("EXISTS", "rq:aios:policy:tool"))
        yield


# Emptied


async def test_everybody_comes_back_to_a_redis_that_was_emptied(node: RedisNode) -> None:
    async with kernel(node), AsyncAgent("ada", url=node.url) as me:
        assert (await me.tool.echo("before")).text == "before"
        empty(node)

        assert (await asyncio.wait_for(me.tool.echo("after"), HEARD_S)).text == "after"
        await wait_until_async(lambda: node.run("SCARD", "rq:workers") == 1)
        await wait_until_async(lambda: node.run("EXISTS", "rq:aios:policy:tool"))
        assert node.run("HGET", "rq:aios:scheduler", "holder")


async def test_what_waited_in_it_is_submitted_again_and_answered(node: RedisNode) -> None:
    async with session_of(node.url) as session:
        waiting = [sent(session, echo(f"{n}")) for n in range(50)]
        await asyncio.gather(*(pending.accepted for pending in waiting))
        empty(node)
        async with kernel(node), asyncio.timeout(HEARD_S):
            await asyncio.gather(*(pending.ended for pending in waiting))
    assert all(pending.reply and pending.reply.error is None for pending in waiting)


async def test_a_leader_of_before_changes_nothing_in_an_emptied_redis(node: RedisNode) -> None:
    async with queue_user(node.url) as user:
        old = await user.lead()
        empty(node)
        other = await user.order.lead("standby", 60.0, seen_epoch=old)
        ids = await user.submit(1, 2)

        assert other.epoch > old
        assert not await user.order.reorder(old, [ids[1]])
        assert await user.waiting() == ids


async def test_a_leadership_that_ran_out_unnoticed_changes_nothing(node: RedisNode) -> None:
    async with queue_user(node.url) as user:
        epoch = await user.lead(0.2)
        ids = await user.submit(1, 2)
        await user.claim(1, lease_s=0.001)
        await wait_until_async(lambda: past(node, "rq:aios:scheduler"))

        assert await user.order.reclaim(epoch) == 0
        assert not await user.order.reorder(epoch, [ids[1]])
        assert await user.waiting() == ids[1:]


async def test_the_same_leader_begins_anew_after_its_lease(node: RedisNode) -> None:
    """Under the next epoch: what it sent before, and what comes late, stays void."""
    async with queue_user(node.url) as user:
        before = await user.order.lead("one", 0.2)
        assert (await user.order.lead("one", 0.2)).epoch == before.epoch
        await wait_until_async(lambda: past(node, "rq:aios:scheduler"))
        assert (await user.order.lead("one", 0.2)).epoch == before.epoch + 1


def past(node: RedisNode, key: str) -> bool:
    return int(str(node.run("HGET", key, "until"))) < node.now_ms()


# Full


def fill(node: RedisNode) -> None:
    """Leave no room: nothing that needs memory is taken."""
    node.run("CONFIG", "SET", "maxmemory", int(str(node.info("memory")["used_memory"])) - 1)


def make_room(node: RedisNode) -> None:
    node.run("CONFIG", "SET", "maxmemory", 0)


async def test_a_full_redis_refuses_new_work_and_lets_what_runs_end(node: RedisNode) -> None:
    async with queue_user(node.url, "tool") as user:
        epoch = await user.lead()
        running_id, waiting_id, doomed, late = await user.submit(0, 0, 0, 0, deadline_s=60.0)
        [lease] = await user.claim(1)
        fill(node)

        with pytest.raises(RedisFull) as caught:
            await user.submit(0)
        assert (caught.value.retryable, caught.value.retry_after_s) == (True, 1.0)
        # What frees memory goes on: endings, claims, cancellations, sweeps, leadership.
        assert await user.finish(lease) == [True]
        assert (await user.queue.attach(running_id, "", None))[0] == "finished"
        assert [each.job_id for each in await user.claim(1, lease_s=0.001)] == [waiting_id]
        assert await user.control.cancel([doomed], RedisFull("x"), module="tool") == ["done"]
        assert await user.order.reorder(epoch, [late])
        await wait_until_async(lambda: user.order.reclaim(epoch))
        assert await user.waiting() == [waiting_id, late]
        assert await user.queue.wait_for_work(user.redis, user.queue.keys.queue("tool"))

        make_room(node)
        assert len(await user.submit(0)) == 1


async def test_a_worker_drains_a_full_redis_and_its_clients_go_on_later(node: RedisNode) -> None:
    async with (
        session_of(node.url, IMPATIENT) as impatient,
        session_of(node.url) as patient,
        AsyncAgent("ada", url=node.url) as me,
    ):
        waiting = [sent(patient, echo(EIGHT_KIB)) for _ in range(20)]
        await asyncio.gather(*(pending.accepted for pending in waiting))
        fill(node)
        refused = sent(impatient, echo("now"))
        later = me.tool.echo.start("later")
        async with kernel_of_a_full(node), asyncio.timeout(HEARD_S):
            await asyncio.gather(*(pending.ended for pending in waiting), refused.ended)
            assert all(pending.reply and pending.reply.error is None for pending in waiting)
            assert refused.reply is not None
            with pytest.raises(RedisFull):
                refused.reply.unwrap()
            make_room(node)
            assert (await later).text == "later"


@asynccontextmanager
async def kernel_of_a_full(node: RedisNode) -> AsyncIterator[None]:
    """Start a kernel where nothing can be published."""
    async with scheduler(node.url), running_worker(node.url, "tool", await tool_module(8)):
        yield


# Killed, hanging


async def test_what_was_appended_outlives_kill_9(node: RedisNode) -> None:
    node.run("CONFIG", "SET", "appendfsync", "always")
    async with queue_user(node.url) as user:
        ids = await user.submit(*range(20))
        leases = await user.claim(5)
        node.kill()
        node.start()

        assert await wait_until_async(lambda: _waiting(user)) == ids[5:]
        assert await user.finish(*leases) == [True] * 5


async def _waiting(user: QueueUser) -> list[str] | None:
    try:
        return await user.waiting()
    except RedisUnavailable:
        return None


async def test_a_hanging_redis_is_told_within_each_time_limit(node: RedisNode) -> None:
    async with session_of(node.url, IMPATIENT) as session:
        connection = Connection(node.url, timeout_s=0.3)
        await connection.execute("PING")
        node.pause()
        try:
            began_s = time.monotonic()
            with pytest.raises(RedisUnavailable, match="did not answer"):
                await connection.execute("PING")
            assert time.monotonic() - began_s < AT_ONCE_S
            pending = sent(session, echo("waits"))
            await session.aclose()  # within its limit, whatever hangs
            assert pending.reply is not None
            assert pending.reply.error is not None
        finally:
            node.go_on()
        assert await connection.execute("PING") == b"PONG"
        await connection.aclose()


async def test_jobs_of_living_workers_are_not_taken_back_after_a_hang(node: RedisNode) -> None:
    """Redis stood still longer than all leases: whoever is alive renews before the sweep."""
    card = WorkerCard("alive", "llm", os.getpid(), "here", slots=1)
    async with queue_user(node.url) as user, scheduler(node.url):
        await user.submit(0)
        await wait_until_async(lambda: node.run("EXISTS", "rq:aios:policy:llm"))
        [lease] = await user.claim(1, lease_s=1.5)
        node.pause()
        await asyncio.sleep(LEADERSHIP_S + 1.0)  # the time itself is what is tested
        node.go_on()
        assert await user.queue.renew(card, [lease], 60.0) == ["go"]
        assert await user.finish(lease) == [True]


async def test_a_half_dead_pub_sub_connection_is_noticed_by_its_silence(node: RedisNode) -> None:
    async with Channel(node.url, "news", silence_s=0.1) as channel:
        node.run("PUBLISH", "news", "hello")
        assert await channel.next() == b"hello"
        waiting = asyncio.create_task(channel.next())
        await asyncio.sleep(0.5)  # several pings, all answered
        assert not waiting.done()
        node.pause()
        try:
            with pytest.raises(RedisUnavailable, match="ping"):
                await asyncio.wait_for(waiting, 10.0)
        finally:
            node.go_on()
