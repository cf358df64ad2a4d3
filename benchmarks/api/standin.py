"""A model behind an OpenAI-compatible address that costs next to nothing: the same for all.

    python -m benchmarks.api.standin PORT

Each answer is the same words, at once; a stream has one chunk per word.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, cast

import uvloop

MODEL = "standin"
WORDS = [f" word{number}" for number in range(32)]
PROMPT_TOKENS = 8
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n"


def _event(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: %b\n\n" % json.dumps(_object("chat.completion.chunk", [choice])).encode()


def _object(kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-0",
        "object": kind,
        "created": 0,
        "model": MODEL,
        "choices": choices,
        **more,
    }


USAGE = {
    "prompt_tokens": PROMPT_TOKENS,
    "completion_tokens": len(WORDS),
    "total_tokens": PROMPT_TOKENS + len(WORDS),
}
FIRST = _event({"role": "assistant", "content": WORDS[0].lstrip()})
PIECES = [FIRST, *(_event({"content": word}) for word in WORDS[1:]), _event({}, "stop")]
LAST = b"data: %b\n\n" % json.dumps(_object("chat.completion.chunk", [], usage=USAGE)).encode()
MESSAGE = {"role": "assistant", "content": "".join(WORDS).lstrip()}
WHOLE = json.dumps(
    _object(
        "chat.completion", [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}], usage=USAGE
    )
).encode()
MODELS = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode()


class Standin(asyncio.Protocol):
    """One connection. It knows as much of HTTP as its clients use."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is of no such class
        self._unread = b""

    def data_received(self, data: bytes) -> None:
        """Answer each request that is whole."""
        self._unread += data
        while (end := self._unread.find(b"\r\n\r\n")) >= 0:
            head = self._unread[:end].lower()
            _, _, rest = head.partition(b"content-length:")
            length = int(rest.partition(b"\r\n")[0]) if rest else 0
            if len(self._unread) < end + 4 + length:
                return
            body = self._unread[end + 4 : end + 4 + length]
            self._unread = self._unread[end + 4 + length :]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        if not body:
            self._whole(MODELS)
            return
        asked = json.loads(body)
        if not asked.get("stream"):
            self._whole(WHOLE)
            return
        self._transport.write(_HEAD % b"text/event-stream" + b"transfer-encoding: chunked\r\n\r\n")
        wants_usage = (asked.get("stream_options") or {}).get("include_usage")
        for piece in (*PIECES, *([LAST] if wants_usage else []), b"data: [DONE]\n\n"):
            self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self._transport.write(b"0\r\n\r\n")

    def _whole(self, body: bytes) -> None:
        length = b"content-length: %d\r\n\r\n" % len(body)
        self._transport.write(_HEAD % b"application/json" + length + body)


async def serve(port: int) -> None:
    """Serve until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Standin, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
