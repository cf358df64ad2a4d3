"""This release and the next side by side: each syscall is answered once, whoever runs it.

The next release is today's code under the next number of the function library: its processes are
real ones, started from a copy of the broker; its steps are called by hand where a test says when.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import redis

from aios_broker.contract.errors import UnsupportedVersion
from aios_broker.contract.job import encode_job
from aios_broker.contract.reply import EchoResult
from aios_broker.contract.snapshot import (
    MAGIC,
    VERSION,
    AnswersSnapshot,
    AnswerState,
    encode_snapshot,
)
from aios_broker.contract.syscall import CONTRACT_VERSION
from aios_broker.ledger.ledger import Ledger
from aios_broker.postgres import migrate
from aios_broker.postgres.database import Database
from aios_broker.queues.control import Control
from aios_broker.queues.functions import LIBRARY, Functions, library_source
from aios_broker.queues.module_queue import ModuleQueue
from aios_broker.queues.order import Order
from aios_broker.queues.records import JobMetadata, Submission
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore, SimulatedCoreConfig
from aios_workers.runtime.registry import llm_module, tool_module
from tests.caller import ROOT, Caller, WorkerProcess, chat, chat_result, running_worker
from tests.integration.test_sdk_faults import echo, session_of
from tests.queue_user import QueueUser, queue_user
from tests.scheduler_process import SchedulerProcess
from tests.scheduler_scene import scheduler
from tests.session_user import sent
from tests.waiting import wait_until_async

HEARD_S = 20.0
EACH = 40
CORE = SimulatedCoreConfig(slots=2, end_probability=0.0)
CUT = 10  # tokens
NEXT_LIBRARY = f"aios{int(LIBRARY.removeprefix('aios')) + 1}"
CLIENT = f"""
import sys
from aios_sdk import Agent
with Agent("ada", url=sys.argv[1]) as me:
    print(*[me.tool.echo(str(number)).text for number in range({EACH})])
"""
NEXT_MIGRATION = '''
"""A column with a default, and a table.

Phase: expand.
Locks: `syscall` for a moment.
Undo: drops both.
"""

from alembic import op

revision = "9999"
down_revision = "{head}"


def upgrade() -> None:
    op.execute("ALTER TABLE syscall ADD COLUMN later text NOT NULL DEFAULT 'none'")
    op.execute("CREATE TABLE later (job_id text PRIMARY KEY)")


def downgrade() -> None:
    op.execute("DROP TABLE later")
    op.execute("ALTER TABLE syscall DROP COLUMN later")
'''


@pytest.fixture(scope="module")
def next_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where a process imports the next release from."""
    folder = tmp_path_factory.mktemp("next")
    broker = folder / "aios_broker"
    shutil.copytree(ROOT / "broker" / "aios_broker", broker)
    renamed = 0
    for path in (*broker.rglob("*.py"), *broker.rglob("*.lua")):
        text = path.read_text()
        renamed += LIBRARY in text
        path.write_text(text.replace(LIBRARY, NEXT_LIBRARY))
    assert renamed
    return os.pathsep.join([str(folder), *(str(ROOT / name) for name in ("workers", "sdk"))])


def next_source() -> str:
    return library_source().replace(LIBRARY, NEXT_LIBRARY)


@asynccontextmanager
async def next_user(url: str) -> AsyncIterator[QueueUser]:
    """Give a queue's user that calls the next release's functions."""
    async with queue_user(url) as user:
        user.functions = Functions(user.redis, NEXT_LIBRARY, next_source)
        user.queue = ModuleQueue(user.functions, user.module)
        user.order = Order(user.functions, user.module)
        user.control = Control(user.functions)
        yield user


@asynccontextmanager
async def both(url: str, *, next_first: bool) -> AsyncIterator[tuple[QueueUser, QueueUser]]:
    """Give users of both releases, in this order or the other."""
    async with queue_user(url) as ours, next_user(url) as theirs:
        yield (theirs, ours) if next_first else (ours, theirs)


@pytest.fixture(params=[False, True], ids=["ours, then the next", "the next, then ours"])
def next_first(request: pytest.FixtureRequest) -> bool:
    """Whether the next release goes first."""
    return bool(request.param)


async def test_clients_and_workers_of_both_share_one_queue(redis_url: str, next_path: str) -> None:
    environment = {"PYTHONPATH": next_path, "PATH": os.environ.get("PATH", "")}
    async with session_of(redis_url) as session, scheduler(redis_url):
        with WorkerProcess(redis_url, "tool", pythonpath=next_path) as theirs:
            calls = [sent(session, echo(f"{number}")) for number in range(EACH)]
            async with asyncio.timeout(HEARD_S):
                await asyncio.gather(*(call.ended for call in calls))
            theirs.send(signal.SIGTERM)
            assert await theirs.left() == 0
        async with running_worker(redis_url, "tool", await tool_module(2)):
            client = await asyncio.create_subprocess_exec(
                sys.executable, "-c", CLIENT, redis_url, stdout=-1, env=environment
            )
            async with asyncio.timeout(HEARD_S):
                told, _ = await client.communicate()
    assert [call.reply.unwrap() for call in calls if call.reply] == [
        EchoResult(f"{number}") for number in range(EACH)
    ]
    assert told.decode().split() == [f"{number}" for number in range(EACH)]
    with redis.Redis.from_url(redis_url) as left:
        assert left.hlen("rq:aios:live:tool") == left.zcard("rq:aios:leases:tool") == 0
        loaded = str(left.function_list())
    assert f"{LIBRARY}_submit" in loaded
    assert f"{NEXT_LIBRARY}_submit" in loaded


async def test_a_scheduler_takes_back_what_a_worker_of_the_other_dropped(
    redis_url: str, *, next_first: bool
) -> None:
    async with both(redis_url, next_first=next_first) as (one, other):
        await one.submit(0)
        [lease] = await one.claim(lease_s=0.01)
        epoch = await other.lead()
        await wait_until_async(lambda: other.order.reclaim(epoch))
        [again] = await other.claim()
        assert (again.job_id, again.attempt) == (lease.job_id, 2)
        assert await other.finish(again) == [True]
        assert await one.finish(lease) == [False]


async def test_the_lead_passes_from_one_to_the_other(redis_url: str, *, next_first: bool) -> None:
    async with both(redis_url, next_first=next_first) as (one, other):
        ids = await one.submit(1, 2)
        first = await one.lead(0.2)
        assert not (await other.order.lead("other", 60.0)).leading

        async def takes_over() -> bool:
            return (await other.order.lead("other", 60.0)).leading

        await wait_until_async(takes_over)
        assert not await one.order.reorder(first, [ids[1]])
        assert await other.order.reorder(first + 1, [ids[1]])
        assert await one.waiting() == ids[::-1]


async def test_a_request_of_a_newer_version_is_a_typed_error(redis_url: str) -> None:
    """So workers are upgraded before clients use what is new."""
    caller = Caller(redis_url)
    syscall = echo("new")
    data = msgspec.json.decode(encode_job(syscall))
    data[2][0]["version"] = CONTRACT_VERSION + 1
    newer = Submission(
        syscall.id, msgspec.json.encode(data), JobMetadata("ada", syscall.kind), caller._client
    )
    async with running_worker(redis_url, "tool", await tool_module(2)):
        await caller.queue("tool").submit([newer])
        reply = await caller.hear(syscall.id)
    await caller.aclose()
    with pytest.raises(UnsupportedVersion, match=f"not {CONTRACT_VERSION + 1}"):
        reply.unwrap()


@pytest.mark.parametrize("newer", [False, True], ids=["of one version", "of a newer version"])
async def test_a_generation_that_another_release_suspended_comes_to_the_same_end(
    redis_url: str, caplog: pytest.LogCaptureFixture, *, newer: bool
) -> None:
    caller, core = Caller(redis_url), SimulatedCore(CORE)
    body = chat("Tell me a story", max_tokens=60, temperature=0.7, seed=7)
    async with running_worker(redis_url, "llm", await llm_module(core)):
        expected = await caller.chat(body)
    answers = (AnswerState(expected.output_ids[:CUT]),)
    kept = AnswersSnapshot(core.info.snapshot_model, expected.prompt_ids, answers, 7)
    snapshot = bytearray(encode_snapshot(kept))
    if newer:
        snapshot[len(MAGIC)] = VERSION + 1

    [job_id] = await caller.submit(body)
    async with next_user(redis_url) as theirs:
        [lease] = await theirs.claim(1, core.info.name)
        await theirs.suspend(lease, bytes(snapshot), CUT)
    with caplog.at_level(logging.WARNING):
        async with running_worker(redis_url, "llm", await llm_module(SimulatedCore(CORE))):
            reply = await caller.hear(job_id)
    await caller.aclose()

    assert chat_result(reply).output_ids == expected.output_ids
    assert reply.timings is not None
    assert (reply.timings.attempts, reply.timings.suspensions) == (2, 1)
    assert ("starts again" in caplog.text) == newer
    assert (f"the snapshot is of version {VERSION + 1}" in caplog.text) == newer


@pytest.fixture
def next_database_url(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a database that the next release has migrated."""
    folder = tmp_path / "migrations"
    shutil.copytree(migrate.migrations_folder(), folder)
    migration = NEXT_MIGRATION.format(head=migrate.head()).lstrip()
    (folder / "versions" / "20991231_9999_later.py").write_text(migration)
    with monkeypatch.context() as patched:
        patched.setattr(migrate, "migrations_folder", lambda: folder)
        assert migrate.upgrade(database_url) == ["up to 9999"]
    return database_url


async def test_both_enter_one_ledger_that_the_next_has_migrated(
    redis_url: str, next_database_url: str, next_path: str, tmp_path: Path
) -> None:
    database = Database(next_database_url)
    ledger = Ledger(database)
    settings = {"pythonpath": next_path, "aios_database_url": next_database_url}
    async with queue_user(redis_url) as user:
        [job_id] = await user.submit(0)
        assert (await ledger.drain(user.redis)).transitions == 1
        with SchedulerProcess(redis_url, tmp_path / "log", **settings):
            [lease] = await user.claim()

            async def entered() -> bool:
                return len(await ledger.history(job_id)) == 2

            await wait_until_async(entered, HEARD_S)
        await user.finish(lease)
        assert (await ledger.drain(user.redis)).anomalies == 0
    events = [change.event for change in await ledger.history(job_id)]
    assert events == ["submit", "claim", "finish"]
    async with database.transaction() as cursor:
        await cursor.execute("SELECT later FROM syscall")
        assert await cursor.fetchall() == [("none",)]
    await database.aclose()
