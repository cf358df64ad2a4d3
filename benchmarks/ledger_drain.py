"""What the ledger costs: processor time to enter no-op syscalls from the journal into Postgres.

    python benchmarks/ledger_drain.py                     20,000 syscalls of each shape, 3 rounds
    python benchmarks/ledger_drain.py --against TREE      in turns with another checkout's ledger
    python benchmarks/ledger_drain.py --json out.json

A journal is written as the queue's steps write it for `tool.echo` (a submit carries 200 syscalls, a
worker has 64 slots), then it is drained; only that is measured. Three shapes: `flowing`, each
syscall ends soon after it came; `backlog`, all are submitted, and entered, before the first one is
claimed; `alone`, one after the other, each change an entry of its own. The drainer's time is its
process time, Postgres' that of all its processes (/proc/PID/schedstat).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TREE = Path(os.environ.get("LEDGER_TREE", ROOT))  # whose ledger is measured
sys.path[:0] = [str(TREE), *(str(TREE / folder) for folder in ("broker", "workers", "sdk"))]

import psycopg  # noqa: E402
import redis  # noqa: E402

from aios_broker.ledger.ledger import Ledger  # noqa: E402
from aios_broker.postgres.database import Database  # noqa: E402
from aios_broker.postgres.migrate import upgrade  # noqa: E402
from aios_broker.process.child import StandaloneServer  # noqa: E402
from aios_broker.redis.connection import Connection  # noqa: E402
from aios_local.embedded.postgres import PostgresServer  # noqa: E402  the tree's, installed or not
from aios_local.embedded.redis import RedisServer  # noqa: E402
from aios_local.embedded.state import StateDir  # noqa: E402
from benchmarks.provenance import commit_of, today  # noqa: E402

SUBMIT_BATCH = 200
SLOTS = 64
WORKER = "host.4242.0a1b2c3d"
CLIENT = "host.4243.4d5e6f70"
AGENTS = 32
BATCH_ENTRIES = {"flowing": 400, "backlog": 100, "alone": 400}
SHAPES = ("flowing", "backlog", "alone")
LIMIT_S = 600


def submits(ids: list[str]) -> Iterator[str]:
    """Yield the lines of the entries that submits write."""
    for first in range(0, len(ids), SUBMIT_BATCH):
        yield "\n".join(
            f'submit\t{job_id}\t\t{CLIENT}\t{{"agent":"agent-{n % AGENTS}","kind":"tool.echo"}}'
            for n, job_id in enumerate(ids[first : first + SUBMIT_BATCH])
        )


def runs(ids: list[str]) -> Iterator[str]:
    """Yield the lines of the entries that a worker's calls write: endings, then new claims."""
    batches = [ids[first : first + SLOTS] for first in range(0, len(ids), SLOTS)]
    for ended, claimed in zip([[], *batches], [*batches, []], strict=True):
        yield "\n".join(
            [f"finish\t{job_id}\t1\t{WORKER}\t0,1" for job_id in ended]
            + [f"claim\t{job_id}\t1\t{WORKER}\t" for job_id in claimed]
        )


def journal(shape: str, count: int) -> Iterator[str]:
    """Yield the lines of all entries of so many lives, in order."""
    ids = [uuid.uuid4().hex for _ in range(count)]
    if shape == "backlog":
        yield from submits(ids)
        yield from runs(ids)
        return
    size = 1 if shape == "alone" else SUBMIT_BATCH
    for first in range(0, count, size):
        part = ids[first : first + size]
        yield from submits(part)
        yield from runs(part)


def cpu_us(pid: int) -> float:
    """Return the processor time of a process and of its children that live, in microseconds."""
    own = int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1000
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own + sum(cpu_us(int(child)) for child in children)


async def drained(
    redis_url: str, database_url: str, postgres_pid: int, limit: int
) -> tuple[float, float]:
    """Drain the journal; return the time of this process and of Postgres, in microseconds."""
    connection, database = Connection(redis_url), Database(database_url)
    ledger = Ledger(database)
    async with database.transaction() as cursor:
        await cursor.execute("SELECT 1")
    before, own = cpu_us(postgres_pid), time.process_time()
    while (await ledger.drain(connection, limit=limit)).behind:
        pass
    own = (time.process_time() - own) * 1e6
    postgres = cpu_us(postgres_pid) - before
    await database.aclose()
    await connection.aclose()
    return own, postgres


def measured(count: int) -> dict[str, dict[str, float]]:
    """Measure each shape once, on servers of its own."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="aios-ledger-") as folder, ExitStack() as stack:
        state = StateDir.open(Path(folder))
        server, postgres = RedisServer.of(state), PostgresServer.of(state)
        stack.enter_context(StandaloneServer(server.service(), state.log_dir / "redis.log"))
        stack.callback(postgres.remove)
        process = stack.enter_context(
            StandaloneServer(postgres.service(), state.log_dir / "postgres.log")
        )
        url = postgres.database_url("aios")
        upgrade(url)
        client = stack.enter_context(redis.Redis.from_url(server.url))
        plain = stack.enter_context(psycopg.connect(postgres.libpq_url("aios"), autocommit=True))
        for shape in SHAPES:
            sent = client.pipeline(transaction=False)
            for lines in journal(shape, count):
                sent.xadd("rq:aios:journal", {"q": "tool", "t": lines})
            sent.execute()
            plain.execute("CHECKPOINT")
            size_bytes, wal = stored(plain)
            own, theirs = asyncio.run(drained(server.url, url, process.pid, BATCH_ENTRIES[shape]))
            size_after_bytes, wal_after = stored(plain)
            found[shape] = {
                "drainer_us": own / count,
                "postgres_us": theirs / count,
                "stored_bytes": (size_after_bytes - size_bytes) / count,
                "wal_bytes": (wal_after - wal) / count,
            }
    return found


def stored(plain: psycopg.Connection) -> tuple[int, int]:
    """Return the size of the database and how much was ever written ahead, in bytes."""
    row = plain.execute(
        "SELECT pg_database_size('aios'), pg_current_wal_lsn() - '0/0'::pg_lsn"
    ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def in_tree(tree: Path, count: int) -> dict[str, dict[str, float]]:
    """Measure a checkout's ledger, in a process of its own."""
    told = subprocess.run(
        [sys.executable, __file__, "--once", "--syscalls", str(count)],
        env={**os.environ, "LEDGER_TREE": str(tree)},
        timeout=LIMIT_S,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    once: dict[str, dict[str, float]] = json.loads(told)
    return once


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--syscalls", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        sys.stdout.write(json.dumps(measured(options.syscalls)))
        return
    trees = {"here": ROOT} | ({"there": options.against.resolve()} if options.against else {})
    rounds: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in trees}
    for _ in range(options.rounds):
        for name, tree in trees.items():
            rounds[name].append(in_tree(tree, options.syscalls))
    report(rounds, options.json)


def report(rounds: dict[str, list[dict[str, dict[str, float]]]], path: Path | None) -> None:
    """Print the medians, per syscall."""
    sys.stdout.write(f"{today()}, commit {commit_of(ROOT)}, per syscall, median and range\n")
    for name, several in rounds.items():
        for shape in SHAPES:
            for figure in several[0][shape]:
                values = sorted(once[shape][figure] for once in several)
                sys.stdout.write(
                    f"{name:<6} {shape:<8} {figure:<13} {statistics.median(values):8.1f}"
                    f"  ({values[0]:.1f}-{values[-1]:.1f})\n"
                )
    if path is not None:
        path.write_text(json.dumps(rounds, indent=2))


if __name__ == "__main__":
    main()
