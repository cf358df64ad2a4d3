"""A remote core behind the queue: cut at each slice, paid as its endpoint says, within limits."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aios_broker.contract.errors import CoreKeyRefused
from aios_broker.contract.llm import Tool
from aios_broker.queues.admission import Admission, RateLimited
from aios_workers.llm.cores.openai.probe import PROBE
from tests.caller import Caller, WorkerProcess, chat, chat_result
from tests.openai_endpoint import OpenAIEndpoint, answer_words
from tests.scheduler_process import SchedulerProcess
from tests.waiting import wait_until_async

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
PRICE = "price = { input = 2.0, output = 8.0 }"


def catalogue(folder: Path, endpoint: OpenAIEndpoint, *lines: str) -> dict[str, str]:
    """Write a catalogue with one remote core; return a worker's settings."""
    path = folder / "cores.toml"
    entry = ["[cores.remote]", 'kind = "openai"', f'url = "{endpoint.url}"', 'model = "stand-in"']
    path.write_text("\n".join([*entry, "slots = 2", *lines]))
    return {"aios_cores": str(path)}


async def test_answers_that_were_cut_are_whole_and_cost_what_the_endpoint_says(
    redis_url: str, tmp_path: Path
) -> None:
    endpoint = OpenAIEndpoint(prefill="assistant", word_s=0.02, repeats=True)
    caller = Caller(redis_url)
    settings = catalogue(tmp_path, endpoint, PRICE)
    await caller.publish_policy(quantum_tokens=8)
    with (
        endpoint.running(),
        SchedulerProcess(redis_url, tmp_path / "scheduler.log", aios_quantum_tokens=8),
        WorkerProcess(redis_url, "llm", "--core", "remote", **settings),
    ):
        asked = [f"What is in room {number}?" for number in range(6)]
        ids = await caller.submit(*map(chat, asked))
        async with asyncio.timeout(60):
            await caller.hear_all(ids)
    replies = [caller.replies[each][0] for each in ids]
    await caller.aclose()
    results = [chat_result(reply) for reply in replies]
    assert [each.text for each in results] == ["".join(answer_words(each, 40)) for each in asked]
    assert sum(reply.timings.suspensions for reply in replies) >= 4
    assert {each.core for each in results} == {"remote"}
    assert sum(each.usage.output_tokens for each in results) >= 6 * 40
    assert all(each.usage.cost_nano for each in results)


async def test_without_prefill_nothing_is_cut_and_calls_are_read(
    redis_url: str, tmp_path: Path
) -> None:
    endpoint = OpenAIEndpoint(word_s=0.005)
    caller = Caller(redis_url)
    settings = catalogue(tmp_path, endpoint, PRICE)
    await caller.publish_policy(quantum_tokens=8)
    with (
        endpoint.running(),
        SchedulerProcess(redis_url, tmp_path / "scheduler.log", aios_quantum_tokens=8),
        WorkerProcess(redis_url, "llm", "--core", "remote", **settings),
    ):
        asked = [f"What is in room {number}?" for number in range(5)]
        tool = Tool("weather", "Tells it.", CITY)
        bodies = [*(chat(text) for text in asked), chat("Paris?", tools=(tool,))]
        bodies.append(chat("Lyon?", tools=(tool,), tool_choice="weather"))
        ids = await caller.submit(*bodies)
        async with asyncio.timeout(60):
            await caller.hear_all(ids)
        spent = (endpoint.prompt_tokens, endpoint.output_tokens)
    replies = [caller.replies[each][0] for each in ids]
    await caller.aclose()
    results = [chat_result(reply) for reply in replies]
    assert [reply.timings.suspensions for reply in replies] == [0] * len(replies)
    for called in results[-2:]:
        assert called.finish_reason == "tool_calls"
        assert [(call.name, call.arguments) for call in called.tool_calls] == [
            ("weather", '{"city": "Paris"}')
        ]
    probe_prompt, probe_output = probe_cost(endpoint)
    assert sum(each.usage.prompt_tokens for each in results) == spent[0] - probe_prompt
    assert sum(each.usage.output_tokens for each in results) == spent[1] - probe_output
    expected = (spent[0] - probe_prompt) * 2_000 + (spent[1] - probe_output) * 8_000
    assert sum(each.usage.cost_nano or 0 for each in results) == expected


def probe_cost(endpoint: OpenAIEndpoint) -> tuple[int, int]:
    """Return the tokens of what the core asked by itself when it started."""
    probes = [each for each in endpoint.seen if each["messages"][0] == PROBE[0]]
    told = [endpoint.cost_of(each) for each in probes]
    return sum(prompt for prompt, _ in told), sum(output for _, output in told)


async def test_a_refused_key_is_said_at_once_and_others_are_unharmed(
    redis_url: str, tmp_path: Path
) -> None:
    endpoint = OpenAIEndpoint()
    caller = Caller(redis_url)
    settings = catalogue(tmp_path, endpoint, 'prefill = "none"')
    with endpoint.running(), WorkerProcess(redis_url, "llm", "--core", "remote", **settings):
        endpoint.key = "another"
        [refused] = await caller.submit(chat("Who?"))
        reply = await caller.hear(refused)
        assert reply.error is not None
        assert reply.error.code == CoreKeyRefused.code
        endpoint.key = None
        assert (await caller.chat(chat("Who?"))).text
    await caller.aclose()


@pytest.mark.timeout(120)
async def test_the_account_is_not_asked_more_often_than_it_may(
    redis_url: str, tmp_path: Path
) -> None:
    """Two workers, one account: the endpoint never has to refuse."""
    endpoint = OpenAIEndpoint(requests_per_minute=6, words=3)
    caller = Caller(redis_url)
    settings = catalogue(
        tmp_path, endpoint, 'prefill = "none"', "limits = { requests_per_minute = 6 }"
    )
    with (
        endpoint.running(),
        SchedulerProcess(redis_url, tmp_path / "scheduler.log"),
        WorkerProcess(redis_url, "llm", "--core", "remote", **settings),
        WorkerProcess(redis_url, "llm", "--core", "remote", **settings),
    ):
        ids = await caller.submit(*(chat(f"Room {n}?") for n in range(9)), deadline_s=8.0)
        async with asyncio.timeout(60):
            await caller.hear_all(ids)
    replies = [caller.replies[each][0] for each in ids]
    await caller.aclose()
    errors = [reply.error.code for reply in replies if reply.error is not None]
    assert len(endpoint.seen) == 6
    assert errors == ["deadline-exceeded"] * 3


async def test_limits_that_change_in_the_file_hold_without_a_new_start(
    redis_url: str, tmp_path: Path
) -> None:
    endpoint = OpenAIEndpoint(prefill="none")
    caller = Caller(redis_url)
    limits = ("limits = { requests_per_minute = 1 }", "limits = { requests_per_minute = 9 }")
    settings = catalogue(tmp_path, endpoint, 'prefill = "none"', limits[0])
    barriers = Admission(caller.functions)
    with (
        endpoint.running(),
        SchedulerProcess(redis_url, tmp_path / "scheduler.log"),
        WorkerProcess(redis_url, "llm", "--core", "remote", **settings),
    ):
        await caller.chat(chat("Who?"))
        [second] = await caller.submit(chat("Where?", core="remote"))

        async def waits_for_the_account() -> bool:
            return isinstance(await barriers.barrier("llm", second), RateLimited)

        await wait_until_async(waits_for_the_account)
        catalogue(tmp_path, endpoint, 'prefill = "none"', limits[1])
        assert chat_result(await caller.hear(second)).core == "remote"  # not after a minute
    assert len(endpoint.seen) == 2
    await caller.aclose()
