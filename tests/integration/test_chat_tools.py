"""Tools through the llm handler: what a model says, and what its caller gets."""

import random

import pytest

from aios_broker.contract.errors import UnsupportedOption
from aios_broker.contract.llm import JsonFormat, LlmChat, Message, Tool, ToolCall
from aios_broker.contract.reply import ChatResult
from aios_workers.llm.chat.calls import HERMES
from aios_workers.llm.core import Capabilities
from aios_workers.llm.tools import CALL_BEGIN, CALL_END
from tests.caller import chat
from tests.cut_handler import Cuts, run_cut, run_whole
from tests.scripted_core import ScriptedCore

CALL = f'{CALL_BEGIN}{{"name": "add", "arguments": {{"n": 1}}}}{CALL_END}'
ADD = Tool("add", parameters={"type": "object", "properties": {"n": {"type": "integer"}}})


@pytest.mark.parametrize(
    ("script", "text", "calls", "reason"),
    [
        ("Hello there", "Hello there", 0, "stop"),
        (CALL, "", 1, "tool_calls"),
        (f"Well: {CALL}", "Well: ", 1, "tool_calls"),
        (f"{CALL}{CALL}", "", 2, "tool_calls"),
        (f"<tool {CALL}", "<tool ", 1, "tool_calls"),
        ("<tool_call", "<tool_call", 0, "stop"),
        (f"{CALL_BEGIN}nothing{CALL_END}!", f"{CALL_BEGIN}nothing{CALL_END}!", 0, "stop"),
    ],
)
@pytest.mark.parametrize("can", [Capabilities(call_format=HERMES), None])
async def test_a_stream_has_the_message_alone(
    script: str, text: str, calls: int, reason: str, can: Capabilities | None
) -> None:
    for seed in range(4):
        cuts = Cuts(random.Random(seed), probability=0.4, quantum_tokens=(1, 9))
        body = chat("Hi", tools=(ADD,), stream=True, max_tokens=300)
        result = await run_cut([ScriptedCore(script, can=can)], body, cuts)

        assert isinstance(result, ChatResult)
        assert (result.text, len(result.tool_calls), result.finish_reason) == (text, calls, reason)
        assert cuts.stream == text


async def test_a_call_that_is_cut_off_is_none() -> None:
    body = chat("Hi", tools=(ADD,), max_tokens=len(CALL) + 20)
    result = await run_whole(ScriptedCore(CALL + CALL), body)

    assert isinstance(result, ChatResult)
    assert (len(result.tool_calls), result.finish_reason) == (1, "length")


async def test_a_forced_call_that_just_fits_is_one() -> None:
    script = '{"name": "add", "arguments": {}}'
    body = chat("Hi", tools=(ADD,), tool_choice="required", max_tokens=len(script))
    result = await run_whole(ScriptedCore(script), body)

    assert isinstance(result, ChatResult)
    assert (len(result.tool_calls), result.finish_reason) == (1, "tool_calls")


async def test_a_core_without_forms_and_template_refuses_tools() -> None:
    core = ScriptedCore("Hello", can=Capabilities())

    with pytest.raises(UnsupportedOption):
        await run_whole(core, chat("Hi", tools=(ADD,)))
    assert core.requests == []


async def test_tools_are_in_the_prompt_unless_they_may_not_be_called() -> None:
    async def prompt(**options: object) -> str:
        core = ScriptedCore("Hello")
        await run_whole(core, chat("Hi", **options))
        return core.decode(core.requests[0].prompt_ids).decode()

    assert "# Tools" in await prompt(tools=(ADD,))
    assert "# Tools" not in await prompt(tools=(ADD,), tool_choice="none")
    assert "# Tools" not in await prompt()


async def test_what_cannot_be_cut_runs_to_its_end() -> None:
    weak = Capabilities(constraints=True, constraints_preemptible=False)
    for body, cut in ((chat("Hi", format=JsonFormat()), False), (chat("Hi"), True)):
        cuts = Cuts(random.Random(0), probability=1.0, quantum_tokens=(1, 2))
        await run_cut([ScriptedCore('{"n": 1, "s": "a long enough answer"}', can=weak)], body, cuts)
        assert (cuts.made > 0) is cut
        assert (len(cuts.checkpoints) > 0) is cut


async def test_messages_with_calls_come_back_in_words() -> None:
    core = ScriptedCore("Hello")
    talk = (
        Message("user", "Add."),
        Message("assistant", "", (ToolCall("c", "add", '{"n": 1}'),)),
        Message("tool", "2", tool_call_id="c"),
    )
    await run_whole(core, LlmChat(talk))

    prompt = core.decode(core.requests[0].prompt_ids).decode()
    assert f"<|assistant|>{CALL}<|end|>" in prompt
    assert '<|tool|>{"name": "add", "content": "2"}<|end|>' in prompt
