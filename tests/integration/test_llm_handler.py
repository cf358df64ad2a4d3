"""The llm module on the simulated core: slices, suspension, streaming, refusals."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import pytest

from aios_broker.contract.errors import CoreError
from aios_broker.contract.llm import LlmChat
from aios_broker.contract.reply import ChatResult
from aios_workers.llm.core import Capabilities, CoreInfo, GenerationRequest, Step
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore, SimulatedCoreConfig
from aios_workers.runtime.registry import llm_module
from tests.caller import Caller, chat, chat_result, running_worker, text_read
from tests.waiting import wait_until_async

FAST = SimulatedCoreConfig(slots=2, end_probability=0.0)
SLOW = replace(FAST, slots=1, decode_tokens_per_s=400.0)  # a token every 2.5 ms


@pytest.fixture
async def caller(redis_url: str) -> AsyncIterator[Caller]:
    caller = Caller(redis_url)
    await caller.publish_policy(quantum_s=60.0, quantum_tokens=16)
    yield caller
    await caller.aclose()


async def alone(caller: Caller, body: LlmChat, config: SimulatedCoreConfig = FAST) -> ChatResult:
    """Return what a worker that does nothing else answers, on a core of its own."""
    async with running_worker(caller.url, "llm", await llm_module(SimulatedCore(config))):
        return await caller.chat(body)


async def test_a_chat_is_answered(caller: Caller) -> None:
    result = await alone(caller, chat("Hello", max_tokens=40))

    assert (result.finish_reason, result.usage.output_tokens) == ("length", 40)
    assert result.usage.prompt_tokens == len(result.prompt_ids)
    assert len(result.output_ids) == 40
    core = SimulatedCore(FAST)
    assert result.text == core.decode(result.output_ids).decode(errors="replace")


async def test_ids_travel_only_when_asked_for(caller: Caller) -> None:
    result = await alone(caller, chat("Hello", max_tokens=4, return_ids=False))

    assert (result.prompt_ids, result.output_ids) == ((), ())


async def test_generations_that_share_a_slot_are_sliced_and_stay_what_they_were(
    caller: Caller,
) -> None:
    bodies = [chat(f"Story {n}", max_tokens=100, temperature=0.8, seed=n) for n in range(4)]
    expected = [await alone(caller, body) for body in bodies]

    async with running_worker(caller.url, "llm", await llm_module(SimulatedCore(SLOW))):
        replies = await caller.hear_all(await caller.submit(*bodies))

    results = [chat_result(reply) for reply in replies]
    assert [result.output_ids for result in results] == [each.output_ids for each in expected]
    assert [result.text for result in results] == [each.text for each in expected]
    suspensions = [reply.timings.suspensions for reply in replies]
    assert min(suspensions) >= 1
    assert sum(suspensions) >= 8
    assert all(reply.timings.slices == reply.timings.suspensions + 1 for reply in replies)
    assert all(reply.timings.queued_s > 0 and reply.timings.ran_s > 0 for reply in replies)


async def test_a_generation_that_nobody_waits_behind_is_not_interrupted(caller: Caller) -> None:
    async with running_worker(caller.url, "llm", await llm_module(SimulatedCore(SLOW))):
        [syscall_id] = await caller.submit(chat("Hello", max_tokens=100))
        reply = await caller.hear(syscall_id)

    assert (reply.timings.slices, reply.timings.suspensions) == (1, 0)


async def test_without_preemption_the_first_one_runs_to_its_end(caller: Caller) -> None:
    await caller.publish_policy(preempt="none", quantum_tokens=16)
    async with running_worker(caller.url, "llm", await llm_module(SimulatedCore(SLOW))):
        ids = await caller.submit(*(chat(f"{n}", max_tokens=60) for n in range(2)))
        replies = await caller.hear_all(ids)

    assert [reply.timings.suspensions for reply in replies] == [0, 0]


async def test_slices_end_by_time_too(caller: Caller) -> None:
    await caller.publish_policy(quantum_s=0.05, quantum_tokens=10_000)
    async with running_worker(caller.url, "llm", await llm_module(SimulatedCore(SLOW))):
        ids = await caller.submit(*(chat(f"{n}", max_tokens=100) for n in range(2)))
        replies = await caller.hear_all(ids)

    assert all(reply.timings.suspensions >= 1 for reply in replies)


async def test_what_is_charged_is_what_was_used(caller: Caller) -> None:
    async with running_worker(caller.url, "llm", await llm_module(SimulatedCore(SLOW))):
        ids = await caller.submit(*(chat(f"{n}", max_tokens=70) for n in range(3)))
        await caller.hear_all(ids)

    journal = await caller.connection.execute("XRANGE", "rq:aios:journal", "-", "+")
    entries = [dict(zip(pairs[::2], pairs[1::2], strict=True)) for _, pairs in journal]
    lines = [
        line.split("\t") for entry in entries for line in entry.get(b"t", b"").decode().split("\n")
    ]
    ended = {line[1]: line[4].partition(",")[0] for line in lines if line[0] == "finish"}
    assert ended == dict.fromkeys(ids, "70")


async def test_a_held_generation_is_suspended_and_released_later(caller: Caller) -> None:
    body = chat("Hold me", max_tokens=120)
    expected = await alone(caller, body)
    async with running_worker(caller.url, "llm", await llm_module(SimulatedCore(SLOW))):
        [syscall_id] = await caller.submit(body)
        await wait_until_async(lambda: is_state(caller, syscall_id, "running"))
        await caller.control.hold([syscall_id], module="llm")
        await wait_until_async(lambda: is_state(caller, syscall_id, "held"))

        await caller.control.release([syscall_id], module="llm")

        reply = await caller.hear(syscall_id)
    assert chat_result(reply).output_ids == expected.output_ids
    assert reply.timings.suspensions == 1


async def test_a_cancelled_generation_frees_its_slot(caller: Caller) -> None:
    core = SimulatedCore(replace(SLOW, decode_tokens_per_s=10.0))
    async with running_worker(caller.url, "llm", await llm_module(core)):
        [syscall_id] = await caller.submit(chat("Endless", max_tokens=2_000))
        await wait_until_async(lambda: core.resident_tokens > 0)
        await caller.control.cancel([syscall_id], CoreError("enough"), module="llm")
        await wait_until_async(lambda: core.resident_tokens == 0)


async def is_state(caller: Caller, syscall_id: str, state: str) -> bool:
    return await caller.state(syscall_id) == state


# Streaming.


async def test_a_stream_is_the_answer_in_pieces_across_suspensions(caller: Caller) -> None:
    bodies = [chat(f"Stream {n}", max_tokens=120, stream=True) for n in range(3)]
    async with running_worker(caller.url, "llm", await llm_module(SimulatedCore(SLOW))):
        ids = await caller.submit(*bodies)
        replies = await caller.hear_all(ids)

    for syscall_id, reply in zip(ids, replies, strict=True):
        chunks, text = caller.chunks[syscall_id], ""
        for chunk in chunks:
            assert chunk.offset == len(text), "a gap or a repetition"
            text += chunk.text
        assert text == chat_result(reply).text
        assert reply.timings.suspensions >= 1
        assert 2 <= len(chunks) <= reply.timings.ran_s * 20 + 2 * reply.timings.slices


async def test_nothing_is_streamed_unless_asked_for(caller: Caller) -> None:
    await alone(caller, chat("Hello", max_tokens=40), SLOW)

    assert caller.chunks == {}


# Stop strings.


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_ends_the_answer_wherever_it_was_cut(
    caller: Caller, *, stream: bool
) -> None:
    whole = await alone(caller, chat("Tell me", max_tokens=150))
    stop = whole.text[100:108]  # lies across tokens
    wanted = whole.text[: whole.text.index(stop)]
    bodies = [chat("Tell me", max_tokens=150, stop=(stop,), stream=stream) for _ in range(3)]

    async with running_worker(caller.url, "llm", await llm_module(SimulatedCore(SLOW))):
        ids = await caller.submit(*bodies)
        results = [chat_result(reply) for reply in await caller.hear_all(ids)]

    for result in results:
        assert (result.text, result.finish_reason) == (wanted, "stop")
        assert whole.output_ids[: len(result.output_ids)] == result.output_ids
        assert result.usage.output_tokens == len(result.output_ids) < 150
    for chunks in caller.chunks.values():
        assert "".join(chunk.text for chunk in chunks) == wanted


# Snapshots that cannot be used.


@pytest.mark.parametrize("damage", ["corrupt", "missing", "foreign"])
async def test_a_snapshot_that_cannot_be_used_costs_time_and_nothing_else(
    caller: Caller, damage: str
) -> None:
    body = chat("Precious", max_tokens=100, stream=True)
    expected = await alone(caller, replace_stream(body))
    async with running_worker(caller.url, "llm", await llm_module(SimulatedCore(SLOW))):
        [syscall_id] = await caller.submit(body)
        await wait_until_async(lambda: caller.queue("llm").snapshot(syscall_id))
    key = f"rq:aios:snapshot:{syscall_id}"
    if damage == "corrupt":
        await caller.connection.execute("SETRANGE", key, 30, b"\x00\x00\x00\x00")
    elif damage == "missing":
        await caller.connection.execute("DEL", key)
    model = replace(FAST, end_probability=0.0 if damage != "foreign" else 1e-9)

    async with running_worker(caller.url, "llm", await llm_module(SimulatedCore(model))):
        reply = await caller.hear(syscall_id)

    result = chat_result(reply)
    assert result.output_ids == expected.output_ids
    assert text_read(caller.chunks[syscall_id]) == result.text


def replace_stream(body: LlmChat) -> LlmChat:
    return LlmChat(body.messages, max_tokens=body.max_tokens, return_ids=True)


# Refusals.


class Plain(SimulatedCore):
    """A core without penalties that cannot be preempted."""

    @property
    def info(self) -> CoreInfo:
        return replace(
            super().info,
            capabilities=Capabilities(preemptible=False, exact_resume=False),
        )


@pytest.mark.parametrize(
    ("options", "code", "field"),
    [
        ({"max_tokens": 5_000}, "context-too-long", "body.messages"),
        ({"presence_penalty": 1.0}, "unsupported-option", "body.presence_penalty"),
        ({"repetition_penalty": 1.1}, "unsupported-option", "body.repetition_penalty"),
    ],
)
async def test_what_the_core_cannot_do_is_refused_before_anything_runs(
    caller: Caller, options: dict[str, object], code: str, field: str
) -> None:
    async with running_worker(caller.url, "llm", await llm_module(Plain(FAST))):
        [syscall_id] = await caller.submit(chat("Hello", **options))
        reply = await caller.hear(syscall_id)

    assert reply.error is not None
    assert (reply.error.code, reply.error.field) == (code, field)
    assert reply.error.remedy


async def test_a_prompt_that_does_not_fit_is_told_both_numbers(caller: Caller) -> None:
    async with running_worker(caller.url, "llm", await llm_module(SimulatedCore(FAST))):
        [syscall_id] = await caller.submit(chat("x" * 5_000, max_tokens=100))
        reply = await caller.hear(syscall_id)

    assert reply.error is not None
    assert "5003 tokens" in reply.error.message
    assert "holds 4096" in reply.error.message


async def test_a_core_that_is_not_preemptible_never_pauses(caller: Caller) -> None:
    core = Plain(SLOW)
    async with running_worker(caller.url, "llm", await llm_module(core)) as worker:
        first, second = await caller.submit(*(chat(f"{n}", max_tokens=60) for n in range(2)))
        await wait_until_async(lambda: core.resident_tokens > 0)
        await caller.hear(first)
        worker.stop()  # the drain cannot suspend it either
        replies = await caller.hear_all([first, second])

    assert [reply.timings.suspensions for reply in replies] == [0, 0]


# A core that fails.


class Failing(SimulatedCore):
    """A core that breaks after a few tokens, a number of times."""

    failures = 0
    healthy = True

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        made = 0
        async with aclosing(super().generate(request)) as steps:
            async for step in steps:
                yield step
                made += 1
                if made == 5 and self.failures:
                    self.failures -= 1
                    raise CoreError("the core's process died")

    async def health(self) -> None:
        if not self.healthy:
            raise CoreError("it does not come back")


@pytest.mark.parametrize(("failures", "fails"), [(1, False), (2, False), (3, True)])
async def test_a_core_that_dies_is_tried_again_from_the_ids_so_far(
    caller: Caller, *, failures: int, fails: bool
) -> None:
    expected = await alone(caller, chat("Robust", max_tokens=30))
    core = Failing(FAST)
    core.failures = failures
    async with running_worker(caller.url, "llm", await llm_module(core)):
        [syscall_id] = await caller.submit(chat("Robust", max_tokens=30))
        reply = await caller.hear(syscall_id)

    if fails:
        assert reply.error is not None
        assert (reply.error.code, reply.error.retryable) == ("core-error", False)
    else:
        assert chat_result(reply).output_ids == expected.output_ids


async def test_a_core_that_does_not_come_back_fails_the_syscall(caller: Caller) -> None:
    core = Failing(FAST)
    core.failures, core.healthy = 1, False
    async with running_worker(caller.url, "llm", await llm_module(core)):
        [syscall_id] = await caller.submit(chat("Fragile", max_tokens=30))
        reply = await caller.hear(syscall_id)

    assert reply.error is not None
    assert reply.error.message == "it does not come back"
