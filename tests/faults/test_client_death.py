"""A client dies at a chosen point: what it asked for is answered once, and found by its heir."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aios_broker.ledger.ledger import Ledger
from aios_broker.postgres.database import Database
from aios_broker.redis.connection import Connection
from benchmarks.chaos.checker import Bounds, Evidence, check, gather
from benchmarks.chaos.evidence import expected_ids, moves_of, records_of
from benchmarks.chaos.history import Ended, Gone, Log, wall_s
from benchmarks.chaos.plan import MOMENTS, VARIABLE, Moment, Plan, Point
from tests.caller import ROOT, running_worker
from tests.faults.crash_scene import CORE, LIMITS, Launched, died, loaded, running_scheduler
from tests.waiting import wait_until_async

pytestmark = pytest.mark.timeout(120)

NAME = "client-1"
LEFT_S = 40.0
ENOUGH = 30  # answers for the second life
STEPS = ("submit", "BLMPOP")  # what a client sends, all the time


@contextmanager
def client(url: str, folder: Path, *points: Point) -> Iterator[Launched]:
    """Run a client with crash points for the length of a block."""
    folders = (".", "broker", "sdk", "workers")
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in folders),
        VARIABLE: Plan(points=points).encode(),
    }
    command = (
        sys.executable,
        "-m",
        "benchmarks.chaos.client",
        "--name",
        NAME,
        "--folder",
        str(folder),
        "--url",
        url,
        "--lost",
        "0.05",
        "--sent-twice",
        "0.05",
    )
    with subprocess.Popen(command, env=environment, cwd=ROOT) as child:
        try:
            yield child
        finally:
            child.kill()


def answers(folder: Path) -> int:
    return sum(isinstance(record, Ended) for record in records_of(folder))


async def entered(url: str, database_url: str) -> None:
    """Have the whole journal in the ledger."""
    connection, database = Connection(url), Database(database_url, name="test")
    try:
        while await connection.execute("XLEN", "rq:aios:journal"):
            await Ledger(database).drain(connection)
    finally:
        await connection.aclose()
        await database.aclose()


async def dies(url: str, database_url: str, folder: Path, point: Point) -> None:
    async with (
        running_scheduler(url, None),
        running_worker(url, "tool", await loaded("tool"), LIMITS),
        running_worker(url, "llm", await loaded("llm"), LIMITS),
    ):
        with client(url, folder, point) as first:
            await died(first)
        with Log(folder / "gone.jsonl") as log:
            log.write(Gone(wall_s(), f"{NAME}.{first.pid}"))
        before = answers(folder)
        with client(url, folder) as second:
            await wait_until_async(lambda: answers(folder) > before + ENOUGH, LEFT_S)
            second.send_signal(signal.SIGTERM)
            await wait_until_async(lambda: second.poll() is not None, LEFT_S)
            assert second.returncode == 0
    await entered(url, database_url)
    stories = gather(records_of(folder), await moves_of(database_url))
    evidence = Evidence(stories, [], await expected_ids(stories, CORE), {}, {}, Bounds())
    assert check(evidence) == []


async def test_a_client_dies(redis_url: str, database_url: str, tmp_path: Path) -> None:
    await dies(redis_url, database_url, tmp_path, Point("submit", "sent", nth=10))


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_client_dies_at_every_point(
    redis_url: str, database_url: str, tmp_path: Path, step: str, moment: Moment
) -> None:
    await dies(redis_url, database_url, tmp_path, Point(step, moment, nth=15))
