"""How families write calls: told by the template, read from answers, held by a grammar."""

import json
import random

import pytest

from aios_broker.contract.errors import CoreError, InvalidSyscall
from aios_broker.contract.llm import Tool
from aios_workers.llm.answer_stream import CallFilter
from aios_workers.llm.chat.calls import (
    DEEPSEEK,
    DEEPSEEK_31,
    FORMATS,
    GEMMA,
    GEMMA_4,
    GRANITE,
    HERMES,
    LLAMA3,
    MISTRAL,
    MISTRAL_NAMED,
    CallFormat,
    ReadCall,
    format_of,
    formed_or_calls,
    parted,
)
from aios_workers.llm.chat.reasoning import ReasoningTags
from aios_workers.llm.constraint import Compiler
from aios_workers.llm.tools import Toolbox, constraint_of

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TOOLS = (Tool("add", "Adds one.", NUMBER), Tool("now"))
THINK = ReasoningTags("<think>", "</think>")
BAR = "\uff5c"
CALLS, END_CALLS = f"<{BAR}tool▁calls▁begin{BAR}>", f"<{BAR}tool▁calls▁end{BAR}>"
CALL, SEP, END_CALL = (f"<{BAR}tool▁{each}{BAR}>" for each in ("call▁begin", "sep", "call▁end"))
# One call, and two.
WRITTEN: dict[CallFormat, tuple[str, str]] = {
    HERMES: (
        '<tool_call>{"name": "add", "arguments": {"n": 1}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"n": 1}}</tool_call>'
        '<tool_call>{"name": "now", "arguments": {}}</tool_call>',
    ),
    LLAMA3: (
        '{"name": "add", "parameters": {"n": 1}}',
        '<|python_tag|>{"name": "add", "parameters": {"n": 1}}; {"name": "now", "parameters": {}}',
    ),
    MISTRAL: (
        '[TOOL_CALLS][{"name": "add", "arguments": {"n": 1}}]',
        '[TOOL_CALLS][{"name": "add", "arguments": {"n": 1}}, {"name": "now", "arguments": {}}]',
    ),
    MISTRAL_NAMED: (
        '[TOOL_CALLS]add[ARGS]{"n": 1}',
        '[TOOL_CALLS]add[ARGS]{"n": 1}[TOOL_CALLS]now[ARGS]{}',
    ),
    GRANITE: (
        '<|tool_call|>[{"name": "add", "arguments": {"n": 1}}]',
        '<|tool_call|>[{"name": "add", "arguments": {"n": 1}}, {"name": "now", "arguments": {}}]',
    ),
    DEEPSEEK: (
        f'{CALLS}{CALL}function{SEP}add\n```json\n{{"n": 1}}\n```{END_CALL}{END_CALLS}',
        f'{CALLS}{CALL}function{SEP}add\n```json\n{{"n": 1}}\n```{END_CALL}\n'
        f"{CALL}function{SEP}now\n```json\n{{}}\n```{END_CALL}{END_CALLS}",
    ),
    DEEPSEEK_31: (
        f'{CALLS}{CALL}add{SEP}{{"n": 1}}{END_CALL}{END_CALLS}',
        f'{CALLS}{CALL}add{SEP}{{"n": 1}}{END_CALL}{CALL}now{SEP}{{}}{END_CALL}{END_CALLS}',
    ),
    GEMMA: (
        "<start_function_call>call:add{n:1}<end_function_call>",
        "<start_function_call>call:add{n:1}<end_function_call>"
        "<start_function_call>call:now{}<end_function_call>",
    ),
    GEMMA_4: (
        "<|tool_call>call:add{n:1}<tool_call|>",
        "<|tool_call>call:add{n:1}<tool_call|><|tool_call>call:now{}<tool_call|>",
    ),
}
ONE = [ReadCall("add", '{"n": 1}')]
TWO = [*ONE, ReadCall("now", "{}")]
every = pytest.mark.parametrize("call_format", FORMATS, ids=lambda each: each.name)


@every
def test_calls_are_read_as_they_are_written(call_format: CallFormat) -> None:
    one, two = WRITTEN[call_format]

    assert parted(one, call_format) == ("", ONE)
    assert parted(two, call_format) == ("", TWO)
    if call_format.marker:
        assert parted(f"Well: {two}", call_format) == ("Well: ", TWO)
    assert parted("Well, no.", call_format) == ("Well, no.", [])


@every
def test_a_call_that_is_broken_or_cut_off_is_none(call_format: CallFormat) -> None:
    one, two = WRITTEN[call_format]
    for size in range(len(one) - len(call_format.end or call_format.call_end or "}")):
        assert parted(one[:size], call_format)[1] == [], one[:size]
    # Of two, the first stands for itself; a list is whole or nothing.
    read = parted(
        two[: len(two) - len(call_format.end) - len(call_format.call_end) - 2], call_format
    )
    assert read[1] == ([] if call_format.shape == "list" else ONE)
    assert parted(one.replace("1", "[,"), call_format)[1] == []


@every
def test_a_stream_shows_nothing_of_calls(call_format: CallFormat) -> None:
    rng = random.Random(call_format.name)
    box = Toolbox(TOOLS, forced=False, call_format=call_format)
    said = "Well: " if call_format.marker else ""
    for text, shown in (
        (f"{said}{WRITTEN[call_format][1]}", said),
        ("No <call> [at] all.", "No <call> [at] all."),
    ):
        passing, at, seen = CallFilter(box), 0, ""
        while at < len(text):
            size = rng.randint(1, 7)
            seen += passing.passed(text[at : at + size])
            at += size
        assert seen == shown


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (
            'call:look{a:<|"|>x, {y}: [z]<|"|>,b:[1,2.5,true],c:{d:null,e:<|"|><|"|>}}',
            {"a": "x, {y}: [z]", "b": [1, 2.5, True], "c": {"d": None, "e": ""}},
        ),
        ("call:look{a:[[],{}]}", {"a": [[], {}]}),
        ('call:look{a:<|"|>open}', None),
        ("call:look{a}", None),
        ("call:look{a:1 b:2}", None),
        ("call:look{a:" + "[" * 5_000 + "}", None),
        ("call:{}", None),
    ],
)
def test_gemmas_notation_is_read(text: str, arguments: object) -> None:
    read = parted(f"<|tool_call>{text}<tool_call|>", GEMMA_4)[1]

    assert [json.loads(each.arguments) for each in read] == (
        [] if arguments is None else [arguments]
    )


def test_older_mistral_models_write_an_id_before_the_arguments() -> None:
    text = '[TOOL_CALLS]add[CALL_ID]abcdefghi[ARGS]{"n": 1}'

    assert parted(text, MISTRAL_NAMED) == ("", ONE)


@pytest.mark.parametrize(
    ("template", "call_format"),
    [
        ("... <tool_call>\n{{ tool_call | tojson }}\n</tool_call>", HERMES),
        ("<tool_call>\n<function={{ name }}>\n<parameter={{ key }}>", None),
        ('<|start_header_id|> {"name": ..., "parameters": ...}', LLAMA3),
        ("[TOOL_CALLS]{{ calls }}", MISTRAL),
        ("[TOOL_CALLS]{{ name }}[ARGS]{{ arguments }}", MISTRAL_NAMED),
        ("<|tool_call|>{{ calls }}", GRANITE),
        (f"{CALLS}{CALL}function{SEP}...```json", DEEPSEEK),
        (f"{CALLS}{CALL}{{{{ name }}}}{SEP}", DEEPSEEK_31),
        ("<start_function_call>call:", GEMMA),
        ("<|tool_call>call:", GEMMA_4),
        ("<|im_start|>{{ role }}", None),
    ],
)
def test_a_template_tells_its_format(template: str, call_format: CallFormat | None) -> None:
    assert format_of(template) is call_format


# The grammar. A vocabulary of single bytes allows every text that some vocabulary could write.

BYTES = Compiler([bytes([each]) for each in range(256)] + [b""], [256], lambda data: list(data))


def holds(
    box: Toolbox, text: str, tags: ReasoningTags | None = None, *, opened: bool = False
) -> bool:
    constraint = constraint_of(box, tags, opened=opened)
    try:
        matcher = BYTES.start(constraint, text.encode())
    except (CoreError, InvalidSyscall):
        return False
    return matcher.may_end


@every
def test_the_grammar_allows_messages_and_calls_and_no_broken_ones(call_format: CallFormat) -> None:
    box = Toolbox(TOOLS, forced=False, call_format=call_format)
    one, two = WRITTEN[call_format]

    for text in (one, two, "", "Hello.", "1 < 2 [sic]", "Käse\n"):
        assert holds(box, text), text
    if call_format.marker:
        assert holds(box, f"Well: {one}")
    for text in (one[:-1], one.replace("add", "sub"), one.replace("add", ""), f"{one} so"):
        assert not holds(box, text), text
    if call_format.shape != "quoted":  # there the notation holds, not the tool's schema
        assert not holds(box, one.replace("1", '"x"'))


@every
def test_a_reasoning_may_come_first_and_may_speak_of_calls(call_format: CallFormat) -> None:
    box = Toolbox(TOOLS, forced=False, call_format=call_format)
    one = WRITTEN[call_format][0]

    for text in ("Hello.", one):
        assert holds(box, text, THINK)
        assert holds(box, f"<think>So: {one}, no.</think>{text}", THINK)
        assert holds(box, f"So: {one[:12]}.</think>{text}", THINK, opened=True)
    assert not holds(box, "never closed", THINK, opened=True)
    assert not holds(box, f"<think>so</think>{one[:-1]}", THINK)


def test_a_small_model_may_forget_the_marks_and_is_held_to_the_form_all_the_same() -> None:
    box = Toolbox(TOOLS, forced=False, call_format=HERMES)
    bare = '{"name": "add", "arguments": {"n": 1}}'

    assert parted(bare, HERMES) == ("", ONE)
    assert parted(f"\n{bare}\n", HERMES) == ("", ONE)
    assert holds(box, bare)
    for text in (bare.replace("1", '"x"'), bare[:-1], '{"answer": 42}', " {"):
        assert not holds(box, text), text
    for text in ("So {it} is.", "<tool", "< {", "\n\n"):
        assert holds(box, text), text
    passing = CallFilter(box)
    assert [passing.passed(piece) for piece in ("\n", '{"na', 'me": "add"')] == ["", "", ""]


@every
def test_beside_a_form_an_answer_is_that_or_calls(call_format: CallFormat) -> None:
    form = json.dumps({"properties": {"say": {"type": "string"}}, "required": ["say"]})
    box = Toolbox(TOOLS, forced=False, call_format=call_format, form=form)
    one, two = WRITTEN[call_format]
    said = f"as {call_format.marker or 'no mark'}{one} is written"
    quoted = json.dumps({"say": said}, ensure_ascii=False)

    for text in (one, two, '{"say":"hello"}', quoted):
        assert holds(box, text), text
    for text in ("Hello.", "", "{}", one[:-1], '{"say":1}', f"Well: {one}"):
        assert not holds(box, text), text
    assert formed_or_calls(one, call_format) == ("", ONE)
    assert formed_or_calls(two, call_format) == ("", TWO)
    for text in ('{"say":"hello"}', quoted, quoted[:-9]):
        assert formed_or_calls(text, call_format) == (text, []), text


def test_beside_a_form_a_call_has_its_marks() -> None:
    box = Toolbox(TOOLS, forced=False, form=json.dumps({"type": "object"}))
    like_a_call = '{"name": "add", "arguments": {"n": 1}}'

    assert formed_or_calls(like_a_call, HERMES) == (like_a_call, [])
    passing = CallFilter(box)
    assert [passing.passed(piece) for piece in ('{"na', 'me": 1}')] == ['{"na', 'me": 1}']
