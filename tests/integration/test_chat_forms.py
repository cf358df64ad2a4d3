"""Forms and forced calls on the simulated core: they hold whatever the model would rather say."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from aios_broker.contract.llm import GrammarFormat, JsonFormat, LlmChat, RegexFormat, Tool
from aios_broker.contract.reply import ChatResult
from aios_broker.contract.snapshot import AnswersSnapshot, AnswerState, encode_snapshot
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore, SimulatedCoreConfig
from aios_workers.llm.tools import CALL_BEGIN, prompt_ids, toolbox_of
from tests.caller import chat
from tests.cut_handler import Cuts, run_cut, run_whole, trusting

CONFIG = SimulatedCoreConfig(slots=2)
MAX_TOKENS = 1_500  # enough for any call that these schemas allow, spaces included
Check = Callable[[object], bool]


# Random schemas, each with a check of its own.


@dataclass(frozen=True)
class Schema:
    text: dict[str, Any]
    allows: Check


def random_schema(rng: random.Random, depth: int) -> Schema:
    kinds = [an_integer, a_string, a_choice, a_boolean]
    if depth:
        kinds += [a_list, an_object]
    return rng.choice(kinds)(rng, depth)


def an_integer(rng: random.Random, depth: int) -> Schema:
    low = rng.randint(-20, 20)
    high = low + rng.randint(0, 30)
    return Schema(
        {"type": "integer", "minimum": low, "maximum": high},
        lambda value: type(value) is int and low <= value <= high,
    )


def a_string(rng: random.Random, depth: int) -> Schema:
    most = rng.randint(0, 8)
    return Schema(
        {"type": "string", "maxLength": most},
        lambda value: isinstance(value, str) and len(value) <= most,
    )


def a_choice(rng: random.Random, depth: int) -> Schema:
    values = rng.sample(["red", "green", 'quo"ted', "ünï", "/slash", "back\\slash"], 2)
    return Schema({"enum": values}, lambda value: value in values)


def a_boolean(rng: random.Random, depth: int) -> Schema:
    return Schema({"type": "boolean"}, lambda value: isinstance(value, bool))


def a_list(rng: random.Random, depth: int) -> Schema:
    item, most = random_schema(rng, depth - 1), rng.randint(0, 3)
    return Schema(
        {"type": "array", "items": item.text, "maxItems": most},
        lambda value: (
            isinstance(value, list) and len(value) <= most and all(map(item.allows, value))
        ),
    )


def an_object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(["a", "b c", "name", "$ref", "ñ"], rng.randint(0, 3))
    fields = {name: random_schema(rng, depth - 1) for name in names}
    required = [name for name in names if rng.random() < 0.6]
    return Schema(
        {
            "type": "object",
            "properties": {name: field.text for name, field in fields.items()},
            "required": required,
            "additionalProperties": False,
        },
        lambda value: (
            isinstance(value, dict)
            and set(required) <= set(value) <= set(names)
            and all(fields[name].allows(each) for name, each in value.items())
        ),
    )


def random_tools(rng: random.Random) -> tuple[tuple[Tool, ...], dict[str, Check]]:
    tools, checks = [], {}
    for number in range(rng.randint(1, 4)):
        if rng.random() < 0.2:
            tool, check = Tool(f"tool-{number}"), lambda value: value == {}
        else:
            schema = an_object(rng, 2)
            tool, check = Tool(f"tool_{number}", "Does it.", schema.text), schema.allows
        tools.append(tool)
        checks[tool.name] = check
    return tuple(tools), checks


# The promise.


async def check_tool_sets(choice: str, count: int) -> None:
    """Answer chats with random tools, cut at random; compare with the uncut answers."""
    calls = messages = cuts_made = 0
    for number in range(count):
        rng = random.Random(f"{choice}/{number}")
        tools, checks = random_tools(rng)
        body = chat(
            f"Do {number}",
            tools=tools,
            max_tokens=MAX_TOKENS,
            temperature=rng.choice((0.0, 1.0)),
            tool_choice=rng.choice(tools).name if choice == "named" else choice,
            n=rng.choice((1, 1, 2)),
            stream=rng.random() < 0.5,
        )
        begun = a_call_begun(body) if choice == "auto" and body.n == 1 else None
        cuts = Cuts(rng, probability=0.5, quantum_tokens=(1, 20))
        result = await run_cut([a_core(), a_core()], body, cuts, begun)
        whole = await run_cut([a_core()], body, Cuts(random.Random(0)), begun)

        assert isinstance(result, ChatResult)
        assert isinstance(whole, ChatResult)
        assert forgetful(result) == forgetful(whole)
        assert cuts.stream == (result.text if body.stream else "")
        cuts_made += cuts.made
        for each in result.choices or (result,):
            calls += len(each.tool_calls)
            messages += not each.tool_calls
            check_answer(each, choice, checks, body)

    assert min(cuts_made, calls) >= count // 2
    assert (messages > 0) is (choice == "auto")


@pytest.mark.parametrize("choice", ["required", "named", "auto"])
async def test_calls_are_well_formed_whatever_the_model_would_say(choice: str) -> None:
    await check_tool_sets(choice, 12)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("choice", ["required", "named", "auto"])
async def test_two_hundred_sets_of_tools(choice: str) -> None:
    await check_tool_sets(choice, 200)


def a_call_begun(body: LlmChat) -> bytes:
    """Return the snapshot of an answer that has just opened a call: few would by themselves."""
    core = a_core()
    prompt = prompt_ids(core, body.messages, toolbox_of(body))
    return encode_snapshot(
        AnswersSnapshot(
            core.info.snapshot_model, prompt, (AnswerState(tuple(CALL_BEGIN.encode())),), 11
        )
    )


def a_core() -> SimulatedCore:
    return SimulatedCore(CONFIG, check=trusting)


def forgetful(result: ChatResult) -> ChatResult:
    usage = msgspec.structs.replace(result.usage, cached_tokens=0)
    return msgspec.structs.replace(result, usage=usage)


async def uncut(body: LlmChat) -> ChatResult:
    result = await run_whole(a_core(), body)
    assert isinstance(result, ChatResult)
    return result


def check_answer(answer: Any, choice: str, checks: dict[str, Check], body: LlmChat) -> None:  # noqa: ANN401
    for call in answer.tool_calls:
        assert checks[call.name](json.loads(call.arguments)), call
    if choice == "auto":
        return
    [call] = answer.tool_calls
    assert (answer.finish_reason, answer.text) == ("tool_calls", "")
    assert choice == "required" or call.name == body.tool_choice


@pytest.mark.parametrize("number", range(12))
async def test_a_form_holds_for_every_answer(number: int) -> None:
    rng = random.Random(number)
    schema = an_object(rng, 2)
    cuts = Cuts(rng, probability=0.3, quantum_tokens=(1, 20))
    body = chat(
        "Say", format=JsonFormat(schema.text), max_tokens=MAX_TOKENS, temperature=1.0, stream=True
    )

    result = await run_cut([a_core(), a_core()], body, cuts)

    assert isinstance(result, ChatResult)
    assert result.finish_reason == "stop"
    assert schema.allows(json.loads(result.text))
    assert cuts.stream == result.text


@pytest.mark.parametrize("is_called", [False, True])
async def test_a_form_and_tools_hold_together(is_called: bool) -> None:  # noqa: FBT001
    for number in range(6):
        rng = random.Random(number)
        schema, (tools, checks) = an_object(rng, 1), random_tools(rng)
        body = chat(
            "Say",
            format=JsonFormat(schema.text),
            tools=tools,
            max_tokens=MAX_TOKENS,
            temperature=1.0,
            stream=True,
        )
        begun = a_call_begun(body) if is_called else None
        cuts = Cuts(rng, probability=0.3, quantum_tokens=(1, 20))

        result = await run_cut([a_core(), a_core()], body, cuts, begun)

        assert isinstance(result, ChatResult)
        assert bool(result.tool_calls) or not is_called
        for call in result.tool_calls:
            assert checks[call.name](json.loads(call.arguments)), call
        if not result.tool_calls:
            assert schema.allows(json.loads(result.text))
        assert cuts.stream == result.text


async def test_an_object_a_pattern_and_a_grammar() -> None:
    anything = await uncut(chat("Say", format=JsonFormat(), max_tokens=300))
    if anything.finish_reason == "stop":
        assert isinstance(json.loads(anything.text), dict)
    number = await uncut(chat("Say", format=RegexFormat("[1-9][0-9]{2}"), max_tokens=9))
    assert (len(number.text), number.finish_reason) == (3, "stop")
    assert number.text.isdigit()
    grammar = 'start: "a" start? "b"'
    text = (await uncut(chat("Say", format=GrammarFormat(grammar), max_tokens=200))).text
    assert text == "a" * (len(text) // 2) + "b" * (len(text) // 2)
