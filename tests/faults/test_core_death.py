"""One of two equal cores is killed under load: every generation is answered, elsewhere."""

import signal
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import msgspec
import pytest

from aios_broker.contract.llm import LlmChat
from aios_broker.contract.reply import Reply
from aios_broker.queues.keys import Keys
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore, SimulatedCoreConfig
from aios_workers.runtime.registry import llm_module
from tests.caller import Caller, WorkerProcess, chat, chat_result, running_worker
from tests.scheduler_process import SchedulerProcess
from tests.waiting import wait_until_async

CONFIG = SimulatedCoreConfig(slots=2, context_tokens=2048, end_probability=0.0)
BOTH = ("left", "right")
SIMULATED = "\n".join(
    f"""[cores.{name}]
kind = "simulated"
slots = 2
context_tokens = 2048
aliases = ["either"]
end_probability = 0.0
decode_tokens_per_s = 100.0
"""
    for name in BOTH
)
LLAMA = "\n".join(
    f"""[cores.{name}]
kind = "llama"
slots = 2
context_tokens = 512
threads = 1
aliases = ["either"]
"""
    for name in BOTH
)
BODIES = [chat(f"Story {n}", max_tokens=100, temperature=0.7, seed=n) for n in range(10)]
REAL_BODIES = [
    chat(f"{n}. Tell a long story of a keeper of a lighthouse.", max_tokens=40, seed=n, **options)
    for n, options in enumerate([{}, {"temperature": 0.8}] * 3)
]
ANSWERED_S = 60.0


def to_core(name: str, bodies: Sequence[LlmChat] = BODIES) -> list[LlmChat]:
    return [msgspec.structs.replace(body, core=name) for body in bodies]


def outcome(reply: Reply) -> tuple[int, ...]:
    return chat_result(reply).output_ids


async def undisturbed(caller: Caller) -> list[tuple[int, ...]]:
    async def serves() -> bool:
        return "simulated" in {core.card.name for core in await caller.control.cores()}

    async with running_worker(caller.url, "llm", await llm_module(SimulatedCore(CONFIG))):
        await wait_until_async(serves)
        return [(await caller.chat(body)).output_ids for body in to_core("simulated")]


async def heard(caller: Caller, ids: Sequence[str]) -> list[Reply]:
    """Wait for one reply after the other: each has its time."""
    return [await caller.hear(each) for each in ids]


class TwoCores:
    """Two workers of one model, each with a core and a process of its own, and a scheduler."""

    def __init__(self, caller: Caller, folder: Path, catalogue: str) -> None:
        self._caller = caller
        self._folder = folder
        (folder / "cores.toml").write_text(catalogue)
        self._running = ExitStack()

    async def __aenter__(self) -> Self:
        url, folder = self._caller.url, self._folder
        settings = {
            "aios_cores": folder / "cores.toml",
            "aios_state_dir": folder,
            "aios_worker_lease_s": 1.0,
        }
        self._running.enter_context(SchedulerProcess(url, folder / "scheduler.log"))
        workers = [WorkerProcess(url, "llm", "--core", name, **settings) for name in BOTH]
        self._left, _ = [self._running.enter_context(worker) for worker in workers]
        await wait_until_async(self._both_serve, ANSWERED_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._running.close()

    async def kill_left(self) -> list[str]:
        """Kill one when all that it runs has a snapshot; return what that is."""
        at_left: list[str] = []

        async def runs_with_snapshots() -> bool:
            jobs = [job for job in await self._caller.control.jobs("llm") if job.state == "running"]
            at_left[:] = [job.job_id for job in jobs if job.core == "left"]
            kept = [await self._caller.queue("llm").snapshot(job_id) for job_id in at_left]
            return len(at_left) == 2 and all(kept)

        await wait_until_async(runs_with_snapshots, ANSWERED_S)
        self._left.send(signal.SIGKILL)
        await self._left.left()
        return at_left

    async def _both_serve(self) -> bool:
        return [core.slots for core in await self._caller.control.cores()] == [2, 2]


async def test_what_a_killed_core_was_at_goes_on_at_the_other_one(
    redis_url: str, tmp_path: Path
) -> None:
    caller = Caller(redis_url)
    await caller.publish_policy(quantum_s=60.0, quantum_tokens=10)
    async with TwoCores(caller, tmp_path, SIMULATED) as cores:
        ids = await caller.submit(*to_core("either"))
        await cores.kill_left()
        replies = await heard(caller, ids)

    assert {chat_result(reply).core for reply in replies} >= {"right"}
    lost = [reply for reply in replies if reply.timings.attempts > 1]
    assert len(lost) >= 2
    assert all(chat_result(reply).core == "right" for reply in lost)
    assert [outcome(reply) for reply in replies] == await undisturbed(caller)
    assert await caller.control.jobs("llm") == []
    await caller.aclose()


@pytest.mark.timeout(300)
async def test_what_a_killed_llama_core_has_generated_is_not_generated_again(
    redis_url: str, tmp_path: Path
) -> None:
    """A real model: each is answered, as if nothing had been, from where its last slice ended."""
    caller = Caller(redis_url)
    await caller.publish_policy(quantum_s=60.0, quantum_tokens=10)
    async with TwoCores(caller, tmp_path, LLAMA) as cores:
        ids = await caller.submit(*to_core("either", REAL_BODIES), deadline_s=240.0)
        at_left = await cores.kill_left()
        replies = await heard(caller, ids)
        again = await caller.submit(*to_core("right", REAL_BODIES), deadline_s=240.0)
        whole = [outcome(reply) for reply in await heard(caller, again)]

    assert [outcome(reply) for reply in replies] == whole
    lost = {reply.id: chat_result(reply) for reply in replies if reply.id in at_left}
    assert len(lost) == 2
    for syscall_id, result in lost.items():
        key = Keys().job(syscall_id)
        charged = await caller.connection.execute("HGET", key, "aios_tokens")
        assert result.core == "right"
        assert int(charged) == len(result.output_ids)  # each token once
    assert await caller.control.jobs("llm") == []
    await caller.aclose()
