"""A whole kernel, searched for tokens: Redis, its files, Postgres, logs, what is shown."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from rq import Queue
from rq.serializers import JSONSerializer
from rq.suspension import resume, suspend

from aios_broker.config import KernelConfig
from aios_broker.contract.access import AccessRegister
from aios_broker.contract.errors import AccessDenied
from aios_broker.contract.job import ENTRY
from aios_broker.postgres.database import check_database_url
from aios_local.embedded.postgres import SUPERUSER, USER
from aios_local.supervisor.kernel import EmbeddedKernel
from aios_sdk import Agent
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(180)
LOOKS = ("ps", "queues", "approvals", "audit", "status", "journal")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedKernel]:
    folder = tmp_path_factory.mktemp("kernel")
    config = KernelConfig(state_dir=folder, llm_core="simulated")
    settings = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    with EmbeddedKernel(config, inherited=settings) as kernel:
        yield kernel


def used_tokens(kernel: EmbeddedKernel) -> list[str]:
    """Let agents with tokens do what they do; return the tokens."""
    issued = aios(kernel, "agents", "register", "ada").strip()
    with Agent("ada", token=issued, url=kernel.redis_url) as ada:
        assert ada.tool.echo("hi").text == "hi"
        note = ada.memory.add("a note")
        ada.memory.remove.start(note.id)  # waits for a person
        assert ada.llm.chat("Hello", max_tokens=3).text
        registering = ada.access.register.start("bob")
        made = registering._pending.syscall
        assert made is not None
        assert isinstance(made.body, AccessRegister)
        with contextlib.suppress(AccessDenied):  # what it would have been is a token, too
            assert registering.result().token == made.body.token
    with (
        Agent("ada", token="aios_forged-token-of-nobody", url=kernel.redis_url) as forged,
        pytest.raises(AccessDenied),
    ):
        forged.tool.echo("hi")
    return [issued, made.body.token, "aios_forged-token-of-nobody"]


def stock_tokens(kernel: EmbeddedKernel) -> list[str]:
    """Enqueue by stock RQ, rightly and wrongly; return the tokens once the jobs have ended."""
    issued = aios(kernel, "agents", "register", "carl").strip()
    request = {"agent": "carl", "token": issued, "body": {"type": "tool.echo", "text": "rq"}}
    with redis.Redis.from_url(kernel.redis_url) as client:
        queue = Queue("tool", connection=client, serializer=JSONSerializer)
        suspend(client)  # they are claimed together: one rewriting of the file is for them all
        jobs = [
            queue.enqueue(function, given)
            for function in (ENTRY, "os.system")
            for given in (request, {**request, "agent": "eve"}, {**request, "surprise": 1})
        ]
        resume(client)
        wait_until(lambda: all(job.get_status().value in ("finished", "failed") for job in jobs))
        assert [job.is_finished for job in jobs] == [True, *[False] * 5]
    return [issued]


def aios(kernel: EmbeddedKernel, *arguments: str) -> str:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "AIOS_STATE_DIR": str(kernel.config.state_dir),
    }
    command = [sys.executable, "-m", "aios_cli", *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    return ran.stdout + ran.stderr


def in_redis(kernel: EmbeddedKernel, tokens: list[str]) -> list[str]:
    read: dict[str, Callable[[redis.Redis, bytes], object]] = {
        "hash": redis.Redis.hgetall,
        "string": redis.Redis.get,
        "list": lambda client, key: client.lrange(key, 0, -1),
        "stream": redis.Redis.xrange,
        "set": redis.Redis.smembers,
        "zset": lambda client, key: client.zrange(key, 0, -1),
    }
    found = []
    with redis.Redis.from_url(kernel.redis_url) as client:
        for key in client.scan_iter(count=1000):
            value = repr(read[client.type(key).decode()](client, key))
            if any(token in value for token in tokens):
                found.append(f"{key.decode()}: {value}")
    return found


def in_files(folder: Path, tokens: list[str]) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if any(token.encode() in content(path) for token in tokens)]


def content(path: Path) -> bytes:
    """Return what is in a file; nothing where a server has replaced it since it was listed."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def in_postgres(kernel: EmbeddedKernel, tokens: list[str]) -> list[str]:
    found = []
    url = check_database_url(kernel.database_url).replace(f"//{USER}@", f"//{SUPERUSER}@")
    with psycopg.connect(url) as connection:  # row-level security hides nothing from it
        tables = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        ).fetchall()
        for (table,) in tables:
            rows = connection.execute(f'SELECT x::text FROM "{table}" x').fetchall()
            for token in tokens:
                plain, packed = token, token.encode().hex()
                found += [f"{table}: {row}" for (row,) in rows if plain in row or packed in row]
    return found


def test_a_token_is_found_nowhere(kernel: EmbeddedKernel) -> None:
    tokens = used_tokens(kernel)
    shown = "".join(aios(kernel, look, "--json") for look in LOOKS)
    assert "ada" in shown
    assert not any(token in shown for token in tokens)
    assert in_redis(kernel, tokens) == []
    assert in_postgres(kernel, tokens) == []
    assert in_files(Path(kernel.config.state_dir), tokens) == []


def test_a_stock_producers_token_is_gone_when_its_job_was_claimed(kernel: EmbeddedKernel) -> None:
    tokens = stock_tokens(kernel)
    shown = "".join(aios(kernel, look, "--json") for look in LOOKS)
    assert not any(token in shown for token in tokens)
    assert in_redis(kernel, tokens) == []
    assert in_postgres(kernel, tokens) == []
    folder = Path(kernel.config.state_dir)
    assert in_files(folder / "log", tokens) == []
    wait_until(lambda: not in_files(folder, tokens))  # the append-only file is rewritten
