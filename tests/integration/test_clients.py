"""What every client of the kernel keeps: the SDK, `aios submit`, and the workers' own calls.

They stand on one core; here each is used as its users use it, on a kernel that forgets, and on
messages that cannot be read.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Literal

import pytest
import redis

from aios_broker.contract.cores import CoreCard
from aios_broker.contract.errors import KernelError
from aios_broker.contract.llm import LlmChat, Message
from aios_broker.contract.memory import MemoryAdd
from aios_broker.contract.reply import ChatResult, Result
from aios_broker.contract.syscall import Syscall, new_id
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.records import WorkerCard
from aios_broker.redis.connection import Connection
from aios_cli.session import Operator
from aios_sdk import AsyncAgent
from aios_workers.runtime.kernel_calls import SubmittedCalls
from tests.queue_user import QueueUser, queue_user
from tests.session_user import sent
from tests.tiny_worker import MODEL, Emit, TinyWorker, parrot
from tests.waiting import wait_until_async

TEXT = "Which river flows through Basel?"
STARTED_S = 30.0  # a command is a process of its own: it takes a second, or some under load
HEARD_S = 30.0  # far less than their deadlines


async def by_sdk(url: str) -> str:
    async with AsyncAgent("writer", url=url) as me:
        return (await me.llm.chat(TEXT)).text


async def by_command(url: str) -> str:
    environment = {**os.environ, "AIOS_REDIS_URL": url, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "aios_cli",
        "submit",
        TEXT,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await command.communicate()
    finally:
        if command.returncode is None:
            command.kill()
            await command.wait()
    if command.returncode != 0:
        raise Refused(errors.decode())
    return output.decode().removesuffix("\n")


async def by_worker(url: str) -> str:
    connection = Connection(url)
    asked = Syscall(new_id(), "ann", MemoryAdd("x"), deadline_s=120.0)
    try:
        async with SubmittedCalls(Functions(connection), Keys(), url, "test") as calls:
            result = await calls.call(asked, LlmChat((Message("user", TEXT),), stream=True), "ask")
    finally:
        await connection.aclose()
    assert isinstance(result, ChatResult)
    return result.text


class Refused(Exception):
    """What a command said on standard error."""


CLIENTS = (by_sdk, by_command, by_worker)


async def heard(ask: Callable[[str], Coroutine[None, None, str]], url: str) -> str:
    """Return what a client hears: the answer, or the code of an error."""
    try:
        return await ask(url)
    except KernelError as error:
        return error.code
    except Refused as error:
        return str(error).splitlines()[-1].partition(":")[0]  # warnings come before it


async def all_heard(asking: list[asyncio.Task[str]]) -> list[str]:
    """Return what all hear; cancel who waits too long, and fail."""
    try:
        async with asyncio.timeout(HEARD_S):
            return await asyncio.gather(*asking)
    finally:
        for each in asking:
            each.cancel()


@pytest.mark.parametrize("noticed_by", ["a broken connection", "silence"])
async def test_what_a_flushall_took_is_submitted_again_by_every_client(
    redis_url: str, noticed_by: Literal["a broken connection", "silence"]
) -> None:
    begun: Counter[str] = Counter()

    async def answer_the_second_time(syscall: Syscall, emit: Emit) -> Result:
        begun[syscall.id] += 1
        if begun[syscall.id] == 1:
            await asyncio.Event().wait()
        return await parrot(syscall, emit)

    async with TinyWorker(redis_url, "llm", answer_the_second_time):
        asking = [asyncio.create_task(heard(ask, redis_url)) for ask in CLIENTS]
        await wait_until_async(lambda: len(begun) == len(CLIENTS), STARTED_S)
        with redis.Redis.from_url(redis_url) as client:
            client.flushall()
            if noticed_by == "a broken connection":
                client.client_kill_filter(_type="normal", skipme=True)
        assert await all_heard(asking) == [TEXT] * len(CLIENTS)
    assert list(begun.values()) == [2] * len(CLIENTS)


async def test_messages_that_cannot_be_read_end_nobodys_waiting(redis_url: str) -> None:
    async def answer_behind_noise(syscall: Syscall, emit: Emit) -> Result:
        with redis.Redis.from_url(redis_url) as client:
            name = client.hget("rq:aios:live:llm", syscall.id)
            assert isinstance(name, bytes)
            replies = b"rq:aios:reply:" + name
            of_this_one = b'{"kind":"reply","id":"%s","result":' % syscall.id.encode()
            client.rpush(
                replies,
                b"\xff no JSON",
                b'"no message"',
                b'{"kind":"hologram","id":"1"}',
                of_this_one + b'{"type":"llm.hologram"}}',
                b"",
            )
            await wait_until_async(lambda: client.llen(replies) == 0)
        return await parrot(syscall, emit)

    async with TinyWorker(redis_url, "llm", answer_behind_noise) as worker:
        asking = [asyncio.create_task(heard(ask, redis_url)) for ask in CLIENTS]
        assert await all_heard(asking) == [TEXT] * len(CLIENTS)
    assert len(worker.seen) == len(CLIENTS)


async def test_who_waits_for_an_answer_that_cannot_be_read_is_told_so(redis_url: str) -> None:
    async with queue_user(redis_url) as user:
        card = WorkerCard(
            "worker",
            "llm",
            os.getpid(),
            "here",
            slots=3,
            cores=(CoreCard(name=MODEL, model=MODEL),),
        )
        await user.queue.register(card)
        asking = [asyncio.create_task(heard(ask, redis_url)) for ask in CLIENTS]
        for _ in CLIENTS:
            assert await finished_unreadably(user) == [True]
        assert await all_heard(asking) == ["unsupported-version"] * len(CLIENTS)


async def finished_unreadably(user: QueueUser) -> list[bool]:
    """End the next job well, with a reply of some other release."""
    leases = await wait_until_async(lambda: user.claim(1, MODEL), STARTED_S)
    return await user.finish(*leases)


async def test_a_job_carries_what_the_scheduler_needs(redis_url: str) -> None:
    syscall = Syscall(
        new_id(),
        "writer",
        LlmChat((Message("user", "hi"),), core=MODEL),
        program="novel",
        tenant="acme",
        nice=5,
        deadline_s=30.0,
    )
    async with (
        TinyWorker(redis_url, "llm", lambda *_: asyncio.Event().wait()),  # type: ignore[arg-type]
        Operator(redis_url) as operator,
        operator.client() as client,
    ):
        pending = sent(client, syscall)
        await pending.taken()
        view = await operator.control.job(pending.id)
        assert view is not None
        metadata = view.metadata
        assert (
            metadata.agent,
            metadata.program,
            metadata.tenant,
            metadata.nice,
            metadata.kind,
        ) == (
            "writer",
            "novel",
            "acme",
            5,
            "llm.chat",
        )
        assert view.deadline_in_s is not None
        assert 20.0 < view.deadline_in_s <= 30.0
        [described] = await operator.connection.execute(
            "HMGET", operator.keys.job(pending.id), "description"
        )
    assert described == b"llm.chat of writer/novel"


async def test_what_was_let_go_outlives_its_client(redis_url: str) -> None:
    async with Operator(redis_url) as operator:
        async with operator.client() as client:
            kept, left = (sent(client, Syscall(new_id(), "a", CHAT)) for _ in "12")
            await asyncio.gather(kept.taken(), left.taken())
            client.let_go(left)
        assert (await operator.peek(kept.id))[0] == "cancelled"
        view = await operator.control.job(left.id)
        assert view is not None
        assert view.state == "queued"


CHAT = LlmChat((Message("user", TEXT),))
