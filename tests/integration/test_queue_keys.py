"""Every key in Redis is one that keys.py or lib.lua names, and all of them hang on the prefix."""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path

import msgspec
import pytest
import redis
from rq import Queue, Worker
from rq.command import PUBSUB_CHANNEL_TEMPLATE
from rq.job import Job
from rq.results import Result
from rq.suspension import WORKERS_SUSPENDED

from aios_broker.contract.cores import CoreCard
from aios_broker.contract.errors import Cancelled
from aios_broker.contract.job import encode_job
from aios_broker.contract.names import Module
from aios_broker.contract.reply import Chunk, EchoResult, Reply, encode
from aios_broker.contract.syscall import Need, Syscall, ToolEcho, new_id
from aios_broker.contract.tokens import digest, new_token
from aios_broker.queues.control import Control
from aios_broker.queues.functions import Functions, library_source
from aios_broker.queues.keys import Keys
from aios_broker.queues.module_queue import ClaimRequest, ModuleQueue
from aios_broker.queues.order import Order, Score
from aios_broker.queues.records import (
    Ending,
    JobMetadata,
    Lease,
    PolicyRow,
    SliceUse,
    Submission,
    Suspension,
    WorkerCard,
)
from aios_broker.queues.secret import KernelSecret
from aios_broker.queues.tokens import Identity, Tokens
from aios_broker.redis.connection import Connection
from tests.busy_kernel import run_tool
from tests.caller import WorkerProcess
from tests.queue_user import submitted
from tests.scheduler_process import SchedulerProcess
from tests.waiting import wait_until_async

PREFIXES = ["rq", "{shard1}:rq"]
MODULE: Module = "tool"
CARD = WorkerCard(
    "host.1.tool",
    MODULE,
    pid=1,
    hostname="host",
    slots=4,
    cores=(CoreCard(name="core-a", model="m"),),
)
STEPS = 400
# Of RQ's data model, the keys that we write or read: docs of queues/keys.py.
OF_RQ = {
    "queues",
    "workers",
    "workers:{q}",
    "queue:{q}",
    "wip:{q}",
    "deferred:{q}",
    "finished:{q}",
    "failed:{q}",
    "canceled:{q}",
    "job:{id}",
    "results:{id}",
    "worker:{name}",
    "execution:{id}",
    "executions:{id}",
    "suspended",
}
# Of ours, beside those that lib.lua names.
OF_OURS = {
    "snapshot:{id}",
    "reply:{client}",
    "answer:{id}",
    "reasoning:{id}",
    "journal",
    "reconciled",
    "secret",
    "rewrite",
    "configured",
    "use:{q}",
    "used:{q}",
    "quota:{q}",
    "load:{q}",
    "bucket:{q}",
    "recount:{q}",
    "recounted:{q}",
    "rate:{account}",
    "spent:{q}",
    "ghosts:{q}",
    "last_core:{program}",
    "exec_sessions:{tenant}",
    "exec_tenants",
    "exec_host:{host}",
    "exec_inbox:{host}",
    "exec_commit:{job}:{digest}",
    "tool_cards",
    "tool_limits:{q}",
}


def lua(step: str) -> str:
    return (files("aios_broker.queues") / "lua" / f"{step}.lua").read_text()


def named_in_lua() -> dict[str, str]:
    """Return the keys that lib.lua names: field -> key below the prefix."""
    table = (
        lua("shared/lib").partition("local function names_of(p, name)")[2].partition("\nend\n")[0]
    )
    entries = re.findall(r"(\w+) = (p|own) \.\. '([^']+)'( \.\. (?:q|name))?", table)
    return {
        field: {"p": "", "own": "aios:"}[base] + name.lstrip(":") + ("{q}" if of_queue else "")
        for field, base, name, of_queue in entries
        if field != "own"
    }


def patterns() -> list[re.Pattern[str]]:
    names = {*named_in_lua().values(), *OF_RQ, *(f"aios:{name}" for name in OF_OURS)}
    return [re.compile(re.sub(r"\\{(\w+)\\}", r"[^{}]+", re.escape(name))) for name in names]


def strangers(client: redis.Redis, prefix: str) -> list[str]:
    """Return the keys that nothing names."""
    keys = [key.decode() for key in client.scan_iter(count=1000)]
    tails = {key: key.removeprefix(f"{prefix}:") for key in keys}
    known = patterns()
    return [
        key
        for key, tail in tails.items()
        if tail == key or not any(pattern.fullmatch(tail) for pattern in known)
    ]


class Scenario:
    """Clients, workers, an operator and a scheduler that take random steps."""

    def __init__(self, url: str, prefix: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.connection = Connection(url)
        self.keys = Keys(prefix)
        functions = Functions(self.connection)
        self.queue = ModuleQueue(functions, MODULE, self.keys)
        self.order = Order(functions, MODULE, self.keys)
        self.control = Control(functions, self.keys)
        self.tokens = Tokens(self.connection, self.keys)
        self.ids: list[str] = []
        self.leases: list[Lease] = []
        self.epoch = 0

    async def run(self, steps: int) -> None:
        await self.queue.register(CARD)
        await self.tokens.put(digest(new_token()), Identity("ada"))
        await KernelSecret(self.connection, self.keys).read()
        await self.control.set_policy(MODULE, PolicyRow(max_losses=2))
        self.epoch = (await self.order.lead("here", 600.0)).epoch
        acts = (
            self.submit,
            self.claim,
            self.finish,
            self.suspend,
            self.slices,
            self.operate,
            self.meddle,
            self.sweep,
        )
        for _ in range(steps):
            await self.random.choice(acts)()

    def some(self, ids: list[str]) -> list[str]:
        return self.random.sample(ids, min(len(ids), 3))

    async def submit(self) -> None:
        calls = [Syscall(new_id(), "ada", ToolEcho("x")) for _ in range(3)]
        self.ids += [call.id for call in calls]
        client = self.random.choice(["client-1", "client-2", ""])
        needs = self.random.choice(
            [(), (Need("core", "core-a"),), (Need("tool", "x"), Need("lock", "y"))]
        )
        await submitted(
            self.queue,
            [
                Submission(
                    call.id,
                    encode_job(call),
                    JobMetadata("ada", call.kind),
                    client,
                    needs,
                    self.random.choice([0.05, 600.0]),
                )
                for call in calls
            ],
        )

    async def claim(self) -> None:
        lease_s = self.random.choice([0.02, 600.0])
        self.leases += await self.queue.claim(CARD.name, ClaimRequest(2, lease_s, CARD.core_names))
        await self.queue.renew(CARD, self.leases[-3:], 600.0)

    async def finish(self) -> None:
        ends = [
            Ending(
                lease,
                self.random.choice(["finished", "failed"]),
                encode(Reply(lease.job_id, EchoResult("x"))),
                0.1,
                1,
                self.random.random() < 0.2,
            )
            for lease in self.leases[-2:]
        ]
        await self.queue.emit([(end.lease, Chunk(end.lease.job_id, 0, "x")) for end in ends])
        await self.queue.finish(CARD.name, ends, ClaimRequest(0, 1.0))

    async def suspend(self) -> None:
        suspensions = [
            Suspension(lease, b"snapshot", 0.1, 1, self.random.choice(["suspend", "hold", "drain"]))
            for lease in self.leases[-2:]
        ]
        await self.queue.suspend(CARD.name, suspensions, ClaimRequest(0, 1.0))

    async def slices(self) -> None:
        uses = [SliceUse(lease, 0.1, 1, b"checkpoint") for lease in self.leases[-2:]]
        await self.queue.slice_end(CARD.name, uses, ClaimRequest(0, 600.0, CARD.core_names))

    async def operate(self) -> None:
        ids = self.some(self.ids)
        match self.random.randrange(5):
            case 0:
                await self.control.cancel(ids, Cancelled("enough"), module=MODULE)
            case 1:
                await self.control.hold(ids, module=MODULE)
            case 2:
                await self.control.release(self.ids, module=MODULE)
            case 3:
                await self.control.nice(ids, 5, module=MODULE)
            case _:
                for job_id in ids:
                    await self.queue.attach(job_id, "client-3", None)

    async def meddle(self) -> None:
        """Do what a stock tool does: delete a job, take one off the list."""
        for job_id in self.some(self.ids[-20:])[:1]:
            if self.random.random() < 0.5:
                await self.connection.execute("DEL", self.keys.job(job_id))
            await self.connection.execute("LREM", self.keys.queue(MODULE), 0, job_id)

    async def sweep(self) -> None:
        _, ids = await self.order.head(100)
        scored = [Score(job_id, 1.0) for job_id in ids]
        await self.order.reorder(self.epoch, ids[::-1], scored=scored)
        await self.order.reclaim(self.epoch)
        await self.order.expire(self.epoch)
        await self.order.reconcile(self.epoch)

    async def end_all(self) -> None:
        """End whatever still goes on."""
        await self.control.cancel(self.ids, Cancelled("the end"), module=MODULE)
        await self.queue.unregister(CARD.name)


@pytest.fixture(params=PREFIXES)
def prefix(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
async def scenario(redis_url: str, prefix: str) -> AsyncIterator[Scenario]:
    scenario = Scenario(redis_url, prefix, seed=7)
    yield scenario
    await scenario.connection.aclose()


async def test_every_key_has_a_name_and_the_prefix(
    redis_url: str, prefix: str, scenario: Scenario
) -> None:
    await scenario.run(STEPS)

    with redis.Redis.from_url(redis_url) as client:
        assert strangers(client, prefix) == []
        wanted = {"leases", "live", "scores", "journal", "snapshot", "reply", "tokens"}
        seen = {
            key.decode().split(":aios:")[1].split(":")[0]
            for key in client.scan_iter(f"{prefix}:aios:*")
        }
    assert wanted <= seen  # the scenario was busy enough to tell


async def test_at_rest_no_temporary_key_is_without_an_end(
    redis_url: str, prefix: str, scenario: Scenario
) -> None:
    await scenario.run(STEPS)
    await scenario.end_all()

    with redis.Redis.from_url(redis_url) as client:
        for_ever = {
            key.decode().removeprefix(f"{prefix}:")
            for key in client.scan_iter(count=1000)
            if client.ttl(key) == -1
        }
        batches = map(msgspec.msgpack.decode, client.lrange(f"{prefix}:aios:ended:tool", 0, -1))
        swept = {
            f"{kind}:{job_id}"
            for batch in batches
            for job_id in batch[2:]
            for kind in ("job", "results")
        } | {"aios:ended:tool"}
    assert len(swept) > 1
    lasting = {
        "queues",
        "aios:policy:tool",
        "aios:secret",
        "aios:tokens",
        "aios:journal",
        "aios:core_cards",
        "aios:core_served",
        "aios:core_workers",
        "aios:queues:tool",
        "aios:scheduler",
        "aios:reconciled",
        "aios:snapshot_total",
        "aios:failed_bytes:tool",
    }
    # Lists of ids whose entries reconcile drops when they expire.
    registries = {
        "finished:tool",
        "failed:tool",
        "canceled:tool",
        "aios:quarantine:tool",
        "aios:holders:tool",
        "aios:failures:tool",
    }
    assert for_ever - registries - swept <= lasting


async def test_expired_entries_leave_the_registries(redis_url: str, scenario: Scenario) -> None:
    await scenario.run(50)
    with redis.Redis.from_url(redis_url) as client:
        for name in ("finished", "failed", "canceled"):
            client.zadd(scenario.keys.registry(name, MODULE), {"long-gone": 1})
        client.hset(scenario.keys.own("reconciled"), MODULE, 0)  # the next full pass is due
        await scenario.order.reconcile(scenario.epoch)

        for name in ("finished", "failed", "canceled"):
            assert client.zscore(scenario.keys.registry(name, MODULE), "long-gone") is None


def test_keys_py_and_lib_lua_name_the_same_keys() -> None:
    keys, q = Keys("p"), "{q}"
    ours = {
        "queue": keys.queue(q),
        **{
            name: keys.registry(name, q)
            for name in ("wip", "deferred", "finished", "failed", "canceled")
        },
        **{
            field: keys.own(name.removeprefix("aios:"))
            for field, name in named_in_lua().items()
            if name.startswith("aios:")
        },
    }
    assert ours == {field: f"p:{name}" for field, name in named_in_lua().items()}
    assert len(ours) >= 22

    for field, key in {
        "job": keys.job("ID"),
        "results": keys.results("ID"),
        "worker": keys.worker("ID"),
        "snapshot": keys.snapshot("ID"),
    }.items():
        function = re.search(
            rf"{field}_key\(c, \w+\) return c\.(p|own) \.\. '([^']+)'", lua("shared/lib")
        )
        assert function is not None
        base = "p" if function[1] == "p" else "p:aios:"
        assert key == f"{base}{function[2]}ID"
    assert "text_key(c, part, id) return c.own .. part .. ':' .. id" in lua("shared/lib")
    assert keys.text("answer", "ID") == "p:aios:answer:ID"
    assert ":reply:" in keys.reply("x")
    assert "c.own .. 'reply:' .. client" in lua("shared/lib")
    assert keys.journal.endswith(":aios:journal")
    assert "c.own .. 'journal'" in lua("shared/lib")


def test_no_lua_file_writes_a_prefix_of_its_own() -> None:
    assert not re.search(r"'rq:|\"rq:", library_source())


@pytest.mark.parametrize("prefix", PREFIXES, indirect=True)
def test_all_keys_of_a_shard_lie_in_one_slot(prefix: str) -> None:
    keys = Keys(prefix)
    names = [
        keys.queue("llm"),
        keys.job("x"),
        keys.results("x"),
        keys.worker("w"),
        keys.workers,
        keys.queues,
        keys.suspended,
        keys.own("live:llm"),
        keys.reply("c"),
        keys.journal,
        keys.snapshot("x"),
        keys.text("answer", "x"),
        keys.registry("wip", "llm"),
        keys.commands("w"),
    ]

    assert all(name.startswith(f"{prefix}:") for name in names)
    if "{" in prefix:
        assert {name[name.index("{") : name.index("}") + 1] for name in names} == {"{shard1}"}


def test_names_are_what_rq_itself_uses() -> None:
    keys = Keys()
    assert keys.queue("llm") == f"{Queue.redis_queue_namespace_prefix}llm"
    assert keys.queues == Queue.redis_queues_keys
    assert keys.job("x") == f"{Job.redis_job_namespace_prefix}x"
    assert keys.results("x") == Result.get_key("x")  # type: ignore[no-untyped-call]
    assert keys.worker("w") == f"{Worker.redis_worker_namespace_prefix}w"
    assert keys.workers == Worker.redis_workers_keys
    assert keys.suspended == WORKERS_SUSPENDED
    assert keys.commands("w") == PUBSUB_CHANNEL_TEMPLATE % "w"


async def test_processes_and_rqs_tools_follow_rq_key_prefix(redis_url: str, tmp_path: Path) -> None:
    prefix = PREFIXES[1]
    scenario = Scenario(redis_url, prefix, seed=1)
    with (
        SchedulerProcess(redis_url, tmp_path / "log", rq_key_prefix=prefix),
        WorkerProcess(redis_url, MODULE, rq_key_prefix=prefix),
        redis.Redis.from_url(redis_url) as client,
    ):
        await wait_until_async(lambda: client.exists(f"{prefix}:workers"))
        call = Syscall(new_id(), "ada", ToolEcho("x"))
        metadata = JobMetadata("ada", call.kind)
        await submitted(scenario.queue, [Submission(call.id, encode_job(call), metadata, "client")])
        await wait_until_async(lambda: client.zcard(f"{prefix}:finished:{MODULE}"))
        text = await run_tool("rq", "info", "-u", redis_url, RQ_KEY_PREFIX=prefix)
        assert f"{MODULE} " in text
        assert "1 workers, 1 queues" in text
        assert strangers(client, prefix) == []
    await scenario.connection.aclose()
