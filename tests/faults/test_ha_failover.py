"""A master dies and its replica is promoted: the kernel follows, and every waiter hears something.

Replication is asynchronous: what the master acknowledged last may be missing in the replica.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from aios_broker.client.session import Session
from aios_broker.contract.errors import RedisUnavailable, UnknownSyscall
from aios_broker.contract.names import Owner
from aios_broker.contract.syscall import new_id
from aios_broker.redis.connection import Connection
from aios_sdk import AsyncAgent
from aios_workers.runtime.registry import tool_module
from tests.caller import Caller, running_worker
from tests.integration.test_sdk_faults import echo, session_of
from tests.redis_nodes import RedisNode, follow, promote, running
from tests.scheduler_process import SchedulerProcess
from tests.session_user import sent
from tests.tiny_worker import TinyWorker
from tests.waiting import wait_until_async

HEARD_S = 30.0
WRITER = Owner("default", "writer")


@dataclass(frozen=True, slots=True)
class Pair:
    """A master and its replica, and the URL that names both."""

    master: RedisNode
    replica: RedisNode

    @property
    def url(self) -> str:
        return f"redis://{self.master.place},{self.replica.place}/0"

    def fail_over(self) -> None:
        self.master.kill()
        promote(self.replica)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(*(RedisNode(tmp_path / name) for name in ("master", "replica")))
    with running((pair.master, pair.replica)):
        follow(pair.replica, pair.master)
        yield pair


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    connection = Connection(url)
    try:
        yield connection
    finally:
        await connection.aclose()


async def written(connection: Connection) -> bool:
    try:
        await connection.execute("INCR", "n")
    except RedisUnavailable:
        return False
    return True


async def test_the_master_is_found_wherever_it_stands_in_the_url(pair: Pair) -> None:
    for url in (pair.url, f"redis://{pair.replica.place},{pair.master.place}"):
        async with connected(url) as connection:
            await connection.execute("INCR", "n")
    assert pair.master.run("GET", "n") == "2"


async def test_a_replica_alone_is_refused_by_name(pair: Pair) -> None:
    async with connected(pair.replica.url) as connection:
        with pytest.raises(RedisUnavailable, match="it is a replica"):
            await connection.execute("GET", "n")


async def test_two_that_both_call_themselves_master_are_refused(pair: Pair) -> None:
    promote(pair.replica)
    async with connected(pair.url) as connection:
        with pytest.raises(RedisUnavailable, match="each say that they are master"):
            await connection.execute("INCR", "n")
    assert pair.replica.run("GET", "n") is None


async def test_a_master_that_is_demoted_is_left_for_the_new_one(pair: Pair) -> None:
    async with connected(pair.url) as connection, connected(pair.url) as blocking:
        await connection.execute("INCR", "n")
        waiting = asyncio.create_task(blocking.execute("BLPOP", "list", 60, timeout_s=65.0))
        await wait_until_async(lambda: pair.master.info("clients")["blocked_clients"] == 1)

        promote(pair.replica)
        follow(pair.master, pair.replica)

        with pytest.raises(RedisUnavailable):  # it is told at once, not when its time is up
            await asyncio.wait_for(waiting, 10.0)
        await wait_until_async(lambda: written(connection))
        assert pair.replica.run("GET", "n") == "2"
        assert await blocking.execute("GET", "n") == b"2"


async def test_a_master_that_hangs_is_left_when_its_time_is_up(pair: Pair) -> None:
    connection = Connection(pair.url, timeout_s=0.5)
    assert await written(connection)
    pair.master.pause()
    try:
        assert not await written(connection)
        promote(pair.replica)
        await wait_until_async(lambda: written(connection))
        assert pair.replica.run("GET", "n") == "2"
    finally:
        pair.master.go_on()
        await connection.aclose()


async def test_the_kernel_follows_and_answers_what_it_had(pair: Pair, tmp_path: Path) -> None:
    with SchedulerProcess(pair.url, tmp_path / "log") as scheduler:
        await wait_until_async(lambda: "leads, epoch 1" in scheduler.log)
        async with (
            running_worker(pair.url, "tool", await tool_module(8)),
            AsyncAgent("ada", url=pair.url) as me,
        ):
            before = [me.tool.echo.start(f"{n}") for n in range(100)]
            await asyncio.gather(*(call.accepted() for call in before))
            pair.fail_over()
            after = [me.tool.echo.start(f"{n}") for n in range(100, 200)]
            results = await asyncio.wait_for(asyncio.gather(*before, *after), HEARD_S)
            assert [result.text for result in results] == [f"{n}" for n in range(200)]
            await wait_until_async(lambda: pair.replica.run("SCARD", "rq:workers") == 1)
        await wait_until_async(lambda: is_led(pair.replica))


def is_led(node: RedisNode) -> bool:
    """Tell whether a scheduler has renewed its lease there a moment ago."""
    return int(str(node.run("HGET", "rq:aios:scheduler", "until"))) > node.now_ms() + 1_000


async def lost_in_failover(pair: Pair, session: Session) -> list[str]:
    """Have syscalls acknowledged that only the dead master knew; return their ids."""
    known = sent(session, echo("known"))
    await known.accepted
    await wait_until_async(lambda: pair.replica.run("EXISTS", f"rq:job:{known.id}"))
    pair.replica.run("REPLICAOF", "127.0.0.1", 1)  # nothing more reaches it
    lost = [sent(session, echo(f"lost {n}")) for n in range(20)]
    await asyncio.gather(*(pending.accepted for pending in lost))
    pair.master.kill()
    promote(pair.replica)
    assert pair.replica.run("EXISTS", *(f"rq:job:{pending.id}" for pending in lost)) == 0
    return [known.id, *(pending.id for pending in lost)]


async def test_acknowledged_syscalls_that_are_lost_are_submitted_again_by_who_waits(
    pair: Pair,
) -> None:
    async with session_of(pair.url) as session:
        ids = await lost_in_failover(pair, session)
        waiting = [session.attach(each, WRITER) for each in ids]
        async with TinyWorker(pair.url, "tool") as worker:
            async with asyncio.timeout(HEARD_S):
                await asyncio.gather(*(pending.ended for pending in waiting))
        assert sorted(seen.id for seen in worker.seen) == sorted(ids)
    assert all(pending.reply and pending.reply.error is None for pending in waiting)


async def test_who_only_knows_the_id_of_a_lost_syscall_hears_a_typed_error(pair: Pair) -> None:
    async with session_of(pair.url) as submitter, session_of(pair.url) as other:
        ids = await lost_in_failover(pair, submitter)
        await submitter.aclose()
        attached = [other.attach(each, WRITER) for each in [*ids[1:], new_id()]]
        async with asyncio.timeout(HEARD_S):
            await asyncio.gather(*(pending.ended for pending in attached))
    codes = {
        pending.reply.error.code for pending in attached if pending.reply and pending.reply.error
    }
    assert codes == {UnknownSyscall.code}


async def test_the_functions_are_loaded_into_a_new_master_that_lacks_them(pair: Pair) -> None:
    caller = Caller(pair.url)
    try:
        await caller.queue("tool").attach("0" * 32, "", None)
        pair.fail_over()
        pair.replica.run("FUNCTION", "FLUSH")

        async def answered() -> bool:
            try:
                return (await caller.queue("tool").attach("0" * 32, "", None))[0] == "unknown"
            except RedisUnavailable:
                return False

        await wait_until_async(answered)
    finally:
        await caller.aclose()
