"""One of two equal cores is killed under load: every generation is answered, elsewhere."""

import signal
from contextlib import ExitStack
from pathlib import Path

import msgspec

from aios_broker.contract.llm import LlmChat
from aios_broker.contract.reply import Reply
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore, SimulatedCoreConfig
from aios_workers.runtime.registry import llm_module
from tests.caller import Caller, WorkerProcess, chat, chat_result, running_worker
from tests.scheduler_process import SchedulerProcess
from tests.waiting import wait_until_async

CONFIG = SimulatedCoreConfig(slots=2, context_tokens=2048, end_probability=0.0)
CATALOGUE = "\n".join(
    f"""[cores.{name}]
kind = "simulated"
slots = 2
context_tokens = 2048
aliases = ["either"]
end_probability = 0.0
decode_tokens_per_s = 100.0
"""
    for name in ("left", "right")
)
BODIES = [chat(f"Story {n}", max_tokens=100, temperature=0.7, seed=n) for n in range(10)]
ANSWERED_S = 60.0


async def undisturbed(caller: Caller) -> list[tuple[int, ...]]:
    async def serves() -> bool:
        return "simulated" in {core.card.name for core in await caller.control.cores()}

    async with running_worker(caller.url, "llm", await llm_module(SimulatedCore(CONFIG))):
        await wait_until_async(serves)
        return [(await caller.chat(body)).output_ids for body in to_core("simulated")]


def to_core(name: str) -> list[LlmChat]:
    return [msgspec.structs.replace(body, core=name) for body in BODIES]


def outcome(reply: Reply) -> tuple[int, ...]:
    return chat_result(reply).output_ids


async def test_what_a_killed_core_was_at_goes_on_at_the_other_one(
    redis_url: str, tmp_path: Path
) -> None:
    caller = Caller(redis_url)
    await caller.publish_policy(quantum_s=60.0, quantum_tokens=10)
    (tmp_path / "cores.toml").write_text(CATALOGUE)
    settings = {
        "aios_cores": tmp_path / "cores.toml",
        "aios_state_dir": tmp_path,
        "aios_worker_lease_s": 1.0,
    }
    with ExitStack() as stack:
        stack.enter_context(SchedulerProcess(redis_url, tmp_path / "scheduler.log"))
        left, _ = (
            stack.enter_context(WorkerProcess(redis_url, "llm", "--core", name, **settings))
            for name in ("left", "right")
        )

        async def both_serve() -> bool:
            return [core.slots for core in await caller.control.cores()] == [2, 2]

        async def left_runs_with_snapshots() -> bool:
            jobs = [job for job in await caller.control.jobs("llm") if job.state == "running"]
            at_left = [job.job_id for job in jobs if job.core == "left"]
            kept = [await caller.queue("llm").snapshot(job_id) for job_id in at_left]
            return len(at_left) == 2 and all(kept)

        await wait_until_async(both_serve, ANSWERED_S)
        ids = await caller.submit(*to_core("either"))
        await wait_until_async(left_runs_with_snapshots, ANSWERED_S)
        left.send(signal.SIGKILL)
        await left.left()
        replies = await caller.hear_all(ids)

    assert {chat_result(reply).core for reply in replies} >= {"right"}
    lost = [reply for reply in replies if reply.timings.attempts > 1]
    assert len(lost) >= 2
    assert all(chat_result(reply).core == "right" for reply in lost)
    assert [outcome(reply) for reply in replies] == await undisturbed(caller)
    assert await caller.control.jobs("llm") == []
    await caller.aclose()
