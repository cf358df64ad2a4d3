"""The SGLang core on real SGLang servers: what only the engine itself can show."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from msgspec import structs

from aios_broker.contract.errors import CoreError
from aios_broker.contract.syscall import new_id
from aios_workers.llm.core import GenerationRequest, Sampling, Step
from aios_workers.llm.cores.sglang.sglang_core import SGLangCore
from tests.exactness import check_cuts, generate
from tests.sglang_servers import own_server, sglang_python, started
from tests.tiny_llama import END_ID, write_model
from tests.waiting import wait_until_async

pytestmark = [
    pytest.mark.sglang,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),
]

ROOT = Path(__file__).resolve().parents[2]
ENDLESS = Sampling(logit_bias={END_ID: -100.0})
WORKER = """
import asyncio, os, sys
from pathlib import Path
from tests.sglang_servers import own_server
from aios_workers.llm.cores.sglang.sglang_core import SGLangCore

async def work():
    core = SGLangCore(own_server(Path(sys.argv[1])), environ=os.environ)
    await core.start()
    print(core.server.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(work())
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny-llama", seed=7)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def cores(model: Path) -> AsyncIterator[tuple[SGLangCore, SGLangCore]]:
    """Two servers of one model, in processes of their own."""
    async with started(own_server(model)) as one, started(own_server(model)) as other:
        yield one, other


@pytest.fixture
def core(cores: tuple[SGLangCore, SGLangCore]) -> SGLangCore:
    return cores[0]


def ask(max_tokens: int = 24, seed: int = 1, **values: Any) -> GenerationRequest:  # noqa: ANN401
    rng = random.Random(seed)
    prompt = tuple(rng.randrange(2, 258) for _ in range(50))
    sampling = values.pop("sampling", ENDLESS)
    return GenerationRequest(new_id(), prompt, max_tokens, sampling, **values)


async def steps_of(core: SGLangCore, request: GenerationRequest) -> list[Step]:
    return [step async for step in core.generate(request)]


async def cut(core: SGLangCore, request: GenerationRequest, at: int) -> tuple[int, ...]:
    """Return the ids of a generation that is aborted as soon as there are `at` of them."""
    ids: list[int] = []
    async for step in core.generate(request):
        ids += step.ids
        assert step.finish_reason is None
        if len(ids) == at:
            await core.abort(request.request_id, keep=True)
    return tuple(ids)


async def test_says_what_it_is(cores: tuple[SGLangCore, SGLangCore]) -> None:
    one, other = cores
    assert one.info == other.info
    assert (one.info.model, one.info.slots, one.info.vocabulary_size) == ("tiny-llama", 3, 512)
    assert not one.info.capabilities.exact_resume  # no deterministic mode on the CPU


async def test_streams_by_ids(core: SGLangCore) -> None:
    steps = await steps_of(core, ask())
    assert sum(len(step.ids) for step in steps) == 24
    assert len(steps) > 12
    assert [step.finish_reason for step in steps] == [None] * (len(steps) - 1) + ["length"]


async def test_what_was_cut_is_in_the_cache_but_for_one_token(core: SGLangCore) -> None:
    request = ask(max_tokens=400, seed=2)
    expected = await generate(core, replace(request, request_id=new_id()))
    ids = await cut(core, request, 60)
    assert 60 <= len(ids) < 400
    resumed = await steps_of(core, replace(request, resume_ids=ids))
    assert resumed[0].cached_tokens == len(request.prompt_ids) + len(ids) - 1
    assert (*ids, *(token for step in resumed for token in step.ids)) == expected.ids


async def test_a_guess_of_anothers_prompt_shows_no_cached_tokens(core: SGLangCore) -> None:
    request = ask(seed=23)
    cached = []
    for owner in ("acme", "globex", "globex", "acme"):
        asked = replace(request, request_id=new_id(), kv_owner=owner)
        cached.append((await steps_of(core, asked))[0].cached_tokens)
    assert cached[:2] == [0, 0]
    assert min(cached[2:]) >= len(request.prompt_ids) - 1
    begun = replace(request, request_id=new_id(), kv_owner="initech", max_tokens=400)
    ids = await cut(core, begun, 12)
    for owner, known in (("umbrella", 0), ("initech", len(request.prompt_ids) + len(ids) - 1)):
        again = replace(begun, request_id=new_id(), kv_owner=owner, resume_ids=ids)
        assert (await steps_of(core, again))[0].cached_tokens == known


async def test_an_abort_ends_that_generation_alone(core: SGLangCore) -> None:
    aborted, others = ask(max_tokens=400), [ask(max_tokens=100, seed=n) for n in (3, 4)]
    running = [asyncio.create_task(generate(core, other)) for other in others]
    assert len(await cut(core, aborted, 10)) < 400
    for answer in await asyncio.gather(*running):
        assert (len(answer.ids), answer.finish_reason) == (100, "length")


async def test_suspended_on_one_engine_resumed_on_another(
    cores: tuple[SGLangCore, SGLangCore],
) -> None:
    one, other = cores
    request = ask(max_tokens=400, seed=5)
    expected = await generate(one, replace(request, request_id=new_id()))
    ids = await cut(one, request, 30)
    resumed = await steps_of(other, replace(request, resume_ids=ids))
    assert resumed[0].cached_tokens < len(request.prompt_ids)  # it had to read it
    assert (*ids, *(token for step in resumed for token in step.ids)) == expected.ids


async def test_twenty_cuts_of_greedy_generations(cores: tuple[SGLangCore, SGLangCore]) -> None:
    report = await check_cuts(*cores, cuts=20, seed=1, greedy=True)
    assert report.cuts >= 20
    assert report.same_core
    assert report.other_core
    assert report.beside_others
    assert not report.mismatches, "\n".join(map(str, report.mismatches))


async def test_an_end_token_ends_it_and_is_not_among_the_ids(core: SGLangCore) -> None:
    at_once = Sampling(logit_bias={END_ID: 100.0})
    steps = await steps_of(core, ask(sampling=at_once))
    assert [(step.ids, step.finish_reason) for step in steps] == [((), "stop")]


async def test_logprobs_are_the_models_own(core: SGLangCore) -> None:
    greedy = await steps_of(core, ask(max_tokens=4, logprobs=3, sampling=Sampling()))
    hot = await steps_of(core, ask(max_tokens=1, logprobs=3, sampling=Sampling(temperature=2.0)))
    first = greedy[0].logprobs[0]
    assert sum(len(step.logprobs) for step in greedy) == 4
    assert first.id == greedy[0].ids[0]
    assert first.top[0].logprob == first.logprob
    assert len(first.top) == 3
    assert hot[0].logprobs[0].top[0].logprob == pytest.approx(first.top[0].logprob, abs=1e-4)


async def test_penalties_hold_within_one_request(core: SGLangCore) -> None:
    plain = await generate(core, ask(max_tokens=40, seed=6))
    penalised = ask(max_tokens=40, seed=6, sampling=structs.replace(ENDLESS, presence_penalty=2.0))
    answer = await generate(core, penalised)
    assert len(set(answer.ids)) > len(set(plain.ids))
    assert not core.info.capabilities.can_suspend(penalised)


async def test_a_full_context_can_be_used_and_resumed_to_its_last_token(core: SGLangCore) -> None:
    prompt = tuple(2 + n % 250 for n in range(core.info.context_tokens - 8))
    request = GenerationRequest(new_id(), prompt, 8, ENDLESS)
    answer = await generate(core, request)
    assert len(answer.ids) == 8
    assert await generate(core, replace(request, resume_ids=answer.ids[:7])) == answer


async def test_another_model_is_told_apart(
    cores: tuple[SGLangCore, SGLangCore], tmp_path: Path
) -> None:
    async with started(own_server(write_model(tmp_path / "tiny-llama", seed=8))) as stranger:
        assert stranger.info.snapshot_model != cores[0].info.snapshot_model
        assert await generate(stranger, ask()) != await generate(cores[0], ask())


async def test_a_killed_engine_is_a_core_error_and_the_next_call_starts_another(
    model: Path,
) -> None:
    async with started(own_server(model)) as core:
        request = ask(max_tokens=600)
        expected = await generate(core, replace(request, max_tokens=60))
        beside = asyncio.create_task(generate(core, replace(request, request_id=new_id())))
        assert core.server is not None
        pid, ids = core.server.pid, list[int]()
        stream = core.generate(request)
        while len(ids) < 20:
            ids += (await anext(stream)).ids
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(CoreError, match="died by signal 9"):
            ids += [token async for step in stream for token in step.ids]
        with pytest.raises(CoreError, match="died by signal 9"):
            await beside
        await wait_until_async(lambda: not session_of(pid), timeout_s=30.0)
        fingerprint = core.info.fingerprint
        resumed = replace(request, max_tokens=60, resume_ids=tuple(ids[:60]))
        made = [token for step in await steps_of(core, resumed) for token in step.ids]
        assert (*resumed.resume_ids, *made) == expected.ids
        assert core.server.pid != pid
        assert core.info.fingerprint == fingerprint


async def test_the_server_ends_with_a_worker_that_is_killed(model: Path) -> None:
    sglang_python()
    worker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        WORKER,
        str(model),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert worker.stdout is not None
        pid = int(await worker.stdout.readline())
        assert len(session_of(pid)) >= 2  # its scheduler too
    finally:
        worker.kill()
        await worker.wait()
    await wait_until_async(lambda: not session_of(pid), timeout_s=60.0)


def session_of(pid: int) -> list[int]:
    """Return the processes of a session that run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rsplit(")", 1)[1].split()[:4]
        except FileNotFoundError:
            continue
        if int(session) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found
