"""When a remote core fails, its syscalls go on on the next one; its endpoint is killed for real."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from aios_broker.contract.llm import LlmEmbed
from aios_broker.contract.reply import EmbedResult, Reply
from aios_workers.model_files import SMOLLM2
from tests.caller import Caller, WorkerProcess, chat, chat_result, text_read
from tests.llama_server import MODEL, LlamaServer
from tests.openai_endpoint import OpenAIEndpoint, answer_words
from tests.scheduler_process import SchedulerProcess
from tests.waiting import wait_until_async


@contextlib.contextmanager
def fleet(
    redis_url: str, folder: Path, cores: dict[str, str], **scheduler: object
) -> Iterator[None]:
    """Run one worker per remote core, by name and the lines of its entry."""
    path = folder / "cores.toml"
    entries = [
        f'[cores.{name}]\nkind = "openai"\nslots = 2\n{lines}' for name, lines in cores.items()
    ]
    path.write_text("\n".join(entries))
    with contextlib.ExitStack() as stack:
        stack.enter_context(SchedulerProcess(redis_url, folder / "scheduler.log", **scheduler))
        for name in cores:
            worker = WorkerProcess(redis_url, "llm", "--core", name, aios_cores=path)
            stack.enter_context(worker)
        yield


def entry(url: str, *lines: str, model: str = "stand-in") -> str:
    """Return the lines of one core."""
    return "\n".join([f'url = "{url}"', f'model = "{model}"', *lines]) + "\n"


async def served(caller: Caller, *names: str) -> None:
    """Wait until these cores have a living worker."""

    async def all_live() -> bool:
        views = {view.card.name: view.slots for view in await caller.control.cores()}
        return all(views.get(name) for name in names)

    await wait_until_async(all_live, 20)


async def heard(caller: Caller, ids: list[str]) -> list[Reply]:
    async with asyncio.timeout(60):
        return await caller.hear_all(ids)


async def hear_each(caller: Caller, ids: list[str]) -> None:
    """Wait for one reply after the other: each has its time."""
    for each in ids:
        await caller.hear(each)


async def test_before_the_first_token_any_core_of_the_chain_goes_on(
    redis_url: str, tmp_path: Path
) -> None:
    """And the chain ends: who gave a syscall away does not get it back."""
    first, other = OpenAIEndpoint(), OpenAIEndpoint()
    caller = Caller(redis_url)
    cores = {
        "first": entry(first.url, 'prefill = "none"', "default = true", 'fallback = ["other"]'),
        "other": entry(other.url, 'prefill = "none"', model="another"),
    }
    with first.running(), other.running(), fleet(redis_url, tmp_path, cores):
        await served(caller, "first", "other")
        first.key = "changed"
        ids = await caller.submit(chat("Who?"), chat("Where?"))
        results = [chat_result(reply) for reply in await heard(caller, ids)]
        assert [each.core for each in results] == ["other", "other"]
        assert [each.text for each in results] == [
            "".join(answer_words(question, 40)) for question in ("Who?", "Where?")
        ]
        [embedding] = await heard(caller, await caller.submit(LlmEmbed(("abcd",))))
        made = embedding.unwrap()
        assert isinstance(made, EmbedResult)
        assert made.core == "other"
        other.key = "changed"
        [refused] = await heard(caller, await caller.submit(chat("When?")))
        assert refused.error is not None
        assert refused.error.code == "core-key-refused"
    await caller.aclose()


@pytest.mark.parametrize("model", ["stand-in", "another"])
async def test_after_the_first_token_only_the_same_model_goes_on(
    redis_url: str, tmp_path: Path, model: str
) -> None:
    first, other = OpenAIEndpoint(prefill="assistant"), OpenAIEndpoint(prefill="assistant")
    caller = Caller(redis_url)
    cores = {
        "first": entry(
            first.url, 'prefill = "assistant"', "default = true", 'fallback = ["other"]'
        ),
        "other": entry(other.url, 'prefill = "assistant"', model=model),
    }
    whole = "".join(answer_words("What?", 40))
    with first.running(), other.running(), fleet(redis_url, tmp_path, cores):
        await served(caller, "first", "other")
        first.faults.extend(["truncated"] * 3)  # each time three words have come
        ids = await caller.submit(chat("What?", stream=True))
        [reply] = await heard(caller, ids)
        read = text_read(caller.chunks[ids[0]])
        if model == "another":
            assert reply.error is not None
            assert reply.error.code == "core-error"
            assert not other.seen
        else:
            result = chat_result(reply)
            assert (result.core, result.text) == ("other", whole)
            assert read == whole
            assert [each["messages"][-1]["role"] for each in other.seen] == ["assistant"]
    assert whole.startswith(read)
    await caller.aclose()


@pytest.mark.timeout(180)
async def test_a_killed_endpoint_loses_nobody(redis_url: str, tmp_path: Path) -> None:
    """Two real llama.cpp servers of one model; one is ended by kill -9 under load."""
    gguf = SMOLLM2.find()
    assert gguf is not None
    one, two = LlamaServer(gguf), LlamaServer(gguf)
    caller = Caller(redis_url)
    questions = [f"{number}. Write a long story of a lighthouse keeper." for number in range(8)]
    cores = {
        "one": entry(one.url, "default = true", 'fallback = ["two"]', model=MODEL),
        "two": entry(two.url, model=MODEL),
    }
    with (
        one.running(),
        two.running(),
        fleet(redis_url, tmp_path, cores, aios_quantum_tokens=16),
    ):
        await served(caller, "one", "two")
        ids = await caller.submit(
            *(chat(each, core="one", max_tokens=64, stream=True) for each in questions)
        )
        hearing = asyncio.create_task(hear_each(caller, ids))
        # Some are in the middle then, and others have not begun.
        await wait_until_async(lambda: len(caller.chunks) >= 2, 60)
        begun = {each: "".join(c.text for c in caller.chunks[each]) for each in caller.chunks}
        one.kill()
        await hearing
        results = {each: chat_result(caller.replies[each][0]) for each in ids}
        assert {each.core for each in results.values()} >= {"two"}
        for syscall_id, text in begun.items():
            assert results[syscall_id].text.startswith(text)
        for syscall_id in ids:
            assert "".join(c.text for c in caller.chunks[syscall_id]) == results[syscall_id].text
        one.start()  # who comes back is used again, without a word to anybody
        again = chat_result((await heard(caller, await caller.submit(chat("Hi", core="one"))))[0])
        assert again.text
    await caller.aclose()
