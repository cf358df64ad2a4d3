"""Thousands of clients that each read a stream of events at the same time.

    python -m benchmarks.api.crowd [--clients 2000] [--json FILE]

Run it in the checkout's root. A kernel of its own with the simulated core has as many chats as
there are clients; each client holds one connection, submits one and reads its events to the end.
The core's worker stands still (SIGSTOP) until every client's stream is open: they are all there at
the same time, whatever the machine. A chunk that does not begin where the one before it ended, a
text that is not the result's, or a stream without an end is an error (exit code 1). Printed: how
many were open at the same time, how long it took, and the memory of the API's process at its
highest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.five_cores import Kernel
from benchmarks.provenance import commit_of, today

ROOT = Path(__file__).resolve().parents[2]
AGENTS = 8  # that the clients are spread over: an agent has a limit of its own
TOKENS = 64
AT_ONCE = 100  # connections that are opened at a time
LIMIT_S = 300.0
WATCH_S = 0.2


@dataclass
class Seen:
    """What the clients saw."""

    open_now: int = 0
    most_open: int = 0
    chunks: int = 0
    ended: int = 0
    wrong: Counter[str] = field(default_factory=Counter)

    def entered(self) -> None:
        """One more stream is open."""
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)


class Client:
    """One connection, which submits a chat and reads its events."""

    def __init__(self, url: str, token: str, seen: Seen) -> None:
        self._parts = urlsplit(url)
        self._token = token
        self._seen = seen

    async def run(self, number: int, gate: asyncio.Semaphore) -> None:
        """Submit, and read to the end."""
        async with gate:
            self._reader, self._writer = await asyncio.open_connection(
                self._parts.hostname, self._parts.port
            )
            body = {
                "type": "llm.chat",
                "messages": [{"role": "user", "content": f"Question {number}"}],
                "max_tokens": TOKENS,
                "stream": True,
            }
            status, answer = await self._submit({"body": body, "deadline_s": LIMIT_S})
            if status != 202:
                self._seen.wrong[f"submit: {status}"] += 1
                return
            self._send("GET", f"/v1/syscalls/{json.loads(answer)['id']}/events")
            head = await self._reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.partition(b"\r\n")[0]:
            self._seen.wrong[f"events: {head.partition(b' ')[2][:3]!r}"] += 1
            return
        self._seen.entered()
        try:
            await self._read()
        finally:
            self._seen.open_now -= 1
            self._writer.close()

    async def _submit(self, body: object) -> tuple[int, bytes]:
        self._send("POST", "/v1/syscalls", json.dumps(body).encode())
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        return int(head.split(b" ", 2)[1]), await self._reader.readexactly(length)

    def _send(self, method: str, path: str, body: bytes = b"") -> None:
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: {self._parts.netloc}\r\n"
            f"authorization: Bearer {self._token}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)

    async def _read(self) -> None:
        unread, text = b"", ""
        while True:
            size = int(await self._reader.readline(), 16)
            unread += (await self._reader.readexactly(size + 2))[:-2]
            *events, unread = unread.split(b"\n\n")
            for event in events:
                lines = dict(line.split(b": ", 1) for line in event.split(b"\n") if b": " in line)
                name, data = lines.get(b"event"), lines.get(b"data", b"")
                if name == b"chunk":
                    chunk = json.loads(data)
                    self._seen.chunks += 1
                    if chunk["offset"] != len(text):
                        self._seen.wrong["a chunk is lost or doubled"] += 1
                    text += chunk["text"]
                elif name == b"reply":
                    self._check(json.loads(data), text)
                    return
                elif name is not None:
                    self._seen.wrong[f"event {name.decode()}: {data[:200].decode()}"] += 1
            if not size:
                self._seen.wrong["a stream without an end"] += 1
                return

    def _check(self, reply: dict[str, object], text: str) -> None:
        self._seen.ended += 1
        result = reply.get("result")
        if not isinstance(result, dict):
            self._seen.wrong[f"reply: {str(reply.get('error'))[:200]}"] += 1
        elif result["text"] != text:
            self._seen.wrong["the text is not the result's"] += 1


def resident_bytes(pid: int) -> int:
    """Return the memory of a process (RSS)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"process {pid} is gone")


async def measure(
    url: str, tokens: list[str], clients: int, api_pid: int, worker_pid: int
) -> dict[str, object]:
    """Let all come, and then read to the end; return what was seen."""
    os.kill(worker_pid, signal.SIGSTOP)
    is_held, all_there_s = True, 0.0
    seen, gate, most_bytes = Seen(), asyncio.Semaphore(AT_ONCE), resident_bytes(api_pid)
    idle_bytes, began_s = most_bytes, time.monotonic()
    tasks = [
        asyncio.create_task(Client(url, tokens[number % len(tokens)], seen).run(number, gate))
        for number in range(clients)
    ]
    everyone = asyncio.gather(*tasks)
    while not everyone.done():
        await asyncio.wait([everyone], timeout=WATCH_S)
        most_bytes = max(most_bytes, resident_bytes(api_pid))
        if is_held and (seen.open_now == clients or seen.wrong):
            os.kill(worker_pid, signal.SIGCONT)
            is_held, all_there_s = False, time.monotonic() - began_s
        if time.monotonic() - began_s > LIMIT_S:
            raise SystemExit(f"not all ended: {seen}")
    await everyone
    return {
        "clients": clients,
        "ended": seen.ended,
        "most open at the same time": seen.most_open,
        "seconds until all were there": round(all_there_s, 1),
        "chunks": seen.chunks,
        "seconds": round(time.monotonic() - began_s, 1),
        "API, MiB idle": round(idle_bytes / 2**20, 1),
        "API, MiB at most": round(most_bytes / 2**20, 1),
        "wrong": dict(seen.wrong),
    }


def main() -> int:
    """Measure, and print what was seen."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aios-crowd-") as folder:
        kernel = Kernel(Path(folder))
        kernel.aios("cores", "add", "simulated", "--simulated", "--slots", "64", "--default")
        with kernel.up(["simulated"]):
            status = json.loads(kernel.aios("status", "--json"))
            pids = {each["name"]: each["pid"] for each in status["processes"]}
            names = [f"crowd-{number}" for number in range(AGENTS)]
            made = [json.loads(kernel.aios("agents", "register", each, "--json")) for each in names]
            tokens = [each["token"] for each in made]
            held = pids["llm.simulated-1"]
            found = asyncio.run(
                measure(status["api_url"], tokens, options.clients, pids["api"], held)
            )
    found = {"date": today(), "commit": commit_of(ROOT), "processors": os.cpu_count(), **found}
    print("\n".join(f"{name:<28}{value}" for name, value in found.items()))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if found["wrong"] or found["ended"] != options.clients else 0


if __name__ == "__main__":
    sys.exit(main())
