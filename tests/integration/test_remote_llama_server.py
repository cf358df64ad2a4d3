"""A remote core on a real server: llama.cpp's own, of the pinned package, with the small model."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from aios_broker.contract.cores import OpenAISettings, Prefill
from aios_broker.contract.errors import UnsupportedOption
from aios_broker.contract.llm import Message, Tool
from aios_broker.contract.money import Billed
from aios_workers.llm.core import Constraint, GenerationRequest, Sampling, Step
from aios_workers.llm.cores.openai.openai_core import OpenAICore
from aios_workers.llm.cores.openai.prefill import text_of
from aios_workers.model_files import SMOLLM2
from tests.llama_server import MODEL, LlamaServer

USER = Message("user", "Write a story of a lighthouse keeper.")
SCHEMA = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
CITY = Tool(
    "weather",
    "Tells the weather of a city.",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)


@pytest.fixture(scope="module")
def server() -> Iterator[LlamaServer]:
    gguf = SMOLLM2.find()
    assert gguf is not None
    with LlamaServer(gguf).running() as server:
        yield server


@contextlib.asynccontextmanager
async def started(server: LlamaServer, prefill: Prefill = "auto") -> AsyncIterator[OpenAICore]:
    core = OpenAICore("served", OpenAISettings(url=server.url, model=MODEL, prefill=prefill), None)
    await core.start()
    try:
        yield core
    finally:
        await core.close()


async def steps_of(core: OpenAICore, max_tokens: int = 32, **more: object) -> list[Step]:
    ids = core.render((USER,), (CITY,) if more.get("tool_choice") else ())
    request = GenerationRequest("ab" * 16, ids, max_tokens, Sampling(), **more)  # type: ignore[arg-type]
    return [step async for step in core.generate(request)]


def said(steps: list[Step]) -> str:
    return text_of([token for step in steps for token in step.ids])


async def test_how_it_goes_on_is_found_out_and_no_seam_is_broken(server: LlamaServer) -> None:
    """The text so far, read anew by its native interface, has the same next words."""
    async with started(server) as core, httpx.AsyncClient(timeout=30.0) as http:
        assert core.info.capabilities.preemptible
        steps = await steps_of(core)
        for cut in (1, 3, 8, 20):
            begun = said(steps[:cut])
            resumed = await steps_of(
                core, resume_ids=tuple(map(ord, begun)), resume_tokens=cut, max_tokens=cut + 3
            )
            came = said(resumed)
            rendered = await http.post(
                f"{server.root}/apply-template",
                json={"messages": [{"role": "user", "content": USER.content}]},
                headers={"Connection": "close"},
            )
            expected = await http.post(
                f"{server.root}/completion",
                json={
                    "prompt": rendered.json()["prompt"] + begun,
                    "n_predict": 3,
                    "temperature": 0.0,
                },
                headers={"Connection": "close"},
            )
            assert came == expected.json()["content"]


@pytest.mark.parametrize("prefill", ["assistant", "continue_final_message"])
async def test_both_ways_of_going_on_are_its_own(server: LlamaServer, prefill: Prefill) -> None:
    async with started(server, prefill) as core:
        begun = said((await steps_of(core))[:6])
        rest = said(await steps_of(core, resume_ids=tuple(map(ord, begun)), resume_tokens=6))
        assert rest
        assert not rest.startswith(begun)


async def test_its_usage_is_what_is_charged(server: LlamaServer) -> None:
    async with started(server) as core:
        steps = await steps_of(core, max_tokens=12)
    [billed] = [step.billed for step in steps if step.billed is not None]
    assert isinstance(billed, Billed)
    assert billed.output_tokens == 12 == sum(step.token_count for step in steps)
    assert billed.prompt_tokens > len(USER.content.split())
    assert steps[-1].finish_reason == "length"


async def test_a_form_is_held_and_a_call_that_never_comes_is_said(server: LlamaServer) -> None:
    async with started(server) as core:
        made = said(await steps_of(core, constraint=Constraint("json", SCHEMA), max_tokens=64))
        assert made.lstrip().startswith("{")
        assert '"n"' in made
        # Its template of this model knows no tools, and it answers as if none had been asked for.
        with pytest.raises(UnsupportedOption, match="without a call") as refused:
            await steps_of(core, tool_choice="required", max_tokens=16)
        assert refused.value.field == "body.tool_choice"


async def test_many_requests_one_after_the_other_never_fail(server: LlamaServer) -> None:
    """It closes connections that are kept, also just when they are used again."""
    async with started(server) as core:
        for _ in range(40):
            assert said(await steps_of(core, max_tokens=2))
