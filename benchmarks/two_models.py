"""What a claim costs where two models share a fleet: as much as with one?

    python -m benchmarks.two_models                     20,000 waiting for each, about a minute
    python -m benchmarks.two_models --waiting 5000 --rounds 2 --json out.json

Three scenes on a Redis of its own, in turns within each round: `one`, all that waits is for the
model whose worker claims; `two`, as many wait for another model, in between; `behind`, the others
came first. Claims of one job and of ten are timed: wall time, and the CPU time of Redis' own
thread, which others on the machine do not change. What was claimed ends outside the timing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from aios_broker.contract.cores import CoreCard
from aios_broker.contract.syscall import Need, new_id
from aios_broker.process.child import StandaloneServer
from aios_broker.queues.functions import Functions
from aios_broker.queues.module_queue import ClaimRequest, ModuleQueue
from aios_broker.queues.records import Ending, JobMetadata, Submission, WorkerCard
from aios_broker.redis.connection import Connection
from aios_local.embedded.redis import RedisServer
from aios_local.embedded.state import StateDir
from benchmarks.provenance import ROOT, commit_of, today
from tests.queue_user import submitted

MINE, OTHER = "small", "large"
BATCH = 500
CLAIMS = 200  # of each size, per scene and round
SIZES = (1, 10)
LEASE_S = 3600.0
REPLY = b'{"kind":"reply"}'
DATA = b'["aios_workers.entry.syscall",null,[{}],{}]'


class Bench:
    """One worker of one core, and a client of both models."""

    def __init__(self, redis: Connection, redis_pid: int) -> None:
        self._redis = redis
        self._queue = ModuleQueue(Functions(redis), "llm")
        self._stat = Path(f"/proc/{redis_pid}/task/{redis_pid}/schedstat")

    async def scene(self, name: str, waiting: int) -> dict[str, list[float]]:
        """Fill the queues, then claim; return times in us, by what was timed."""
        await self._redis.execute("FLUSHALL")
        for core in (MINE, OTHER):
            card = CoreCard(name=core, model=core)
            await self._queue.register(WorkerCard(core, "llm", 1, "here", 16, (card,)))
        lines = {
            "one": [MINE] * waiting,
            "two": [MINE, OTHER] * waiting,
            "behind": [OTHER] * waiting + [MINE] * waiting,
        }
        await self._submit(lines[name])
        took: dict[str, list[float]] = defaultdict(list)
        for size in SIZES:
            for _ in range(CLAIMS):
                await self._claim(size, took)
        return took

    async def _submit(self, cores: Sequence[str]) -> None:
        for first in range(0, len(cores), BATCH):
            jobs = [
                Submission(
                    new_id(),
                    DATA,
                    JobMetadata("bench", "llm.chat"),
                    "",
                    (Need("core", core),),
                    LEASE_S,
                )
                for core in cores[first : first + BATCH]
            ]
            await submitted(self._queue, jobs)

    async def _claim(self, size: int, took: dict[str, list[float]]) -> None:
        request = ClaimRequest(size, LEASE_S, (MINE,))
        cpu_us, began_s = self._cpu_us(), time.perf_counter()
        leases = await self._queue.claim(MINE, request)
        took[f"{size} jobs, wall"].append((time.perf_counter() - began_s) * 1e6)
        took[f"{size} jobs, Redis"].append(self._cpu_us() - cpu_us)
        if len(leases) != size:
            raise RuntimeError(f"a claim of {size} jobs was lent {len(leases)}")
        endings = [Ending(lease, "finished", REPLY, 0.001) for lease in leases]
        await self._queue.finish(MINE, endings, ClaimRequest(0, LEASE_S, (MINE,)))

    def _cpu_us(self) -> float:
        return int(self._stat.read_text().split()[0]) / 1e3


async def measure(waiting: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return the median of each round, in us: by what was timed, by scene."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory(prefix="aios-two-models-") as folder:
        state = StateDir.open(Path(folder))
        server = RedisServer.of(state)
        with StandaloneServer(server.service(), state.log_dir / "redis.log"):
            redis = Connection(server.url)
            info = (await redis.execute("INFO", "server")).decode()
            bench = Bench(redis, int(info.partition("process_id:")[2].split()[0]))
            for _ in range(rounds):
                for name in ("one", "two", "behind"):
                    for what, times in (await bench.scene(name, waiting)).items():
                        found[what][name].append(median(times))
            await redis.aclose()
    return found


def main(words: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--waiting", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(words)
    found = asyncio.run(measure(options.waiting, options.rounds))
    for what, scenes in found.items():
        one = scenes["one"]
        for name, medians in scenes.items():
            ratio = median(each / first for each, first in zip(medians, one, strict=True))
            print(
                f"claim of {what:16} {name:7} {median(medians):8.1f} us, {ratio:.2f} of one model"
            )
    if options.json is not None:
        report = {"date": today(), "commit": commit_of(ROOT), "waiting": options.waiting}
        options.json.write_text(json.dumps({**report, "medians_us": found}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
