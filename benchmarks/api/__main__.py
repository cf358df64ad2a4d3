"""The HTTP API against the Redis transport and LiteLLM's proxy, before one stand-in model.

    python -m benchmarks.api [--rounds 3] [--requests 1000] [--json FILE]

Run it in the checkout's root. A kernel of its own serves a core at the stand-in's address;
LiteLLM's proxy (locked by hash, in `.aios/bench-api`, without a database) serves the same. In each
round all run, in changing order, alone and with many clients in closed loops:

    echo  api     POST /v1/syscalls?wait_s=30 of a no-op
    echo  redis   the same by the SDK on Redis
    chat  direct  a streamed chat of 32 tokens from the stand-in itself
    chat  api     the same by /v1/chat/completions
    chat  redis   the same by the SDK on Redis
    chat  litellm the same by LiteLLM's proxy

CPU is that of the servers: of the kernel all processes, and its API's alone; not of clients, nor of
the stand-in.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aios_sdk import AsyncAgent
from benchmarks.api.load import QUESTION, Ask, Poster, Times, chat, echo, loops
from benchmarks.api.standin import MODEL, WORDS
from benchmarks.five_cores import Kernel
from benchmarks.provenance import commit_of, today
from benchmarks.queues.environment import peers_python, versions_of
from benchmarks.queues.meter import tree_cpu_s

ROOT = Path(__file__).resolve().parents[2]
LOCK_FILE, FOLDER = "requirements-bench-api.lock", Path(".aios") / "bench-api"
START_LIMIT_S = 240.0  # LiteLLM's proxy takes half a minute
SAID_CHARACTERS = 1_000
POLL_S = 0.1
CLIENTS = (1, 4, 32)  # at a time; with the last two processors are full
MANY = CLIENTS[-1]
WARM_UP = 20  # requests
CHAT = {
    "model": MODEL,
    "messages": [{"role": "user", "content": QUESTION}],
    "max_tokens": len(WORDS),
    "stream": True,
}
ECHO = {"body": {"type": "tool.echo", "text": "hello"}}


@dataclass(frozen=True)
class Ground:
    """What runs."""

    standin_url: str
    api_url: str
    redis_url: str
    token: str
    proxy_url: str
    proxy_key: str
    trees: Mapping[str, int]  # whose processor time is taken: process ids of roots


@dataclass(frozen=True)
class Contestant:
    """A way to ask; `trees`: whose processor time it costs."""

    load: str
    name: str
    trees: tuple[str, ...]


CONTESTANTS = (
    Contestant("echo", "api", ("kernel", "api")),
    Contestant("echo", "redis", ("kernel",)),
    Contestant("chat", "direct", ()),
    Contestant("chat", "api", ("kernel", "api")),
    Contestant("chat", "redis", ("kernel",)),
    Contestant("chat", "litellm", ("litellm",)),
)


@contextmanager
def child(log: Path, *command: str, **environ: str) -> Iterator[int]:
    """Run a process for the length of a block; gives its id. What it says goes to a file."""
    with log.open("wb") as said:
        process = subprocess.Popen(
            command, env={**os.environ, **environ}, stdout=said, stderr=subprocess.STDOUT
        )
        try:
            yield process.pid
        except SystemExit as error:
            raise SystemExit(f"{error}\n{log.read_text()[-SAID_CHARACTERS:]}") from error
        finally:
            process.terminate()
            process.wait(timeout=30)


def free_port() -> int:
    """Return a port that nothing listens on just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(url: str, key: str = "") -> None:
    """Return when a server answers."""
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {key}"})
    until_s = time.monotonic() + START_LIMIT_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > until_s:
                raise SystemExit(f"{url} does not answer: {error}") from error
            time.sleep(POLL_S)


@contextmanager
def ground(python: Path, state: Path) -> Iterator[Ground]:
    """Start the stand-in, a kernel and the proxy."""
    ports, key = [free_port(), free_port()], f"sk-{secrets.token_hex(16)}"
    standin_url, proxy_url = (f"http://127.0.0.1:{port}/v1" for port in ports)
    config = state / "litellm.yaml"
    parameters = {"model": f"openai/{MODEL}", "api_base": standin_url, "api_key": "none"}
    config.write_text(
        json.dumps({"model_list": [{"model_name": MODEL, "litellm_params": parameters}]})
    )
    kernel = Kernel(state / "kernel")
    with ExitStack() as stack:
        stack.enter_context(
            child(
                state / "standin.log", sys.executable, "-m", "benchmarks.api.standin", str(ports[0])
            )
        )
        wait_for(f"{standin_url}/models")
        proxy = stack.enter_context(
            child(
                state / "litellm.log",
                *(str(python.parent / "litellm"), "--config", str(config)),
                *("--host", "127.0.0.1", "--port", str(ports[1])),
                LITELLM_MASTER_KEY=key,
                LITELLM_LOG="ERROR",
                LITELLM_LOCAL_MODEL_COST_MAP="True",
            )
        )
        options = (
            "--model",
            MODEL,
            "--slots",
            str(MANY),
            "--default",
            "--context-tokens",
            "4096",
        )
        kernel.aios("cores", "add", MODEL, "--url", standin_url, *options)
        redis_url = stack.enter_context(kernel.up([MODEL]))
        status = json.loads(kernel.aios("status", "--json"))
        pids = {each["name"]: each["pid"] for each in status["processes"]}
        token = json.loads(kernel.aios("agents", "register", "bench", "--json"))["token"]
        wait_for(f"{proxy_url}/models", key)
        yield Ground(
            standin_url,
            status["api_url"],
            redis_url,
            token,
            proxy_url,
            key,
            {"kernel": status["pid"], "api": pids["api"], "litellm": proxy},
        )


@asynccontextmanager
async def asks_of(one: Contestant, place: Ground, clients: int) -> AsyncIterator[list[Ask]]:
    """Connect a contestant's clients."""
    if one.name == "redis":
        async with AsyncAgent("bench", url=place.redis_url) as agent:
            yield [(lambda: chat(agent)) if one.load == "chat" else (lambda: echo(agent))] * clients
        return
    if one.load == "echo":
        url, body = f"{place.api_url}/v1/syscalls?wait_s=30", ECHO
    else:
        url, body = f"{place.api_url}/v1/chat/completions", CHAT
    token = place.token
    if one.name == "direct":
        url = f"{place.standin_url}/chat/completions"
    elif one.name == "litellm":
        url, token = f"{place.proxy_url}/chat/completions", place.proxy_key
    posters = [await Poster.to(url, token, body) for _ in range(clients)]
    try:
        yield [each.ask if one.load == "echo" else each.ask_stream for each in posters]
    finally:
        for each in posters:
            each.close()


async def measured(one: Contestant, place: Ground, clients: int, requests: int) -> dict[str, float]:
    """Run one load of one contestant; costs are per request."""
    async with asks_of(one, place, clients) as asks:
        await loops(asks, max(WARM_UP, clients))
        before = {name: tree_cpu_s(place.trees[name]) for name in one.trees}
        times = await loops(asks, requests)
        used = {name: tree_cpu_s(place.trees[name]) - before[name] for name in one.trees}
    figures = of_times(times)
    for name, cpu_s in used.items():
        figures[f"cpu_us {name}"] = cpu_s / requests * 1e6
    return figures


def of_times(times: Times) -> dict[str, float]:
    """Return what clients saw, in ms and requests per second."""
    figures = {"per_s": len(times.whole_s) / times.seconds}
    for what, seconds in (("", times.whole_s), ("first ", times.first_s)):
        if seconds:
            ranked = sorted(seconds)
            figures[f"{what}p50_ms"] = ranked[len(ranked) // 2] * 1e3
            figures[f"{what}p99_ms"] = ranked[int(len(ranked) * 0.99)] * 1e3
    return figures


async def rounds(
    place: Ground, count: int, requests: int, say: Callable[[str], None]
) -> dict[str, list[dict[str, float]]]:
    """Run all, in changing order."""
    found: dict[str, list[dict[str, float]]] = {}
    for number in range(count):
        order = CONTESTANTS if number % 2 == 0 else tuple(reversed(CONTESTANTS))
        for clients in CLIENTS:
            for one in order:
                figures = await measured(
                    one, place, clients, requests if clients > 1 else requests // 4
                )
                name = f"{one.load} {one.name}, {called(clients)}"
                found.setdefault(name, []).append(figures)
                say(f"round {number + 1}: {name}: {shown(figures)}")
    return found


def called(clients: int) -> str:
    """Return how many clients, in words."""
    return f"{clients} {'client' if clients == 1 else 'clients'}"


def shown(figures: Mapping[str, float]) -> str:
    """Return figures as a line."""
    return ", ".join(f"{name} {value:.2f}" for name, value in figures.items())


def medians(found: Mapping[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return the median of each figure over the rounds."""
    return {
        name: {what: statistics.median(each[what] for each in samples) for what in samples[0]}
        for name, samples in found.items()
    }


def goals(found: Mapping[str, list[dict[str, float]]]) -> list[str]:
    """Return the lines on what is aimed at: ratios are taken within rounds."""
    ours, theirs = (found[f"chat {name}, {called(MANY)}"] for name in ("api", "litellm"))
    lines = []
    for tree in ("api", "kernel"):
        ratio = statistics.median(
            a[f"cpu_us {tree}"] / b["cpu_us litellm"] for a, b in zip(ours, theirs, strict=True)
        )
        whose = "the API" if tree == "api" else "all of the kernel, the API with it"
        lines.append(f"CPU per streamed chat, {whose}, by LiteLLM's: {ratio:.2f} (aim: 0.33)")
    for clients in map(called, CLIENTS):
        later = statistics.median(
            a["first p50_ms"] - b["first p50_ms"]
            for a, b in zip(
                found[f"chat api, {clients}"], found[f"chat redis, {clients}"], strict=True
            )
        )
        lines.append(f"first token after the Redis transport's, {clients}: {later:.2f} ms (aim: 3)")
    return lines


def main() -> int:
    """Measure, print a table and the goals."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    python = peers_python(ROOT, say, lock=LOCK_FILE, into=FOLDER)
    with (
        tempfile.TemporaryDirectory(prefix="aios-api-") as folder,
        ground(python, Path(folder)) as place,
    ):
        found = asyncio.run(rounds(place, options.rounds, options.requests, say))
    versions = versions_of(python, ("litellm",))
    print(
        f"{today()}, {os.cpu_count()} processors, {commit_of(ROOT)}, litellm {versions['litellm']}"
    )
    table = medians(found)
    for name, figures in table.items():
        print(f"{name:<26}{shown(figures)}")
    lines = goals(found)
    print("\n".join(lines))
    if options.json:
        report: dict[str, Any] = {"date": today(), "commit": commit_of(ROOT), "rounds": found}
        report |= {"medians": table, "goals": lines, "versions": versions}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
