"""The simulated core: deterministic, exact across cuts, with speed and memory that can be seen."""

import asyncio
import os
import random
import sys
from dataclasses import replace

import pytest

from aios_broker.contract.errors import ContextTooLong, CoreError
from aios_broker.contract.llm import Message
from aios_broker.contract.syscall import new_id
from aios_workers.llm.core import GenerationRequest, Sampling
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore, SimulatedCoreConfig
from tests.exactness import FORMS, check_cuts, generate, random_request
from tests.remote_core import remote_simulated_core

CONFIG = SimulatedCoreConfig(seed=7, slots=2, end_probability=0.01)
PROMPT = [Message("user", "Say something.")]


def request_on(core: SimulatedCore, max_tokens: int = 64, **sampling: float) -> GenerationRequest:
    values = Sampling(**sampling)  # type: ignore[arg-type]
    return GenerationRequest(new_id(), core.render(PROMPT), max_tokens, values)


async def exact(cuts: int, python: str = sys.executable) -> None:
    """Cut on one core, resume on it or in another process: about half of the cuts each."""
    async with remote_simulated_core(CONFIG, python) as elsewhere:
        report = await check_cuts(SimulatedCore(CONFIG), elsewhere, cuts=cuts, seed=1)
    report.assert_exact(cuts=cuts)
    assert elsewhere.pid != os.getpid()
    assert report.other_core > 0.4 * cuts


async def test_a_thousand_cuts_change_nothing() -> None:
    await exact(1_000)


async def test_a_process_of_another_python_goes_on_with_the_same_ids(other_python: str) -> None:
    await exact(200, other_python)


async def test_cuts_under_constraints_change_nothing(other_python: str) -> None:
    """Nor do they change log-probabilities, and a bias holds; whatever Python goes on."""
    async with remote_simulated_core(CONFIG, other_python) as elsewhere:
        report = await check_cuts(SimulatedCore(CONFIG), elsewhere, cuts=100, seed=1, forms=FORMS)
    report.assert_exact(cuts=100)
    assert report.constrained == report.cuts
    assert report.scored


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_ten_thousand_cuts_change_nothing() -> None:
    await exact(10_000)


async def test_a_lost_token_changes_the_answer() -> None:
    """The check above can fail: the model notices any error in a resumption."""
    core = SimulatedCore(replace(CONFIG, end_probability=0.0))
    request = request_on(core, 32)
    ids = (await generate(core, request)).ids
    lossy = replace(request, request_id=new_id(), resume_ids=(*ids[:9], *ids[10:16]))

    assert (await generate(core, lossy)).ids[15:] != ids[16:]


async def test_the_same_request_has_the_same_answer_and_another_seed_another() -> None:
    core = SimulatedCore(CONFIG)
    warm = request_on(core, temperature=1.0, seed=1)

    first = await generate(core, warm)

    assert await generate(SimulatedCore(CONFIG), replace(warm, request_id=new_id())) == first
    assert await generate(core, request_on(core, temperature=1.0, seed=2)) != first
    assert await generate(SimulatedCore(replace(CONFIG, seed=8)), warm) != first


async def test_greedy_ignores_the_seed_and_penalties_do_something() -> None:
    core = SimulatedCore(CONFIG)
    greedy = await generate(core, request_on(core, seed=1))

    assert await generate(core, request_on(core, seed=2)) == greedy
    assert await generate(core, request_on(core, frequency_penalty=1.0)) != greedy


async def test_answers_end_by_an_end_token_or_by_length() -> None:
    core = SimulatedCore(replace(CONFIG, end_probability=0.05))
    rng = random.Random(3)

    endings = {(await generate(core, random_request(core, rng))).finish_reason for _ in range(40)}

    assert endings == {"stop", "length"}


async def test_output_has_characters_in_pieces() -> None:
    core = SimulatedCore(replace(CONFIG, end_probability=0.0))
    ids = (await generate(core, request_on(core, 400))).ids
    pieces = [core.decode((token,)) for token in ids]

    assert any(piece in (b"\xe4\xb8", b"\xf0\x9f", b"\xc3", b"\xe2") for piece in pieces)
    assert b"".join(pieces) == core.decode(ids)


def test_the_prompt_can_be_read_back() -> None:
    core = SimulatedCore(CONFIG)
    ids = core.render([Message("system", "Süß."), Message("user", "世界?")])

    assert core.decode(ids).decode() == "<|system|>Süß.<|end|><|user|>世界?<|end|><|assistant|>"


async def test_slots_limit_what_runs_at_once() -> None:
    core = SimulatedCore(replace(CONFIG, slots=1, end_probability=0.0, decode_tokens_per_s=200.0))
    began = asyncio.get_running_loop().time()

    await asyncio.gather(*(generate(core, request_on(core, 10)) for _ in range(3)))

    assert asyncio.get_running_loop().time() - began >= 3 * 10 / 200 * 0.9


async def test_prefill_costs_time_unless_the_context_is_resident() -> None:
    core = SimulatedCore(replace(CONFIG, end_probability=0.0, prefill_tokens_per_s=500.0))
    request = request_on(core, 40)
    prompt_tokens = len(request.prompt_ids)

    first = await cut_after(core, request, tokens=5)
    assert core.resident_tokens >= prompt_tokens + 5
    resumed = await cut_after(core, replace(request, resume_ids=first.ids), tokens=10)

    assert (first.cached_tokens, resumed.cached_tokens) == (0, prompt_tokens + len(first.ids))
    assert first.wall_s > prompt_tokens / 500 > resumed.wall_s


async def test_a_context_that_was_pushed_out_is_prefilled_again() -> None:
    core = SimulatedCore(replace(CONFIG, end_probability=0.0, kv_tokens=60))
    request = request_on(core, 40)
    first = await cut_after(core, request, tokens=5)

    await generate(core, request_on(core, 40))

    resumed = await cut_after(core, replace(request, resume_ids=first.ids), tokens=10)
    assert resumed.cached_tokens == 0


async def test_what_cannot_run_is_refused() -> None:
    core = SimulatedCore(CONFIG)
    with pytest.raises(ContextTooLong):
        await generate(core, request_on(core, 5_000))
    await core.abort("nobody", keep=True)

    await core.close()
    with pytest.raises(CoreError):
        await core.health()
    with pytest.raises(CoreError):
        await generate(core, request_on(core))


class Cut:
    def __init__(self, ids: tuple[int, ...], cached_tokens: int, wall_s: float) -> None:
        self.ids = ids
        self.cached_tokens = cached_tokens
        self.wall_s = wall_s


async def cut_after(core: SimulatedCore, request: GenerationRequest, tokens: int) -> Cut:
    """Run until there are `tokens` output ids, then abort and keep the context."""
    clock = asyncio.get_running_loop().time
    began, wall_s, cached_tokens = clock(), 0.0, 0
    ids = list(request.resume_ids)
    async for step in core.generate(request):
        wall_s = wall_s or clock() - began
        cached_tokens += step.cached_tokens
        ids.extend(step.ids)
        if len(ids) == tokens:
            await core.abort(request.request_id, keep=True)
    return Cut(tuple(ids), cached_tokens, wall_s)
