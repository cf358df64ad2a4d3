"""How long one step holds Redis while many syscalls wait: the longest call of each.

    python benchmarks/stalls.py                      100,000 waiting, about two minutes
    python benchmarks/stalls.py --waiting 20000 --json out.json

One Redis of its own, its steps called as the scheduler and operators call them, without a client of
the kernel: what is measured is the CPU time of Redis' own thread within one call. Others on the
machine do not change it, and a client that calls meanwhile waits for that long.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT), *(str(ROOT / folder) for folder in ("broker", "workers", "sdk"))]

from aios_broker.contract.errors import Cancelled  # noqa: E402  the checkout's, installed or not
from aios_broker.contract.syscall import new_id  # noqa: E402
from aios_broker.process.child import StandaloneServer  # noqa: E402
from aios_broker.queues.control import Control  # noqa: E402
from aios_broker.queues.functions import LIBRARY, Functions  # noqa: E402
from aios_broker.queues.keys import Keys  # noqa: E402
from aios_broker.queues.module_queue import ClaimRequest, ModuleQueue  # noqa: E402
from aios_broker.queues.order import Order  # noqa: E402
from aios_broker.queues.quota import QuotaRow, Quotas, Subject  # noqa: E402
from aios_broker.queues.records import JobMetadata, PolicyRow, Submission  # noqa: E402
from aios_broker.redis.connection import Answer, Argument, Connection  # noqa: E402
from aios_broker.scheduler.ordering import ModuleOrder  # noqa: E402
from aios_broker.scheduler.policy import policy_named  # noqa: E402
from aios_local.embedded.redis import RedisServer  # noqa: E402
from aios_local.embedded.state import StateDir  # noqa: E402
from benchmarks.provenance import commit_of, today  # noqa: E402
from tests.queue_user import submitted  # noqa: E402

BATCH = 500
AGENTS = 2_000
RUNNING = 500
SOME = 200
KEYS = Keys()


class Watched(Connection):
    """A connection that times Redis' thread, call by call. One call at a time."""

    pid = 0

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.scene = ""
        self.took_ms: dict[str, list[float]] = defaultdict(list)

    async def execute(self, *arguments: Argument, timeout_s: float | None = None) -> Answer:
        """Send one command; note how long it took, under its name or its step's."""
        before = self._thread_ms()
        answer = await super().execute(*arguments, timeout_s=timeout_s or 60.0)
        name = str(arguments[1 if arguments[0] == "FCALL" else 0]).removeprefix(f"{LIBRARY}_")
        self.took_ms[f"{self.scene}: {name}"].append(self._thread_ms() - before)
        return answer

    def _thread_ms(self) -> float:
        stat = Path(f"/proc/{self.pid}/task/{self.pid}/schedstat")
        return int(stat.read_text().split()[0]) / 1e6


class Bench:
    """The steps, and the queue they are called on."""

    def __init__(self, redis: Watched) -> None:
        functions = Functions(redis)
        self.redis = redis
        self.queue = ModuleQueue(functions, "llm")
        self.order = Order(functions, "llm")
        self.control = Control(functions)
        self.quotas = Quotas(functions)
        self.chance = random.Random(1)
        self.ids: list[str] = []
        self.epoch = 0

    async def run(self, waiting: int) -> None:
        """Call each step where it is dear."""
        await self._fill(waiting)
        redis, epoch = self.redis, self.epoch
        redis.scene = "all as it was"
        await self._look()
        redis.scene = "1,000 deleted by a stock tool"
        gone = self._some(1000)
        await redis.execute("UNLINK", *(KEYS.job(job_id) for job_id in gone))
        await self._look()
        await self._look()
        redis.scene = "quotas"
        await self.quotas.set("llm", QuotaRow(Subject.of_agent("*"), max_queued=1_000_000))
        await redis.execute("HSET", KEYS.own("load:llm"), "counted", 0)
        await self._look()
        redis.scene = "200 anywhere"
        await self.control.cancel(self._some(SOME), Cancelled("no"), module="llm")
        await self.control.hold(self._some(SOME), module="llm")
        await self.order.reconcile(epoch)
        late = dict.fromkeys(self._some(SOME), 1)
        await redis.execute("ZADD", KEYS.own("deadlines:llm"), *(p for i in late for p in (1, i)))
        await self.order.expire(epoch)
        await self.order.reconcile(epoch)
        redis.scene = "500 leases run out"
        leases = [m.decode() for m in await redis.execute("ZRANGE", KEYS.own("leases:llm"), 0, -1)]
        await redis.execute("ZADD", KEYS.own("leases:llm"), *(p for m in leases for p in (1, m)))
        await self.order.reclaim(epoch)
        redis.scene = "ordering"
        await self._order_all()

    async def _fill(self, waiting: int) -> None:
        self.redis.scene = "filling"
        self.epoch = (await self.order.lead("bench", 3600.0)).epoch
        await self.control.set_policy("llm", PolicyRow(max_waiting=10_000_000))
        for _ in range(0, waiting, BATCH):
            jobs = [self._job() for _ in range(BATCH)]
            await submitted(self.queue, jobs)
            self.ids += [job.job_id for job in jobs]
        for _ in range(0, RUNNING, 50):
            leases = await self.queue.claim("bench", ClaimRequest(50, 3600.0))
            assert leases
        self.ids = self.ids[RUNNING:]

    def _job(self) -> Submission:
        agent = f"agent-{self.chance.randrange(AGENTS)}"
        metadata = JobMetadata(agent, "llm.chat", nice=self.chance.randint(0, 19))
        return Submission(new_id(), b"[]" * 200, metadata, "client-1", deadline_s=3600.0)

    def _some(self, count: int) -> list[str]:
        chosen = self.chance.sample(self.ids, count)
        gone = set(chosen)
        self.ids = [job_id for job_id in self.ids if job_id not in gone]
        return chosen

    async def _look(self) -> None:
        """Let the look be due, and take it."""
        await self.redis.execute("HSET", KEYS.own("reconciled"), "llm", 0)
        await self.order.reconcile(self.epoch)

    async def _order_all(self) -> None:
        await self.control.set_policy("llm", PolicyRow("priority", "score", max_waiting=10_000_000))
        queue = ModuleOrder(self.order, self.control, policy_named("priority"))
        seconds, _ = await self.redis.execute("TIME")
        while await queue.sweep(self.epoch, int(seconds) * 1000):
            await queue.decide(self.epoch, int(seconds) * 1000)


async def measure(waiting: int) -> dict[str, list[float]]:
    """Return the times of all calls, by scene and step."""
    with tempfile.TemporaryDirectory(prefix="aios-stalls-") as folder:
        state = StateDir.open(Path(folder))
        server = RedisServer.of(state)
        with StandaloneServer(server.service(), state.log_dir / "redis.log") as process:
            redis = Watched(server.url)
            redis.pid = await redis_pid(server.url)
            assert process
            bench = Bench(redis)
            await bench.run(waiting)
            await redis.aclose()
            return redis.took_ms


async def redis_pid(url: str) -> int:
    """Return the process id of a Redis on this machine."""
    plain = Connection(url)
    info = (await plain.execute("INFO", "server")).decode()
    await plain.aclose()
    return int(info.partition("process_id:")[2].split()[0])


def main(words: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--waiting", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(words)
    took_ms = asyncio.run(measure(options.waiting))
    rows = [
        {
            "call": name,
            "calls": len(times),
            "longest_ms": round(max(times), 2),
            "all_ms": round(sum(times), 1),
        }
        for name, times in took_ms.items()
    ]
    for row in rows:
        print(
            f"{row['call']:45} {row['calls']:6} calls, longest {row['longest_ms']:8.2f} ms, "
            f"all {row['all_ms']:9.1f} ms"
        )
    if options.json is not None:
        report = {"date": today(), "commit": commit_of(ROOT), "waiting": options.waiting}
        options.json.write_text(json.dumps({**report, "calls": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
