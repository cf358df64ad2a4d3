"""A core process that dies or hangs, and a worker that does."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aios_broker.contract.errors import CoreError
from aios_broker.contract.llm import Message
from aios_broker.contract.syscall import new_id
from aios_workers.llm.core import GenerationRequest, Sampling
from aios_workers.llm.cores.base_core import MAX_RESTARTS
from aios_workers.llm.cores.llama.llama_core import LlamaCppConfig, LlamaCppCore
from tests.exactness import generate
from tests.waiting import wait_until, wait_until_async

SMALL = LlamaCppConfig(context_tokens=512, stall_limit_s=2.0, health_limit_s=1.0)

WORKER = """
import asyncio
from aios_broker.contract.llm import Message
from aios_workers.llm.core import GenerationRequest, Sampling
from aios_workers.llm.cores.llama.llama_core import LlamaCppConfig, LlamaCppCore

async def work():
    core = LlamaCppCore(LlamaCppConfig(context_tokens=512))
    await core.start()
    prompt = core.render([Message("user", "Tell me a story.")])
    async for step in core.generate(GenerationRequest("0" * 32, prompt, 400, Sampling())):
        print(core.pid, flush=True)

asyncio.run(work())
"""


@pytest.fixture
async def core() -> AsyncIterator[LlamaCppCore]:
    core = LlamaCppCore(SMALL)
    await core.start()
    yield core
    await core.close()


def story(core: LlamaCppCore, max_tokens: int) -> GenerationRequest:
    prompt = core.render([Message("user", "Tell me a long story about a lighthouse.")])
    return GenerationRequest(new_id(), prompt, max_tokens, Sampling())


async def send_signal_while_generating(core: LlamaCppCore, number: signal.Signals) -> None:
    stream = core.generate(story(core, 400))
    await anext(stream)
    assert core.pid is not None
    os.kill(core.pid, number)
    async for _ in stream:
        pass


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def test_a_killed_process_is_an_error_of_every_stream(core: LlamaCppCore) -> None:
    waiting = [asyncio.create_task(generate(core, story(core, 400))) for _ in range(3)]
    with pytest.raises(CoreError, match="died by signal 9"):
        await send_signal_while_generating(core, signal.SIGKILL)
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, CoreError)
    assert core.pid is None


async def test_the_next_generation_starts_another_and_goes_on_exactly(core: LlamaCppCore) -> None:
    request = story(core, 20)
    expected = await generate(core, request)
    fingerprint = core.info.fingerprint
    with pytest.raises(CoreError):
        await send_signal_while_generating(core, signal.SIGKILL)
    resumed = GenerationRequest(
        new_id(), request.prompt_ids, 20, request.sampling, expected.ids[:11]
    )
    assert await generate(core, resumed) == expected
    assert core.info.fingerprint == fingerprint


async def test_restarts_have_a_limit(core: LlamaCppCore) -> None:
    for _ in range(MAX_RESTARTS + 1):
        with pytest.raises(CoreError, match="died by signal 9"):
            await send_signal_while_generating(core, signal.SIGKILL)
    with pytest.raises(CoreError, match="times within") as caught:
        await generate(core, story(core, 4))
    assert caught.value.retry_after_s is not None
    await core.start()  # a person may insist
    assert (await generate(core, story(core, 2))).finish_reason == "length"


async def test_a_process_that_hangs_is_killed(core: LlamaCppCore) -> None:
    pid = core.pid
    assert pid is not None
    with pytest.raises(CoreError, match="no step"):
        await send_signal_while_generating(core, signal.SIGSTOP)
    await wait_until_async(lambda: not is_running(pid))


async def test_a_process_that_hangs_is_not_healthy(core: LlamaCppCore) -> None:
    assert core.pid is not None
    os.kill(core.pid, signal.SIGSTOP)
    with pytest.raises(CoreError, match="did not answer within 1 s"):
        await core.health()
    os.kill(core.pid, signal.SIGCONT)

    async def is_healthy() -> bool:
        try:
            await core.health()
        except CoreError:
            return False  # it has had no second of a busy machine yet
        return True

    await wait_until_async(is_healthy)


def test_the_process_ends_with_a_worker_that_is_killed() -> None:
    worker = subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    with worker, worker.stdout:
        pid = int(worker.stdout.readline())
        assert is_running(pid)
        worker.kill()
    wait_until(lambda: not is_running(pid))
