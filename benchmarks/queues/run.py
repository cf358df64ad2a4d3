"""The whole contest: one Redis, some rounds, a new order in each."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from aios_broker.contract.errors import Unavailable
from aios_broker.postgres.migrate import upgrade
from aios_broker.process.child import StandaloneServer
from aios_local.embedded.postgres import PostgresServer
from aios_local.embedded.redis import RedisServer
from aios_local.embedded.state import StateDir
from benchmarks.queues.catalogue import Contestant, Load
from benchmarks.queues.contest import Contest, Ground, Sample

Say = Callable[[str], None]
SAID_CHARACTERS = 200  # of a failure, in the report


class Rounds:
    """Measures contestants against each other, interleaved."""

    def __init__(self, ground: Ground, say: Say) -> None:
        self._ground = ground
        self._say = say
        self.failures: list[str] = []  # of libraries: what they did not finish

    def run(
        self, contestants: Sequence[Contestant], loads: Sequence[Load], *, rounds: int, seed: int
    ) -> list[Sample]:
        """Measure everybody in every round; `seed` decides the order in each."""
        shuffle = random.Random(seed)
        samples: list[Sample] = []
        for number in range(1, rounds + 1):
            order = list(contestants)
            shuffle.shuffle(order)
            self._say(f"round {number} of {rounds}: {', '.join(one.name for one in order)}")
            for contestant in order:
                try:
                    samples += self._measure(contestant, loads, number)
                except Unavailable as error:
                    if contestant.kind != "library":
                        raise
                    self.failures.append(f"round {number}: {error.message[:SAID_CHARACTERS]}")
                    self._say(f"  {contestant.name:<12}failed: left out of the rest of this round")
        return samples

    def _measure(
        self, contestant: Contestant, loads: Sequence[Load], number: int
    ) -> Iterator[Sample]:
        chosen = [load for load in loads if load in contestant.jobs]
        if not chosen:
            return
        with Contest(contestant, self._ground) as contest:
            for load in chosen:
                sample = contest.measure(load, number)
                self._say(line_of(sample))
                yield sample


def line_of(sample: Sample) -> str:
    """Return what is said of one measurement while the contest runs."""
    latency = "" if sample.p50_ms is None else f"  p50 {sample.p50_ms:.2f} ms"
    return (
        f"  {sample.contestant:<12}{sample.load:<11}{sample.jobs_per_s:>9,.0f} jobs/s"
        f"{sample.cpu_total_us:>9,.0f} us CPU/job{latency}"
    )


@contextmanager
def open_ground(peers_python: str, *, ledger: bool, say: Say) -> Iterator[Ground]:
    """Start a Redis as the product starts it, and the Postgres of the kernel's ledger."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="aios-bench-"))
        state = StateDir.open(Path(folder))
        server = RedisServer.of(state)
        stack.callback(state.remove_sockets)
        stack.enter_context(StandaloneServer(server.service(), state.log_dir / "redis.log"))
        database_url, pid = None, None
        if ledger:
            say("starting Valkey and Postgres")
            postgres = PostgresServer.of(state)
            stack.callback(postgres.remove)
            process = StandaloneServer(postgres.service(), state.log_dir / "postgres.log")
            stack.enter_context(process)
            database_url, pid = postgres.database_url(), process.pid
            upgrade(database_url)
        yield Ground(server.url, database_url, pid, peers_python, state.log_dir)
