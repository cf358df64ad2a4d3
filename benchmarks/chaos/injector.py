"""Strike processes, see them recover, and write down both."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable

import psycopg
import redis

from aios_broker.contract.errors import KernelError, Unavailable
from aios_broker.contract.names import Module
from aios_broker.postgres.database import check_database_url
from aios_broker.queues.control import Control
from aios_broker.queues.functions import Functions
from aios_broker.redis.connection import Connection
from aios_local.supervisor.kernel import EmbeddedKernel
from benchmarks.chaos.crowd import Crowd
from benchmarks.chaos.history import Log, Struck, wall_s
from benchmarks.chaos.schedule import CLIENT, SCHEDULERS, SERVERS, Fault

POLL_S = 0.02
GIVE_UP_S = 60.0  # waiting for a recovery
HELD_AT_ONCE = 20


class Injector:
    """Carries out a schedule, each fault in a thread of its own: they may overlap."""

    def __init__(self, kernel: EmbeddedKernel, crowd: Crowd, log: Log, seed: int) -> None:
        self._kernel = kernel
        self._crowd = crowd
        self._log = log
        self._dice = random.Random(f"injector/{seed}")
        self._threads: list[threading.Thread] = []
        self._writing = threading.Lock()
        self.forgetful: list[float] = []  # when a Redis died that had not promised every write
        self._syncs_always = False

    def run(self, faults: list[Fault], is_over: Callable[[], bool]) -> None:
        """Strike at the scheduled times; return when all victims go again."""
        self.choose_durability()
        began = time.monotonic()
        for fault in faults:
            while time.monotonic() - began < fault.at_s:
                if is_over():
                    break
                time.sleep(POLL_S)
            thread = threading.Thread(target=self._strike, args=(fault,), name=fault.victim)
            thread.start()
            self._threads.append(thread)
        for thread in self._threads:
            thread.join()

    def choose_durability(self) -> None:
        """Let this life of Redis sync every write, or every second."""
        self._syncs_always = self._dice.random() < 0.5
        wanted = "always" if self._syncs_always else "everysec"
        with redis.Redis.from_url(self._kernel.redis_url) as client:
            client.config_set("appendfsync", wanted)

    def _strike(self, fault: Fault) -> None:
        try:
            match fault.kind:
                case "kill":
                    self._kill(fault)
                case "stop":
                    self._stop(fault)
                case "restart":
                    self._kernel.restart(fault.victim)
                    self._note(fault, 0, wall_s(), None)
                case _:
                    asyncio.run(self._hold(fault))
        except (Unavailable, ProcessLookupError):
            pass  # it is down already: an earlier fault has it

    def _kill(self, fault: Fault) -> None:
        if fault.victim.startswith(CLIENT):
            at = wall_s()
            self._note(fault, self._crowd.kill(fault.victim), at, None)
            self._crowd.start(fault.victim)
            return
        at, always = wall_s(), self._syncs_always
        pid = self._kernel.kill(fault.victim)
        recovered_s = self._recovery(fault.victim, pid, at)
        self._note(fault, pid, at, recovered_s)
        if fault.victim == "redis":
            if not always:
                self.forgetful.append(at)
            self.choose_durability()

    def _stop(self, fault: Fault) -> None:
        at = wall_s()
        pid = self._signal(fault.victim, signal.SIGSTOP)
        time.sleep(fault.for_s)
        with contextlib.suppress(Unavailable, ProcessLookupError):
            self._signal(fault.victim, signal.SIGCONT)
        self._note(fault, pid, at, None)

    def _signal(self, victim: str, number: signal.Signals) -> int:
        if victim.startswith(CLIENT):
            return self._crowd.signal(victim, number)
        return self._kernel.signal(victim, number)

    async def _hold(self, fault: Fault) -> None:
        """Take some syscalls of a module out of the queue, and give them back."""
        connection = Connection(self._kernel.redis_url, name="chaos-hold")
        control = Control(Functions(connection))
        module: Module = "llm" if fault.victim == "llm" else "tool"
        at = wall_s()
        ids: list[str] = []
        try:
            ids = [job.job_id for job in await control.jobs(module, limit=HELD_AT_ONCE)]
            await control.hold(ids, module=module)
            await asyncio.sleep(fault.for_s)
        except KernelError:
            pass  # an outage: whether they are held is not known
        try:
            await _until_done(lambda: control.release(ids, module=module))
        finally:
            await connection.aclose()
        self._note(fault, len(ids), at, None)

    def _recovery(self, victim: str, pid: int, at: float) -> float | None:
        """Wait until the victim's work is done again; return how long that took."""
        if victim in SCHEDULERS:
            return self._until(at, lambda: self._leader_is_not(pid)) if self._led(pid) else None
        if victim in SERVERS:
            return self._until(at, self._redis_answers if victim == "redis" else self._pg_answers)
        return None  # of workers: the journal tells it

    def _until(self, at: float, condition: Callable[[], bool]) -> float:
        while wall_s() - at < GIVE_UP_S and not condition():
            time.sleep(POLL_S)
        return wall_s() - at

    def _holder(self) -> tuple[str, bool]:
        """Return who holds the lead, and whether the lease still runs."""
        with redis.Redis.from_url(self._kernel.redis_url, decode_responses=True) as client:
            holder, until_ms = client.hmget("rq:aios:scheduler", "holder", "until")
            seconds, _ = client.time()
        return holder or "", float(until_ms or 0) / 1000 > seconds

    def _led(self, pid: int) -> bool:
        with contextlib.suppress(redis.RedisError):
            return f":{pid}:" in self._holder()[0]
        return False

    def _leader_is_not(self, pid: int) -> bool:
        with contextlib.suppress(redis.RedisError):
            holder, leads = self._holder()
            return leads and f":{pid}:" not in holder
        return False

    def _redis_answers(self) -> bool:
        with (
            contextlib.suppress(redis.RedisError),
            redis.Redis.from_url(self._kernel.redis_url, socket_timeout=1.0) as client,
        ):
            return bool(client.ping())
        return False

    def _pg_answers(self) -> bool:
        url = check_database_url(self._kernel.database_url)
        with contextlib.suppress(psycopg.Error), psycopg.connect(url, connect_timeout=2) as db:
            return db.execute("SELECT 1").fetchone() == (1,)
        return False

    def _note(self, fault: Fault, pid: int, at: float, recovered_s: float | None) -> None:
        kind = "client" if fault.victim.startswith(CLIENT) else fault.victim.partition("-")[0]
        if kind in ("llm", "tool") and fault.kind != "hold":
            kind = "worker"
        elif fault.victim in SCHEDULERS:
            kind = "scheduler"
        if fault.kind == "stop":
            kind += " (long)" if fault.for_s > 1.0 else " (short)"
        with self._writing:
            self._log.write(
                Struck(at, f"{fault.kind} {kind}", fault.victim, pid, wall_s(), recovered_s)
            )


async def _until_done(step: Callable[[], object]) -> None:
    deadline = time.monotonic() + GIVE_UP_S
    while True:
        try:
            await step()  # type: ignore[misc]
        except KernelError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)
        else:
            return
