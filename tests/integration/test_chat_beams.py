"""Beam search and log-probabilities through the llm handler: cut anywhere, they stay the same."""

import math
import random
from collections.abc import Sequence

import pytest

from aios_broker.contract.errors import CoreError, InvalidSyscall
from aios_broker.contract.llm import LlmBody, LlmChat, LlmCount, LlmEmbed, Message, Tool
from aios_broker.contract.reply import ChatResult, CountResult, EmbedResult
from aios_broker.contract.snapshot import BeamSnapshot, decode_snapshot
from aios_workers.llm.core import Embeddings
from aios_workers.llm.cores.simulated.simulated_model import END_ID
from tests.caller import chat
from tests.cut_handler import Cuts, run_cut, run_whole
from tests.scored_core import ScoredCore, Scores
from tests.scripted_core import ScriptedCore


async def whole(body: LlmChat, core: ScoredCore | None = None) -> ChatResult:
    result = await run_whole(core or ScoredCore(), body)
    assert isinstance(result, ChatResult)
    return result


async def cut(body: LlmBody, cuts: Cuts) -> ChatResult:
    result = await run_cut([ScoredCore(), ScoredCore()], body, cuts)
    assert isinstance(result, ChatResult)
    return result


def beams(text: str, width: int, **options: object) -> LlmChat:
    return chat(text, beam_width=width, **options)


# Beams.


@pytest.mark.parametrize("number", range(8))
async def test_one_beam_is_the_greedy_answer(number: int) -> None:
    options = {"max_tokens": 24, "logprobs": 3, "stop": ("de",) if number % 2 else ()}
    greedy = await whole(chat(f"Story {number}", **options))

    result = await whole(beams(f"Story {number}", 1, **options))

    [choice] = result.choices
    assert (result.text, result.finish_reason) == (greedy.text, greedy.finish_reason)
    assert (result.output_ids, result.logprobs) == (greedy.output_ids, greedy.logprobs)
    assert (choice.text, choice.output_ids) == (result.text, result.output_ids)


async def test_the_best_comes_first_with_its_score() -> None:
    result = await whole(beams("Tell me", 4, n=3, max_tokens=12, logprobs=2, length_penalty=0.7))

    scores = [choice.score for choice in result.choices]
    assert len(scores) == 3
    assert scores == sorted(scores, key=lambda score: -(score or 0))
    assert len({choice.output_ids for choice in result.choices}) == 3
    for choice in result.choices:
        ids, total = list(result.prompt_ids), 0.0
        for token, entry in zip(choice.output_ids, choice.logprobs, strict=True):
            known = Scores.after(ids)
            assert entry.logprob == pytest.approx(dict(known.ranked)[token], abs=1e-6)
            assert [each.id for each in entry.top] == [token for token, _ in known.ranked[:2]]
            total += entry.logprob
            ids.append(token)
        length = len(choice.output_ids)
        if choice.finish_reason == "stop":
            total, length = total + dict(Scores.after(ids).ranked)[END_ID], length + 1
        assert choice.score == pytest.approx(total / length**0.7, abs=1e-5)


@pytest.mark.parametrize("seed", range(30))
async def test_a_search_is_the_same_however_it_was_cut(seed: int) -> None:
    rng = random.Random(seed)
    width = rng.randint(1, 4)
    body = beams(
        f"Story {seed}",
        width,
        n=rng.randint(1, width),
        max_tokens=rng.randint(1, 14),
        logprobs=rng.choice((None, 0, 2)),
        length_penalty=rng.choice((0.0, 1.0, 2.0)),
        stop=rng.choice(((), ("ab", "é"))),
    )
    cuts = Cuts(rng, probability=0.6, quantum_tokens=(1, 2 * width))

    expected, result = await whole(body), await cut(body, cuts)

    assert result == expected
    assert cuts.tokens == expected.usage.output_tokens
    for data in cuts.checkpoints:
        snapshot = decode_snapshot(data, model=ScoredCore().info.snapshot_model)
        assert isinstance(snapshot, BeamSnapshot)


async def test_the_check_above_cuts_often() -> None:
    cuts = Cuts(random.Random(1), probability=1.0, quantum_tokens=(1, 3))
    await cut(beams("Long", 3, max_tokens=14), cuts)

    assert cuts.made >= 4


async def test_a_step_asks_for_one_token_of_each_beam() -> None:
    core = ScoredCore()

    result = await whole(beams("Hello", 3, max_tokens=5), core)

    assert len(core.requests) == result.usage.output_tokens
    assert all(each.max_tokens == len(each.resume_ids) + 1 for each in core.requests)
    assert all(each.logprobs == 6 for each in core.requests)
    steps = [len(each.resume_ids) for each in core.requests]
    assert max(map(steps.count, steps)) == 3


@pytest.mark.parametrize(("failures", "fails"), [((1,), False), ((0, 5), False), ((1, 4, 7), True)])
async def test_a_step_that_failed_is_taken_again(failures: Sequence[int], *, fails: bool) -> None:
    body = beams("Robust", 3, n=3, max_tokens=10)
    core = ScoredCore(failures=failures)

    if fails:
        with pytest.raises(CoreError):
            await whole(body, core)
    else:
        assert await whole(body, core) == await whole(body)


# Log-probabilities.


@pytest.mark.parametrize("seed", range(12))
async def test_log_probabilities_are_the_same_however_it_was_cut(seed: int) -> None:
    rng = random.Random(seed)
    body = chat(
        f"Story {seed}", max_tokens=40, logprobs=rng.choice((0, 1, 5)), n=rng.choice((1, 2))
    )
    cuts = Cuts(rng, probability=0.5)

    expected, result = await whole(body), await cut(body, cuts)

    assert result == expected
    assert len(result.logprobs) == len(result.output_ids)


async def test_log_probabilities_are_those_of_the_core_with_their_texts() -> None:
    body = chat("A poem", max_tokens=30, logprobs=4)
    result = await whole(body)
    ids = list(result.prompt_ids)

    assert result.logprobs
    for token, entry in zip(result.output_ids, result.logprobs, strict=True):
        known = Scores.after(ids).ranked
        assert (entry.id, entry.text) == (
            token,
            ScoredCore().decode((token,)).decode("utf-8", "replace"),
        )
        assert [each.id for each in entry.top] == [other for other, _ in known[:4]]
        for each, (_, logprob) in zip(entry.top, known, strict=False):
            assert math.isclose(each.logprob, logprob, abs_tol=1e-6)
        ids.append(token)


async def test_a_stop_string_ends_the_log_probabilities_too() -> None:
    longer = await whole(chat("A poem", max_tokens=30, logprobs=1))
    stop = longer.text[4:6]

    result = await whole(chat("A poem", max_tokens=30, logprobs=1, stop=(stop,)))

    assert len(result.logprobs) == len(result.output_ids) < len(longer.output_ids)
    assert result.logprobs == longer.logprobs[: len(result.logprobs)]


async def test_without_asking_there_are_none() -> None:
    result = await whole(chat("Hello", max_tokens=30))

    assert result.logprobs == ()


# Embeddings.


async def test_texts_become_vectors_in_their_order() -> None:
    result = await run_whole(ScoredCore(), LlmEmbed(("one", "two", "three")))

    assert isinstance(result, EmbedResult)
    assert len(set(result.vectors)) == 3
    assert result.usage.prompt_tokens == 11
    again = await run_whole(ScoredCore(), LlmEmbed(("two",)))
    assert isinstance(again, EmbedResult)
    assert again.vectors == result.vectors[1:2]


class Brittle(ScoredCore):
    """A core whose embeddings fail a number of times."""

    left = 0

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        if self.left:
            self.left -= 1
            raise CoreError("it broke")
        return await super().embed(texts)


@pytest.mark.parametrize(("failures", "fails"), [(2, False), (3, True)])
async def test_embeddings_are_tried_again(failures: int, *, fails: bool) -> None:
    core = Brittle()
    core.left = failures

    if fails:
        with pytest.raises(CoreError):
            await run_whole(core, LlmEmbed(("one",)))
    else:
        assert isinstance(await run_whole(core, LlmEmbed(("one",))), EmbedResult)


# Counts.


async def test_a_core_counts_the_tokens_of_texts_without_the_frame_of_a_message() -> None:
    result = await run_whole(ScoredCore(), LlmCount(("one", "", "three", "é")))

    assert isinstance(result, CountResult)
    assert result.tokens == (3, 0, 5, 2)  # a token is a byte


async def test_a_text_longer_than_the_context_is_counted_in_pieces() -> None:
    core = ScoredCore()
    length = 3 * core.info.context_tokens

    result = await run_whole(core, LlmCount(("x" * length,)))

    assert isinstance(result, CountResult)
    assert result.tokens[0] >= length


@pytest.mark.parametrize("tools", [(), (Tool("look", "Looks.", {"properties": {"at": {}}}),)])
async def test_the_count_of_a_conversation_is_the_prompt_of_its_chat(
    tools: tuple[Tool, ...],
) -> None:
    core, talk = ScriptedCore("hi"), (Message("system", "be kind"), Message("user", "hello é"))

    counted = await run_whole(core, LlmCount(("one",), messages=talk, tools=tools))
    chat = await run_whole(core, LlmChat(talk, tools=tools, max_tokens=1, overflow="shorten"))

    assert isinstance(counted, CountResult)
    assert isinstance(chat, ChatResult)
    assert counted.prompt_tokens == chat.usage.prompt_tokens > 0
    assert counted.tokens == (3,)


async def test_a_conversation_longer_than_the_context_is_counted_from_above() -> None:
    core = ScoredCore()
    talk = tuple(Message("user", "x" * core.info.context_tokens) for _ in range(3))
    tools = (Tool("look"),)

    result = await run_whole(core, LlmCount(messages=talk, tools=tools))

    assert isinstance(result, CountResult)
    assert result.prompt_tokens >= 3 * core.info.context_tokens
    assert result.tokens == ()


async def test_nothing_is_not_counted() -> None:
    with pytest.raises(InvalidSyscall, match="nothing to count"):
        await run_whole(ScoredCore(), LlmCount())
