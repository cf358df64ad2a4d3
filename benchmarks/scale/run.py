"""Many agents, a long queue: what a decision costs, what the kernel weighs.

The kernel's processes are real: Valkey, Postgres, scheduler, tool worker, and an llm worker on the
simulated core. Decisions are timed in this process, which takes the lead from the scheduler for
that: the same `ModuleOrder`, the same connection, tick by tick.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import redis
import uvloop
from msgspec import Struct

from aios_broker.contract.errors import Unavailable
from aios_broker.process.child import Child, Service
from aios_broker.scheduler.policy import POLICY_NAMES
from benchmarks.queues.contest import Ground
from benchmarks.queues.meter import tree_cpu_s, tree_pss_bytes
from benchmarks.queues.run import open_ground
from benchmarks.scale.decisions import Driver
from benchmarks.scale.report import Budget, Decisions, Memory, budgets_of

CROWD = Path(__file__).with_name("crowd.py")
CROWDS = 4  # processes that the agents live in
QUEUES = "rq:queue:llm*"  # the module's own, and one for each core
LEADER = "rq:aios:scheduler"
IDLE_S = 5.0
PATIENCE_S = 300.0
POLL_S = 0.05
SIMULATED = {
    "AIOS_LLM_CORE": "simulated",
    "AIOS_SIMULATED_CORE_PREFILL_TOKENS_PER_S": "0",
    "AIOS_SIMULATED_CORE_DECODE_TOKENS_PER_S": "0",
}

Say = Callable[[str], None]


class Figures(Struct, frozen=True):
    """What a run found. CPU shares are of one processor, in per cent."""

    agents: int
    waiting: int
    connect_s: float
    fill_s: float
    idle_cpu: dict[str, float]  # all connected, nothing waits
    waiting_cpu: dict[str, float]  # all wait, and look after their syscalls; nothing runs
    memory_idle: Memory
    memory_waiting: Memory
    decisions: dict[str, Decisions]  # by policy
    budgets: list[Budget]


def measure(*, agents: int, waiting: int, ticks: int, say: Say) -> Figures:
    """Start everything, fill the queue, measure, stop everything."""
    with (
        open_ground(sys.executable, ledger=True, say=say) as ground,
        Kernel(ground) as kernel,
        open_crowd(ground, agents) as crowd,
    ):
        connect_s = max(one.hear()["seconds"] for one in crowd)
        say(f"{agents} agents are connected after {connect_s:.1f} s")
        idle_cpu, memory_idle = kernel.cpu_over(IDLE_S), kernel.memory()
        began_s = time.monotonic()
        for one in crowd:
            one.tell(f"submit {waiting // agents}")
        for one in crowd:
            one.hear()
        fill_s = time.monotonic() - began_s
        length = kernel.waiting()
        say(f"{length} syscalls wait after {fill_s:.1f} s")
        kernel.settle()
        waiting_cpu, memory_waiting = kernel.cpu_over(IDLE_S), kernel.memory()
        kernel.stop("scheduler")  # it would look at the same time
        kernel.stop("llm")  # it would run what waits as soon as the queue is not suspended
        for one in crowd:
            one.freeze()  # what they ask meanwhile would count as the decisions'
        decisions = decide(ground, kernel.redis_pid, ticks, say)
    return Figures(
        agents,
        length,
        connect_s,
        fill_s,
        idle_cpu,
        waiting_cpu,
        memory_idle,
        memory_waiting,
        decisions,
        budgets_of(memory_waiting, decisions),
    )


def decide(ground: Ground, redis_pid: int, ticks: int, say: Say) -> dict[str, Decisions]:
    """Lead in the scheduler's place, under each policy in turn."""

    async def all_policies() -> dict[str, Decisions]:
        found: dict[str, Decisions] = {}
        async with Driver.open(ground.redis_url, redis_pid) as driver:
            for name in POLICY_NAMES:
                found[name] = await driver.measure(name, ticks)
                say(found[name].line(name))
        return found

    return uvloop.run(all_policies())


class Kernel:
    """The kernel's processes, but for its servers."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._redis = redis.Redis.from_url(ground.redis_url, decode_responses=True)
        self.redis_pid = int(self._redis.info("server")["process_id"])
        self._children: dict[str, Child] = {}

    def __enter__(self) -> Kernel:
        python = (sys.executable, "-P", "-m")
        self.start("scheduler", *python, "aios_broker.scheduler")
        self._wait(lambda: bool(self._redis.hget(LEADER, "epoch")), "no scheduler leads")
        self.start("tool", *python, "aios_workers", "tool")
        # A worker that serves the core's name and takes nothing: the queue stays as long as it is.
        self._redis.set("rq:suspended", 1)
        self.start("llm", *python, "aios_workers", "llm")
        self._wait(lambda: self._redis.scard("rq:workers") == 2, "a worker does not start")
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._children):
            self.stop(name)
        self._redis.close()

    def stop(self, name: str) -> None:
        """End a process at once."""
        child = self._children.pop(name)
        child.kill_session()
        child.process.wait()

    def waiting(self) -> int:
        """Return how many syscalls wait."""
        return sum(int(self._redis.llen(key)) for key in self._redis.scan_iter(QUEUES))

    def settle(self) -> None:
        """Wait until the ledger has the whole journal."""
        self._wait(lambda: self._redis.xlen("rq:aios:journal") == 0, "the journal is not drained")

    def cpu_s(self) -> dict[str, float]:
        """Return the processor time that each process has used."""
        return {name: tree_cpu_s(pid) for name, pid in self._pids().items()}

    def cpu_over(self, seconds: float) -> dict[str, float]:
        """Return the share of a processor that each process uses."""
        before = self.cpu_s()
        began_s = time.monotonic()
        time.sleep(seconds)
        took_s = time.monotonic() - began_s
        return {
            name: round(100 * (used_s - before[name]) / took_s, 1)
            for name, used_s in self.cpu_s().items()
        }

    def memory(self) -> Memory:
        """Return the memory of each process."""
        return Memory({name: tree_pss_bytes(pid) for name, pid in self._pids().items()})

    def _pids(self) -> dict[str, int]:
        assert self._ground.database_pid is not None
        servers = {"redis": self.redis_pid, "postgres": self._ground.database_pid}
        return servers | {name: child.pid for name, child in self._children.items()}

    def start(self, name: str, *command: str, **more: str) -> None:
        """Start a process of the kernel, with these variables beside those of all."""
        variables = (
            environment_of(self._ground)
            | SIMULATED
            | {
                "AIOS_REDIS_URL": self._ground.redis_url,
                "AIOS_DATABASE_URL": self._ground.database_url or "",
                "AIOS_MAX_WAITING": "1000000",
                "AIOS_LOG_LEVEL": "warning",
            }
            | more
        )
        with (self._ground.log_dir / f"{name}.log").open("ab") as log:
            self._children[name] = Child.start(Service(name, command, variables), log)

    def _wait(self, met: Callable[[], bool], otherwise: str) -> None:
        until_s = time.monotonic() + PATIENCE_S
        while not met():
            if time.monotonic() > until_s:
                raise Unavailable(f"{otherwise}; see {self._ground.log_dir}")
            time.sleep(POLL_S)


class Crowd:
    """A process full of agents."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def tell(self, line: str) -> None:
        """Give a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def freeze(self) -> None:
        """Stop it; its connections stay."""
        self._process.send_signal(signal.SIGSTOP)

    def hear(self) -> dict[str, Any]:
        """Return what it says next."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], PATIENCE_S)[0]:
            raise Unavailable(f"the agents did not answer within {PATIENCE_S:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise Unavailable("the process of some agents has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def open_crowd(ground: Ground, agents: int) -> Iterator[list[Crowd]]:
    """Start the agents' processes; end them all with the block."""
    with ExitStack() as stack:
        crowd = []
        each = agents // CROWDS
        for number in range(CROWDS):
            with (ground.log_dir / "crowd.log").open("ab") as log:
                process = subprocess.Popen(
                    (sys.executable, "-P", str(CROWD), str(number * each), str(each)),
                    env=environment_of(ground),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                )
            stack.enter_context(process)  # waits for its end, closes its pipes
            stack.callback(process.kill)
            crowd.append(Crowd(process))
        yield crowd


def environment_of(ground: Ground) -> dict[str, str]:
    """Return the variables of a process of this benchmark."""
    return {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": os.environ.get("HOME", "/tmp"),
        "BENCH_REDIS": ground.redis_url,
    }
