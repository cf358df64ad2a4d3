"""Reasoning is told from the answer, however the text comes."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_broker.contract.llm import JsonFormat, Tool
from aios_broker.contract.reply import ChatResult
from aios_workers.llm.answers import AnswerText, Reasoning
from aios_workers.llm.chat.calls import HERMES
from aios_workers.llm.chat.reasoning import ReasoningReader, ReasoningTags, is_open, tags_of
from aios_workers.llm.core import Capabilities
from tests.caller import chat
from tests.cut_handler import Cuts, run_cut
from tests.scripted_core import ScriptedCore

THINK = ReasoningTags("<think>", "</think>")
HARMONY = tags_of("<|channel|>analysis<|message|> <|end|>")


def read(pieces: list[str], tags: ReasoningTags, *, opened: bool = False) -> tuple[str, str]:
    reader = ReasoningReader(tags, opened=opened)
    parts = [*map(reader.feed, pieces), reader.finish()]
    return "".join(each for each, _ in parts), "".join(each for _, each in parts)


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "answer"),
    [
        ("Hello", False, "", "Hello"),
        ("<think>\nso\n</think>\n\nHello", False, "so", "Hello"),
        (" \n<think>a </b> <</think>Hello", False, "a </b> <", "Hello"),
        ("so</think>Hello", True, "so", "Hello"),
        ("so it goes </thi", True, "so it goes </thi", ""),
        ("<think></think>Hi", False, "", "Hi"),
        ("<think>", False, "", ""),
        ("<thin air", False, "", "<thin air"),
        ("Hello <think>no</think>", False, "", "Hello <think>no</think>"),
        ("  Hello", False, "", "  Hello"),
        ("", False, "", ""),
        ("a  b </think> c </think>", True, "a  b", "c </think>"),
    ],
)
def test_what_is_reasoning_and_what_is_answer(
    text: str, reasoning: str, answer: str, *, opened: bool
) -> None:
    for size in (1, 2, 3, 5, 100):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert read(pieces, THINK, opened=opened) == (reasoning, answer)


@given(st.text("<>/think \nab", max_size=40), st.booleans(), st.randoms(use_true_random=False))
def test_it_does_not_matter_how_a_text_comes(
    text: str,
    opened: bool,  # noqa: FBT001  Hypothesis passes it by place
    rng: random.Random,
) -> None:
    pieces, at = [], 0
    while at < len(text):
        size = rng.randint(1, 5)
        pieces.append(text[at : at + size])
        at += size

    assert read(pieces, THINK, opened=opened) == read([text], THINK, opened=opened)


def test_channels_are_told_apart_and_their_headers_are_no_text() -> None:
    assert HARMONY is not None
    final = "<|channel|>final<|message|>"
    for text in (
        f"<|channel|>analysis<|message|>so<|end|><|start|>assistant{final}Hello",
        f"<|channel|>analysis<|message|>so<|end|>{final}Hello",
    ):
        assert read(list(text), HARMONY) == ("so", "Hello")
        assert read([text], HARMONY) == ("so", "Hello")
    assert read(list(f"{final}Hello"), HARMONY) == ("", "Hello")


@pytest.mark.parametrize(
    ("template", "begin"),
    [
        ("... <think> ... </think>", "<think>"),
        ("[THINK]{{ x }}[/THINK]", "[THINK]"),
        ("<|START_THINKING|><|END_THINKING|>", "<|START_THINKING|>"),
        ("<|im_start|>", None),
    ],
)
def test_a_template_tells_its_tags(template: str, begin: str | None) -> None:
    tags = tags_of(template)

    assert (tags.begin if tags is not None else None) == begin


def test_a_prompt_may_end_within_the_reasoning() -> None:
    assert is_open("assistant\n<think>\n", THINK)
    assert not is_open("assistant\n<think>\n\n</think>\n\n", THINK)


def test_stop_strings_are_the_answers() -> None:
    text = AnswerText(("end",), Reasoning(THINK, opened=False))
    stopped = [text.feed(each.encode()) for each in ("<think>the end", "</think>", "Hi end", "!")]

    assert stopped == [False, False, True, True]
    assert (text.reasoning, text.text) == ("the end", "Hi ")


CALL = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
CAN = Capabilities(call_format=HERMES, reasoning=THINK)


@pytest.mark.parametrize(
    ("script", "reasoning", "text", "calls"),
    [
        (f"<think>Is it {CALL}? No.</think>Hello there", f"Is it {CALL}? No.", "Hello there", 0),
        (f"<think>so</think>\n{CALL}", "so", "", 1),
        ("Hello", "", "Hello", 0),
    ],
)
async def test_a_stream_has_both_apart_across_cuts(
    script: str, reasoning: str, text: str, calls: int
) -> None:
    for seed in range(4):
        cuts = Cuts(random.Random(seed), probability=0.4, quantum_tokens=(1, 9))
        body = chat("Hi", tools=(Tool("add"),), stream=True, max_tokens=300)
        result = await run_cut([ScriptedCore(script, can=CAN)], body, cuts)

        assert isinstance(result, ChatResult)
        assert (result.reasoning, result.text, len(result.tool_calls)) == (reasoning, text, calls)
        assert (cuts.reasoning, cuts.stream) == (reasoning, text)


async def test_an_answer_with_a_form_is_not_read_for_reasoning() -> None:
    can = Capabilities(constraints=True, reasoning=THINK)
    cuts = Cuts(random.Random(0), probability=0.0, quantum_tokens=(1, 9))
    body = chat("Hi", format=JsonFormat(), max_tokens=300)
    result = await run_cut([ScriptedCore('{"a": "<think>"}', can=can)], body, cuts)

    assert isinstance(result, ChatResult)
    assert (result.reasoning, result.text) == ("", '{"a": "<think>"}')
