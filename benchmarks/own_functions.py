"""A function of one's own as a job: here, forked from a process of the tool's, and in RQ's worker.

    python -m benchmarks.own_functions                    10,000 calls each, three rounds
    python -m benchmarks.own_functions --calls 1000 --rounds 1 --json out.json

All run the same `add`, on the same Redis, in turns, each with one worker that forks for each call:
here in a sandbox and without one, and in RQ's worker. CPU is that of the worker and all below it,
from its start to its end, without Redis and the client: what a start alone takes is measured too,
and taken off; of a sandbox it is not told, since its processes end unseen by who started them.
Calls/s begin when the worker answers: RQ's, too, is asked once before. What is
printed are medians of the rounds, each round, and how many times RQ's they are.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import redis
from rq import Queue, Worker
from rq.serializers import JSONSerializer

from aios_broker.process.child import StandaloneServer
from aios_local.embedded.redis import RedisServer
from aios_local.embedded.state import StateDir
from aios_sdk import AsyncAgent
from benchmarks.provenance import commit_of, today

ROOT = Path(__file__).resolve().parents[1]
MODULE = "own_function_of_bench"
FUNCTION = """
from aios_sdk import tool

@tool
def add(a: int, b: int) -> int:
    return a + b
"""
LIMIT_S = 1_800.0
LOOK_S = 0.002


def main(arguments: Sequence[str]) -> None:
    """Measure both, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="aios-bench-") as folder:
        place = Path(folder)
        (place / f"{MODULE}.py").write_text(FUNCTION)
        (place / "tools.toml").write_text(
            f'[tools."local/add"]\nfunction = "{MODULE}:add"\npath = "{place}"\n'
        )
        server = RedisServer.of(StateDir.open(place / "state"))
        with StandaloneServer(server.service(), place / "redis.log"):
            runs: dict[str, Callable[[int], float]] = {
                "sandbox": lambda n: tools(server.url, place, n, "bubblewrap"),
                "no sandbox": lambda n: tools(server.url, place, n, "none"),
                "rq": lambda n: stock(server.url, place, n),
            }
            rounds: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
            for _ in range(asked.rounds):
                for name, run in runs.items():
                    figures = measured(run, asked.calls)
                    if name == "sandbox":
                        del figures["cpu_ms"]
                    rounds[name].append(figures)
            found = {
                "date": today(),
                "commit": commit_of(ROOT),
                "calls": asked.calls,
                **summary(rounds),
            }
    text = json.dumps(found, indent=2)
    sys.stdout.write(f"{text}\n")
    if asked.json is not None:
        asked.json.write_text(text)


def summary(rounds: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return the medians of rounds, each of them, and how many times RQ's they are."""
    medians = {
        name: {what: median(each[what] for each in found) for what in found[0]}
        for name, found in rounds.items()
    }
    stock = medians["rq"]
    times = {
        name: {what: round(value / stock[what], 2) for what, value in found.items()}
        for name, found in medians.items()
        if name != "rq"
    }
    return {"medians": medians, "times_rq": times, "rounds": rounds}


def measured(run: Callable[[int], float], calls: int) -> dict[str, float]:
    """Return calls/s, and the processor time of each call in ms; a start's own taken off."""
    start_s = cpu_of(lambda: run(1))[1]
    wall_s, cpu_s = cpu_of(lambda: run(calls))
    return {
        "calls_per_s": round(calls / wall_s, 1),
        "cpu_ms": round(1000 * (cpu_s - start_s) / (calls - 1), 3),
    }


def cpu_of(run: Callable[[], float]) -> tuple[float, float]:
    """Return how long a run took by its own count, and the processor time of its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall_s = run()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def tools(url: str, place: Path, calls: int, sandbox: str) -> float:
    """Run calls of the tool; return how long they took once the worker answered."""
    environ = {
        "PATH": os.defpath,
        "AIOS_REDIS_URL": url,
        "AIOS_STATE_DIR": str(place / "state"),
        "AIOS_TOOLS": str(place / "tools.toml"),
        "AIOS_TOOL_SANDBOX": sandbox,
    }
    worker = subprocess.Popen((sys.executable, "-m", "aios_workers", "tool"), env=environ)
    try:
        return asyncio.run(_calls(url, calls, sandbox))
    finally:
        worker.terminate()
        worker.wait(timeout=LIMIT_S)


async def _calls(url: str, calls: int, sandbox: str) -> float:
    async with AsyncAgent("bench", url=url) as me:
        first = await me.tool.call("local/add", {"a": 0, "b": 0})  # it is loaded
        assert first.run.sandbox == sandbox, f"it runs in {first.run.sandbox}: {first.run.warnings}"
        items = [{"tool": "local/add", "arguments": {"a": n, "b": 1}} for n in range(calls)]
        began_s = time.perf_counter()
        results = await me.with_options(deadline_s=LIMIT_S).tool.call.map(items)
        took_s = time.perf_counter() - began_s
    assert [result.value for result in results] == [n + 1 for n in range(calls)]
    return took_s


def stock(url: str, place: Path, calls: int) -> float:
    """Run jobs of the same function in RQ's worker; return how long they took."""
    connection = redis.Redis.from_url(url)
    queue = Queue("own-function", connection=connection, serializer=JSONSerializer)
    first = queue.enqueue(f"{MODULE}.add", 0, 0)
    jobs = [queue.enqueue(f"{MODULE}.add", n, 1) for n in range(calls)]
    code = f"from benchmarks.own_functions import work; work({url!r})"
    path = os.pathsep.join((str(place), *sys.path))
    environ = {"PATH": os.defpath, "PYTHONPATH": path}
    worker = subprocess.Popen((sys.executable, "-c", code), env=environ, cwd=ROOT)
    try:
        while not first.is_finished:
            assert worker.poll() is None, "RQ's worker has left"
            time.sleep(LOOK_S)
        began_s = time.perf_counter()
        assert worker.wait(timeout=LIMIT_S) == 0
        took_s = time.perf_counter() - began_s
    finally:
        worker.kill()
        worker.wait()
    assert all(job.return_value() == number + 1 for number, job in enumerate(jobs))
    return took_s


def work(url: str) -> None:
    """Be RQ's worker until its queue is empty: it forks for each job."""
    connection = redis.Redis.from_url(url)
    worker = Worker(["own-function"], connection=connection, serializer=JSONSerializer)
    worker.work(burst=True, logging_level="ERROR")


if __name__ == "__main__":
    main(sys.argv[1:])
