"""The core behind the OpenAI API: what endpoints say beside text, do not take, and allow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from aios_broker.contract.cores import Prefill
from aios_broker.contract.errors import UnsupportedOption
from aios_broker.queues.rate_limits import Permit
from aios_workers.llm.core import Sampling
from tests.openai_endpoint import OpenAIEndpoint, answer_words
from tests.openai_scene import QUESTION, asked, said, started, steps_of


@pytest.fixture
def endpoint() -> Iterator[OpenAIEndpoint]:
    with OpenAIEndpoint().running() as endpoint:
        yield endpoint


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
