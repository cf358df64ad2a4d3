"""The client process of a contestant: what the runner asks of it, line by line.

Runs in the peers' environment: the standard library alone.

    runner                                              client
    {"load": "throughput", "jobs": 5000, "clients": 1}  prepares, then
                                                        {"ready": true}
    {"go": true}                                        does it, then
                                                        {"seconds": ..., "cpu_s": ..., ...}
Loads:  throughput  all jobs enqueued, then all results read
        alone       one job at a time: enqueue, wait for its result
        clients     that many closed loops side by side, one job in flight each
Every result is compared with what was sent.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

TEXT_CHARACTERS = 120  # of a job's argument: with its envelope about 150 bytes of JSON
WAIT_S = 60.0  # for one result; beyond it the measurement has failed


class SyncPeer(Protocol):
    """A library that blocks. Used by several threads at once."""

    def enqueue(self, text: str) -> Any:
        """Enqueue one echo job; return what `result` takes."""

    def result(self, handle: Any) -> str:
        """Wait for the job and read its result from Redis."""


class AsyncPeer(Protocol):
    """A library for asyncio."""

    async def open(self, clients: int) -> None:
        """Connect; `clients` closed loops are to come."""

    async def all(self, texts: list[str]) -> list[str]:
        """Enqueue all jobs in the way that suits the library best; return all results."""

    async def one(self, client: int, text: str) -> str:
        """Do one job for one of the clients: enqueue it, wait, return the result."""

    async def close(self) -> None:
        """Disconnect."""


def texts_of(jobs: int) -> list[str]:
    """Return the arguments of the jobs; all differ."""
    return [f"{number:08d}".ljust(TEXT_CHARACTERS, "x") for number in range(jobs)]


class Outcome:
    """What a load took; reports errors instead of hiding them."""

    def __init__(self) -> None:
        self.latencies_ms: list[float] = []
        self.wrong = 0
        self._began_cpu_s = _cpu_s()
        self._began_s = time.perf_counter()

    def note(self, sent: str, came: object, took_s: float) -> None:
        self.latencies_ms.append(took_s * 1000)
        self.wrong += came != sent

    def report(self) -> dict[str, object]:
        return {
            "seconds": time.perf_counter() - self._began_s,
            "cpu_s": _cpu_s() - self._began_cpu_s,
            "wrong": self.wrong,
            "latencies_ms": [round(one, 4) for one in self.latencies_ms],
        }


def serve_sync(open_peer: Callable[[], SyncPeer]) -> None:
    """Answer the runner until it closes the line."""
    peer = open_peer()
    for asked in _asked():
        texts = texts_of(asked["jobs"])
        _say({"ready": True})
        sys.stdin.readline()
        outcome = Outcome()
        if asked["load"] == "throughput":
            handles = [peer.enqueue(text) for text in texts]
            for text, handle in zip(texts, handles, strict=True):
                outcome.wrong += peer.result(handle) != text
        else:
            _sync_loops(peer, texts, asked["clients"], outcome)
        _say(outcome.report())


def serve_async(open_peer: Callable[[], AsyncPeer]) -> None:
    """Answer the runner until it closes the line; on uvloop where there is one."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve_async(open_peer))


async def _serve_async(open_peer: Callable[[], AsyncPeer]) -> None:
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        texts = texts_of(asked["jobs"])
        peer = open_peer()
        await peer.open(asked["clients"])
        _say({"ready": True})
        await asyncio.to_thread(sys.stdin.readline)
        outcome = Outcome()
        if asked["load"] == "throughput":
            came = await asyncio.wait_for(peer.all(texts), WAIT_S)
            outcome.wrong = sum(a != b for a, b in zip(texts, came, strict=True))
        else:
            await _async_loops(peer, texts, asked["clients"], outcome)
        report = outcome.report()
        await peer.close()
        _say(report)


def _sync_loops(peer: SyncPeer, texts: list[str], clients: int, outcome: Outcome) -> None:
    left = iter(texts)
    lock = threading.Lock()
    faults: list[BaseException] = []

    def loop() -> None:
        try:
            while True:
                with lock:
                    text = next(left, None)
                if text is None:
                    return
                began_s = time.perf_counter()
                came = peer.result(peer.enqueue(text))
                took_s = time.perf_counter() - began_s
                with lock:
                    outcome.note(text, came, took_s)
        except BaseException as fault:
            faults.append(fault)
            raise

    if clients == 1:
        loop()
        return
    threads = [threading.Thread(target=loop) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]


async def _async_loops(peer: AsyncPeer, texts: list[str], clients: int, outcome: Outcome) -> None:
    left = iter(texts)

    async def loop(client: int) -> None:
        for text in left:  # shared: each takes the next one
            began_s = time.perf_counter()
            came = await peer.one(client, text)
            outcome.note(text, came, time.perf_counter() - began_s)

    await asyncio.gather(*(loop(client) for client in range(clients)))


def batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    """Split a list into pieces of that size."""
    rest = iter(items)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def _asked() -> Iterator[dict[str, Any]]:
    while line := sys.stdin.readline():
        yield json.loads(line)


def _say(answer: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415  not everywhere
    except ImportError:
        return None
    return uvloop.Loop
