"""Redis' users on a real server: what each may not do, and that a fleet works with them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
import redis
from rq import Queue
from rq.serializers import JSONSerializer

from aios_broker.config import KernelConfig
from aios_broker.contract.errors import InvalidConfig, KernelError, RedisUnavailable
from aios_broker.contract.job import ENTRY
from aios_broker.process.child import StandaloneServer
from aios_broker.queues.control import Control
from aios_broker.queues.functions import LIBRARY, Functions, library_source
from aios_broker.queues.keys import Keys
from aios_broker.queues.module_queue import ModuleQueue
from aios_broker.queues.secret import KernelSecret
from aios_broker.queues.users import ROLES, Role, functions_of, url_as, user_name
from aios_broker.redis.connection import Connection
from aios_local.embedded.redis import RedisServer
from aios_local.embedded.state import StateDir
from aios_local.supervisor.kernel import EmbeddedKernel
from aios_local.supervisor.redis_users import RedisUsers
from aios_sdk import Agent
from tests.busy_kernel import run_tool
from tests.redis_nodes import RedisNode, cluster, follow, running
from tests.waiting import wait_until

KEYS = Keys()
BOSS = ("--user", "boss", "on", ">pw", "~*", "&*", "+@all")
LIBRARY_OF_A_STRANGER = "#!lua name=mine\nredis.register_function('mine', function() return 1 end)"

Command = tuple[str | int, ...]

# Of nobody but whoever has the server's own password.
NOBODYS: tuple[Command, ...] = (
    ("ACL", "LIST"),
    ("ACL", "SETUSER", "mine", "on", "nopass", "+@all"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("CLIENT", "NO-EVICT", "on"),
    ("CLIENT", "PAUSE", 100),
    ("CONFIG", "GET", "requirepass"),
    ("CONFIG", "SET", "dir", "/tmp"),
    ("DBSIZE",),
    ("DUMP", "rq:job:a"),
    ("EVAL", "return 1", 0),
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("FUNCTION", "DELETE", LIBRARY),
    ("FUNCTION", "FLUSH"),
    ("FUNCTION", "LIST"),
    ("KEYS", "*"),
    ("LATENCY", "RESET"),
    ("MIGRATE", "127.0.0.1", 1, "rq:job:a", 0, 1),
    ("MODULE", "LIST"),
    ("MONITOR",),
    ("RANDOMKEY",),
    ("REPLICAOF", "NO", "ONE"),
    ("SAVE",),
    ("SCAN", 0),
    ("SCRIPT", "FLUSH"),
    ("SHUTDOWN", "NOSAVE"),
    ("SLOWLOG", "GET"),
    ("SWAPDB", 0, 1),
    # Not the kernel's: other applications, other deployments, names that only begin alike.
    ("GET", "session:1"),
    ("HSET", "rqx:job:a", "f", 1),
    ("GET", "{a}:rq:aios:secret"),
    ("RENAME", "rq:job:a", "mine"),
    ("PUBLISH", "news", "x"),
    ("SUBSCRIBE", "news"),
)
OF_THE_FLEET: tuple[Command, ...] = (
    ("FUNCTION", "LOAD", "REPLACE", LIBRARY_OF_A_STRANGER),
    ("HSET", "rq:aios:tokens", "digest", "{}"),
    ("SET", "rq:aios:secret", "x"),
    ("HSET", "rq:aios:scheduler", "epoch", 1),
    ("HSET", "rq:aios:groups", "default/ada", "admin"),
    ("SADD", "rq:workers", "rq:worker:mine"),
    ("HSET", "rq:worker:mine", "pid", 1),
    ("SET", "rq:suspended", 1),
    ("HSET", "rq:aios:memory:default ada:notes", "id", "{}"),
    ("HSET", "rq:aios:terms", "gpt", "0"),
    ("XTRIM", "rq:aios:journal", "MAXLEN", 0),
    ("BGREWRITEAOF",),
)
OF_OPERATORS: tuple[Command, ...] = (
    ("HDEL", "rq:aios:quota:llm", "agent:*"),
    ("HDEL", "rq:aios:stopped", "agent:default ada"),
    ("HDEL", "rq:aios:core_cards", "small"),
    ("HSET", "rq:aios:resources:tool", "tool:x", 1),
    ("FCALL", f"{LIBRARY}_stop", 1, "rq:aios:slot"),
    ("HSET", "rq:aios:responses:default ada", "id", "{}"),
    ("HSET", "rq:aios:context:default ada x", "version", 1),
)
OF_CLIENTS: tuple[Command, ...] = (
    ("HSET", "rq:job:a", "f", 1),
    ("DEL", "rq:queue:llm"),
    ("LPUSH", "rq:queue:llm", "a"),
    ("ZREM", "rq:failed:llm", "a"),
    ("ZADD", "rq:failed:llm", 1, "a"),
    ("ZREMRANGEBYSCORE", "rq:aios:leases:llm", "-inf", "+inf"),
    ("XADD", "rq:aios:journal", "*", "t", "x"),
    ("PUBLISH", "rq:pubsub:mine", "x"),
    ("GET", "rq:aios:secret"),
    ("HGETALL", "rq:aios:tokens"),
    ("LRANGE", "rq:aios:reply:x", 0, -1),
    ("GET", "rq:aios:snapshot:a"),
    ("LRANGE", "rq:aios:context:default ada x:messages", 0, -1),
)
FORBIDDEN: dict[Role, tuple[Command, ...]] = {
    "scheduler": NOBODYS,
    "worker": (*NOBODYS, ("XTRIM", "rq:aios:journal", "MAXLEN", 0), ("BGREWRITEAOF",)),
    "api": (*NOBODYS, *OF_THE_FLEET),
    "client": (*NOBODYS, *OF_THE_FLEET, *OF_OPERATORS),
    "inspector": (*NOBODYS, *OF_THE_FLEET, *OF_OPERATORS, *OF_CLIENTS),
}


class Guarded(NamedTuple):
    """A server with users."""

    url: str  # of whoever may do everything

    def as_user(self, role: Role) -> redis.Redis:
        return redis.Redis.from_url(url_as(self.url, role, KEYS))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    state = StateDir.open(tmp_path_factory.mktemp("guarded"))
    server = RedisServer.of(state, port=0)
    assert server.tcp_url is not None
    with StandaloneServer(server.service(), state.log_dir / "redis.log"):
        with redis.Redis.from_url(server.url) as client:
            client.function_load(library_source())
        yield Guarded(server.tcp_url)
    state.remove_sockets()


@pytest.mark.parametrize("login", ["", ":wrong@", "rq.worker:wrong@", "nobody:x@"])
def test_nobody_enters_without_the_right_password(guarded: Guarded, login: str) -> None:
    place = guarded.url.rpartition("@")[2]
    with (
        redis.Redis.from_url(f"redis://{login}{place}") as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.ping()


@pytest.mark.parametrize("role", ROLES)
def test_what_a_user_may_not_do(guarded: Guarded, role: Role) -> None:
    allowed = []
    for command in FORBIDDEN[role]:
        with guarded.as_user(role) as client:
            try:
                client.execute_command(*command)
            except redis.exceptions.NoPermissionError:
                continue
            except redis.RedisError as error:  # it was let through, and failed by itself
                allowed.append((*command, str(error)))
                continue
        allowed.append(command)
    assert allowed == []


@pytest.mark.parametrize("role", ROLES)
def test_which_functions_a_user_may_call(guarded: Guarded, role: Role) -> None:
    folders = ("client", "operator", "scheduler", "shared", "worker")
    everything = sorted(frozenset().union(*map(functions_of, folders)))
    with redis.Redis.from_url(guarded.url) as boss:
        may = {
            name
            for name in everything
            if boss.acl_dryrun(
                user_name(role, KEYS), "FCALL", f"{LIBRARY}_{name}", 1, "rq:aios:slot"
            )
            == b"OK"
        }
    assert (
        may
        == {
            "scheduler": set(everything),
            "worker": set(everything),
            "api": frozenset().union(
                *map(functions_of, ("client", "operator", "shared", "worker/context"))
            ),
            "client": {"submit", "attach", "look", "cancel"},
            "inspector": set(),
        }[role]
    )


async def test_rqs_tool_looks_as_the_inspector(guarded: Guarded) -> None:
    with redis.Redis.from_url(guarded.url) as boss:
        Queue("memory", connection=boss, serializer=JSONSerializer).enqueue(ENTRY, {})
    text = await run_tool("rq", "info", "-u", url_as(guarded.url, "inspector", KEYS))
    assert "1 queues, 1 jobs total" in text


async def test_who_may_not_load_the_functions_waits_for_a_scheduler(guarded: Guarded) -> None:
    with redis.Redis.from_url(guarded.url) as boss:
        boss.function_delete(LIBRARY)
        connection = Connection(url_as(guarded.url, "client", KEYS))
        control = Control(Functions(connection), KEYS)
        try:
            with pytest.raises(RedisUnavailable, match="start a scheduler") as caught:
                await control.queue("tool")
            assert caught.value.retryable
            assert caught.value.retry_after_s
            boss.function_load(library_source())
            assert (await control.queue("tool")).waiting == 0
        finally:
            await connection.aclose()


async def test_who_may_not_make_the_secret_waits_for_a_scheduler(guarded: Guarded) -> None:
    client = Connection(url_as(guarded.url, "client", KEYS))
    scheduler = Connection(url_as(guarded.url, "scheduler", KEYS))
    try:
        with pytest.raises(RedisUnavailable, match="start a scheduler"):
            await KernelSecret(client).read()
        assert await KernelSecret(scheduler).read() == await KernelSecret(client).read()
    finally:
        await client.aclose()
        await scheduler.aclose()


async def test_a_step_that_a_user_may_not_take_says_so(guarded: Guarded) -> None:
    connection = Connection(url_as(guarded.url, "client", KEYS))
    try:
        with pytest.raises(KernelError, match="this process's user in Redis may not do that"):
            await ModuleQueue(Functions(connection), "tool").unregister("mine")
    finally:
        await connection.aclose()


# ---------------------------------------------------------------------- a fleet works with them


SETTINGS = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}


@contextmanager
def kernel_on(config: KernelConfig) -> Iterator[EmbeddedKernel]:
    with EmbeddedKernel(config, inherited=SETTINGS) as kernel:
        yield kernel


def users_of_processes(url: str) -> dict[str, set[str]]:
    """Return, by what a connection calls itself, whom it has logged in as."""
    found: dict[str, set[str]] = {}
    with redis.Redis.from_url(url) as boss:
        for client in boss.client_list():
            found.setdefault(client["name"], set()).add(client["user"])
    return found


def refusals(url: str) -> list[str]:
    """Return what Redis has refused to its users."""
    with redis.Redis.from_url(url) as boss:
        return [f"{each['username']}: {each['object']}" for each in boss.acl_log()]


def use_everything(url: str) -> None:
    """Call every module, and what reaches deep into Redis."""
    with Agent("ada", url=url) as ada:
        assert ada.tool.echo("hi").text == "hi"
        assert ada.llm.chat("Hello", max_tokens=5, context="talk").text
        assert ada.llm.chat("And then?", max_tokens=5, context="talk").text
        with ada.llm.chat.stream("A story", max_tokens=20) as stream:
            assert "".join(stream)
        note = ada.memory.add("rivers of France")
        assert ada.memory.get(note.id).content == "rivers of France"
        ada.storage.write("a.txt", "text")
        assert ada.storage.read("a.txt").content == "text"
        assert ada.access.whoami().agent == "ada"
        long = ada.llm.chat.start("A long story", max_tokens=1_500)
        long.cancel()


@pytest.mark.timeout(180)
def test_each_process_does_its_work_as_its_own_user(tmp_path: Path) -> None:
    config = KernelConfig(state_dir=tmp_path, redis_port=0, llm_core="simulated")
    with kernel_on(config) as kernel:
        use_everything(kernel.redis_url)
        users = users_of_processes(kernel.redis_url)
        assert users["aios-scheduler"] == {"rq.scheduler"}
        workers = {name for name in users if name.endswith((".llm", ".tool", ".memory"))}
        assert len(workers) == 3
        assert all(users[name] == {"rq.worker"} for name in workers)
        assert refusals(kernel.redis_url) == []

        login = (tmp_path / "redis-client.url").read_text()
        use_everything(login)
        assert refusals(kernel.redis_url) == []
        assert (tmp_path / "redis-client.url").stat().st_mode & 0o077 == 0
        shown = (tmp_path / "log" / "kernel.log").read_text()
        assert "***" in shown
        assert (tmp_path / "redis" / "password").read_text() not in shown
    assert not (tmp_path / "redis-client.url").exists()


@pytest.fixture
def other_server(tmp_path: Path) -> Iterator[RedisNode]:
    """A server that is not the kernel's own: its users are lost when it ends."""
    node = RedisNode(tmp_path / "node", *BOSS)
    with running([node]):
        yield node


def config_on(
    node: RedisNode, tmp_path: Path, database_url: str, login: str = "boss:pw"
) -> KernelConfig:
    return KernelConfig(
        state_dir=tmp_path / "state",
        redis_url=f"redis://{login}@{node.place}/0",
        database_url=database_url,
        llm_workers=0,
        state_workers=0,
    )


@pytest.mark.timeout(120)
def test_a_server_that_lost_its_users_has_them_again(
    other_server: RedisNode, tmp_path: Path, database_url: str
) -> None:
    config = config_on(other_server, tmp_path, database_url)
    with kernel_on(config) as kernel, Agent("ada", url=kernel.redis_url) as ada:
        assert users_of_processes(kernel.redis_url)["aios-scheduler"] == {"rq.scheduler"}
        other_server.kill()
        other_server.start()
        assert ada.tool.echo("still here").text == "still here"
        wait_until(
            lambda: users_of_processes(kernel.redis_url).get("aios-scheduler") == {"rq.scheduler"}
        )


def test_a_login_that_may_not_make_users_ends_the_start_with_what_to_do(
    other_server: RedisNode, tmp_path: Path, database_url: str
) -> None:
    other_server.run("ACL", "SETUSER", "guest", "on", ">pw", "~*", "&*", "+@all", "-acl")
    config = config_on(other_server, tmp_path, database_url, "guest:pw")
    with pytest.raises(InvalidConfig, match="AIOS_REDIS_USERS=shared"), kernel_on(config):
        pass


def test_processes_may_share_the_login(
    other_server: RedisNode, tmp_path: Path, database_url: str
) -> None:
    other_server.run("ACL", "SETUSER", "guest", "on", ">pw", "~*", "&*", "+@all", "-acl")
    config = msgspec.structs.replace(
        config_on(other_server, tmp_path, database_url, "guest:pw"), redis_users="shared"
    )
    with kernel_on(config) as kernel, Agent("ada", url=kernel.redis_url) as ada:
        assert ada.tool.echo("hi").text == "hi"
        assert users_of_processes(other_server.url)["aios-scheduler"] == {"guest"}


def names_at(node: RedisNode) -> set[str]:
    names = node.run("ACL", "USERS")
    assert isinstance(names, list)
    return set(names)


async def test_a_replica_has_the_users_before_it_is_promoted(tmp_path: Path) -> None:
    master, replica = (RedisNode(tmp_path / name, *BOSS) for name in ("master", "replica"))
    with running([master, replica]):
        follow(replica, master)
        url = f"redis://boss:pw@{master.place},{replica.place}/0"
        await RedisUsers(url, KEYS).make()
        wanted = {user_name(role, KEYS) for role in ROLES}
        assert names_at(master) >= wanted
        assert names_at(replica) >= wanted
        assert await RedisUsers(url, KEYS).make_missing() == 0
        replica.run("ACL", "DELUSER", "rq.worker")
        assert await RedisUsers(url, KEYS).make_missing() == 1
        assert names_at(replica) >= wanted


@pytest.mark.timeout(120)
async def test_each_node_of_a_cluster_has_the_users(tmp_path: Path) -> None:
    keys = Keys("{a}:rq")
    with cluster(tmp_path / "cluster") as nodes:
        for node in nodes.nodes:
            node.run("ACL", "SETUSER", "boss", "on", ">pw", "~*", "&*", "+@all")
        url = f"redis://boss:pw@{nodes.nodes[0].place}/0"
        await RedisUsers(url, keys).make()
        for node in nodes.nodes:
            assert names_at(node) >= {f"{{a}}:rq.{role}" for role in ROLES}
        connection = Connection(url_as(url, "scheduler", keys))
        try:
            assert (await Control(Functions(connection), keys).queue("tool")).waiting == 0
        finally:
            await connection.aclose()


def test_an_absent_server_is_told_as_such() -> None:
    with pytest.raises(RedisUnavailable, match="no Redis that users can be made on"):
        asyncio.run(RedisUsers("redis://:pw@127.0.0.1:1/0", KEYS).make())
