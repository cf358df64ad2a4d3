"""A stand-in for hosted models: an HTTP server that speaks the OpenAI API, with faults by switch.

Its model is deterministic: an answer is words, each a function of the conversation's last question
and of its place; a token is a word with the space before it. So it can be told exactly what an
uninterrupted answer is, what it costs, and whether a seam is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

WORDS = (
    *("harbour", "lantern", "copper", "meadow", "whistle", "ember", "orchard", "velvet", "thunder"),
    *("pebble", "granite", "willow", "compass", "saffron", "tunnel", "feather", "quarry", "beacon"),
    *("marble", "drizzle", "žluť", "水", "naïve", "🙂", "café"),
)
Fault = Literal[
    "key",
    "money",
    "busy",
    "broken",
    "hang",
    "truncated",
    "malformed",
    "html",
    "half event",
    "endless",
    "unknown option",
    "bad call",
]
Prefill = Literal["none", "assistant", "continue_final_message", "prefix"]


def answer_words(question: str, count: int) -> list[str]:
    """Return the words of an answer, each with the space before it but the first."""
    found = []
    for place in range(count):
        digest = hashlib.blake2b(f"{question}|{place}".encode(), digest_size=2).digest()
        word = WORDS[int.from_bytes(digest, "big") % len(WORDS)]
        found.append(word if place == 0 else f" {word}")
    return found


@dataclass
class OpenAIEndpoint:
    """One endpoint. What it is like may be changed while it runs."""

    key: str | None = None
    prefill: Prefill = "none"
    repeats: bool = False  # what it was given to go on with comes first
    trims: bool = False  # the space at the seam is lost
    usage: bool = True
    words: int = 40  # of an answer that nothing cuts
    word_s: float = 0.0  # between two words
    by_character: bool = False  # what is one token comes in pieces
    thoughts: Sequence[str] = ()  # pieces of reasoning before an answer
    scores: bool = True  # it has log-probabilities
    cached_tokens: int = 0  # of each prompt, as it says
    refuses: frozenset[str] = frozenset()  # options that it does not take
    requests_per_minute: int = 0  # 0: any number
    retry_after_s: float = 0.2
    raw: deque[Sequence[bytes]] = field(default_factory=deque)  # streams, as they are
    faults: deque[Fault | None] = field(default_factory=deque)  # of the next requests, one each
    refusals: deque[dict[str, str]] = field(default_factory=deque)  # of those, in its own words
    seen: list[dict[str, Any]] = field(default_factory=list)
    prompt_tokens: int = 0  # of all answers, as it charged them
    output_tokens: int = 0
    left: int = 0  # answers that nobody heard to the end

    def __post_init__(self) -> None:
        endpoint = self
        self._lock = threading.Lock()
        self._sent: deque[float] = deque()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                endpoint.answer_json(self, 200, {"data": [{"id": "stand-in"}]})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    endpoint.handle(self, json.loads(body))

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    @contextlib.contextmanager
    def running(self) -> Iterator[OpenAIEndpoint]:
        """Serve for the length of a block."""
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def handle(self, http: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
        """Answer one request."""
        with self._lock:
            self.seen.append(content)
            fault = self.faults.popleft() if self.faults else None
            busy = self._is_over_its_limit()
        if self.key is not None and http.headers.get("Authorization") != f"Bearer {self.key}":
            fault = "key"
        if busy:
            fault = "busy"
        if fault is not None and self._refuse(http, fault):
            return
        if self.refusals:
            self.answer_json(http, 400, {"error": self.refusals.popleft()})
            return
        if refused := sorted(self.refuses & content.keys()):
            error = {"message": f"Unsupported parameter: '{refused[0]}'", "param": refused[0]}
            self.answer_json(http, 400, {"error": error})
            return
        if http.path.endswith("/embeddings"):
            self._embed(http, content["input"])
        elif content.get("stream"):
            self._stream(http, content, fault)
        else:
            self._answer(http, content)

    def _is_over_its_limit(self) -> bool:
        now_s = time.monotonic()
        while self._sent and self._sent[0] < now_s - 60:
            self._sent.popleft()
        if self.requests_per_minute and len(self._sent) >= self.requests_per_minute:
            return True
        self._sent.append(now_s)
        return False

    def _refuse(self, http: BaseHTTPRequestHandler, fault: Fault) -> bool:
        """Answer as a fault does that has no stream; False: it has one."""
        errors: dict[Fault, tuple[int, dict[str, Any]]] = {
            "key": (401, {"message": "Incorrect API key", "code": "invalid_api_key"}),
            "money": (429, {"message": "You exceeded your quota", "code": "insufficient_quota"}),
            "busy": (429, {"message": "Too many requests", "code": "rate_limit_exceeded"}),
            "broken": (500, {"message": "The server had an error"}),
            "unknown option": (400, {"message": "Unknown parameter: 'seed'", "param": "seed"}),
        }
        if fault == "html":
            self._send(http, 200, b"<html>Welcome!</html>", "text/html")
        elif fault in errors:
            status, error = errors[fault]
            headers = {"Retry-After": str(self.retry_after_s)} if fault == "busy" else {}
            self.answer_json(http, status, {"error": error}, headers)
        else:
            return False
        return True

    def _stream(
        self, http: BaseHTTPRequestHandler, content: dict[str, Any], fault: Fault | None
    ) -> None:
        http.send_response(200)
        http.send_header("Content-Type", "text/event-stream")
        http.send_header("Connection", "close")
        http.end_headers()
        http.close_connection = True
        if fault == "hang":
            time.sleep(3.0)
            return
        if self.raw:
            for line in self.raw.popleft():
                http.wfile.write(line)
                http.wfile.flush()
                time.sleep(self.word_s)
            return
        pieces, prompt_tokens, reason = self._pieces(content)
        written = 0
        try:
            self._think(http)
            for piece in pieces:
                if fault in ("truncated", "malformed", "half event", "endless") and written == 3:
                    self._break_off(http, fault)
                    return
                self._say(http, piece, content)
                written += 1
                time.sleep(self.word_s)
            for event in self._calls(content, fault):
                self._event(http, event)
            self._event(http, {"choices": [{"delta": {}, "finish_reason": reason}]})
        except (BrokenPipeError, ConnectionResetError):
            self.left += 1
            raise
        finally:
            with self._lock:
                self.prompt_tokens += prompt_tokens
                self.output_tokens += written + len(self.thoughts)
        if self.usage and content.get("stream_options"):
            usage = self._usage(prompt_tokens, written + len(self.thoughts))
            self._event(http, {"choices": [], "usage": usage})
        http.wfile.write(b"data: [DONE]\n\n")

    def _think(self, http: BaseHTTPRequestHandler) -> None:
        for thought in self.thoughts:
            self._event(http, {"choices": [{"delta": {"reasoning_content": thought}}]})
            time.sleep(self.word_s)

    def _say(self, http: BaseHTTPRequestHandler, piece: str, content: dict[str, Any]) -> None:
        for part in piece if self.by_character else (piece,):
            self._event(http, {"choices": [self._scored(part, content)]})

    def _usage(self, prompt_tokens: int, output_tokens: int) -> dict[str, Any]:
        usage: dict[str, Any] = {"prompt_tokens": prompt_tokens, "completion_tokens": output_tokens}
        if self.cached_tokens:
            usage["prompt_tokens_details"] = {"cached_tokens": self.cached_tokens}
        return usage

    def _scored(self, piece: str, content: dict[str, Any]) -> dict[str, Any]:
        """Return a piece of an answer, with what it was chosen among if that is asked for."""
        choice: dict[str, Any] = {"delta": {"content": piece}}
        if content.get("logprobs") and self.scores:
            others = [{"token": piece, "logprob": -0.25}, {"token": "?", "logprob": None}]
            top = others[: content.get("top_logprobs", 0)]
            entry = {"token": piece, "bytes": list(piece.encode()), "logprob": -0.25}
            choice["logprobs"] = {"content": [{**entry, "top_logprobs": top}]}
        return choice

    def _break_off(self, http: BaseHTTPRequestHandler, fault: Fault) -> None:
        match fault:
            case "malformed":
                http.wfile.write(b"data: {nonsense\n\n")
            case "half event":
                http.wfile.write(b'data: {"choices": [{"delta": {"con')
            case "endless":
                for _ in range(40):
                    http.wfile.write(b"x" * (1 << 20))
            case _:
                pass

    def _pieces(self, content: dict[str, Any]) -> tuple[list[str], int, str]:
        """Return the pieces of an answer, the tokens of its prompt, and why it ends."""
        messages = list(content["messages"])
        beginning = self._beginning(messages, content)
        question = str([each for each in messages if each["role"] == "user"][-1]["content"])
        words = answer_words(question, self.words)
        begun = len(beginning.split(" ")) if beginning else 0
        prompt_tokens = sum(len(str(each["content"]).split()) for each in messages) + begun
        if content.get("tools") and content.get("tool_choice") != "none":
            return [], prompt_tokens, "tool_calls"
        left = words[begun:] if beginning else words
        if self.trims and beginning and left:
            left[0] = left[0].lstrip()
        most = content.get("max_tokens") or content.get("max_completion_tokens") or len(left)
        pieces = left[:most]
        reason = "stop" if len(pieces) == len(left) else "length"
        if beginning and self.repeats:
            pieces[:1] = [beginning + (pieces[0] if pieces else "")]
        return pieces, prompt_tokens, reason

    def cost_of(self, content: dict[str, Any]) -> tuple[int, int]:
        """Return the tokens of prompt and answer that a request was charged."""
        pieces, prompt_tokens, _ = self._pieces(content)
        return prompt_tokens, len(pieces)

    def _beginning(self, messages: list[dict[str, Any]], content: dict[str, Any]) -> str:
        """Take the unfinished answer off the conversation, if this endpoint goes on with it."""
        last = messages[-1]
        asked = {
            "none": False,
            "assistant": True,
            "continue_final_message": bool(content.get("continue_final_message")),
            "prefix": bool(last.get("prefix")),
        }[self.prefill]
        if last["role"] != "assistant":
            return ""
        messages.pop()
        return str(last["content"]) if asked else ""

    def _calls(self, content: dict[str, Any], fault: Fault | None) -> Iterator[dict[str, Any]]:
        if not content.get("tools") or content.get("tool_choice") == "none":
            return
        name = content["tools"][0]["function"]["name"]
        pieces = ('{"city": ', '"Par' if fault == "bad call" else '"Paris"}')
        yield _call_event({"name": name, "arguments": ""})
        for piece in pieces:
            yield _call_event({"arguments": piece})

    def _answer(self, http: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
        pieces, prompt_tokens, reason = self._pieces(content)
        with self._lock:
            self.prompt_tokens += prompt_tokens
            self.output_tokens += len(pieces)
        choice = {"message": {"content": "".join(pieces)}, "finish_reason": reason}
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": len(pieces)}
        self.answer_json(http, 200, {"choices": [choice], "usage": usage})

    def _embed(self, http: BaseHTTPRequestHandler, texts: Sequence[str]) -> None:
        rows = [{"index": i, "embedding": [len(text), 3.0]} for i, text in enumerate(texts)]
        usage = {"prompt_tokens": sum(len(text.split()) for text in texts)}
        self.answer_json(http, 200, {"data": rows[::-1], "usage": usage})

    def _event(self, http: BaseHTTPRequestHandler, event: dict[str, Any]) -> None:
        # As some servers do it: with characters beyond the first plane in two halves.
        http.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        http.wfile.flush()

    def answer_json(
        self,
        http: BaseHTTPRequestHandler,
        status: int,
        content: dict[str, Any],
        headers: dict[str, str] | None = None,
    ) -> None:
        """Answer with a JSON object."""
        data = json.dumps(content).encode()
        self._send(http, status, data, "application/json", headers or {})

    def _send(
        self,
        http: BaseHTTPRequestHandler,
        status: int,
        data: bytes,
        kind: str,
        headers: dict[str, str] | None = None,
    ) -> None:
        http.send_response(status)
        for name, value in {"Content-Type": kind, **(headers or {})}.items():
            http.send_header(name, value)
        http.send_header("Content-Length", str(len(data)))
        http.end_headers()
        http.wfile.write(data)


def _call_event(function: dict[str, str]) -> dict[str, Any]:
    return {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": function}]}}]}
