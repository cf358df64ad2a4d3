"""rq-dashboard on a busy kernel: what it shows, and what its buttons do. Its real server."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest

from tests.busy_kernel import LLM, Busy, busy_kernel
from tests.waiting import wait_until_async

START_S = 30.0


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A running rq-dashboard and the kernel it looks at."""

    url: str
    busy: Busy

    async def page(self, path: str) -> str:
        """Return a page; fails unless it answers 200."""
        return (await asyncio.to_thread(_fetch, f"{self.url}{path}", None)).decode()

    async def data(self, path: str) -> Any:  # noqa: ANN401  JSON
        """Return what an endpoint for its scripts answers."""
        return json.loads(await self.page(f"/0/data/{path}"))

    async def press(self, path: str) -> Any:  # noqa: ANN401  JSON
        """Do what one of its buttons does."""
        return json.loads(await asyncio.to_thread(_fetch, f"{self.url}{path}", b""))

    async def listed(self, registry: str) -> list[str]:
        """Return the ids of the jobs that its table of a registry shows."""
        answer = await self.data(f"jobs/{LLM}/{registry}/50/asc/1.json")
        return sorted(job["id"] for job in answer["jobs"])


def _fetch(url: str, body: bytes | None) -> bytes:
    with urllib.request.urlopen(url, body, timeout=10.0) as answer:
        assert answer.status == 200
        content: bytes = answer.read()
        return content


@pytest.fixture
async def dashboard(redis_url: str) -> AsyncIterator[Dashboard]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = (
        Path(sys.executable).with_name("rq-dashboard"),
        "--bind",
        "127.0.0.1",
        "--port",
        str(port),
        "--redis-url",
        redis_url,
        "--json",
    )
    server = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
    try:
        async with busy_kernel(redis_url) as busy:
            found = Dashboard(f"http://127.0.0.1:{port}", busy)

            async def answers() -> bool:
                with suppress(URLError):
                    return bool(await found.page("/"))
                return False

            await wait_until_async(answers, START_S)
            yield found
    finally:
        server.kill()
        await server.wait()


async def test_it_shows_queues_jobs_and_workers(dashboard: Dashboard) -> None:
    busy = dashboard.busy
    jobs = [f"job/{each}" for each in (*busy.alive, busy.finished, busy.failed)]
    views = ["queues", "workers", "jobs", f"jobs/{LLM}/started/8/asc/1", *jobs]
    for path in ["/", *(f"/0/view/{view}" for view in views)]:
        assert "<html" in await dashboard.page(path)

    queues = (await dashboard.data("queues.json"))["queues"]
    [llm] = [each for each in queues if each["name"] == LLM]
    assert llm["count"] == 3
    assert {
        name: llm[f"{name}_job_registry_count"]
        for name in ("started", "deferred", "finished", "failed", "canceled", "scheduled")
    } == {"started": 2, "deferred": 1, "finished": 1, "failed": 1, "canceled": 0, "scheduled": 0}

    assert await dashboard.listed("queued") == sorted([busy.suspended, *busy.queued])
    assert await dashboard.listed("started") == sorted(busy.running)
    assert await dashboard.listed("deferred") == [busy.held]
    assert await dashboard.listed("finished") == [busy.finished]
    assert await dashboard.listed("failed") == [busy.failed]
    await busy.settle()


async def test_it_shows_each_job(dashboard: Dashboard) -> None:
    busy = dashboard.busy
    statuses = {
        busy.running[0]: "started",
        busy.suspended: "queued",
        busy.held: "deferred",
        busy.finished: "finished",
        busy.failed: "failed",
    }
    for job_id, status in statuses.items():
        job = await dashboard.data(f"job/{job_id}.json")
        assert (job["id"], job["origin"], job["status"]) == (job_id, LLM, status)
        assert job["description"] == "llm.chat of ada, program main"
        assert job["enqueued_at"]

    finished = await dashboard.data(f"job/{busy.finished}.json")
    assert finished["result"]["result"]["text"]
    failed = await dashboard.data(f"job/{busy.failed}.json")
    assert "context-too-long" in failed["exc_info"]
    await busy.settle()


async def test_it_shows_workers(dashboard: Dashboard) -> None:
    execution = f"rq:execution:{dashboard.busy.running[0]}:*"
    await wait_until_async(lambda: dashboard.busy.redis.keys(execution))  # after a renewal

    [worker] = (await dashboard.data("workers.json"))["workers"]

    assert worker["name"].endswith(".llm")
    assert (worker["queues"], worker["state"]) == ([LLM, "llm"], "busy")
    assert worker["pid"]
    assert (worker["successful_job_count"], worker["failed_job_count"]) == (1, 1)
    await dashboard.busy.settle()


async def test_its_delete_button_answers_whoever_waits(dashboard: Dashboard) -> None:
    busy = dashboard.busy
    gone = [busy.running[0], busy.suspended, busy.queued[0], busy.held]
    for job_id in gone:
        assert (await dashboard.press(f"/job/{job_id}/delete"))["status"] == "OK"

    for reply in await busy.caller.hear_all(gone):
        assert reply.error is not None
        assert reply.error.code == "cancelled"
    await busy.settle()


@pytest.mark.parametrize(
    ("registry", "ended"),
    [
        ("queued", lambda busy: [busy.suspended, *busy.queued]),
        ("started", lambda busy: busy.running),
        ("deferred", lambda busy: [busy.held]),
    ],
)
async def test_its_empty_button_answers_whoever_waits(  # type: ignore[no-untyped-def]
    dashboard: Dashboard,
    registry: str,
    ended,  # noqa: ANN001
) -> None:
    busy = dashboard.busy
    gone = ended(busy)

    assert (await dashboard.press(f"/queue/{LLM}/{registry}/empty"))["status"] == "OK"

    for reply in await busy.caller.hear_all(gone):
        assert reply.error is not None
        assert reply.error.code == "cancelled"
    others = [each for each in busy.alive if each not in gone]
    assert not [each for each in others if each in busy.caller.replies]
    await busy.settle()


@pytest.mark.parametrize("path", ["/job/{id}/requeue", f"/requeue/{LLM}"])
async def test_its_requeue_buttons_run_a_failed_job_again(dashboard: Dashboard, path: str) -> None:
    busy = dashboard.busy
    failed = f"rq:job:{busy.failed}"
    attempt = int(busy.redis.hget(failed, "aios_attempt") or 0)

    answer = await dashboard.press(path.replace("{id}", busy.failed))

    assert answer["status"] == "OK"
    assert await busy.caller.state(busy.failed) in ("queued", "gone")  # until it is taken in
    await busy.cancel(*busy.running, busy.suspended, *busy.queued)
    await wait_until_async(lambda: busy.redis.hget(failed, "status") == b"failed")
    assert int(busy.redis.hget(failed, "aios_attempt") or 0) == attempt + 1
    assert await dashboard.listed("failed") == [busy.failed]
    await busy.settle()


async def test_its_compact_button_changes_nothing(dashboard: Dashboard) -> None:
    busy = dashboard.busy
    before = busy.redis.lrange(f"rq:queue:{LLM}", 0, -1)

    assert (await dashboard.press(f"/queue/{LLM}/compact"))["status"] == "OK"

    assert busy.redis.lrange(f"rq:queue:{LLM}", 0, -1) == before
    await busy.settle()
