"""What one tenant had read shows nobody else that it was: neither tokens, nor time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import pytest

from aios_broker.contract.cores import LlamaSettings, OpenAISettings, Price, SimulatedSettings
from aios_broker.contract.llm import ContextExpand, ContextSummarise, Message
from aios_broker.contract.reply import Usage
from aios_broker.contract.syscall import Body
from aios_workers.llm.core import GenerationRequest, Step
from aios_workers.llm.cores.llama.llama_core import LlamaCppConfig, LlamaCppCore
from aios_workers.llm.cores.openai.openai_core import OpenAICore
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore, SimulatedCoreConfig
from aios_workers.runtime.registry import llm_module
from tests.caller import Caller, chat, chat_result, running_worker
from tests.openai_endpoint import OpenAIEndpoint

RECORD = (
    "The patient in room seven is called Miriam Oduya; she came on Tuesday with a fever, and takes "
    "no other medicine. Write one word about her."
)
RIGHT = "Miriam Oduya"
GUESSES = ("Anna Lindqvist", RIGHT, "Tomas Herrera", "Yuki Tanabe")


@pytest.fixture
async def caller(redis_url: str) -> AsyncIterator[Caller]:
    caller = Caller(redis_url)
    yield caller
    await caller.aclose()


async def usage_of(caller: Caller, tenant: str, text: str) -> Usage:
    [syscall_id] = await caller.submit(chat(text, max_tokens=2), tenant=tenant)
    return chat_result(await caller.hear(syscall_id)).usage


async def test_the_right_guess_of_a_prompt_looks_like_the_wrong_ones(caller: Caller) -> None:
    # A slot for each: the record is in memory while its name is guessed.
    core = LlamaCppCore(LlamaCppConfig(slots=6, context_tokens=512))
    async with running_worker(caller.url, "llm", await llm_module(core, LlamaSettings())):
        for round_ in range(3):
            own = await usage_of(caller, "clinic", RECORD)
            assert (own.cached_tokens == 0) == (round_ == 0)
            guesses = [
                await usage_of(caller, f"stranger-{round_}-{number}", RECORD.replace(RIGHT, name))
                for number, name in enumerate(GUESSES)
            ]
            assert [each.cached_tokens for each in guesses] == [0] * len(GUESSES)


class NotingCore(SimulatedCore):
    """Notes for whom each generation is."""

    def __init__(self, config: SimulatedCoreConfig) -> None:
        super().__init__(config)
        self.owners: list[str] = []

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        self.owners.append(request.kv_owner)
        async with aclosing(super().generate(request)) as steps:
            async for step in steps:
                yield step


@pytest.mark.parametrize("share", [False, True])
async def test_each_generation_says_for_whom_it_is(caller: Caller, *, share: bool) -> None:
    """Answers side by side, beams, summaries of contexts, and of what is too long."""
    core = NotingCore(SimulatedCoreConfig(context_tokens=1_024, end_probability=0.0))
    old = tuple(Message("user", f"{RECORD} {number}") for number in range(4))
    bodies: list[Body] = [
        chat(RECORD, n=2, max_tokens=2),
        chat(RECORD, beam_width=2, max_tokens=2),
        ContextExpand(messages=old),
        ContextSummarise(keep_last=1, max_tokens=16),
        chat("And then?", context="main", overflow="compact", max_tokens=800),
    ]
    async with running_worker(
        caller.url, "llm", await llm_module(core, SimulatedSettings(share_kv=share))
    ):
        for body in bodies:
            made = len(core.owners)
            [syscall_id] = await caller.submit(body, tenant="clinic")
            assert (await caller.hear(syscall_id)).error is None
            assert len(core.owners) > made or isinstance(body, ContextExpand)
    assert {*core.owners} == {"" if share else "clinic"}


async def test_an_operator_may_let_tenants_share(caller: Caller) -> None:
    core = LlamaCppCore(LlamaCppConfig(slots=1))
    async with running_worker(
        caller.url, "llm", await llm_module(core, LlamaSettings(share_kv=True))
    ):
        assert (await usage_of(caller, "clinic", RECORD)).cached_tokens == 0
        assert (await usage_of(caller, "ward", RECORD)).cached_tokens > 20


@pytest.mark.parametrize("share", [False, True])
async def test_what_an_endpoint_has_cached_is_told_where_tenants_share_it(
    caller: Caller, *, share: bool
) -> None:
    endpoint = OpenAIEndpoint(words=3, cached_tokens=5)
    price = Price(input=2.0, cached_input=1.0, output=8.0)
    settings = OpenAISettings(
        url=endpoint.url, model="stand-in", prefill="none", share_kv=share, price=price
    )
    with endpoint.running():
        module = await llm_module(OpenAICore("remote", settings, None), settings)
        async with running_worker(caller.url, "llm", module):
            usage = await usage_of(caller, "clinic", RECORD)
    assert usage.cached_tokens == (5 if share else 0)
    assert usage.prompt_tokens == endpoint.prompt_tokens
    assert usage.cost_nano == (endpoint.prompt_tokens - 5) * 2_000 + 5 * 1_000 + 2 * 8_000
