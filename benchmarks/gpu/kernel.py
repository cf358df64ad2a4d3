"""A kernel of the check's own: Valkey, a scheduler, llm workers, each a process; no Postgres."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from aios_broker.client.redis_transport import RedisTransport
from aios_broker.client.session import Session
from aios_broker.contract.llm import LlmChat
from aios_broker.contract.reply import ChatResult, Timings
from aios_broker.contract.syscall import Syscall, new_id
from aios_broker.process.child import StandaloneServer
from aios_broker.redis.connection import Connection
from aios_local.embedded.redis import RedisServer
from aios_local.embedded.state import StateDir
from benchmarks.gpu.results import say
from benchmarks.gpu.worker import OnLlama, OnSGLang, Simulated, WorkerSettings
from benchmarks.provenance import ROOT

START_LIMIT_S = 120.0
END_LIMIT_S = 15.0
POLL_S = 0.05
LOG_CHARACTERS = 3_000
CPU_TICKS = os.sysconf("SC_CLK_TCK")

Place = OnSGLang | OnLlama | Simulated


@dataclass(frozen=True, slots=True)
class Rules:
    """The order of a run: the scheduler's policy and its quantum."""

    policy: str
    quantum_tokens: int


class Kernel:
    """The processes, and a client of theirs."""

    def __init__(self, url: str, folder: Path, workers: int) -> None:
        self.url = url
        self.notes = [folder / f"notes-{number}.jsonl" for number in range(workers)]
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._client: Session | None = None

    async def open(self, rules: Rules, places: Sequence[Place]) -> None:
        """Start all; return when the workers serve."""
        settings = {"QUANTUM_TOKENS": rules.quantum_tokens, "QUANTUM_S": 60, "POLICY": rules.policy}
        self._start("scheduler", ("-m", "aios_broker.scheduler"), settings)
        for number, place in enumerate(places):
            name = f"worker-{number}"
            told = WorkerSettings(name, self.url, place, str(self.notes[number]))
            argument = msgspec.json.encode(told).decode()
            self._start(name, ("-m", "benchmarks.gpu.worker", argument), {})
        await self._until_served(len(places))
        self._client = Session(RedisTransport(self.url, "check"))
        await self._client.open()

    async def chat(self, body: LlmChat, program: str, limit_s: float) -> tuple[ChatResult, Timings]:
        """Run one chat to its end."""
        assert self._client is not None
        built = Syscall(new_id(), "check", body, program=program, deadline_s=limit_s)
        syscall = self._client.identified(built)
        reply = await self._client.submit(syscall).reply_within(limit_s + 5.0)
        result = reply.unwrap()
        assert isinstance(result, ChatResult)
        return result, reply.timings

    def cpu_s(self) -> dict[str, float]:
        """Return the processor time so far, by process."""
        used = {"client": time.process_time()}
        for name, process in self._processes.items():
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            used[name] = (int(fields[11]) + int(fields[12])) / CPU_TICKS
        return used

    async def close(self) -> None:
        """End all."""
        if self._client is not None:
            await self._client.aclose()
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                await asyncio.to_thread(process.wait, END_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, name: str, command: Sequence[str], settings: dict[str, object]) -> None:
        plain = {k: v for k, v in os.environ.items() if not k.startswith("AIOS_")}
        plain["PYTHONPATH"] = os.pathsep.join(
            str(ROOT / each) for each in (".", "broker", "workers", "sdk")
        )
        ours = {f"AIOS_{key}": str(value) for key, value in settings.items()}
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                (sys.executable, "-P", *command),
                env={**plain, **ours, "AIOS_REDIS_URL": self.url},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    async def _until_served(self, workers: int) -> None:
        connection = Connection(self.url)
        until_s = time.monotonic() + START_LIMIT_S
        try:
            while await connection.execute("SCARD", "rq:workers") < workers:
                for name, process in self._processes.items():
                    if process.poll() is not None or time.monotonic() > until_s:
                        log = (self._folder / f"{name}.log").read_text(errors="replace")
                        raise RuntimeError(f"{name} did not come up:\n{log[-LOG_CHARACTERS:]}")
                await asyncio.sleep(POLL_S)
        finally:
            await connection.aclose()


@asynccontextmanager
async def kernel_on(places: Sequence[Place], rules: Rules) -> AsyncIterator[Kernel]:
    """Run a kernel with a worker for each place, for the length of a block."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aios-gpu-")))
        state = StateDir.open(folder)
        stack.callback(state.remove_sockets)
        server = RedisServer.of(state)
        stack.enter_context(StandaloneServer(server.service(), state.log_dir / "redis.log"))
        kernel = Kernel(server.url, folder, len(places))
        began_s = time.monotonic()
        try:
            await kernel.open(rules, places)
            up_s = time.monotonic() - began_s
            say(f"kernel: {rules.policy}, {rules.quantum_tokens} tokens, up after {up_s:.1f} s")
            yield kernel
        finally:
            await kernel.close()
