"""SGLang's own `/generate`, by the leanest client there is: a bare socket, one event parsed."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

FLUSH_TRIES = 50
FLUSH_EVERY_S = 0.2
COUNTED = ("prefill_compute", "prefill_cache", "decode")  # tokens, as the server's metrics say it
PIECE_BYTES = 1 << 16


class ServerRefused(Exception):
    """The server did not answer as it should; the message has its words."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. Times in seconds since it was asked for."""

    ids: tuple[int, ...]
    first_s: float
    total_s: float
    cached_tokens: int


class Direct:
    """One SGLang server, by its address."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        parts = urlsplit(self.url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80

    async def generate(self, ids: Sequence[int], sampling: Mapping[str, object]) -> Answer:
        """Return an answer, streamed to its end.

        Raises:
            ServerRefused: it has none.
        """
        body = {"input_ids": list(ids), "sampling_params": sampling, "rid": uuid.uuid4().hex}
        began_s = time.perf_counter()
        data, first_s = await self._exchange(json.dumps({**body, "stream": True}).encode())
        total_s = time.perf_counter() - began_s
        last = _last_event(data)
        found = tuple(last["output_ids"])
        if len(found) != last["meta_info"]["completion_tokens"]:
            raise ServerRefused("it streams new ids alone: not with --incremental-streaming-output")
        return Answer(found, first_s, total_s, last["meta_info"].get("cached_tokens", 0))

    async def info(self) -> dict[str, Any]:
        """Return what the server says of itself."""
        found: dict[str, Any] = (await self._get("/server_info")).json()
        return found

    async def alternatives(self, ids: Sequence[int]) -> dict[int, float]:
        """Return the best next tokens with their log-probabilities."""
        body = {
            "input_ids": list(ids),
            "sampling_params": {"temperature": 0, "max_new_tokens": 1},
            "return_logprob": True,
            "top_logprobs_num": 8,
        }
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=120) as client:
            meta = (
                (await client.post("/generate", json=body)).raise_for_status().json()["meta_info"]
            )
        return {token: logprob for logprob, token, *_ in meta["output_top_logprobs"][0]}

    async def flush(self) -> None:
        """Empty the prefix cache; the server refuses while something runs."""
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=30) as client:
            for _ in range(FLUSH_TRIES):
                if (await client.post("/flush_cache")).is_success:
                    return
                await asyncio.sleep(FLUSH_EVERY_S)
        raise ServerRefused("the prefix cache could not be emptied: something runs on the server")

    async def counters(self) -> Counter[str]:
        """Return the tokens it read, found and wrote so far, and the requests it pushed out."""
        found: Counter[str] = Counter()
        for line in (await self._get("/metrics")).text.splitlines():
            name, _, value = line.rpartition(" ")
            for kind in COUNTED:
                if name.startswith("sglang:realtime_tokens_total{") and f'mode="{kind}"' in name:
                    found[kind] += round(float(value))
            if name.startswith("sglang:num_retracted_requests_total{"):
                found["retracted"] += round(float(value))
        return found

    async def _get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=30) as client:
            return (await client.get(path)).raise_for_status()

    async def _exchange(self, body: bytes) -> tuple[bytes, float]:
        """Return all that comes back, and after how long the first event came."""
        head = (
            "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        began_s = time.perf_counter()
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(head.encode() + body)
            data, first_s = bytearray(), 0.0
            while piece := await reader.read(PIECE_BYTES):
                data += piece
                if not first_s and b"data: " in data:
                    first_s = time.perf_counter() - began_s
        finally:
            writer.close()
        return bytes(data), first_s


def _last_event(data: bytes) -> dict[str, Any]:
    head, _, rest = data.partition(b"\r\n\r\n")
    status = head.split(b"\r\n", 1)[0]
    if b"chunked" in head.lower():
        rest = _dechunked(rest)
    events = [line for line in rest.split(b"\n") if line.startswith(b"data: {")]
    if b" 200 " not in status or not events:
        raise ServerRefused(f"/generate said {status!r} {rest[:300]!r}")
    last: dict[str, Any] = json.loads(events[-1].removeprefix(b"data: "))
    if "error" in last:
        raise ServerRefused(f"/generate said {last['error']}")
    return last


def _dechunked(data: bytes) -> bytes:
    parts, at = [], 0
    while (end := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:end].split(b";")[0] or b"0", 16)
        if size == 0:
            break
        parts.append(data[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return b"".join(parts)
