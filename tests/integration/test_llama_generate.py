"""Beams, forms and tools on the embedded model, cut between its steps."""

import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aios_broker.contract.llm import JsonFormat, LlmChat, Tool
from aios_broker.contract.reply import ChatResult
from aios_workers.llm.core import Core
from aios_workers.llm.cores.llama.llama_core import LlamaCppConfig, LlamaCppCore
from tests.caller import chat
from tests.cut_handler import Cuts, run_cut

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "rivers": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["name", "rivers"],
    "additionalProperties": False,
}


@pytest.fixture
async def core() -> AsyncIterator[Core]:
    core = LlamaCppCore(LlamaCppConfig(slots=2, context_tokens=1_024))
    await core.start()
    yield core
    await core.close()


async def both(core: Core, body: LlmChat, seed: int) -> tuple[ChatResult, Cuts]:
    """Return the answer of a chat that was cut; it is that of one that was not."""
    cuts = Cuts(random.Random(seed), probability=0.7, quantum_tokens=(1, 6))
    result = await run_cut([core], body, cuts)
    whole = await run_cut([core], body, Cuts(random.Random(0)))
    assert isinstance(result, ChatResult)
    assert isinstance(whole, ChatResult)
    assert (result.choices, result.text, result.output_ids) == (
        whole.choices,
        whole.text,
        whole.output_ids,
    )
    assert result.tool_calls == whole.tool_calls
    return result, cuts


async def test_beams(core: Core) -> None:
    cuts_made = 0
    for seed, width in enumerate((1, 2, 3)):
        body = chat("Name a colour of the sky.", beam_width=width, n=width, max_tokens=10)
        result, cuts = await both(core, body, seed)
        cuts_made += cuts.made
        if width == 1:
            [greedy] = [
                await run_cut(
                    [core], chat("Name a colour of the sky.", max_tokens=10), Cuts(random.Random(0))
                )
            ]
            assert isinstance(greedy, ChatResult)
            assert (result.output_ids, result.finish_reason) == (
                greedy.output_ids,
                greedy.finish_reason,
            )

    assert cuts_made >= 3


async def test_several_answers_with_log_probabilities(core: Core) -> None:
    body = chat("Tell me a joke.", n=3, temperature=0.9, seed=4, max_tokens=24, logprobs=3)
    result, cuts = await both(core, body, 1)

    assert cuts.made >= 1
    assert len({choice.text for choice in result.choices}) > 1
    assert all(len(c.logprobs) == len(c.output_ids) for c in result.choices)


async def test_forms_and_calls(core: Core) -> None:
    city, _ = await both(core, chat("Invent a city.", format=JsonFormat(CITY), max_tokens=80), 2)
    assert set(json.loads(city.text)) == {"name", "rivers"}

    tools = (Tool("found_city", "Founds a city.", CITY), Tool("wait", "Does nothing."))
    for choice in ("required", "wait", "found_city"):
        body = chat("Found the city of Oslo.", tools=tools, tool_choice=choice, max_tokens=80)
        called, _ = await both(core, body, 3)
        [call] = called.tool_calls
        assert choice in ("required", call.name)
        assert set(json.loads(call.arguments)) == (
            set(CITY["properties"]) if call.name == "found_city" else set()
        )
    spoken, _ = await both(core, chat("Say hello.", tools=tools, max_tokens=40), 4)
    assert spoken.text or spoken.tool_calls
