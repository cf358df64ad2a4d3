"""One contestant at work: its processes, its client, and what each load cost."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import redis

from aios_broker.contract.errors import Failed, Unavailable
from aios_broker.process.child import Child, Service
from benchmarks.queues.catalogue import CLIENTS, Contestant, Load
from benchmarks.queues.meter import Meter, Reading

PEERS = Path(__file__).with_name("peers")
WARM_UP_JOBS = 40
ANSWER_TIMEOUT_S = 120.0  # of a client: the slowest load takes some seconds
SETTLE_POLL_S = 0.05
SETTLE_TIMEOUT_S = 60.0
SOME_CALLS = 0.02  # per job: commands below that are not listed
JOURNAL = "rq:aios:journal"
SAID_CHARACTERS = 600


@dataclass(frozen=True, slots=True)
class Ground:
    """Where the contest takes place: the same for all."""

    redis_url: str
    database_url: str | None  # of the kernel's ledger; None: none is kept
    database_pid: int | None
    peers_python: str  # of the environment that the libraries are installed in
    log_dir: Path


class Sample(msgspec.Struct, frozen=True):
    """What one contestant did under one load in one round; costs are per job."""

    contestant: str
    load: Load
    round: int
    jobs: int
    jobs_per_s: float
    cpu_us: dict[str, float]  # by process: client, worker, redis; of the kernel scheduler, ledger
    commands: float
    calls: dict[str, float]  # the commands by name, those of some weight
    reads: float
    p50_ms: float | None  # None: not a load of single jobs
    p99_ms: float | None

    @property
    def cpu_total_us(self) -> float:
        """Client, worker, scheduler and Redis; the ledger's Postgres is told apart."""
        return sum(used for name, used in self.cpu_us.items() if name != "ledger")


class Contest:
    """A contestant's worker and client, running; its Redis is empty at the start."""

    def __init__(self, contestant: Contestant, ground: Ground) -> None:
        self._contestant = contestant
        self._ground = ground
        self._redis = redis.Redis.from_url(ground.redis_url)
        self._stack = ExitStack()
        self._trees: dict[str, int] = {}

    def __enter__(self) -> Contest:
        with ExitStack() as stack:
            stack.callback(self._redis.close)
            self._redis.flushall()
            self._redis.function_flush()
            for name, command in self._processes().items():
                self._start(stack, name, command)
            if self._ground.database_pid is not None and self._contestant.kind == "kernel":
                self._trees["ledger"] = self._ground.database_pid
            self._client = self._open_client(stack)
            self._ask("clients", WARM_UP_JOBS, CLIENTS)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def measure(self, load: Load, number: int) -> Sample:
        """Run one load and return what it cost."""
        jobs = self._contestant.jobs[load]
        clients = CLIENTS if load == "clients" else 1
        meter = Meter(self._redis, self._trees)
        answer, used = self._ask(load, jobs, clients, meter)
        if answer["wrong"]:
            raise Failed(f"{self._contestant.name}, {load}: {answer['wrong']} wrong results")
        assert used is not None
        cpu_us = {name: cpu_s * 1e6 / jobs for name, cpu_s in used.cpu_s.items()}
        cpu_us["client"] = answer["cpu_s"] * 1e6 / jobs
        latencies = sorted(answer["latencies_ms"])
        calls = {name: round(n / jobs, 3) for name, n in used.calls.items()}
        return Sample(
            contestant=self._contestant.name,
            load=load,
            round=number,
            jobs=jobs,
            jobs_per_s=jobs / answer["seconds"],
            cpu_us=cpu_us,
            commands=used.commands / jobs,
            calls={name: n for name, n in calls.items() if n >= SOME_CALLS},
            reads=used.reads / jobs,
            p50_ms=_at(latencies, 0.5),
            p99_ms=_at(latencies, 0.99),
        )

    # Its processes.

    def _processes(self) -> dict[str, tuple[str, ...]]:
        if self._contestant.kind != "kernel":
            worker = (self._python, str(self._script), self._contestant.worker)
            return {"worker": worker}
        return {
            "scheduler": (sys.executable, "-P", "-m", "aios_broker.scheduler"),
            "worker": (sys.executable, "-P", "-m", "aios_workers", "tool"),
        }

    @property
    def _python(self) -> str:
        ours = self._contestant.kind == "kernel"
        return sys.executable if ours else self._ground.peers_python

    @property
    def _script(self) -> Path:
        return PEERS / self._contestant.script

    @property
    def _environment(self) -> Mapping[str, str]:
        ground = self._ground
        variables = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": os.environ.get("HOME", "/tmp"),
            "LC_ALL": "C.UTF-8",
            "PYTHONPATH": str(PEERS),
            "BENCH_REDIS": ground.redis_url,
        }
        if self._contestant.kind == "kernel":
            variables |= {"AIOS_REDIS_URL": ground.redis_url, "AIOS_LOG_LEVEL": "warning"}
            if ground.database_url is not None:
                variables["AIOS_DATABASE_URL"] = ground.database_url
        return variables

    def _start(self, stack: ExitStack, name: str, command: tuple[str, ...]) -> None:
        with self._log_path(name).open("ab") as log:
            child = Child.start(Service(name, command, self._environment), log)
        stack.callback(_end, child)
        self._trees[name] = child.pid

    def _open_client(self, stack: ExitStack) -> subprocess.Popen[bytes]:
        with self._log_path("client").open("ab") as log:
            client = subprocess.Popen(
                (self._python, str(self._script), self._contestant.client),
                env=dict(self._environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,  # else closing the pipe of a dead client writes, and fails
            )
        stack.enter_context(client)  # waits for its end, closes its pipes
        stack.callback(client.kill)
        return client

    def _log_path(self, name: str) -> Path:
        return self._ground.log_dir / f"{self._contestant.name}-{name}.log"

    # Its client.

    def _ask(
        self, load: Load, jobs: int, clients: int, meter: Meter | None = None
    ) -> tuple[dict[str, Any], Reading | None]:
        """Have the client prepare, then do a load; read the meter around it."""
        self._tell({"load": load, "jobs": jobs, "clients": clients})
        self._hear()
        before = meter.read() if meter else None
        self._tell({"go": True})
        answer = self._hear()
        self._settle()
        return answer, meter.read().since(before) if meter and before else None

    def _tell(self, message: dict[str, Any]) -> None:
        assert self._client.stdin is not None
        try:
            self._client.stdin.write(msgspec.json.encode(message) + b"\n")
            self._client.stdin.flush()
        except BrokenPipeError as error:
            raise self._broken("its client has ended") from error

    def _hear(self) -> dict[str, Any]:
        assert self._client.stdout is not None
        line, until_s = b"", time.monotonic() + ANSWER_TIMEOUT_S
        while not line.endswith(b"\n"):
            left_s = until_s - time.monotonic()
            if not select.select([self._client.stdout], [], [], max(left_s, 0))[0]:
                raise self._broken(f"its client did not answer within {ANSWER_TIMEOUT_S:g} s")
            data = os.read(self._client.stdout.fileno(), 1 << 20)
            if not data:
                raise self._broken("its client has ended")
            line += data
        answer: dict[str, Any] = msgspec.json.decode(line)
        return answer

    def _settle(self) -> None:
        """Wait until nothing is left to do of a load: the ledger has the kernel's journal."""
        if self._contestant.kind != "kernel" or self._ground.database_url is None:
            return
        until_s = time.monotonic() + SETTLE_TIMEOUT_S
        while self._redis.xlen(JOURNAL):
            if time.monotonic() > until_s:
                raise self._broken(f"the journal was not drained within {SETTLE_TIMEOUT_S:g} s")
            time.sleep(SETTLE_POLL_S)

    def _broken(self, what: str) -> Unavailable:
        """Return the error of a measurement that cannot go on, with its processes' last words."""
        names = (*self._trees, "client")
        said = " | ".join(
            text.strip()[-SAID_CHARACTERS:]
            for name in names
            if (path := self._log_path(name)).exists()
            and (text := path.read_text(errors="replace"))
        )
        return Unavailable(
            f"{self._contestant.name}: {what}: {said}",
            remedy=f"see the logs in {self._ground.log_dir}",
        )


def _end(child: Child) -> None:
    """End a process and all that it started, at once: the next contestant empties Redis anyhow."""
    child.kill_session()
    child.process.wait()


def _at(ordered: list[float], share: float) -> float | None:
    """Return the quantile of sorted values, by nearest rank; None where there are none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
