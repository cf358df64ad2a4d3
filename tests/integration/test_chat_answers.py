"""Several answers at once on the simulated core: cut anywhere, they stay what they were."""

import asyncio
import random
from collections.abc import AsyncGenerator
from dataclasses import replace

import msgspec
import pytest

from aios_broker.contract.errors import CoreError
from aios_broker.contract.llm import LlmChat
from aios_broker.contract.reply import ChatResult
from aios_broker.contract.snapshot import (
    AnswersSnapshot,
    AnswerState,
    decode_snapshot,
    encode_snapshot,
)
from aios_broker.contract.syscall import Syscall
from aios_workers.llm.answers import answer_id
from aios_workers.llm.core import GenerationRequest, Sampling, Step
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore, SimulatedCoreConfig
from aios_workers.runtime.executor import Suspended
from aios_workers.runtime.runs import Run
from tests.caller import chat
from tests.cut_handler import SYSCALL_ID, Cuts, handler_of, lease, run_cut, run_whole
from tests.waiting import wait_until_async

CONFIG = SimulatedCoreConfig(slots=2, end_probability=0.02)


async def whole(body: LlmChat, core: SimulatedCore | None = None) -> ChatResult:
    result = await run_whole(core or SimulatedCore(CONFIG), body)
    assert isinstance(result, ChatResult)
    return result


async def cut(body: LlmChat, cuts: Cuts) -> ChatResult:
    result = await run_cut([SimulatedCore(CONFIG), SimulatedCore(CONFIG)], body, cuts)
    assert isinstance(result, ChatResult)
    return result


def same(one: ChatResult, other: ChatResult) -> bool:
    """Compare all but what depends on what a core had in memory."""
    return forgetful(one) == forgetful(other)


def forgetful(result: ChatResult) -> ChatResult:
    usage = msgspec.structs.replace(result.usage, cached_tokens=0)
    return msgspec.structs.replace(result, usage=usage)


async def test_answer_i_is_what_seed_plus_i_says_alone() -> None:
    result = await whole(chat("Hello", n=4, temperature=1.0, seed=7, max_tokens=40))
    alone = [
        await whole(chat("Hello", temperature=1.0, seed=7 + i, max_tokens=40)) for i in range(4)
    ]

    assert [each.text for each in result.choices] == [each.text for each in alone]
    assert [each.output_ids for each in result.choices] == [each.output_ids for each in alone]
    assert [e.finish_reason for e in result.choices] == [e.finish_reason for e in alone]
    assert len({each.text for each in result.choices}) == 4
    assert (result.text, result.output_ids) == (alone[0].text, alone[0].output_ids)
    assert result.usage.output_tokens == sum(each.usage.output_tokens for each in alone)
    assert result.usage.prompt_tokens == alone[0].usage.prompt_tokens
    assert alone[0].choices == ()


async def test_each_answer_has_a_request_of_its_own() -> None:
    ids = [answer_id(SYSCALL_ID, number) for number in range(16)]

    assert ids[0] == SYSCALL_ID
    assert len(set(ids)) == 16
    assert all(len(each) == 32 and int(each, 16) >= 0 for each in ids)


@pytest.mark.parametrize("seed", range(40))
async def test_answers_are_the_same_however_they_were_cut(seed: int) -> None:
    rng = random.Random(seed)
    body = chat(
        f"Story {seed}",
        n=rng.choice((1, 2, 3, 5)),
        temperature=rng.choice((0.0, 0.7, 1.2)),
        seed=rng.getrandbits(63),
        max_tokens=rng.randint(10, 60),
        stream=rng.random() < 0.5,
        stop=rng.choice(((), (" END",), ("e",))),
        frequency_penalty=rng.choice((0.0, 0.5)),
    )
    cuts = Cuts(rng, probability=0.5)

    expected, result = await whole(body), await cut(body, cuts)

    assert same(result, expected)
    assert cuts.stream == (expected.text if body.stream else "")
    assert cuts.tokens == expected.usage.output_tokens
    for data in cuts.checkpoints:
        decode_snapshot(data, model=SimulatedCore(CONFIG).info.snapshot_model)


async def test_the_check_above_cuts_often() -> None:
    cuts = Cuts(random.Random(1), probability=1.0, quantum_tokens=(1, 3))
    await cut(chat("Long", n=3, max_tokens=50, temperature=0.5), cuts)

    assert cuts.made >= 5


@pytest.mark.parametrize(
    "asked",
    [
        chat("Tell me", n=2, max_tokens=20, return_ids=True),
        chat("Tell me", logprobs=1, max_tokens=20, return_ids=True),
        chat("Tell me", beam_width=2, max_tokens=20, return_ids=True),
    ],
)
async def test_a_snapshot_of_another_kind_of_generation_is_not_used(asked: LlmChat) -> None:
    core = SimulatedCore(CONFIG)
    one = (AnswerState((1, 2, 3)),)
    kept = encode_snapshot(AnswersSnapshot(core.info.snapshot_model, (1, 2), one, 0))

    result = await run_cut([core], asked, Cuts(random.Random(0)), kept)

    assert result == await run_whole(SimulatedCore(CONFIG), asked)


async def test_a_slice_that_nobody_reads_keeps_how_much_those_before_it_streamed() -> None:
    core = SimulatedCore(replace(CONFIG, end_probability=0.0))
    syscall = Syscall(SYSCALL_ID, "ada", chat("Long", stream=True, max_tokens=500))
    cuts = Cuts(random.Random(0), probability=1.0)
    snapshot: bytes | None = None
    emitted: list[int] = []
    for is_read in (True, False):
        run = Run(msgspec.structs.replace(lease(has_snapshot=not is_read), wants_chunks=is_read))
        outcome = await handler_of(core, cuts, snapshot).run(run, syscall)
        assert isinstance(outcome, Suspended)
        assert outcome.snapshot is not None
        snapshot = outcome.snapshot
        kept = decode_snapshot(snapshot, model=core.info.snapshot_model)
        assert isinstance(kept, AnswersSnapshot)
        emitted.append(kept.emitted_characters)

    assert emitted == [len(cuts.stream)] * 2
    assert cuts.stream


# A core that fails, and one that is full.


class Failing(SimulatedCore):
    """A core whose third stream breaks after two tokens."""

    streams = 0

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        self.streams += 1
        breaks, made = self.streams == 3, 0
        async for step in super().generate(request):
            yield step
            made += 1
            if breaks and made == 2:
                raise CoreError("the core's process died")


async def test_one_answer_whose_stream_broke_goes_on_from_its_ids() -> None:
    body = chat("Robust", n=3, max_tokens=30, temperature=0.9)

    result = await whole(body, Failing(CONFIG))

    assert same(result, await whole(body))


class Counted(SimulatedCore):
    """A core that counts the streams that are open."""

    open = 0

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        self.open += 1
        try:
            async for step in super().generate(request):
                yield step
        finally:
            self.open -= 1


@pytest.mark.parametrize("how", ["suspended", "cancelled"])
async def test_answers_that_wait_for_a_slot_do_not_hold_anything_up(how: str) -> None:
    core = Counted(replace(CONFIG, slots=1, decode_tokens_per_s=200.0, end_probability=0.0))
    stranger = core.generate(GenerationRequest("f" * 32, (1, 2), 4_000, Sampling()))
    await anext(stranger)  # has the only slot, for 20 s
    run, syscall = Run(lease()), Syscall(SYSCALL_ID, "ada", chat("Held", n=3, max_tokens=5))
    handler = handler_of(core, Cuts(random.Random(0)))
    running = asyncio.ensure_future(handler.run(run, syscall))
    await wait_until_async(lambda: all_open(core, 4))

    async with asyncio.timeout(5):
        if how == "suspended":
            run.suspend("hold")
            assert isinstance(await running, Suspended)
        else:
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

    assert core.open == 1, "its streams are closed when its end is heard"
    await stranger.aclose()


async def all_open(core: Counted, count: int) -> bool:
    return core.open == count
