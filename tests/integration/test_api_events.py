"""A syscall's events: each piece of text once, in order, however often the reader is cut off."""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
import redis

from aios_broker.contract.errors import ModuleError
from aios_broker.contract.llm import LlmChat
from aios_broker.contract.reply import ChatResult, Result
from aios_broker.contract.syscall import Syscall
from aios_sdk import AsyncAgent, Chunk
from tests.api_scene import bearer, serving
from tests.caller import redis_away
from tests.conftest import RunningRedis
from tests.doors import RunningApi, issued
from tests.integration.test_api_process import on_disk
from tests.tiny_worker import MODEL, Emit, TinyWorker
from tests.waiting import wait_until_async

WORDS = [f"word{number} " for number in range(400)]
STORY = "".join(WORDS)
CUTS = 200
TIMEOUT_S = 20.0
CHAT = {"type": "llm.chat", "messages": [{"role": "user", "content": "a story"}], "stream": True}


@dataclass(frozen=True)
class Event:
    number: str
    name: str
    data: dict[str, object]


class Paced:
    """Tells the story, as many words as it is let."""

    def __init__(self) -> None:
        self.words = asyncio.Semaphore(0)

    async def __call__(self, syscall: Syscall, emit: Emit) -> Result:
        offset = 0
        for word in WORDS:
            await self.words.acquire()
            await emit(offset, word)
            offset += len(word)
        return ChatResult(STORY, "stop", MODEL)

    def let(self, words: int) -> None:
        for _ in range(words):
            self.words.release()


class Gate:
    """Tells one word, and the rest when it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    async def __call__(self, syscall: Syscall, emit: Emit) -> Result:
        assert isinstance(syscall.body, LlmChat)
        await emit(0, "one ")
        await self.opened.wait()
        await emit(4, "two")
        if syscall.body.seed == 13:
            raise ModuleError("it broke")
        return ChatResult("one two", "stop", MODEL)


@pytest.fixture
def api(redis_url: str) -> Iterator[RunningApi]:
    with RunningApi(redis_url) as api:
        yield api


@pytest.fixture
def other_api(redis_url: str) -> Iterator[RunningApi]:
    with RunningApi(redis_url) as api:
        yield api


@pytest.fixture
def token(redis_url: str) -> str:
    return issued(redis_url, "writer")


def client_of(api: RunningApi, token: str) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {token}"}
    return httpx.AsyncClient(base_url=api.url, headers=headers, timeout=TIMEOUT_S)


async def submitted(api: RunningApi, token: str, **options: object) -> str:
    async with client_of(api, token) as client:
        answer = await client.post("/v1/syscalls", json={"body": {**CHAT, **options}})
    assert answer.status_code == 202, answer.text
    syscall_id: str = answer.json()["id"]
    return syscall_id


@asynccontextmanager
async def opened(
    api: RunningApi, token: str, syscall_id: str, after: str = ""
) -> AsyncIterator[AsyncIterator[Event]]:
    headers = {"last-event-id": after} if after else {}
    path = f"/v1/syscalls/{syscall_id}/events"
    async with (
        client_of(api, token) as client,
        client.stream("GET", path, headers=headers) as answer,
    ):
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield read_events(answer)


async def read_events(answer: httpx.Response) -> AsyncIterator[Event]:
    fields: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield Event(fields.get("id", ""), fields["event"], json.loads(fields["data"]))
            fields = {}


async def all_events(api: RunningApi, token: str, syscall_id: str, after: str = "") -> list[Event]:
    async with asyncio.timeout(TIMEOUT_S), opened(api, token, syscall_id, after) as events:
        return [event async for event in events]


def text_of(events: list[Event]) -> str:
    return "".join(str(each.data["text"]) for each in events if each.name == "chunk")


async def test_a_stream_that_is_cut_200_times_loses_and_doubles_nothing(
    redis_url: str, api: RunningApi, other_api: RunningApi, token: str
) -> None:
    """The next part is asked of another process each time."""
    dice, story = random.Random(7), Paced()
    seen: list[Event] = []
    async with TinyWorker(redis_url, "llm", story):
        syscall_id = await submitted(api, token)
        async with asyncio.timeout(60):
            for cut in range(CUTS):
                after = seen[-1].number if seen else ""
                story.let(len(WORDS) // CUTS)
                async with opened((api, other_api)[cut % 2], token, syscall_id, after) as events:
                    if dice.random() < 0.8:
                        seen.append(await anext(events))
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(dice.choice([0, 0.001, 0.005])):
                            seen.append(await anext(events))
            assert "reply" not in {event.name for event in seen[:-1]}
            if seen[-1].name != "reply":
                seen += await all_events(api, token, syscall_id, seen[-1].number)
    assert text_of(seen) == STORY
    assert [event.name for event in seen if event.name != "chunk"] == ["reply"]
    assert seen[-1].data["result"]["text"] == STORY  # type: ignore[index]


async def test_two_readers_and_a_late_one_get_the_same(
    redis_url: str, api: RunningApi, other_api: RunningApi, token: str
) -> None:
    gate = Gate()
    async with TinyWorker(redis_url, "llm", gate):
        syscall_id = await submitted(api, token)
        async with (
            opened(api, token, syscall_id) as one,
            opened(other_api, token, syscall_id) as two,
        ):
            assert [(await anext(each)).data["text"] for each in (one, two)] == ["one ", "one "]
            gate.opened.set()
            rests = [[event async for event in each] for each in (one, two)]
        assert [text_of(rest) for rest in rests] == ["two", "two"]
        late = await all_events(other_api, token, syscall_id)
        assert text_of(late) == "one two"
        assert [event.number for event in late] == ["7-0", "end"]


async def test_what_is_not_streamed_is_told_at_its_end(
    redis_url: str, api: RunningApi, token: str
) -> None:
    gate = asyncio.Event()

    async def silent(_syscall: Syscall, _emit: Emit) -> Result:
        await gate.wait()
        return ChatResult("one two", "stop", MODEL)

    async with TinyWorker(redis_url, "llm", silent) as worker:
        syscall_id = await submitted(api, token)
        async with opened(api, token, syscall_id) as events:
            await wait_until_async(lambda: bool(worker.seen))
            gate.set()
            heard = [event async for event in events]
    assert text_of(heard) == "one two"
    assert [event.name for event in heard] == ["chunk", "reply"]


async def test_the_kept_text_has_no_hole(redis_url: str) -> None:
    """What comes behind one is left out: no reader hears what nobody said."""
    gate = asyncio.Event()

    async def forgetful(_syscall: Syscall, emit: Emit) -> Result:
        await emit(0, "ab")
        await emit(5, "fg")
        await emit(1, "bc")
        await gate.wait()
        return ChatResult("abcdefgh", "stop", MODEL)

    with redis.Redis.from_url(redis_url) as raw:
        async with (
            TinyWorker(redis_url, "llm", forgetful),
            AsyncAgent("writer", url=redis_url) as me,
        ):
            call = me.llm.chat.start("x", stream=True)
            key = f"rq:aios:answer:{call.id}"
            await wait_until_async(lambda: raw.get(key) == "abc".encode("utf-32-le"))
            gate.set()
            assert (await call).text == "abcdefgh"


async def test_what_failed_has_told_what_it_said_before(
    redis_url: str, api: RunningApi, token: str
) -> None:
    gate = Gate()
    gate.opened.set()
    async with TinyWorker(redis_url, "llm", gate):
        syscall_id = await submitted(api, token, seed=13)
        first = await all_events(api, token, syscall_id)
        again = await all_events(api, token, syscall_id, "4-0")
    assert text_of(first) == "one two"
    assert text_of(again) == "two"
    for events in (first, again):
        assert events[-1].data["error"]["code"] == "module-error"  # type: ignore[index]


async def test_who_has_heard_all_is_told_so_and_nonsense_is_refused(
    redis_url: str, api: RunningApi, token: str
) -> None:
    foreign = issued(redis_url, "eve", "other")
    async with TinyWorker(redis_url, "llm"), client_of(api, token) as client:
        syscall_id = await submitted(api, token)
        path = f"/v1/syscalls/{syscall_id}/events"
        await all_events(api, token, syscall_id)
        ended = await client.get(path, headers={"last-event-id": "end"})
        assert (ended.status_code, ended.content) == (204, b"")
        assert (await client.head(path)).status_code == 204
        for number in ("-1-0", "1", "1-1-1", "x" * 3000, "9" * 40 + "-0"):
            wrong = await client.get(path, headers={"last-event-id": number})
            assert (wrong.status_code, wrong.json()["field"]) == (400, "last-event-id")
        far = await all_events(api, token, syscall_id, "999999-7")
        assert [event.name for event in far] == ["reply"]
        for unknown in ("0" * 32, syscall_id):
            answer = await client.get(
                f"/v1/syscalls/{unknown}/events",
                headers={"authorization": f"Bearer {foreign}"},
            )
            assert (answer.status_code, answer.json()["code"]) == (404, "unknown-syscall")


async def test_a_reader_that_leaves_ends_nothing(
    redis_url: str, api: RunningApi, token: str
) -> None:
    gate = Gate()
    async with TinyWorker(redis_url, "llm", gate):
        syscall_id = await submitted(api, token)
        async with opened(api, token, syscall_id) as events:
            await anext(events)
        gate.opened.set()
        assert text_of(await all_events(api, token, syscall_id)) == "one two"


async def test_a_process_that_stops_tells_its_readers_to_go_on_elsewhere(
    redis_url: str, api: RunningApi, token: str
) -> None:
    gate = Gate()
    with RunningApi(redis_url) as stopping:
        async with TinyWorker(redis_url, "llm", gate):
            syscall_id = await submitted(stopping, token)
            async with opened(stopping, token, syscall_id) as events:
                first = await anext(events)
                await asyncio.to_thread(stopping.stop)
                rest = [event async for event in events]
            [error] = rest
            assert (error.number, error.name, error.data["code"]) == (
                "",
                "error",
                "api-unavailable",
            )
            gate.opened.set()
            assert text_of(await all_events(api, token, syscall_id, first.number)) == "two"


async def test_a_handle_by_id_hears_the_text_from_its_beginning(redis_url: str) -> None:
    """By any transport: the kernel keeps what was said before."""
    gate = Gate()
    async with (
        TinyWorker(redis_url, "llm", gate),
        AsyncAgent("writer", url=redis_url) as me,
        me.llm.chat.stream("a story") as stream,
        AsyncAgent("writer", url=redis_url) as other,
    ):
        assert await anext(stream) == "one "
        events = other.call(stream.id).events()
        first = await anext(events)
        gate.opened.set()
        rest = [event async for event in events]
    assert [event.text for event in (first, *rest) if isinstance(event, Chunk)] == ["one ", "two"]


async def test_the_kept_text_goes_with_the_end(redis_url: str) -> None:
    gate = Gate()
    with redis.Redis.from_url(redis_url) as raw:
        async with TinyWorker(redis_url, "llm", gate), AsyncAgent("writer", url=redis_url) as me:
            async with me.llm.chat.stream("a story") as stream:
                assert await anext(stream) == "one "
                key = f"rq:aios:answer:{stream.id}"
                await wait_until_async(lambda: raw.get(key) == "one ".encode("utf-32-le"))
                gate.opened.set()
                assert "".join([text async for text in stream]) == "two"
            assert not raw.exists(key)  # the same step that sent the reply has taken it away


async def test_redis_away_ends_streams_with_what_is_wrong_and_no_text_is_lost(
    redis_url: str, redis_server: RunningRedis, token: str
) -> None:
    """A reader is told, the session of a client ends; what the kernel kept goes on afterwards."""
    gate = Gate()
    async with (
        serving(redis_url, api_patience_s=0.5) as api,
        httpx.AsyncClient(base_url=api.url, headers=bearer(token), timeout=TIMEOUT_S) as client,
    ):
        taken = await client.post("/v1/syscalls", json={"body": CHAT})
        place = f"/v1/syscalls/{taken.json()['id']}/events"
        await on_disk(redis_url)
        async with (
            client.stream("GET", place) as reader,
            client.stream("GET", "/v1/session/events") as session,
        ):
            told = session.aiter_lines()
            assert (await anext(told)).startswith("data: ")
            with redis_away(redis_server):
                [error] = [event async for event in read_events(reader)]
                assert [line async for line in told if line.startswith("data: ")] == []
        assert (error.number, error.name) == ("", "error")
        assert (error.data["code"], error.data["retryable"]) == ("redis-unavailable", True)
        assert "sock" not in str(error.data)
        gate.opened.set()
        async with (
            asyncio.timeout(TIMEOUT_S),
            TinyWorker(redis_url, "llm", gate),
            client.stream("GET", place) as reader,
        ):
            assert text_of([event async for event in read_events(reader)]) == "one two"
