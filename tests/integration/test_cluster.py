"""Two shards side by side on a Redis Cluster of three nodes, each whole in one slot."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aios_broker.client.redis_transport import RedisTransport
from aios_broker.client.session import Session
from aios_broker.config import KernelConfig
from aios_broker.contract.errors import InvalidConfig, RedisUnavailable
from aios_broker.contract.reply import EchoResult
from aios_broker.queues.keys import Keys
from aios_broker.redis.channel import Channel
from aios_broker.redis.connection import Connection
from aios_broker.scheduler.config import SchedulerConfig
from aios_broker.scheduler.scheduler import Scheduler
from aios_local.supervisor.kernel import EmbeddedKernel
from aios_workers.runtime.loop import Limits, WorkerSpec
from aios_workers.runtime.registry import open_worker, tool_module
from tests.busy_kernel import run_tool
from tests.caller import ROOT
from tests.integration.test_sdk_faults import echo
from tests.queue_user import QueueUser
from tests.redis_nodes import RedisCluster, cluster, program_environment
from tests.session_user import sent

SHARDS = ("a", "b")
HEARD_S = 40.0


@pytest.fixture(scope="module")
def module_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with cluster(tmp_path_factory.mktemp("cluster") / "nodes") as made:
        yield made


@pytest.fixture
def three(module_cluster: RedisCluster) -> RedisCluster:
    """The cluster of this file, emptied."""
    for node in module_cluster.nodes:
        node.run("FLUSHALL")
        node.run("FUNCTION", "FLUSH")
    return module_cluster


def prefix(tag: str) -> str:
    return f"{{{tag}}}:rq"


@asynccontextmanager
async def user_of(url: str, tag: str) -> AsyncIterator[QueueUser]:
    user = QueueUser(url, keys=Keys(prefix(tag)))
    try:
        yield user
    finally:
        await user.redis.aclose()


@asynccontextmanager
async def shard(url: str, tag: str) -> AsyncIterator[Session]:
    """Run a scheduler and a tool worker on one shard; give a client of it."""
    variables = {"AIOS_REDIS_URL": url, "RQ_KEY_PREFIX": prefix(tag)}
    scheduling = asyncio.create_task(Scheduler(SchedulerConfig.from_environment(variables)).run())
    place = WorkerSpec(f"worker.{tag}", "tool", url, Keys(prefix(tag)), Limits(2.0, 3.0))
    session = Session(RedisTransport(url, "ada", Keys(prefix(tag))))
    async with open_worker(place, await tool_module(8)) as worker:
        working = asyncio.create_task(worker.run())
        await session.open()
        try:
            yield session
        finally:
            await session.aclose()
            worker.stop()
            await asyncio.wait_for(working, 20.0)
            scheduling.cancel()
            await asyncio.gather(scheduling, return_exceptions=True)


async def heard(session: Session, count: int) -> None:
    """Submit, and check that each is answered with its own text."""
    calls = [sent(session, echo(f"{n}")) for n in range(count)]
    async with asyncio.timeout(HEARD_S):
        await asyncio.gather(*(call.ended for call in calls))
    for number, call in enumerate(calls):
        assert call.reply is not None
        assert call.reply.unwrap() == EchoResult(f"{number}")


# One connection


async def test_a_connection_goes_to_the_node_that_has_its_shard(three: RedisCluster) -> None:
    for tag in ("a", "b", "c"):
        for node in three.nodes:  # whichever the URL names
            async with user_of(node.url, tag) as user:
                ids = await user.submit(0)
                assert (await user.waiting())[-1:] == ids
        assert three.owner(tag).run("LLEN", f"{prefix(tag)}:queue:llm") == 3


async def test_many_commands_of_one_tick_are_redirected_together(three: RedisCluster) -> None:
    other = next(node for node in three.nodes if node is not three.owner("a"))
    connection = Connection(other.url)
    answers = await asyncio.gather(*(connection.execute("INCR", "{a}n") for _ in range(200)))
    assert sorted(answers) == list(range(1, 201))
    await connection.aclose()


async def test_a_prefix_without_a_hash_tag_is_refused_by_name(three: RedisCluster) -> None:
    user = QueueUser(three.url, keys=Keys("rq"))
    with pytest.raises(InvalidConfig) as caught:
        await user.submit(0)
    assert (caught.value.field, "hash tag" in caught.value.message) == ("RQ_KEY_PREFIX", True)
    await user.redis.aclose()


@pytest.mark.parametrize("module", ["aios_broker.scheduler", "aios_workers"])
async def test_a_process_with_such_a_prefix_ends_at_once(three: RedisCluster, module: str) -> None:
    command = [sys.executable, "-m", module, *(["tool"] if module == "aios_workers" else [])]
    process = await asyncio.create_subprocess_exec(
        *command, env=program_environment(three.url, "rq", ROOT), stderr=subprocess.PIPE
    )
    _, said = await asyncio.wait_for(process.communicate(), 20.0)
    assert (process.returncode, b"RQ_KEY_PREFIX" in said) == (2, True)


async def test_what_is_published_is_heard_on_every_node(three: RedisCluster) -> None:
    for node in three.nodes:
        async with Channel(node.url, "news") as channel:
            three.owner("a").run("PUBLISH", "news", "hello")
            assert await asyncio.wait_for(channel.next(), 10.0) == b"hello"


# A slot that moves


async def test_while_a_slot_moves_key_by_key_no_step_runs_on_half_of_it(
    three: RedisCluster,
) -> None:
    source = three.owner("a")
    target = next(node for node in three.nodes if node is not source)
    slot = three.slot("a")
    async with user_of(three.url, "a") as user:
        ids = await user.submit(1, 2, 3)
        target.run("CLUSTER", "SETSLOT", slot, "IMPORTING", three.node_id(source))
        source.run("CLUSTER", "SETSLOT", slot, "MIGRATING", three.node_id(target))
        for step in (user.submit(4), user.claim(2), user.lead()):
            with pytest.raises(RedisUnavailable):
                await step
        assert source.run("LLEN", f"{prefix('a')}:queue:llm") == 3
        for node in (source, target):
            node.run("CLUSTER", "SETSLOT", slot, "STABLE")

        three.move_key_by_key("a", target)
        assert await user.waiting() == ids
        assert len(await user.claim(2)) == 2
    assert three.owner("a") is target


@pytest.mark.parametrize("way", ["key by key", "at once"])
async def test_a_slot_that_moves_under_load_loses_nothing(three: RedisCluster, way: str) -> None:
    async with shard(three.url, "a") as session:
        load = asyncio.create_task(heard(session, 800))
        for _ in range(2):
            target = next(node for node in three.nodes if node is not three.owner("a"))
            move = three.move_at_once if way == "at once" else three.move_key_by_key
            await asyncio.to_thread(move, "a", target)
            await heard(session, 20)
            assert target.run("EXISTS", f"{prefix('a')}:queues") == 1
        await load


# The whole product


async def test_two_shards_work_side_by_side_and_apart(three: RedisCluster) -> None:
    async with shard(three.url, "a") as first, shard(three.url, "b") as second:
        await asyncio.gather(heard(first, 200), heard(second, 200))
        for tag in SHARDS:
            assert three.owner(tag).run("SCARD", f"{prefix(tag)}:workers") == 1


async def test_a_node_that_is_killed_and_started_again_loses_nothing(three: RedisCluster) -> None:
    async with shard(three.url, "a") as first, shard(three.url, "b") as second:
        await asyncio.gather(heard(first, 50), heard(second, 50))
        node = three.owner("a")
        load = [asyncio.create_task(heard(session, 300)) for session in (first, second)]
        node.kill()
        node.start()
        await asyncio.to_thread(three.wait_whole)
        await asyncio.gather(*load)


@pytest.mark.slow
async def test_a_supervised_kernel_and_its_commands_work_on_a_shard(
    three: RedisCluster, tmp_path: Path
) -> None:
    settings = {"AIOS_LLM_CORE": "simulated", "AIOS_LLM_WORKERS": "1", "AIOS_SCHEDULERS": "2"}
    environ = {
        **program_environment(three.url, prefix("a"), ROOT),
        **settings,
        "AIOS_STATE_DIR": str(tmp_path / "state"),
    }
    config = KernelConfig.from_environment(environ)
    async with user_of(three.url, "a") as user:
        kernel = EmbeddedKernel(config, inherited=environ)
        await asyncio.to_thread(kernel.__enter__)
        try:
            assert "hello" in await aios(environ, "submit", "--tool", "echo", "hello")
            three.owner("a").run("SET", f"{prefix('a')}:suspended", 1)
            [job_id] = await user.submit(0)
            for command in (["ps"], ["why", job_id]):
                assert job_id in await aios(environ, *command)
            names = {process.name for process in kernel.record.processes}
            assert {"scheduler-1", "scheduler-2", "tool-1"} <= names
            seen = await run_tool(
                "rq", "info", "--raw", "--url", three.owner("a").url, RQ_KEY_PREFIX=prefix("a")
            )
            assert "queue llm.simulated 1," in seen  # the run queue of its core
        finally:
            await asyncio.to_thread(kernel.__exit__, None, None, None)


async def aios(environ: dict[str, str], *arguments: str) -> str:
    """Run a command with --json; return what it printed, fail if it fails."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "aios_cli",
        *arguments,
        "--json",
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 30.0)
    assert process.returncode == 0, (arguments, errors.decode())
    return output.decode()
