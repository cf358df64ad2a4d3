"""A small HTTP server in the tests' own process that speaks as SGLang does, or breaks as told.

Its tokens are a function of the ids before them, so that a wrong resumption shows.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

Body = dict[str, Any]
LATE_TOKENS = 2  # that come after an abort


class Answer:
    """One response: a head, then chunks."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def whole(self, status: int, data: bytes) -> None:
        self._writer.write(
            b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (status, len(data), data)
        )
        await self._writer.drain()

    async def begin(self) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        self._writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n")

    async def send(self, data: bytes) -> None:
        self._writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await self._writer.drain()

    async def event(self, value: object) -> None:
        await self.send(b"data: " + json.dumps(value).encode() + b"\n\n")

    async def end(self) -> None:
        await self.send(b"data: [DONE]\n\n")
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    def cut(self) -> None:
        """Break the connection in the middle."""
        self._writer.transport.abort()


Behaviour = Callable[["FakeSGLang", Body, Answer], Awaitable[None]]


class FakeSGLang:
    """What a test sets is what the server does; what clients did, it notes."""

    def __init__(self, model: Path) -> None:
        self.model_info: Body = {
            "model_path": str(model),
            "tokenizer_path": str(model),
            "is_generation": True,
            "weight_version": "default",
        }
        self.server_info: Body = {
            "version": "0.5.17",
            "served_model_name": str(model),
            "load_format": "dummy",
            "random_seed": 7,
            "max_req_input_len": 4090,
            "max_total_num_tokens": 8192,
            "dp_size": 1,
            "internal_states": [{"effective_max_running_requests_per_dp": 64}],
        }
        self.script: list[Behaviour] = []  # one per /generate, then `generate`
        self.vector: Callable[[list[int]], Body] = a_vector
        self.healthy = True
        self.step_s = 0.0
        self.original_logprobs = True
        self.requests: list[Body] = []
        self.encoded: list[list[int]] = []  # texts, as ids
        self.aborts: list[str] = []
        self.paths: list[str] = []
        self.connections = 0
        self.headers: list[str] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                text = head.decode("latin-1")
                self.headers.append(text)
                length = next(
                    (
                        int(line.split(":")[1])
                        for line in text.lower().split("\r\n")
                        if line.startswith("content-length:")
                    ),
                    0,
                )
                data = await reader.readexactly(length)
                path = text.split(" ")[1]
                self.paths.append(path)
                await self._answer(path, json.loads(data) if data else {}, Answer(writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, path: str, body: Body, answer: Answer) -> None:
        if path == "/generate":
            if body["input_ids"] == [0]:
                await probe(self, body, answer)
                return
            self.requests.append(body)
            behave = self.script.pop(0) if self.script else generate
            await behave(self, body, answer)
        elif path == "/encode":
            self.encoded += body["input_ids"]
            await answer.whole(200, json.dumps([*map(self.vector, body["input_ids"])]).encode())
        elif path == "/abort_request":
            self.aborts.append(body["rid"])
            await answer.whole(200, b"")
        elif path == "/health":
            await answer.whole(200 if self.healthy else 503, b"")
        else:
            known = {"/model_info": self.model_info, "/server_info": self.server_info}
            if path in known:
                await answer.whole(200, json.dumps(known[path]).encode())
            else:
                await answer.whole(404, b"no such page")


def a_vector(ids: list[int]) -> Body:
    """Return a vector of some length that depends on all ids."""
    values = [float(len(ids)), float(sum(ids)), float(ids[-1])]
    return {"embedding": values, "meta_info": {"prompt_tokens": len(ids)}}


def next_token(ids: list[int]) -> int:
    """Return the token after these: never an end token."""
    return 2 + (sum((i + 1) * token for i, token in enumerate(ids)) * 31 + len(ids)) % 250


def meta(finish: Body | None, cached: int = 0, **more: object) -> Body:
    return {"finish_reason": finish, "cached_tokens": cached, "weight_version": "default", **more}


def scored(body: Body, made: list[int]) -> Body:
    """Return log-probabilities: what was made is likeliest, then the ids behind it."""
    count = body["top_logprobs_num"]
    tops = [
        [[-0.1 - place, 2 + (token + place - 2) % 250, None] for place in range(count)]
        for token in made
    ]
    chosen = [[-0.1, token, None] for token in made]
    return {"output_token_logprobs": chosen, "output_top_logprobs": tops}


async def generate(server: FakeSGLang, body: Body, answer: Answer) -> None:
    """Generate as SGLang does: cumulative ids, tokens after an abort, then its reason."""
    prompt, wanted = body["input_ids"], body["sampling_params"]["max_new_tokens"]
    cached, made, late = len(prompt) - 1, list[int](), 0
    await answer.begin()
    while True:
        made.append(next_token([*prompt, *made]))
        late += body["rid"] in server.aborts
        finish = None
        if len(made) == wanted:
            finish = {"type": "length", "length": wanted}
        elif late > LATE_TOKENS:
            finish = {"type": "abort", "message": "Aborted", "status_code": None}
        scores = scored(body, made) if body.get("return_logprob") else {}
        await answer.event({"output_ids": made, "meta_info": meta(finish, cached, **scores)})
        if finish is not None:
            break
        await asyncio.sleep(server.step_s)
    await answer.end()


async def probe(server: FakeSGLang, body: Body, answer: Answer) -> None:
    """Answer the question whether log-probabilities are those before temperature."""
    temperature = body["sampling_params"]["temperature"]
    distance = 20.0 if server.original_logprobs else 20.0 / temperature
    tops = [[[0.0, 0, None], [-distance, 1, None]]]
    await answer.begin()
    await answer.event(
        {
            "output_ids": [0],
            "meta_info": meta(
                {"type": "length"}, output_token_logprobs=[[0.0, 0, None]], output_top_logprobs=tops
            ),
        }
    )
    await answer.end()


def says(*events: object, done: bool = True) -> Behaviour:
    """Return a behaviour that sends these events; without `done` the connection breaks."""

    async def behave(_: FakeSGLang, __: Body, answer: Answer) -> None:
        await answer.begin()
        for event in events:
            await answer.event(event)
        if done:
            await answer.end()
        else:
            answer.cut()

    return behave


def writes(ids: list[int], end: int) -> Behaviour:
    """Return a behaviour that generates these ids, one per event, then an end token."""

    async def behave(server: FakeSGLang, body: Body, answer: Answer) -> None:
        await answer.begin()
        for count in range(1, len(ids) + 1):
            await answer.event({"output_ids": ids[:count], "meta_info": meta(None)})
        finish = {"type": "stop", "matched": end}
        await answer.event({"output_ids": [*ids, end], "meta_info": meta(finish)})
        await answer.end()

    return behave


def rambles(ids: list[int]) -> Behaviour:
    """Return a behaviour that begins with these ids and generates until it is aborted."""

    async def behave(server: FakeSGLang, body: Body, answer: Answer) -> None:
        made, aborted = list(ids), False
        await answer.begin()
        while not aborted:
            aborted = body["rid"] in server.aborts
            finish = {"type": "abort", "message": "Aborted"} if aborted else None
            await answer.event({"output_ids": made, "meta_info": meta(finish)})
            made.append(next_token(made))
            await asyncio.sleep(server.step_s)
        await answer.end()

    return behave


def sends(data: bytes) -> Behaviour:
    """Return a behaviour that sends these bytes instead of events."""

    async def behave(_: FakeSGLang, __: Body, answer: Answer) -> None:
        await answer.begin()
        await answer.send(data)
        await answer.end()

    return behave


def answers(status: int, data: bytes) -> Behaviour:
    """Return a behaviour that answers with another status than 200."""

    async def behave(_: FakeSGLang, __: Body, answer: Answer) -> None:
        await answer.whole(status, data)

    return behave


def hangs(*events: object) -> Behaviour:
    """Return a behaviour that sends these events and then nothing, until the client leaves."""

    async def behave(_: FakeSGLang, __: Body, answer: Answer) -> None:
        await answer.begin()
        for event in events:
            await answer.event(event)
        await asyncio.Event().wait()

    return behave


@asynccontextmanager
async def running(fake: FakeSGLang) -> AsyncIterator[FakeSGLang]:
    """Serve on a free port until the block ends; connections that hang are broken."""
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        with suppress(asyncio.CancelledError):
            await fake.serve(reader, writer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield fake
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
