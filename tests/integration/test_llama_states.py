"""Embedded cores that share KV states: as exact as ever, and no tokens are read again."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.llm import Message
from aios_broker.contract.syscall import new_id
from aios_workers.llm.core import GenerationRequest, Sampling
from aios_workers.llm.cores.llama.llama_core import LlamaCppConfig, LlamaCppCore
from tests.exactness import FORMS, check_cuts, generate
from tests.waiting import wait_until_async

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Nothing is kept in a core's own memory: what is not in a slot comes from a file or is read again.
SMALL = LlamaCppConfig(context_tokens=512, state_budget_bytes=0)
SAMPLED = Sampling(temperature=0.9, top_p=0.95, seed=7, repetition_penalty=1.1)
WORKER = """
import asyncio, sys
from pathlib import Path
from aios_broker.contract.llm import Message
from aios_workers.llm.core import GenerationRequest, Sampling
from aios_workers.llm.cores.llama.llama_core import LlamaCppConfig, LlamaCppCore

async def work():
    core = LlamaCppCore(LlamaCppConfig(context_tokens=512, kv_dir=Path(sys.argv[1])))
    await core.start()
    prompt = core.render([Message("user", "Tell me a long story about a lighthouse.")])
    async for step in core.generate(GenerationRequest("0" * 32, prompt, 400, Sampling())):
        print(*step.ids, flush=True)

asyncio.run(work())
"""


@pytest.fixture(scope="module")
def kv_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("states") / "kv"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def cores(kv_dir: Path) -> AsyncIterator[tuple[LlamaCppCore, LlamaCppCore]]:
    async with AsyncExitStack() as stack:
        pair = []
        for context_tokens in (512, 768):  # the length of the context does not matter
            config = replace(SMALL, context_tokens=context_tokens, kv_dir=kv_dir)
            core = LlamaCppCore(config)
            stack.push_async_callback(core.close)
            await core.start()
            pair.append(core)
        yield pair[0], pair[1]


def story(core: LlamaCppCore, max_tokens: int = 40) -> GenerationRequest:
    prompt = core.render([Message("user", "Tell me a long story about a lighthouse.")])
    return GenerationRequest(new_id(), prompt, max_tokens, SAMPLED)


async def suspended(
    core: LlamaCppCore, request: GenerationRequest, *, tokens: int = 5
) -> GenerationRequest:
    """Run some tokens and suspend it; return the request to go on with."""
    output = list(request.resume_ids)
    async with aclosing(core.generate(request)) as steps:
        async for step in steps:
            output.extend(step.ids)
            if len(output) - len(request.resume_ids) == tokens:
                await core.abort(request.request_id, keep=True)
    return replace(request, resume_ids=tuple(output))


async def first_cached_tokens(core: LlamaCppCore, request: GenerationRequest) -> int:
    async with aclosing(core.generate(request)) as steps:
        return (await anext(steps)).cached_tokens


async def push_out(core: LlamaCppCore) -> None:
    """Let all slots of a core hold something else."""
    others = [
        GenerationRequest(new_id(), core.render([Message("system", text)]), 1, Sampling())
        for text in ("Be brief, and polite.", "Speak as a pirate would.", "Count to ten slowly.")
    ]
    await asyncio.gather(*(generate(core, other) for other in others))


def run_and_kill_a_worker(kv_dir: Path) -> list[int]:
    """Return the first ids of the story that it was telling."""
    said: list[int] = []
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(kv_dir)], stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    with worker, worker.stdout:
        while len(said) < 12:
            said += map(int, worker.stdout.readline().split())
        os.kill(worker.pid, signal.SIGKILL)
    return said


def files(kv_dir: Path) -> list[Path]:
    return sorted(kv_dir.glob("*.kv"))


@pytest.mark.timeout(400)
async def test_twenty_cuts_with_states_on_the_move(
    cores: tuple[LlamaCppCore, LlamaCppCore], kv_dir: Path
) -> None:
    before = [core.state_counts for core in cores]
    report = await check_cuts(*cores, cuts=20, seed=11)
    report.assert_exact(cuts=20)
    after = [core.state_counts for core in cores]
    read = sum(now.read - old.read for now, old in zip(after, before, strict=True))
    assert read >= report.other_core // 2, "most moves found their state"
    assert all(counts.refused == counts.failed == 0 for counts in after)
    await wait_until_async(lambda: not files(kv_dir))  # all answers have ended


@pytest.mark.timeout(300)
async def test_forms_and_log_probabilities_on_the_move(
    cores: tuple[LlamaCppCore, LlamaCppCore],
) -> None:
    before = sum(core.state_counts.read for core in cores)
    report = await check_cuts(*cores, cuts=8, seed=12, forms=FORMS)
    report.assert_exact(cuts=8)
    assert sum(core.state_counts.read for core in cores) > before


@pytest.mark.slow
@pytest.mark.timeout(7_200)
async def test_a_thousand_cuts_with_states_on_the_move(
    cores: tuple[LlamaCppCore, LlamaCppCore],
) -> None:
    before = sum(core.state_counts.read for core in cores)
    report = await check_cuts(*cores, cuts=1_000, seed=13)
    report.assert_exact(cuts=1_000)
    assert sum(core.state_counts.read for core in cores) - before >= report.other_core // 2


async def test_a_move_reads_the_state_and_not_the_tokens(
    cores: tuple[LlamaCppCore, LlamaCppCore],
) -> None:
    one, two = cores
    request = story(one)
    expected = await generate(one, replace(request, request_id=new_id()))
    await push_out(two)
    moved = await suspended(one, request)
    known_tokens = len(moved.prompt_ids) + len(moved.resume_ids) - 1
    assert await first_cached_tokens(two, moved) == known_tokens
    assert await generate(two, moved) == expected


@pytest.mark.parametrize("damage", ["cut short", "a flipped bit", "another model"])
async def test_a_damaged_file_is_refused_and_the_tokens_are_read(
    cores: tuple[LlamaCppCore, LlamaCppCore], kv_dir: Path, damage: str
) -> None:
    one, two = cores
    request = story(one)
    expected = await generate(one, replace(request, request_id=new_id()))
    await push_out(two)
    refused_before = two.state_counts.refused
    others = set(files(kv_dir))  # of generations that have not let go of theirs yet
    moved = await suspended(one, request)
    await wait_until_async(lambda: set(files(kv_dir)) - others)
    [path] = set(files(kv_dir)) - others
    data = bytearray(path.read_bytes())
    match damage:
        case "cut short":
            del data[-1_000:]
        case "a flipped bit":
            data[len(data) // 2] ^= 4
        case _:
            data[8:40] = bytes(32)
    path.write_bytes(data)
    assert await generate(two, moved) == expected
    assert two.state_counts.refused == refused_before + 1
    assert path not in files(kv_dir)


async def test_a_core_that_ends_leaves_its_states_to_the_next(tmp_path: Path) -> None:
    """What a restart, a drain and an upgrade do: nobody else was there to share with."""
    config = LlamaCppConfig(context_tokens=512, kv_dir=tmp_path / "kv")
    core = LlamaCppCore(config)
    await core.start()
    moved = await suspended(core, story(core))
    expected = await generate(core, replace(moved, request_id=new_id()))
    assert files(tmp_path / "kv") == []
    await core.close()
    assert len(files(tmp_path / "kv")) == 1

    successor = LlamaCppCore(config)
    try:
        await successor.start()
        known_tokens = len(moved.prompt_ids) + len(moved.resume_ids) - 1
        assert await first_cached_tokens(successor, moved) == known_tokens
        assert await generate(successor, moved) == expected
        assert successor.state_counts.read >= 1
    finally:
        await successor.close()


async def test_a_killed_worker_leaves_the_state_of_what_it_ran(tmp_path: Path) -> None:
    """Another goes on from its last checkpoint, which is some tokens shorter than the state."""
    kv_dir = tmp_path / "kv"
    said = run_and_kill_a_worker(kv_dir)
    await wait_until_async(lambda: files(kv_dir))

    successor = LlamaCppCore(LlamaCppConfig(context_tokens=512, kv_dir=kv_dir))
    try:
        await successor.start()
        prompt = story(successor).prompt_ids
        checkpoint = GenerationRequest("0" * 32, prompt, 20, Sampling(), tuple(said[:8]))
        assert await first_cached_tokens(successor, checkpoint) == len(prompt) + 7
        answer = await generate(successor, checkpoint)
        assert answer.ids[: len(said)] == tuple(said[:20])
        assert answer == await generate(
            successor, replace(checkpoint, request_id=new_id(), resume_ids=())
        )
    finally:
        await successor.close()


async def test_a_folder_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "kv").touch()
    core = LlamaCppCore(LlamaCppConfig(kv_dir=tmp_path / "kv"))
    with pytest.raises(InvalidConfig, match=r"KV states cannot be kept in") as caught:
        await core.start()
    assert caught.value.field == "AIOS_LLM_KV_DIR"
    await core.close()


async def test_a_folder_that_went_bad_does_not_stop_a_restart(tmp_path: Path) -> None:
    kv_dir = tmp_path / "kv"
    core = LlamaCppCore(replace(SMALL, kv_dir=kv_dir))
    try:
        await core.start()
        request = story(core, max_tokens=4)
        expected = await generate(core, request)
        assert core.pid is not None
        os.kill(core.pid, signal.SIGKILL)
        await wait_until_async(lambda: core.pid is None)
        kv_dir.rename(tmp_path / "away")
        kv_dir.touch()
        assert await generate(core, request) == expected
    finally:
        await core.close()
