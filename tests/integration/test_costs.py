"""What syscalls cost: by reply, counter and ledger the same, to the last token."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from aios_broker.contract.cores import Price, SimulatedSettings
from aios_broker.contract.errors import CoreError
from aios_broker.contract.llm import LlmChat, LlmEmbed
from aios_broker.contract.money import Billed, cost_pico, nano
from aios_broker.contract.reply import ChatResult, EmbedResult, Reply, Usage
from aios_broker.ledger.ledger import Ledger, UsageHistory
from aios_broker.postgres.database import Database
from aios_broker.queues.fleet import Fleet
from aios_broker.queues.keys import Keys
from aios_broker.queues.quota import Quotas, Subject
from aios_workers.llm.core import CoreInfo, GenerationRequest, Step
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore, SimulatedCoreConfig
from aios_workers.runtime.registry import LoadedModule, llm_module
from tests.caller import Caller, chat, chat_result, running_worker
from tests.waiting import wait_until_async

PRICES = {
    "dear": Price(input=2.5, output=10.000001, cached_input=1.25),
    "cheap": Price(input=0.0375, output=0.15),
    "free": None,
}
SLOW = SimulatedCoreConfig(slots=1, end_probability=0.0, decode_tokens_per_s=2_000.0)


@pytest.fixture
async def caller(redis_url: str) -> AsyncIterator[Caller]:
    caller = Caller(redis_url)
    await caller.publish_policy(quantum_s=60.0, quantum_tokens=8)
    yield caller
    await caller.aclose()


async def has_tokens(caller: Caller, syscall_id: str) -> bool:
    view = await caller.control.job(syscall_id)
    return view is not None and view.tokens > 0


async def core_named(name: str, core: SimulatedCore | None = None) -> LoadedModule:
    core = core or SimulatedCore(replace(SLOW, name=name))
    return await llm_module(core, SimulatedSettings(price=PRICES[name]))


def expected_nano(name: str, billed: Billed) -> int | None:
    price = PRICES[name]
    return None if price is None else nano(cost_pico(price, billed))


async def test_a_mixed_load_costs_the_same_by_reply_counter_and_ledger(
    caller: Caller, database: Database
) -> None:
    """Three cores, slices, suspensions; of each syscall what its own usage says at the price."""
    asked: list[tuple[str, LlmChat | LlmEmbed]] = []
    for number in range(24):
        name = list(PRICES)[number % 3]
        text, answers = f"Story {number} " * (number + 1), 1 + number % 2
        asked.append((name, chat(text, core=name, max_tokens=5 + 3 * number, n=answers)))
    asked += [(name, LlmEmbed(("One text", "another one"), core=name)) for name in PRICES]
    replies = await answered(caller, asked)

    assert sum(reply.timings.suspensions for reply in replies) > 10
    costs: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for (name, _), reply in zip(asked, replies, strict=True):
        usage = usage_of(reply)
        billed = Billed(usage.prompt_tokens, usage.cached_tokens, usage.output_tokens)
        assert usage.cost_nano == expected_nano(name, billed)
        assert usage.currency == ("USD" if PRICES[name] else "")
        costs[name] += usage.cost_nano or 0
        tokens[name] += usage.output_tokens
    await compare_with_ledger(caller, database, costs, tokens)


async def answered(caller: Caller, asked: list[tuple[str, LlmChat | LlmEmbed]]) -> list[Reply]:
    async with (
        running_worker(caller.url, "llm", await core_named("dear")),
        running_worker(caller.url, "llm", await core_named("cheap")),
        running_worker(caller.url, "llm", await core_named("free")),
    ):
        await workers_live(caller, len(PRICES))
        return await caller.hear_all(await caller.submit(*(body for _, body in asked)))


async def workers_live(caller: Caller, number: int) -> None:
    fleet = Fleet(caller.connection, Keys())

    async def live() -> bool:
        return len(await fleet.live_workers()) == number

    await wait_until_async(live)


def usage_of(reply: Reply) -> Usage:
    result = reply.unwrap()
    assert isinstance(result, ChatResult | EmbedResult)
    return result.usage


async def compare_with_ledger(
    caller: Caller, database: Database, costs: Counter[str], tokens: Counter[str]
) -> None:
    ledger = Ledger(database)
    while (await ledger.drain(caller.connection)).behind:
        pass
    await ledger.drain(caller.connection)
    rows = await UsageHistory(database).since(datetime.now(UTC) - timedelta(hours=1))
    by_core: Counter[str] = Counter()
    tokens_by_core: Counter[str] = Counter()
    for row in rows:
        by_core[row.core] += row.cost_nano
        tokens_by_core[row.core] += row.tokens
        assert row.currency == ("USD" if PRICES[row.core] else "")
    assert +by_core == +costs
    assert +tokens_by_core == +tokens
    syscalls = await ledger.recent(1000)
    assert sum(row.cost_nano for row in syscalls) == sum(costs.values())
    assert Counter(row.core for row in syscalls) == Counter(dict.fromkeys(PRICES, 9))
    use = (await Quotas(caller.functions).usage("llm")).of(Subject.of_agent("ada"))
    assert use.cost_nano == {"USD": sum(costs.values())}


class BilledCore(SimulatedCore):
    """Of an endpoint that counts itself, and whose first request breaks off after three tokens."""

    def __init__(self) -> None:
        super().__init__(replace(SLOW, name="dear"))
        self.requests = 0

    @property
    def info(self) -> CoreInfo:
        """What it is."""
        info = super().info
        return replace(info, capabilities=replace(info.capabilities, bills_requests=True))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        """Say what the endpoint says, and what it counts."""
        self.requests += 1
        first, made = self.requests == 1, 0
        async for step in super().generate(request):
            yield step
            made += len(step.ids)
            if first and made == 3:
                yield Step((), billed=Billed(100, 0, 3))
                raise CoreError("the stream broke off")
        yield Step((), billed=Billed(103, 90, made))


async def test_what_an_endpoint_counts_is_paid_the_request_that_failed_too(caller: Caller) -> None:
    core = BilledCore()
    async with running_worker(caller.url, "llm", await core_named("dear", core)):
        await workers_live(caller, 1)
        result = await caller.chat(chat("Hello", core="dear", max_tokens=10))

    assert core.requests == 2
    assert result.usage.cost_nano == expected_nano("dear", Billed(203, 90, 10))


async def test_a_generation_that_moves_to_another_worker_pays_its_prompt_once(
    caller: Caller,
) -> None:
    async with running_worker(caller.url, "llm", await core_named("dear")) as worker:
        await workers_live(caller, 1)
        [syscall_id] = await caller.submit(chat("Hello " * 50, core="dear", max_tokens=400))
        await wait_until_async(lambda: has_tokens(caller, syscall_id))
        assert worker.running == 1
    assert await caller.state(syscall_id) == "suspended"  # its worker drained
    async with running_worker(caller.url, "llm", await core_named("dear")):
        reply = await caller.hear(syscall_id)

    usage = chat_result(reply).usage
    assert reply.timings.attempts == 2
    billed = Billed(usage.prompt_tokens, 0, 400)
    assert usage.cost_nano == expected_nano("dear", billed)
