"""How long until others go on, when a scheduler or a worker is killed with -9.

    python benchmarks/failover.py                          20 of each, about 4 minutes
    python benchmarks/failover.py --runs 5 --json out.json

Real processes on a Redis of its own, all settings as they are without any: two schedulers of which
one leads, two workers on the simulated core. A scheduler's death is measured until another holds
the lead, a worker's until every job that it ran is running elsewhere, checkpoint and all. Each kill
comes at a random moment of the leases' period.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT), *(str(ROOT / folder) for folder in ("broker", "workers", "sdk"))]

from aios_broker.client.redis_transport import RedisTransport  # noqa: E402
from aios_broker.client.session import Session  # noqa: E402
from aios_broker.contract.errors import Cancelled  # noqa: E402
from aios_broker.contract.llm import LlmChat, Message  # noqa: E402
from aios_broker.contract.syscall import Syscall, new_id  # noqa: E402
from aios_broker.process.child import StandaloneServer  # noqa: E402
from aios_cli.session import Operator  # noqa: E402  the checkout's, installed or not
from aios_local.embedded.redis import RedisServer  # noqa: E402
from aios_local.embedded.state import StateDir  # noqa: E402
from benchmarks.provenance import commit_of, today  # noqa: E402

POLL_S = 0.002
PATIENCE_S = 30.0
PERIOD_S = 2.0  # kills are spread over this long
JOBS = 6
SLOTS = 12  # of each worker: one can take over all that the other ran
SCHEDULER_LIMIT_S = 3.0
WORKER_LIMIT_S = 5.0
SETTINGS = {
    "AIOS_LLM_CORE": "simulated",
    "AIOS_LLM_SLOTS": str(SLOTS),
    "AIOS_SIMULATED_CORE_DECODE_TOKENS_PER_S": "20",
    "AIOS_SIMULATED_CORE_END_PROBABILITY": "0",
    "AIOS_LOG_LEVEL": "error",
}


class Scene:
    """The processes, and what Redis says of them."""

    def __init__(self, url: str) -> None:
        self.redis = redis.Redis.from_url(url, decode_responses=True)
        self._url = url
        self._environment = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": os.pathsep.join(sys.path[-3:]),
            "AIOS_REDIS_URL": url,
        }
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, *module: str) -> int:
        """Start a process of the kernel; return its id."""
        settings = SETTINGS if module[0] == "aios_workers" else {}
        process = subprocess.Popen(
            (sys.executable, "-m", *module),
            env={**self._environment, **settings},
            stderr=subprocess.DEVNULL,
        )
        self._processes[process.pid] = process
        return process.pid

    def kill(self, pid: int) -> float:
        """End a process as `kill -9` does; return when."""
        process = self._processes.pop(pid)
        process.kill()
        killed_s = time.monotonic()
        process.wait()
        return killed_s

    def close(self) -> None:
        for pid in list(self._processes):
            self.kill(pid)
        self.redis.close()

    def leader(self) -> int | None:
        """Return the process id of the scheduler whose lease stands."""
        holder, until_ms = self.redis.hmget("rq:aios:scheduler", ["holder", "until"])
        seconds, micros = self.redis.time()
        if holder is None or int(until_ms) < seconds * 1000 + micros // 1000:
            return None
        return int(holder.split(":")[1])

    def schedulers(self) -> int:
        """Return how many are connected."""
        return sum(client["name"] == "aios-scheduler" for client in self.redis.client_list())

    def workers(self) -> dict[str, int]:
        """Return the workers that are registered: name to process id."""
        found = {}
        for key in self.redis.smembers("rq:workers"):
            pid = self.redis.hget(key, "pid")
            if pid is not None and int(pid) in self._processes:
                found[key.removeprefix("rq:worker:")] = int(pid)
        return found

    def runners(self, job_ids: list[str]) -> list[str]:
        """Return which worker runs each job; empty: none."""
        rows = (self.redis.hmget(f"rq:job:{each}", ["status", "worker_name"]) for each in job_ids)
        return [worker if status == "started" else "" for status, worker in rows]

    def submit(self, count: int) -> list[str]:
        """Submit generations that outlive the measurement; return their ids."""
        story = LlmChat((Message("user", "a story"),), max_tokens=1_900)
        return asyncio.run(self._submit([Syscall(new_id(), "bench", story) for _ in range(count)]))

    def cancel(self, job_ids: list[str]) -> None:
        asyncio.run(self._cancel(job_ids))

    async def _submit(self, syscalls: list[Syscall]) -> list[str]:
        async with Session(RedisTransport(self._url, "bench")) as client:
            submitted = [client.submit(client.identified(syscall)) for syscall in syscalls]
            for pending in submitted:
                await pending.taken()
                client.let_go(pending)
        return [pending.id for pending in submitted]

    async def _cancel(self, job_ids: list[str]) -> None:
        async with Operator(self._url) as operator:
            await operator.control.cancel(job_ids, Cancelled("measured"), module="llm")


def wait(condition: Callable[[], bool]) -> float:
    """Return when the condition came true."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError("it did not recover")
        time.sleep(POLL_S)
    return time.monotonic()


def scheduler_deaths(scene: Scene, runs: int) -> Iterator[float]:
    """Kill the leader again and again; yield how long nobody led."""
    for _ in range(runs):
        wait(lambda: scene.leader() is not None and scene.schedulers() == 2)
        time.sleep(random.uniform(0.5, 0.5 + PERIOD_S))
        leader = scene.leader()
        assert leader is not None
        killed_s = scene.kill(leader)
        yield wait(lambda: scene.leader() not in (None, leader)) - killed_s  # noqa: B023
        scene.start("aios_broker.scheduler")


def worker_deaths(scene: Scene, runs: int) -> Iterator[float]:
    """Kill a worker that runs jobs; yield how long until all of them run elsewhere."""
    for _ in range(runs):
        wait(lambda: len(scene.workers()) == 2)
        ids = scene.submit(JOBS)
        wait(lambda: all(scene.runners(ids)))  # noqa: B023
        time.sleep(random.uniform(0.5, 0.5 + PERIOD_S))
        runners = scene.runners(ids)
        victim = max(set(runners), key=runners.count)
        its_own = [each for each, worker in zip(ids, runners, strict=True) if worker == victim]
        killed_s = scene.kill(scene.workers()[victim])

        def all_run_again(its_own: list[str] = its_own, victim: str = victim) -> bool:
            return all(worker not in ("", victim) for worker in scene.runners(its_own))

        yield wait(all_run_again) - killed_s
        scene.cancel(ids)
        scene.start("aios_workers", "llm")


@contextmanager
def scene_of() -> Iterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="aios-failover-") as folder:
        state = StateDir.open(Path(folder))
        server = RedisServer.of(state)
        with StandaloneServer(server.service(), state.log_dir / "redis.log"):
            scene = Scene(server.url)
            try:
                for _ in range(2):
                    scene.start("aios_broker.scheduler")
                    scene.start("aios_workers", "llm")
                yield scene
            finally:
                scene.close()
        state.remove_sockets()


def figures(seconds: list[float], limit_s: float) -> dict[str, object]:
    return {
        "runs": len(seconds),
        "median_s": round(statistics.median(seconds), 3),
        "worst_s": round(max(seconds), 3),
        "limit_s": limit_s,
        "kept": statistics.median(seconds) <= limit_s,
        "seconds": [round(each, 3) for each in seconds],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=20, help="of each kind")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    with scene_of() as scene:
        report = {
            "date": today(),
            "commit": commit_of(ROOT),
            "machine": f"{platform.machine()}, {os.cpu_count()} processors",
            "scheduler": figures(list(scheduler_deaths(scene, options.runs)), SCHEDULER_LIMIT_S),
            "worker": figures(list(worker_deaths(scene, options.runs)), WORKER_LIMIT_S),
        }
    for name, what in (("scheduler", "the standby leads"), ("worker", "its jobs run again")):
        row = report[name]
        assert isinstance(row, dict)
        print(
            f"{name} killed, {what}: median {row['median_s']} s, worst {row['worst_s']} s "
            f"of {row['runs']} (to keep: {row['limit_s']} s)"
        )
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(report[name]["kept"] for name in ("scheduler", "worker")) else 1  # type: ignore[index]


if __name__ == "__main__":
    sys.exit(main())
