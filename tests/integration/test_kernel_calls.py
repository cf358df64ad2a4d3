"""What a module asks of the kernel itself: once per step, in the name of who asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from aios_broker.contract.errors import UnknownCore
from aios_broker.contract.llm import LlmChat, Message
from aios_broker.contract.memory import MemoryAdd
from aios_broker.contract.reply import ChatResult
from aios_broker.contract.syscall import Syscall, new_id
from aios_broker.queues.connection import Connection
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_workers.kernel_calls import SubmittedCalls
from aios_workers.llm.model_core import ModelCore, ModelCoreConfig
from aios_workers.registry import llm_module
from tests.caller import running_worker

CHAT = LlmChat((Message("user", "hello"),), max_tokens=5)


@asynccontextmanager
async def calls_on(redis_url: str, *, no_worker_s: float = 5.0) -> AsyncIterator[SubmittedCalls]:
    connection = Connection(redis_url)
    try:
        async with SubmittedCalls(
            Functions(connection), Keys(), redis_url, "test", no_worker_s=no_worker_s
        ) as calls:
            yield calls
    finally:
        await connection.aclose()


@pytest.fixture
def asked() -> Syscall:
    return Syscall(new_id(), "ann", MemoryAdd("x"), deadline_s=20.0)


async def test_the_same_step_is_the_same_syscall(redis_url: str, asked: Syscall) -> None:
    llm = await llm_module(ModelCore(ModelCoreConfig()))
    async with running_worker(redis_url, "llm", llm) as worker, calls_on(redis_url) as calls:
        first, again = await asyncio.gather(
            calls.call(asked, CHAT, "plan"), calls.call(asked, CHAT, "plan")
        )
        assert isinstance(first, ChatResult)
        assert again == first
        async with calls_on(redis_url) as after_a_crash:
            assert await after_a_crash.call(asked, CHAT, "plan") == first
        other = await calls.call(asked, CHAT, "another step")
        assert isinstance(other, ChatResult)
        finished = [sample.value for metric in worker.metrics() for sample in metric.samples
                    if sample.labels.get("outcome") == "finished"]  # fmt: skip
    assert finished == [2.0]


async def test_many_at_once_hear_their_own_answers(redis_url: str, asked: Syscall) -> None:
    llm = await llm_module(ModelCore(ModelCoreConfig(slots=4)))
    async with running_worker(redis_url, "llm", llm), calls_on(redis_url) as calls:
        chats = [LlmChat((Message("user", str(n)),), max_tokens=4) for n in range(12)]
        once = await asyncio.gather(
            *(calls.call(asked, chat, str(n)) for n, chat in enumerate(chats))
        )
        for number, chat in enumerate(chats):
            assert await calls.call(asked, chat, str(number)) == once[number]


async def test_without_a_worker_it_says_so(redis_url: str, asked: Syscall) -> None:
    async with calls_on(redis_url, no_worker_s=0.2) as calls:
        with pytest.raises(UnknownCore, match="no worker serves the module llm"):
            await calls.call(asked, CHAT, "plan")
