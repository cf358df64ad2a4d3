"""The core behind the OpenAI API, against a server of its own: answers, cuts, seams, faults."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from aios_broker.contract.errors import (
    CoreAccountExhausted,
    CoreBusy,
    CoreError,
    CoreKeyRefused,
    KernelError,
    RedisUnavailable,
    UnsupportedOption,
)
from aios_broker.contract.llm import Image, Message
from aios_broker.contract.money import Billed
from aios_broker.queues.rate_limits import Permit
from aios_workers.llm.core import Constraint, GenerationRequest, Sampling, Step
from tests import openai_endpoint
from tests.openai_endpoint import OpenAIEndpoint, answer_words
from tests.openai_scene import QUESTION, WEATHER, asked, said, started, steps_of


@pytest.fixture
def endpoint() -> Iterator[OpenAIEndpoint]:
    with OpenAIEndpoint().running() as endpoint:
        yield endpoint


async def test_an_answer_comes_as_it_is_with_its_tokens_and_its_cost(
    endpoint: OpenAIEndpoint,
) -> None:
    async with started(endpoint) as core:
        steps = await steps_of(core, asked(core))
    assert said(steps) == "".join(answer_words(QUESTION, 40))
    assert sum(step.token_count for step in steps) == 40
    assert steps[-1].finish_reason == "stop"
    assert [step.billed for step in steps if step.billed] == [
        Billed(endpoint.prompt_tokens, 0, endpoint.output_tokens)
    ]
    assert core.decode(steps[3].ids).decode() == said([steps[3]])


async def test_max_tokens_is_the_endpoints(endpoint: OpenAIEndpoint) -> None:
    async with started(endpoint) as core:
        steps = await steps_of(core, asked(core, max_tokens=7))
    assert said(steps) == "".join(answer_words(QUESTION, 7))
    assert steps[-1].finish_reason == "length"


@pytest.mark.parametrize("mode", ["assistant", "continue_final_message", "prefix"])
@pytest.mark.parametrize("repeats", [False, True])
async def test_a_cut_answer_goes_on_where_it_was(
    endpoint: OpenAIEndpoint, mode: openai_endpoint.Prefill, *, repeats: bool
) -> None:
    endpoint.prefill, endpoint.repeats = mode, repeats
    whole = answer_words(QUESTION, 40)
    async with started(endpoint, "auto") as core:
        assert core.info.capabilities.preemptible
        for cut in (1, 2, 13, 39):
            begun = "".join(whole[:cut])
            rest = await steps_of(
                core, asked(core, resume_ids=tuple(map(ord, begun)), resume_tokens=cut)
            )
            assert begun + said(rest) == "".join(whole)
            assert endpoint.seen[-1]["max_tokens"] == 40 - cut


async def test_one_that_does_not_go_on_is_never_suspended(endpoint: OpenAIEndpoint) -> None:
    for prefill, trims in (("none", False), ("assistant", True)):
        endpoint.prefill, endpoint.trims = prefill, trims  # type: ignore[assignment]
        async with started(endpoint, "auto") as core:
            assert not core.info.capabilities.can_suspend(asked(core))


async def test_what_a_server_holds_to_a_form_runs_to_its_end(endpoint: OpenAIEndpoint) -> None:
    endpoint.prefill = "assistant"
    async with started(endpoint, "auto") as core:
        able = core.info.capabilities
        assert able.can_suspend(asked(core))
        assert not able.can_suspend(asked(core, tool_choice="auto"))
        assert not able.can_suspend(asked(core, constraint=Constraint("json", "{}")))


async def test_a_call_comes_with_the_marks_that_the_worker_reads(endpoint: OpenAIEndpoint) -> None:
    async with started(endpoint) as core:
        steps = await steps_of(core, asked(core, tool_choice="weather"))
        assert said(steps) == (
            '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
        )
        sent = endpoint.seen[-1]
        assert sent["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
        assert sent["tools"][0]["function"]["parameters"] == WEATHER.parameters


async def test_forms_images_and_options_are_sent_as_the_api_has_them(
    endpoint: OpenAIEndpoint,
) -> None:
    picture = Image("image/png", "aGk=")
    async with started(endpoint) as core:
        ids = core.render((Message("user", "What is it?", images=(picture,)),))
        request = GenerationRequest(
            "ab" * 16,
            ids,
            5,
            Sampling(temperature=0.5, top_p=0.9, seed=11),
            constraint=Constraint("json", '{"type": "object"}'),
            images=(picture,),
        )
        await steps_of(core, request)
    sent = endpoint.seen[-1]
    assert sent["messages"][0]["content"][0]["image_url"]["url"] == "data:image/png;base64,aGk="
    assert sent["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert (sent["temperature"], sent["top_p"], sent["seed"]) == (0.5, 0.9, 11)


async def test_embeddings_are_of_length_1_and_in_order(endpoint: OpenAIEndpoint) -> None:
    async with started(endpoint) as core:
        made = await core.embed(["abcd", ""])
    assert made.vectors == ((0.8, 0.6), (0.0, 1.0))
    assert made.tokens == 1


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("key", CoreKeyRefused),
        ("money", CoreAccountExhausted),
        ("broken", CoreError),
        ("hang", CoreError),
        ("truncated", CoreError),
        ("malformed", CoreError),
        ("html", CoreError),
        ("half event", CoreError),
        ("endless", CoreError),
        ("unknown option", UnsupportedOption),
    ],
)
async def test_a_fault_is_an_error_of_its_kind_that_names_the_core(
    endpoint: OpenAIEndpoint, fault: openai_endpoint.Fault, error: type[KernelError]
) -> None:
    async with started(endpoint, limit_s=0.5) as core:
        endpoint.faults.append(fault)
        with pytest.raises(error) as raised:
            await steps_of(core, asked(core))
        assert type(raised.value) is error
        assert "'remote'" in str(raised.value)
        assert said(await steps_of(core, asked(core)))  # the next one is well


async def test_the_key_is_in_the_request_and_in_no_error(endpoint: OpenAIEndpoint) -> None:
    endpoint.key = "right"
    async with started(endpoint, key="right") as core:
        assert said(await steps_of(core, asked(core)))
    async with started(endpoint, key="wrong-key") as core:
        with pytest.raises(CoreKeyRefused) as refused:
            await steps_of(core, asked(core))
    assert "wrong-key" not in str(refused.value)


async def test_a_pause_that_is_asked_for_is_kept(endpoint: OpenAIEndpoint) -> None:
    async with started(endpoint) as core:
        endpoint.faults.extend(["busy", "busy"])
        assert said(await steps_of(core, asked(core))) == "".join(answer_words(QUESTION, 40))
        endpoint.retry_after_s = 0.01
        endpoint.faults.extend(["busy"] * 6)
        with pytest.raises(CoreBusy):
            await steps_of(core, asked(core))


async def test_what_fails_again_and_again_is_left_alone_by_who_can_go_on_elsewhere(
    endpoint: OpenAIEndpoint,
) -> None:
    async with started(endpoint, fallback=("another",)) as core:
        endpoint.faults.extend(["broken"] * 5)
        for _ in range(5):
            with pytest.raises(CoreError, match="500"):
                await steps_of(core, asked(core))
        seen = len(endpoint.seen)
        with pytest.raises(CoreError, match="left alone"):
            await steps_of(core, asked(core))
        assert len(endpoint.seen) == seen


async def test_an_answer_that_breaks_off_says_what_it_cost(endpoint: OpenAIEndpoint) -> None:
    async with started(endpoint) as core:
        endpoint.faults.append("truncated")
        steps: list[Step] = []

        async def take_all() -> None:
            async for step in core.generate(asked(core)):
                steps.append(step)  # noqa: PERF401  what came before the error counts

        with pytest.raises(CoreError, match="in the middle"):
            await take_all()
    assert steps[-1].ids == ()
    assert steps[-1].billed is not None
    assert steps[-1].billed.output_tokens == 3


async def test_an_aborted_answer_ends_at_once_and_is_paid_for(endpoint: OpenAIEndpoint) -> None:
    endpoint.word_s = 0.02
    async with started(endpoint) as core:
        steps: list[Step] = []
        async for step in core.generate(asked(core)):
            steps.append(step)
            if len(steps) == 3:
                await core.abort("ab" * 16, keep=True)
    assert steps[-1].finish_reason is None
    assert sum(step.billed.output_tokens for step in steps if step.billed) == len(steps) - 1 < 10


def told(*events: object) -> list[bytes]:
    return [f"data: {json.dumps(event)}\n\n".encode() for event in events]


def of_text(text: str) -> dict[str, object]:
    return {"choices": [{"delta": {"content": text}}]}


OVER = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
BUSY = {"error": {"code": 429, "message": "Slow down"}}
DONE = b"data: [DONE]"


@pytest.mark.parametrize(
    "habit",
    [
        [*told(of_text("Hello"), OVER, USAGE)],  # nothing says that it was all
        [*told(of_text("Hello"), OVER, USAGE), DONE],  # a last line without an end
        [*told(of_text("Hello"), USAGE), DONE, b"\n\n"],  # no reason for the end
        [b"data:\n\n", b": ping\n\n", *told({**of_text("Hello"), "error": None}, OVER, USAGE)],
        [*told({"choices": [{"delta": {"content": [{"type": "text", "text": "Hello"}]}}]}, OVER)],
    ],
)
async def test_habits_of_endpoints_cost_no_answer(
    endpoint: OpenAIEndpoint, habit: list[bytes]
) -> None:
    endpoint.raw.append(habit)
    async with started(endpoint) as core:
        steps = await steps_of(core, asked(core))
    assert said(steps) == "Hello"
    assert steps[-1].finish_reason == "stop"
    assert steps[-1].billed is not None


async def test_a_pause_in_the_middle_doubles_nothing(endpoint: OpenAIEndpoint) -> None:
    endpoint.raw.append(told(of_text("Hello "), of_text("wor"), BUSY))
    seen = len(endpoint.seen)
    async with started(endpoint) as core:
        core_steps: list[Step] = []

        async def take_all() -> None:
            async for step in core.generate(asked(core)):
                core_steps.append(step)  # noqa: PERF401  what came before the error counts

        with pytest.raises(CoreError):
            await take_all()
    assert said(core_steps) == "Hello wor"
    assert len(endpoint.seen) == seen + 1


async def test_a_long_pause_is_not_waited_for(endpoint: OpenAIEndpoint) -> None:
    endpoint.retry_after_s = 3_000.0
    endpoint.faults.append("busy")
    async with started(endpoint) as core:
        with pytest.raises(CoreBusy) as busy:
            await steps_of(core, asked(core))
    assert busy.value.retry_after_s == 3_000.0


async def test_words_that_cannot_be_written_are_made_so(endpoint: OpenAIEndpoint) -> None:
    endpoint.raw.append(told({"error": {"message": "bad \ud800", "code": "\udfff"}}))
    async with started(endpoint) as core:
        with pytest.raises(CoreError) as failed:
            await steps_of(core, asked(core))
    failed.value.message.encode()


@pytest.mark.parametrize("index", [{"index": 0}, {}])
async def test_calls_side_by_side_are_told_apart_by_their_ids(
    endpoint: OpenAIEndpoint, index: dict[str, int]
) -> None:
    def piece(function: object, **more: str) -> dict[str, object]:
        return {"choices": [{"delta": {"tool_calls": [{**index, **more, "function": function}]}}]}

    endpoint.raw.append(
        told(
            piece({"name": "f", "arguments": ""}, id="1"),
            piece({"arguments": '{"a": 1}'}),
            piece({"name": "g", "arguments": {"b": None}}, id="2"),
            piece(None),
            OVER,
        )
    )
    async with started(endpoint) as core:
        steps = await steps_of(core, asked(core, tool_choice="auto"))
    assert said(steps) == (
        '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
        '<tool_call>{"name": "g", "arguments": {"b": null}}</tool_call>'
    )


async def test_comments_do_not_keep_a_stalled_answer_alive(endpoint: OpenAIEndpoint) -> None:
    endpoint.raw.append([*told(of_text("a")), *[b": ping\n\n"] * 200])
    endpoint.word_s = 0.02
    async with started(endpoint, limit_s=0.3) as core:
        with pytest.raises(CoreError, match="nothing was said"):
            await steps_of(core, asked(core))


async def test_an_account_that_cannot_be_kept_costs_no_answer(endpoint: OpenAIEndpoint) -> None:
    class Broken:
        async def wait(self, tokens: int) -> Permit:
            del tokens
            return Permit(0.0, 1, 1)

        async def settle(self, permit: Permit, tokens: int) -> None:
            raise RedisUnavailable("away")

        async def penalise(self, for_s: float) -> None:
            raise RedisUnavailable("away")

    async with started(endpoint) as core:
        core.rates = Broken()
        endpoint.faults.append("busy")
        assert said(await steps_of(core, asked(core))) == "".join(answer_words(QUESTION, 40))


async def test_who_has_nowhere_to_go_waits_until_it_may_be_asked_again(
    endpoint: OpenAIEndpoint,
) -> None:
    async with started(endpoint) as core:
        endpoint.faults.extend(["broken"] * 5)
        for _ in range(5):
            with pytest.raises(CoreError, match="500"):
                await steps_of(core, asked(core))
        seen = len(endpoint.seen)
        waiting = asyncio.create_task(steps_of(core, asked(core)))
        done, _ = await asyncio.wait({waiting}, timeout=0.2)
        assert not done
        await core.abort("ab" * 16, keep=False)
        assert await waiting == []
        assert len(endpoint.seen) == seen
