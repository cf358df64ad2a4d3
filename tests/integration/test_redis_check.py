"""A Redis that will not do is told of at once; what would come to light later is asked first."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from aios_broker.contract.errors import InvalidConfig
from aios_cli.doctor import check_redis_eviction
from aios_cli.session import Operator
from aios_local.supervisor.redis_check import check_redis
from aios_workers.runtime.registry import worker_name
from tests.redis_nodes import RedisNode, running

BOSS = ("--user", "boss", "on", ">pw", "~*", "&*", "+@all")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RedisNode]:
    node = RedisNode(tmp_path / "node", *BOSS)
    with running([node]):
        yield node


def url_of(node: RedisNode, login: str = "boss:pw") -> str:
    return f"redis://{login}@{node.place}/0"


@pytest.mark.parametrize("login", ["boss:wrong", "nobody:pw"])
async def test_a_wrong_login_is_told(node: RedisNode, login: str) -> None:
    with pytest.raises(InvalidConfig, match="WRONGPASS") as told:
        await check_redis(url_of(node, login), may_evict=False)
    assert told.value.field == "AIOS_REDIS_URL"
    assert login.rpartition(":")[2] + "@" not in str(told.value)


async def test_a_missing_password_is_told(node: RedisNode) -> None:
    node.run("ACL", "SETUSER", "default", "resetpass", ">other")
    with pytest.raises(InvalidConfig, match="NOAUTH"):
        await check_redis(f"redis://{node.place}/0", may_evict=False)


@pytest.mark.parametrize(("denied", "named"), [("-time", "TIME"), ("-function", "FUNCTION")])
async def test_a_refused_command_is_named(node: RedisNode, denied: str, named: str) -> None:
    node.run("ACL", "SETUSER", "tight", "on", ">pw", "~*", "&*", "+@all", denied)
    with pytest.raises(InvalidConfig, match=f"refuses {named}"):
        await check_redis(url_of(node, "tight:pw"), may_evict=False)


async def test_a_redis_that_drops_keys_is_refused_unless_allowed(node: RedisNode) -> None:
    await check_redis(url_of(node), may_evict=False)
    node.run("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    with pytest.raises(InvalidConfig, match="allkeys-lru"):
        await check_redis(url_of(node), may_evict=False)
    await check_redis(url_of(node), may_evict=True)


async def test_a_port_that_speaks_no_tls_is_told_at_once(node: RedisNode) -> None:
    with pytest.raises(InvalidConfig, match="speaks no TLS") as told:
        await asyncio.wait_for(
            check_redis(f"rediss://boss:pw@{node.place}/0", may_evict=False), timeout=10.0
        )
    assert "scheme" in (told.value.remedy or "")
    assert "pw@" not in str(told.value)


async def test_doctor_tells_of_a_redis_that_drops_keys(
    node: RedisNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Operator(url_of(node)) as operator:
        assert (await check_redis_eviction(operator)).ok
        node.run("CONFIG", "SET", "maxmemory-policy", "volatile-ttl")
        found = await check_redis_eviction(operator)
        assert not found.ok
        assert "volatile-ttl" in found.detail
        assert "noeviction" in found.remedy
        monkeypatch.setenv("AIOS_REDIS_EVICTION", "allow")
        allowed = await check_redis_eviction(operator)
        assert allowed.ok
        assert "AIOS_REDIS_EVICTION" in allowed.detail


async def test_one_that_is_not_there_yet_may_come() -> None:
    await check_redis("redis://127.0.0.1:1/0", may_evict=False)


def test_the_name_of_a_worker_has_a_random_part() -> None:
    _, process, role = worker_name("llm").rsplit(".", 2)
    assert (role, len(process.partition("-")[2])) == ("llm", 6)
