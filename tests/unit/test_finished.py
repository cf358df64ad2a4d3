"""Finished answers that break their form are errors, whatever core made them; cut ones say so."""

import asyncio

import pytest

from aios_broker.contract.errors import FormNotKept, InvalidSyscall
from aios_broker.contract.llm import JsonFormat, Tool
from aios_broker.contract.reply import ChatResult, Usage
from aios_workers.llm.core import Capabilities
from aios_workers.llm.validation import MOST_QUICK, quick
from tests.caller import chat
from tests.cut_handler import run_whole
from tests.scripted_core import ScriptedCore

AGE = JsonFormat({"type": "object", "properties": {"age": {"type": "integer"}}})
ENDPOINT = Capabilities(constraints=True, text_ids=True)


async def answered(script: str, **options: object) -> ChatResult:
    result = await run_whole(ScriptedCore(script), chat("How old?", **options))
    assert isinstance(result, ChatResult)
    return result


async def test_an_answer_of_its_form_is_an_answer() -> None:
    result = await answered('{"age": 7}', format=AGE)
    assert result.finish_reason == "stop"
    assert result.parsed() == {"age": 7}


@pytest.mark.parametrize(
    ("script", "why"), [('{"age": "seven"}', "type: "), ('{"age": ', "no.* JSON"), ("7", "type: ")]
)
async def test_one_that_breaks_it_is_an_error_with_the_keyword_and_the_text(
    script: str, why: str
) -> None:
    with pytest.raises(FormNotKept, match=why) as broken:
        await answered(script, format=AGE)
    assert script in broken.value.message
    assert broken.value.field == "body.format.json_schema"


async def test_a_cut_answer_is_told_by_its_finish_reason_and_cannot_be_parsed() -> None:
    result = await answered('{"age": 7}', format=AGE, max_tokens=5)
    assert (result.finish_reason, result.text) == ("length", '{"age')
    with pytest.raises(FormNotKept, match="cut after 5 tokens") as cut:
        result.parsed()
    assert cut.value.field == "body.max_tokens"


def test_what_is_no_json_cannot_be_parsed() -> None:
    with pytest.raises(FormNotKept, match="no JSON"):
        ChatResult("seven", "stop", "m", Usage()).parsed()


async def test_arguments_of_a_call_that_break_their_schema_are_an_error() -> None:
    tool = Tool("grow", "", {"properties": {"age": {"type": "integer"}}, "required": ["age"]})
    kept = '<tool_call>{"name": "grow", "arguments": {"age": 7}}</tool_call>'
    assert (await answered(kept, tools=[tool])).tool_calls[0].arguments == '{"age": 7}'
    with pytest.raises(FormNotKept, match="type: ") as broken:
        await answered(kept.replace("7", '"7"'), tools=[tool])
    assert broken.value.field == "body.tools[0].parameters"


async def test_a_schema_for_an_endpoint_is_refused_before_it_is_asked() -> None:
    core = ScriptedCore("7", can=ENDPOINT)
    with pytest.raises(InvalidSyscall, match="nonsense"):
        await run_whole(core, chat("x", format=JsonFormat({"type": "nonsense"})))
    assert not core.requests


async def test_tools_of_one_id_are_refused() -> None:
    tools = [Tool(name, "", {"$id": "https://example.org/t"}) for name in ("a", "b")]
    with pytest.raises(InvalidSyscall, match="id"):
        await answered("x", tools=tools)


# Alternatives within alternatives: each level of the answer is looked at twice by the one above.
_TWICE = {
    "$ref": "#/$defs/a",
    "$defs": {
        "a": {
            "anyOf": [
                {"properties": {"a": {"$ref": "#/$defs/a"}}, "required": [name], "type": "object"}
                for name in ("b", "c")
            ]
        }
    },
}


async def test_validation_that_would_take_for_ever_ends_and_keeps_nobody_waiting() -> None:
    deep = '{"a": ' * 60 + "1" + "}" * 60
    hostile = asyncio.create_task(answered(deep, format=JsonFormat(_TWICE), max_tokens=2_000))
    assert (await answered('{"age": 7}', format=AGE)).parsed() == {"age": 7}
    assert not hostile.done()
    with pytest.raises(FormNotKept, match="was not found out") as refused:
        await hostile
    assert refused.value.field == "body.format.json_schema"
    assert "simpler" in str(refused.value.remedy)


async def test_what_refers_to_itself_is_validated_as_any_other() -> None:
    form = JsonFormat({"properties": {"next": {"$ref": "#"}}, "required": ["name"]})
    kept = '{"name": "a", "next": {"name": "b"}}'
    assert (await answered(kept, format=form)).text == kept
    with pytest.raises(FormNotKept, match=r"required: .*next"):
        await answered('{"name": "a", "next": {}}', format=form)


def test_what_may_take_long_is_no_quick_work() -> None:
    plain = '{"type": "object", "properties": {"age": {"type": "integer"}}}'
    assert quick(plain, '{"age": 7}')
    assert not quick(plain, "x" * MOST_QUICK)
    assert not quick("x" * MOST_QUICK, "")
    for slow in ('{"$ref": "#"}', '{"patternProperties": {}}', '{"uniqueItems": true}'):
        assert not quick(slow, "1")
