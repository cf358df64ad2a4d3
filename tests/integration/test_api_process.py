"""The API as a process: ready or not, servers away, tokens taken back, a stop in good order."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import httpx
import pytest

from aios_broker.contract.names import Owner
from aios_broker.contract.tokens import digest, new_token
from aios_broker.queues.control import Control
from aios_broker.queues.functions import Functions
from aios_broker.queues.quota import Subject
from aios_broker.queues.tokens import Identity, Tokens
from aios_broker.redis.connection import Connection
from tests.api_scene import ApiScene, ServedApi, bearer, serving
from tests.caller import redis_away
from tests.conftest import RunningRedis
from tests.integration.test_api_syscalls import echo, problem
from tests.tiny_worker import TinyWorker
from tests.waiting import wait_until, wait_until_async

ROOT = Path(__file__).resolve().parents[2]
ADA = Owner("acme", "ada")


async def token_of(
    redis_url: str, owner: Owner = ADA, scope: Literal["agent", "operator"] = "agent"
) -> str:
    token, connection = new_token(), Connection(redis_url)
    identity = Identity(owner.agent, owner.tenant, scope=scope)
    await Tokens(connection).put(digest(token), identity)
    await connection.aclose()
    return token


def test_a_whole_kernel_is_ready(api: ApiScene) -> None:
    with api.client(None) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        answer = client.get("/readyz")
    assert answer.status_code == 200, answer.text
    assert answer.json()["parts"] == dict.fromkeys(
        ("redis", "postgres", "scheduler", "workers"), "ok"
    )


def test_an_api_that_is_killed_comes_back_at_its_address(api: ApiScene) -> None:
    url = api.url
    with api.client(api.agent) as client:
        place = client.post("/v1/syscalls", json=echo("kept")).headers["location"]
    old = api.kernel.kill("api")
    api.kernel.wait_running("api", not_pid=old)
    assert api.url == url
    with api.client(api.agent) as client:
        assert client.get(f"{place}/wait").json()["result"]["text"] == "kept"


async def test_a_kernel_without_workers_is_not_ready_and_takes_syscalls(redis_url: str) -> None:
    token = await token_of(redis_url)
    async with (
        serving(redis_url) as served,
        httpx.AsyncClient(base_url=served.url, headers=bearer(token)) as client,
    ):
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["parts"] == {
            "redis": "ok",
            "postgres": "none",
            "scheduler": "none leads",
            "workers": "none serves llm, memory, storage, tool, access",
        }
        taken = await client.post("/v1/syscalls", params={"wait_s": 0.2}, json=echo("later"))
        assert taken.status_code == 202
        async with TinyWorker(redis_url, "tool"):
            answer = await client.get(f"{taken.headers['location']}/wait")
            assert answer.json()["result"]["text"] == "later"


async def test_what_a_kernel_was_started_without_is_named_with_its_setting(
    redis_url: str, database_url: str
) -> None:
    agent = await token_of(redis_url)
    operator = await token_of(redis_url, Owner("", "operator:olga"), "operator")
    async with (
        serving(redis_url) as bare,
        serving(redis_url, database_url) as keyless,
        httpx.AsyncClient() as client,
    ):
        for url, token, path, setting in (
            (bare.url, agent, "/v1/approvals", "AIOS_DATABASE_URL"),
            (bare.url, operator, "/v1/agents", "AIOS_DATABASE_URL"),
            (bare.url, operator, "/v1/usage?by=day", "AIOS_DATABASE_URL"),
            (bare.url, None, "/v1/links/nobodys", "AIOS_DATABASE_URL"),
            (keyless.url, operator, "/v1/audit/verify", "AIOS_AUDIT_DIR"),
        ):
            answer = await client.get(f"{url}{path}", headers=bearer(token))
            found = problem(answer, 501, "not-configured")
            assert (found["field"], found["retryable"]) == (setting, False)
            assert found["remedy"]


async def on_disk(redis_url: str) -> None:
    """Return when the append-only file has what Redis has taken so far; 10 s at most."""
    connection = Connection(redis_url)
    await connection.execute("SET", "on-disk", "1", "PX", 60_000)  # behind all that was written
    wrote, _ = await connection.execute("WAITAOF", 1, 0, 10_000)
    await connection.aclose()
    assert wrote == 1


async def test_redis_away_is_told_and_what_was_taken_is_not_lost(
    redis_url: str, redis_server: RunningRedis
) -> None:
    token = await token_of(redis_url)
    async with (
        serving(redis_url, api_patience_s=0.5) as served,
        httpx.AsyncClient(base_url=served.url, headers=bearer(token), timeout=20) as client,
    ):
        taken = await client.post("/v1/syscalls", json=echo("kept"))
        await on_disk(redis_url)
        with redis_away(redis_server):
            for answer in (
                await client.post("/v1/syscalls", json=echo()),
                await client.get(taken.headers["location"]),
            ):
                found = problem(answer, 503, "redis-unavailable")
                assert answer.headers["retry-after"]
                assert found["retryable"]
                assert "unix" not in answer.text
                assert ".sock" not in answer.text
            assert (await client.get("/healthz")).status_code == 200
            ready = await client.get("/readyz")
            assert (ready.status_code, ready.json()["parts"]["redis"]) == (503, "does not answer")
        async with TinyWorker(redis_url, "tool"):
            answer = await client.get(f"{taken.headers['location']}/wait")
            assert answer.json()["result"]["text"] == "kept"


async def test_postgres_away_is_told_by_readyz_and_stops_no_syscall(redis_url: str) -> None:
    token = await token_of(redis_url)
    nowhere = "postgresql://aios:secret@127.0.0.1:1/none"
    async with (
        serving(redis_url, nowhere) as served,
        TinyWorker(redis_url, "tool"),
        httpx.AsyncClient(base_url=served.url, headers=bearer(token)) as client,
    ):
        ready = await client.get("/readyz")
        assert ready.json()["parts"]["postgres"] == "does not answer"
        assert "secret" not in ready.text
        answer = await client.post("/v1/syscalls", params={"wait_s": 5}, json=echo())
        assert answer.status_code == 200


async def test_a_token_that_is_taken_back_and_an_agent_that_is_suspended_end_at_once(
    redis_url: str,
) -> None:
    token = await token_of(redis_url)
    connection = Connection(redis_url)
    control, tokens = Control(Functions(connection)), Tokens(connection)
    async with (
        serving(redis_url) as served,
        httpx.AsyncClient(base_url=served.url, headers=bearer(token)) as client,
    ):
        assert (await client.post("/v1/syscalls", json=echo())).is_success
        for subject in (Subject.of_agent("ada", "acme"), Subject.of_tenant("acme")):
            await control.stop(subject, who="operator:test")
            problem(await client.post("/v1/syscalls", json=echo()), 403, "agent-suspended")
            problem(await client.get("/v1/syscalls/" + "0" * 32), 403, "agent-suspended")
            await control.go_on(subject)
        assert (await client.post("/v1/syscalls", json=echo())).is_success
        await tokens.revoke_all("ada", "acme")
        problem(await client.post("/v1/syscalls", json=echo()), 401, "unauthenticated")
    await connection.aclose()


async def test_a_stop_lets_what_runs_end_and_takes_nothing_new(redis_url: str) -> None:
    token = await token_of(redis_url)
    async with serving(redis_url) as served:
        async with httpx.AsyncClient(base_url=served.url, headers=bearer(token)) as client:
            waiting = asyncio.create_task(
                client.post("/v1/syscalls", params={"wait_s": 20}, json=echo("drained"))
            )
            await wait_until_async(lambda: is_waiting(served))
            served.server.should_exit = True
            await wait_until_async(served.kernel.stopping.is_set)
            with pytest.raises(httpx.ConnectError):
                async with httpx.AsyncClient() as other:
                    await other.get(f"{served.url}/healthz")
            async with TinyWorker(redis_url, "tool"):
                answer = await waiting
        assert answer.json()["result"]["text"] == "drained"


async def test_what_does_not_end_in_time_is_told_and_goes_on(redis_url: str) -> None:
    token = await token_of(redis_url)
    async with serving(redis_url, api_drain_s=1.2) as served:
        async with httpx.AsyncClient(base_url=served.url, headers=bearer(token)) as client:
            waiting = asyncio.create_task(
                client.post("/v1/syscalls", params={"wait_s": 20}, json=echo("kept"))
            )
            await wait_until_async(lambda: is_waiting(served))
            served.server.should_exit = True
            answer = await waiting
        assert answer.status_code == 202
    async with (
        serving(redis_url) as again,
        TinyWorker(redis_url, "tool"),
        httpx.AsyncClient(base_url=again.url, headers=bearer(token)) as client,
    ):
        answer = await client.get(f"{answer.headers['location']}/wait")
        assert answer.json()["result"]["text"] == "kept"


def test_the_process_serves_and_leaves_in_good_order(redis_url: str, tmp_path: Path) -> None:
    noted = tmp_path / "log"
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIOS_")},
        "AIOS_REDIS_URL": redis_url,
    }
    with noted.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "aios_kernel_api"], env=environ, stdout=log, stderr=log
        )
    try:
        line = wait_until(lambda: told_address(noted), 20)
        assert httpx.get(f"{line}/healthz").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0, noted.read_text()
    finally:
        process.kill()
        process.wait()
    assert "the API left in good order" in noted.read_text()
    assert "Traceback" not in noted.read_text()


async def is_waiting(served: ServedApi) -> bool:
    return (await served.kernel.control.queue("tool")).waiting == 1


def told_address(log: Path) -> str | None:
    _, found, rest = log.read_text().partition("the API answers at ")
    return rest.partition("\n")[0] if found and "\n" in rest else None


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        ({"AIOS_API_PORT": "70000"}, 2, "AIOS_API_PORT"),
        ({"AIOS_API_PROT": "8000"}, 2, "AIOS_API_PROT"),
        ({"AIOS_API_HOST": "203.0.113.1", "AIOS_REDIS_URL": "redis://x:1"}, 2, "AIOS_API_HOST"),
        ({"AIOS_REDIS_URL": "redis://127.0.0.1:1"}, 1, "no Redis at"),
    ],
)
def test_what_keeps_it_from_starting_is_said(
    settings: dict[str, str], code: int, words: str
) -> None:
    environ = {"PATH": os.environ["PATH"], "AIOS_REDIS_URL": "redis://127.0.0.1:1", **settings}
    done = subprocess.run(
        [sys.executable, "-m", "aios_kernel_api"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr
