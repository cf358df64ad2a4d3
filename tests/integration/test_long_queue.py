"""What is looked at in parts: what changes between two parts is neither missed nor done twice."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import redis

from aios_broker.contract.errors import Cancelled
from aios_broker.contract.syscall import new_id
from aios_broker.queues.control import AT_ONCE
from aios_broker.queues.functions import LIBRARY, Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.order import Order
from aios_broker.queues.quota import QuotaRow, Quotas, Subject
from aios_broker.queues.records import Ending, JobMetadata, Lease, Submission
from aios_broker.redis.connection import Answer, Argument, Connection
from tests.queue_user import DATA, LEASE_S, QueueUser, queue_user, submitted

WAITING = 2400  # more than is looked at in one step
LEAVING = 7 * AT_ONCE
NOTHING_MORE = ClaimRequest(0, LEASE_S)
KEYS = Keys()
Meanwhile = Callable[[], Awaitable[None]]


class Interrupted(Connection):
    """A connection on which something else happens before each further part of a step."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.step, self.parts = "", 0
        self.meanwhile: Meanwhile | None = None

    async def execute(self, *arguments: Argument, timeout_s: float | None = None) -> Answer:
        """Send a command; where it is a part of the step, let others do something after it."""
        answer = await super().execute(*arguments, timeout_s=timeout_s)
        if self.step in arguments[:2]:
            self.parts += 1
            if self.meanwhile is not None:
                await self.meanwhile()
        return answer


@pytest.fixture
async def user(redis_url: str) -> AsyncIterator[QueueUser]:
    async with queue_user(redis_url) as found:
        await found.functions.load()
        yield found


@pytest.fixture
async def slow(redis_url: str) -> AsyncIterator[Interrupted]:
    connection = Interrupted(redis_url)
    yield connection
    await connection.aclose()


@pytest.fixture
def client(redis_url: str) -> redis.Redis:
    return redis.Redis.from_url(redis_url)


async def submit(user: QueueUser, count: int, agent: str = "ada") -> list[str]:
    metadata = JobMetadata(agent, "llm.chat")
    jobs = [Submission(new_id(), DATA, metadata, "me") for _ in range(count)]
    for first in range(0, count, 800):
        await submitted(user.queue, jobs[first : first + 800])
    return [job.job_id for job in jobs]


def text(raw: object) -> str:
    assert isinstance(raw, bytes)
    return raw.decode()


def look_is_due(client: redis.Redis) -> None:
    client.hset(KEYS.own("reconciled"), "llm", 0)


def replies(client: redis.Redis) -> int:
    return int(client.llen(KEYS.reply("me")))


async def test_what_stock_tools_did_to_a_long_queue_is_put_right_once(
    user: QueueUser, client: redis.Redis
) -> None:
    ids = await submit(user, WAITING)
    running = [lease.job_id for lease in await user.claim(30)]
    deleted, cancelled = ids[100:350], ids[400:410]
    for job_id in deleted:
        client.delete(KEYS.job(job_id))
        client.lrem(KEYS.queue("llm"), 1, job_id)
    for job_id in cancelled:
        client.hset(KEYS.job(job_id), "status", "canceled")
        client.lrem(KEYS.queue("llm"), 1, job_id)
    client.delete(KEYS.job(running[0]))
    client.hset(KEYS.job("e" * 32), mapping={"data": "[]", "status": "queued"})
    client.rpush(KEYS.queue("llm"), "e" * 32)
    client.zadd(KEYS.own("scores:llm"), {f"{number:032x}": number for number in range(1500)})
    look_is_due(client)
    epoch = await user.lead()

    assert await user.order.reconcile(epoch) == 250 + 10 + 1 + 1
    assert replies(client) == 250 + 10 + 1
    look_is_due(client)
    assert await user.order.reconcile(epoch) == 0

    alive = {*ids, "e" * 32} - {*deleted, *cancelled, running[0]}
    assert {text(i) for i in client.hkeys(KEYS.own("live:llm"))} == alive
    assert {*await user.waiting()} == alive - {*running}
    assert client.zcard(KEYS.own("scores:llm")) == 0
    assert client.zcard(KEYS.own("suspects:llm")) == 0


async def test_what_is_noted_of_nobody_is_dropped_from_a_short_queue_too(
    user: QueueUser, client: redis.Redis
) -> None:
    [known] = await submit(user, 1)
    for name in ("scores", "suspects", "suspending"):
        client.zadd(KEYS.own(f"{name}:llm"), {known: 1, "f" * 32: 1})
    client.hset(KEYS.own("control:llm"), mapping={known: "hold", "f" * 32: "hold"})
    look_is_due(client)

    assert await user.order.reconcile(await user.lead()) == 0

    assert client.zrange(KEYS.own("scores:llm"), 0, -1) == [known.encode()]
    assert client.zrange(KEYS.own("suspending:llm"), 0, -1) == [known.encode()]
    assert client.zcard(KEYS.own("suspects:llm")) == 0
    assert client.hkeys(KEYS.own("control:llm")) == [known.encode()]


async def test_what_moves_while_it_is_looked_at_is_left_alone(
    user: QueueUser, slow: Interrupted, client: redis.Redis
) -> None:
    """Jobs are claimed, end and come in between all parts; nothing is taken for missing."""
    await submit(user, WAITING)
    order = Order(Functions(slow), "llm")
    epoch = (await order.lead("slow", LEASE_S)).epoch

    async def work() -> None:
        leases = await user.claim(5)
        await user.finish(*leases[:3])
        await user.suspend(leases[3])
        await submit(user, 3)

    for slow.step in ("LRANGE", "HSCAN"):
        slow.meanwhile, slow.parts = work, 0
        look_is_due(client)
        assert await order.reconcile(epoch) == 0
        assert slow.parts > 4
        assert client.zcard(KEYS.own("suspects:llm")) == 0
        slow.meanwhile = None
        look_is_due(client)
        assert await order.reconcile(epoch) == 0
        assert client.zcard(KEYS.own("suspects:llm")) == 0
    waiting = await user.waiting()
    assert len(set(waiting)) == len(waiting)
    live = client.hlen(KEYS.own("live:llm"))
    assert live == len(waiting) + client.zcard(KEYS.own("leases:llm"))


async def test_what_a_stock_worker_lost_comes_back_after_a_while_and_once(
    user: QueueUser, client: redis.Redis
) -> None:
    ids = await submit(user, WAITING)
    epoch = await user.lead()
    lost = [text(client.lpop(KEYS.queue("llm"))) for _ in range(9)]
    look_is_due(client)
    assert await user.order.reconcile(epoch) == 0
    assert {text(i) for i in client.zrange(KEYS.own("suspects:llm"), 0, -1)} == {*lost}

    client.rpush(KEYS.queue("llm"), lost[0])  # it was only slow
    client.zadd(KEYS.own("suspects:llm"), dict.fromkeys((*lost, ids[1200]), 1))
    client.hset(KEYS.job(lost[1]), "status", "started")  # a stock worker runs it
    look_is_due(client)
    assert await user.order.reconcile(epoch) == 7

    assert sorted(await user.waiting()) == sorted({*ids} - {lost[1]})
    assert client.zrange(KEYS.own("suspects:llm"), 0, -1) == [lost[1].encode()]


async def test_one_that_the_look_missed_twice_is_found_where_it_stands(
    user: QueueUser, slow: Interrupted, client: redis.Redis
) -> None:
    """It moved from what was still to be read to what had been read: it is not doubled."""
    ids = await submit(user, WAITING)
    order = Order(Functions(slow), "llm")
    epoch = (await order.lead("slow", LEASE_S)).epoch
    wanderer = ids[3]  # near the head, which is read last

    async def to_the_tail() -> None:
        client.lrem(KEYS.queue("llm"), 1, wanderer)
        client.rpush(KEYS.queue("llm"), wanderer)

    slow.step, slow.meanwhile = "LRANGE", to_the_tail
    look_is_due(client)
    assert await order.reconcile(epoch) == 0
    assert client.zscore(KEYS.own("suspects:llm"), wanderer) is not None
    client.zadd(KEYS.own("suspects:llm"), {wanderer: 1})
    client.lrem(KEYS.queue("llm"), 1, wanderer)
    client.lpush(KEYS.queue("llm"), wanderer)
    look_is_due(client)
    assert await order.reconcile(epoch) == 0

    assert sorted(await user.waiting()) == sorted(ids)
    assert client.zcard(KEYS.own("suspects:llm")) == 0


async def test_one_that_runs_and_is_deleted_during_a_look_loses_its_lease(
    user: QueueUser, slow: Interrupted, client: redis.Redis
) -> None:
    await submit(user, WAITING)
    [lease, other] = await user.claim(2)
    order = Order(Functions(slow), "llm")
    epoch = (await order.lead("slow", LEASE_S)).epoch

    async def a_tool_deletes_it() -> None:
        client.delete(KEYS.job(lease.job_id))

    slow.step, slow.meanwhile = "LRANGE", a_tool_deletes_it
    look_is_due(client)

    assert await order.reconcile(epoch) == 1
    assert replies(client) == 1
    assert client.zrange(KEYS.own("leases:llm"), 0, -1) == [f"{other.job_id}:1".encode()]
    assert await user.finish(lease, other) == [False, True]


async def test_what_is_listed_with_nothing_to_run_leaves_the_queue_at_the_second_look(
    user: QueueUser, client: redis.Redis
) -> None:
    ids = await submit(user, WAITING)
    epoch = await user.lead()
    ghosts = ["a" * 32, "b" * 32]
    for ghost in ghosts:
        client.rpush(KEYS.queue("llm"), ghost)
    found = []
    for _ in range(3):
        look_is_due(client)
        found.append(await user.order.reconcile(epoch))
    assert found == [0, 2, 0]
    assert await user.waiting() == ids


@pytest.mark.parametrize("how", ["cancel", "hold", "expire"])
async def test_many_leave_a_long_queue_piece_by_piece(
    user: QueueUser, client: redis.Redis, how: str
) -> None:
    ids = await submit(user, 2 * WAITING)
    chosen = random.Random(7).sample(ids, LEAVING)
    epoch = await user.lead()
    match how:
        case "cancel":
            await user.control.cancel(chosen, Cancelled("not any more"), module="llm")
        case "hold":
            await user.control.hold(chosen, module="llm")
        case _:
            client.zadd(KEYS.own("deadlines:llm"), dict.fromkeys(chosen, 1))
            assert await user.order.expire(epoch) == LEAVING
    assert client.scard(KEYS.own("ghosts:llm")) == LEAVING
    first = [job_id for job_id in ids if job_id not in set(chosen)][:40]
    assert [lease.job_id for lease in await user.claim(40)] == first
    await user.control.release(chosen[:2], module="llm")  # where it was held it waits again

    assert await user.order.reconcile(epoch) == 0

    again = chosen[:2] if how == "hold" else []
    rest = [job_id for job_id in ids if job_id not in {*chosen, *first}]
    waiting = await user.waiting()
    assert [job_id for job_id in waiting if job_id not in again] == rest
    assert waiting[-len(again) :] == again if again else True
    assert not client.exists(KEYS.own("ghosts:llm"))


async def test_a_scheduler_that_was_replaced_looks_in_vain(
    user: QueueUser, slow: Interrupted, client: redis.Redis
) -> None:
    [first, *_] = await submit(user, WAITING)
    order = Order(Functions(slow), "llm")
    epoch = (await order.lead("slow", 60.0)).epoch
    client.lrem(KEYS.queue("llm"), 1, first)
    client.delete(KEYS.job(first))

    async def another_leads() -> None:
        client.hincrby(KEYS.own("scheduler"), "epoch", 1)

    slow.step, slow.meanwhile = "LRANGE", another_leads
    look_is_due(client)
    assert await order.reconcile(epoch) == 0
    assert client.hexists(KEYS.own("live:llm"), first)
    assert client.hget(KEYS.own("reconciled"), "llm") == b"0"


def loads(client: redis.Redis) -> dict[str, int]:
    rows = client.hgetall(KEYS.own("load:llm"))
    notes = {b"counted", b"missed", b"place"}
    return {text(k): int(n) for k, n in rows.items() if k not in notes and int(n)}


async def test_a_load_that_is_counted_in_parts_follows_what_moves_meanwhile(
    user: QueueUser, slow: Interrupted, client: redis.Redis
) -> None:
    await submit(user, WAITING, "ada")
    await submit(user, WAITING, "bob")
    quotas = Quotas(Functions(slow))
    ended: list[Lease] = []

    async def work() -> None:
        leases = await user.claim(6)
        await user.finish(*leases[:2])
        await user.suspend(leases[2])
        await submit(user, 2, "cyd")
        ended.extend(leases[:2])
        if len(ended) > 6:  # some that ran when they were counted end, too
            runs = [Ending(lease, "failed", b"{}", 0.1) for lease in leases[3:4]]
            await user.queue.finish("worker", runs, NOTHING_MORE)

    slow.step, slow.meanwhile = f"{LIBRARY}_recount", work
    await quotas.set("llm", QuotaRow(Subject.of_agent("*"), max_queued=100_000))
    slow.meanwhile = None

    assert slow.parts > 10
    counted = loads(client)
    client.hset(KEYS.own("load:llm"), "counted", 0)  # as they stand now, with nothing moving
    await quotas.recount("llm")
    assert loads(client) == counted
    assert counted["q"] + counted["r"] == client.hlen(KEYS.own("live:llm"))
    assert counted["r"] == client.zcard(KEYS.own("leases:llm"))
    assert not client.exists(KEYS.own("recount:llm"), KEYS.own("recounted:llm"))


async def test_a_count_that_was_given_up_is_taken_on_by_the_next_look(
    user: QueueUser, client: redis.Redis
) -> None:
    await submit(user, WAITING)
    quotas = Quotas(user.functions)
    await quotas.set("llm", QuotaRow(Subject.of_agent("ada"), max_queued=100_000))
    await user.functions.call("recount", KEYS, ["llm", 100])
    client.hset(KEYS.own("load:llm"), "q", 7)

    await user.order.reconcile(await user.lead())

    ada = {"q agent:default ada": WAITING, "q tenant:default": WAITING}
    assert loads(client) == {"q": WAITING, **ada}
