"""A remote core on SGLang's own OpenAI interface, on a CPU with a tiny model."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aios_broker.contract.cores import OpenAISettings, Prefill
from aios_broker.contract.llm import Message
from aios_workers.llm.core import GenerationRequest, Sampling, Step
from aios_workers.llm.cores.openai.openai_core import OpenAICore
from aios_workers.llm.cores.openai.prefill import text_of
from tests.sglang_servers import own_server, started
from tests.tiny_llama import write_model

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(600)]

USER = Message("user", "A long answer, please.")


@contextlib.asynccontextmanager
async def remote(url: str, model: str, prefill: Prefill) -> AsyncIterator[OpenAICore]:
    core = OpenAICore("served", OpenAISettings(url=url, model=model, prefill=prefill), None)
    await core.start()
    try:
        yield core
    finally:
        await core.close()


async def steps_of(core: OpenAICore, max_tokens: int, **more: object) -> list[Step]:
    ids = core.render((USER,))
    request = GenerationRequest("ab" * 16, ids, max_tokens, Sampling(), **more)  # type: ignore[arg-type]
    return [step async for step in core.generate(request)]


def said(steps: list[Step]) -> str:
    return text_of([token for step in steps for token in step.ids])


async def test_its_answers_come_are_counted_and_go_on(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny-llama", seed=7)
    async with started(own_server(model)) as engine:
        assert engine.server is not None
        url = f"{engine.server.url}/v1"
        async with remote(url, str(model), "continue_final_message") as core:
            whole = await steps_of(core, 24)
            [billed] = [step.billed for step in whole if step.billed is not None]
            assert billed.output_tokens == sum(step.token_count for step in whole) <= 24
            assert billed.prompt_tokens > 0
            begun = said(whole)
            assert begun
            more = await steps_of(core, 48, resume_ids=tuple(map(ord, begun)), resume_tokens=24)
            [again] = [step.billed for step in more if step.billed is not None]
            assert again.prompt_tokens > billed.prompt_tokens  # it has read the answer so far
            assert not said(more).startswith(begun)
        async with remote(url, str(model), "auto") as core:
            assert said(await steps_of(core, 8))
