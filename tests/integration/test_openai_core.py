"""The core behind the OpenAI API, against a server of its own: answers, cuts, seams, faults."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from aios_broker.contract.cores import OpenAISettings, Prefill
from aios_broker.contract.errors import (
    CoreAccountExhausted,
    CoreBusy,
    CoreError,
    CoreKeyRefused,
    KernelError,
    RedisUnavailable,
    UnsupportedOption,
)
from aios_broker.contract.llm import Image, Message, Tool
from aios_broker.contract.money import Billed
from aios_broker.queues.rate_limits import Permit
from aios_workers.llm.core import Constraint, GenerationRequest, Sampling, Step
from aios_workers.llm.cores.openai.openai_core import OpenAICore
from aios_workers.llm.cores.openai.prefill import text_of
from tests import openai_endpoint
from tests.openai_endpoint import OpenAIEndpoint, answer_words

QUESTION = "What is on the shelf?"
USER = Message("user", QUESTION)
WEATHER = Tool(
    "weather", "Tells it.", {"type": "object", "properties": {"city": {"type": "string"}}}
)


@pytest.fixture
def endpoint() -> Iterator[OpenAIEndpoint]:
    with OpenAIEndpoint().running() as endpoint:
        yield endpoint


@contextlib.asynccontextmanager
async def started(
    endpoint: OpenAIEndpoint,
    prefill: Prefill = "none",
    key: str | None = None,
    limit_s: float = 30.0,
    fallback: tuple[str, ...] = (),
) -> AsyncIterator[OpenAICore]:
    settings = OpenAISettings(
        url=endpoint.url,
        model="stand-in",
        prefill=prefill,
        first_token_limit_s=limit_s,
        stall_limit_s=limit_s,
        fallback=fallback,
    )
    core = OpenAICore("remote", settings, key)
    await core.start()
    try:
        yield core
    finally:
        await core.close()


def asked(core: OpenAICore, max_tokens: int = 40, **more: object) -> GenerationRequest:
    tools = (WEATHER,) if more.get("tool_choice") else ()
    ids = core.render((USER,), tools)
    sampling = more.pop("sampling", Sampling())
    return GenerationRequest("ab" * 16, ids, max_tokens, sampling, **more)  # type: ignore[arg-type]


async def steps_of(core: OpenAICore, request: GenerationRequest) -> list[Step]:
    return [step async for step in core.generate(request)]


def said(steps: list[Step]) -> str:
    return text_of([token for step in steps for token in step.ids])


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


class Books:
    """An account that notes what it is asked."""

    def __init__(self) -> None:
        self.waited: list[int] = []
        self.settled: list[int] = []
        self.pauses_s: list[float] = []

    async def wait(self, tokens: int) -> Permit:
        self.waited.append(tokens)
        return Permit(0.0, 1, tokens)

    async def settle(self, permit: Permit, tokens: int) -> None:
        self.settled.append(tokens)

    async def penalise(self, for_s: float) -> None:
        self.pauses_s.append(for_s)


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


# What endpoints say beside their text.


async def test_thoughts_come_before_the_answer_and_apart_from_it(endpoint: OpenAIEndpoint) -> None:
    endpoint.thoughts, endpoint.words = ("Let me", " see."), 3
    async with started(endpoint) as core:
        steps = await steps_of(core, asked(core))
        tags = core.info.capabilities.reasoning
    assert tags is not None
    answer = "".join(answer_words(QUESTION, 3))
    assert said(steps) == f"{tags.begin}Let me see.{tags.end}{answer}"
    assert sum(step.token_count for step in steps) == 5


async def test_thoughts_behind_a_beginning_are_paid_for_and_no_part_of_it(
    endpoint: OpenAIEndpoint,
) -> None:
    endpoint.thoughts, endpoint.prefill = ("Again?",), "assistant"
    whole = answer_words(QUESTION, 40)
    async with started(endpoint, "assistant") as core:
        tags = core.info.capabilities.reasoning
        assert tags is not None
        begun = f"{tags.begin}So.{tags.end}{''.join(whole[:7])}"
        rest = await steps_of(core, asked(core, resume_ids=tuple(map(ord, begun))))
        assert endpoint.seen[-1]["messages"][-1]["content"] == "".join(whole[:7])
    assert said(rest) == "".join(whole[7:])
    assert sum(step.token_count for step in rest) == 34


async def test_a_thought_that_was_cut_is_thought_anew(endpoint: OpenAIEndpoint) -> None:
    endpoint.thoughts, endpoint.words = ("Well.",), 2
    async with started(endpoint) as core:
        tags = core.info.capabilities.reasoning
        assert tags is not None
        begun = tuple(map(ord, f"{tags.begin}So fa"))
        rest = said(await steps_of(core, asked(core, resume_ids=begun)))
    assert endpoint.seen[-1]["messages"][-1]["role"] == "user"
    assert rest == f"\n\nWell.{tags.end}{''.join(answer_words(QUESTION, 2))}"


async def test_log_probabilities_are_those_of_the_endpoints_tokens(
    endpoint: OpenAIEndpoint,
) -> None:
    async with started(endpoint) as core:
        steps = await steps_of(core, asked(core, max_tokens=4, logprobs=2))
        found = [each for step in steps for each in step.text_logprobs]
        assert not core.info.capabilities.can_suspend(asked(core, logprobs=2))
        endpoint.scores = False
        with pytest.raises(UnsupportedOption, match="log-probabilities") as refused:
            await steps_of(core, asked(core, max_tokens=4, logprobs=0))
    assert refused.value.field == "body.logprobs"
    assert [each.text for each in found] == answer_words(QUESTION, 4)
    assert {each.logprob for each in found} == {-0.25}
    assert [each.top[1].logprob for each in found] == [-9_999.0] * 4
    assert "top_logprobs" not in endpoint.seen[-1]


async def test_tokens_are_those_that_the_endpoint_counts(endpoint: OpenAIEndpoint) -> None:
    endpoint.by_character = True
    async with started(endpoint) as core:
        steps = await steps_of(core, asked(core))
    assert len(steps) > 100
    assert sum(step.token_count for step in steps) == endpoint.output_tokens == 40


# What endpoints do not take.


async def test_a_seed_is_sent_where_somebody_asks_for_one(endpoint: OpenAIEndpoint) -> None:
    async with started(endpoint) as core:
        request = asked(core, sampling=Sampling(seed=7))
        await steps_of(core, request)
        await steps_of(core, replace(request, asks_for_seed=False))
    assert [each.get("seed") for each in endpoint.seen] == [7, None]


@pytest.mark.parametrize("prefill", ["auto", "none"])
async def test_what_nobody_asked_for_is_left_out_where_it_is_refused(
    endpoint: OpenAIEndpoint, prefill: Prefill
) -> None:
    endpoint.refuses = frozenset({"temperature", "max_tokens", "stream_options"})
    async with started(endpoint, prefill) as core:
        for _ in range(2):
            steps = await steps_of(core, asked(core, max_tokens=5, asks_for_seed=False))
            assert said(steps) == "".join(answer_words(QUESTION, 5))
        assert endpoint.seen[-1].keys() == {"model", "messages", "stream", "max_completion_tokens"}
        told = len(endpoint.seen)
        with pytest.raises(UnsupportedOption, match="temperature"):
            await steps_of(core, asked(core, sampling=Sampling(temperature=0.5)))
    assert len(endpoint.seen) == told + 1


async def test_a_limit_that_is_too_large_is_not_taken_for_an_unknown_one(
    endpoint: OpenAIEndpoint,
) -> None:
    async with started(endpoint) as core:
        for name in ("max_tokens", "max_completion_tokens"):
            words = f"{name} is too large: 131072"
            endpoint.refusals.append({"message": words, "param": name})
        with pytest.raises(UnsupportedOption, match="too large"):
            await steps_of(core, asked(core))
        await steps_of(core, asked(core))
    assert "max_tokens" in endpoint.seen[-1]


# What accounts allow.


async def test_a_start_waits_as_long_as_the_endpoint_asks(endpoint: OpenAIEndpoint) -> None:
    endpoint.prefill, endpoint.retry_after_s = "prefix", 0.05
    for before in range(4):  # requests that it answers first
        endpoint.faults.clear()
        endpoint.faults.extend([*[None] * before, "busy", "busy"])
        async with started(endpoint, "auto") as core:
            assert core.info.capabilities.preemptible


async def test_a_fault_in_the_middle_of_the_probe_turns_nothing_off(
    endpoint: OpenAIEndpoint,
) -> None:
    endpoint.prefill = "continue_final_message"
    endpoint.faults.extend([None, "broken"])
    async with started(endpoint, "auto") as core:
        assert core.info.capabilities.preemptible


async def test_embeddings_wait_for_the_account_and_tell_it_what_they_took(
    endpoint: OpenAIEndpoint,
) -> None:
    books = Books()
    async with started(endpoint) as core:
        core.rates = books
        endpoint.retry_after_s = 0.05
        endpoint.faults.extend(["busy", "busy"])
        made = await core.embed(["a few words", "x" * 400])
    assert len(made.vectors) == 2
    assert books.waited == [102] * 3
    assert books.settled == [0, 0, made.tokens]
    assert books.pauses_s == [0.05, 0.05]
