"""What tests of the core behind the OpenAI API share: a core on an endpoint, and its requests."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from aios_broker.contract.cores import OpenAISettings, Prefill
from aios_broker.contract.llm import Message, Tool
from aios_workers.llm.core import GenerationRequest, Sampling, Step
from aios_workers.llm.cores.openai.openai_core import OpenAICore
from aios_workers.llm.cores.openai.prefill import text_of
from tests.openai_endpoint import OpenAIEndpoint

QUESTION = "What is on the shelf?"
USER = Message("user", QUESTION)
WEATHER = Tool(
    "weather", "Tells it.", {"type": "object", "properties": {"city": {"type": "string"}}}
)


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
