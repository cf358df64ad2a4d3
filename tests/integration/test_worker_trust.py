"""Nothing that Redis holds is believed: foreign jobs, missing tokens, other versions."""

from __future__ import annotations

import json
import pickle
import sys
import uuid
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aios_broker.contract.errors import AccessDenied
from aios_broker.contract.job import ENTRY, syscall_id_of
from aios_broker.contract.reply import EchoResult, Reply, decode_reply
from aios_broker.contract.syscall import ToolEcho
from aios_workers.runtime.registry import tool_module
from tests.caller import Caller, running_worker
from tests.waiting import wait_until_async

ECHO = {"type": "tool.echo", "text": "hi"}


@pytest.fixture
async def caller(redis_url: str) -> AsyncIterator[Caller]:
    caller = Caller(redis_url)
    yield caller
    await caller.aclose()


def call(function: str, *arguments: object) -> bytes:
    return json.dumps([function, None, arguments, {}]).encode()


async def enqueue(caller: Caller, data: bytes) -> str:
    """Put a job into the queue as a stock producer does: a hash and a list entry."""
    job_id = str(uuid.uuid4())
    await caller.connection.execute(
        "HSET", f"rq:job:{job_id}", "data", data, "origin", "tool", "status", "queued"
    )
    await caller.connection.execute("RPUSH", "rq:queue:tool", job_id)
    return job_id


async def answer(caller: Caller, data: bytes) -> tuple[str, Reply]:
    """Let a worker meet the job; return its id and the stored reply."""
    async with running_worker(caller.url, "tool", await tool_module(4)):
        job_id = await enqueue(caller, data)
        key = f"rq:job:{job_id}"
        stored = await wait_until_async(
            lambda: caller.connection.execute("HGET", key, "aios_reply")
        )
    return job_id, decode_reply(stored)


@pytest.mark.parametrize(
    "data",
    [
        call("os.system", "touch {trap}"),
        call("subprocess.getoutput", "touch {trap}"),
        zlib.compress(call("subprocess.getoutput", "touch {trap}")),
        call("antigravity.fly"),
        pickle.dumps(("os.system", None, ("touch {trap}",), {})),
    ],
)
async def test_a_foreign_job_is_quarantined_and_nothing_is_imported(
    caller: Caller, data: bytes, tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    job_id, reply = await answer(caller, data.replace(b"{trap}", str(trap).encode()))

    assert reply.error is not None
    assert reply.error.code == "foreign-job"
    assert await caller.connection.execute("ZSCORE", "rq:aios:quarantine:tool", job_id)
    assert await caller.connection.execute("ZSCORE", "rq:failed:tool", job_id)
    assert not trap.exists()
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("name", ["aios_workers.registry.syscall", "aios_workers.entry.run"])
async def test_a_job_that_names_another_entry_point_of_ours_hears_which_one_to_name(
    caller: Caller, name: str
) -> None:
    token = await caller.token("ada")

    _, reply = await answer(caller, call(name, {"agent": "ada", "token": token, "body": ECHO}))

    assert reply.error is not None
    assert reply.error.code == "foreign-job"
    assert f"it names {name!r}, and the one entry point is {ENTRY!r}" in reply.error.message


async def test_a_stock_job_with_its_agents_token_is_answered(caller: Caller) -> None:
    token = await caller.token("ada")

    job_id, reply = await answer(
        caller, call(ENTRY, {"agent": "ada", "token": token, "body": ECHO})
    )

    assert reply.unwrap() == EchoResult("hi")
    assert reply.id == syscall_id_of(job_id)


@pytest.mark.parametrize(
    "request_of",
    [
        lambda _: {"agent": "ada"},
        lambda _: {"agent": "ada", "token": "aios_wrong"},
        lambda token: {"agent": "bob", "token": token},
        lambda token: {"agent": "ada", "tenant": "other", "token": token},
    ],
)
async def test_without_its_agents_token_a_stock_job_is_denied(caller: Caller, request_of) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    token = await caller.token("ada")

    _, reply = await answer(caller, call(ENTRY, {"body": ECHO, **request_of(token)}))

    assert reply.error is not None
    assert reply.error.code == "access-denied"


async def test_a_revoked_token_is_worth_nothing_and_none_is_kept_in_redis(caller: Caller) -> None:
    token = await caller.token("ada")
    await caller.tokens.verify(token, agent="ada", tenant="default")
    kept = await caller.connection.execute("HGETALL", "rq:aios:tokens")
    assert token.encode() not in b" ".join(kept)

    assert await caller.tokens.revoke_all("ada", "default") == 1

    with pytest.raises(AccessDenied):
        await caller.tokens.verify(token, agent="ada", tenant="default")
    assert await caller.tokens.revoke_all("ada", "default") == 0


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"agent": "ada", "body": ECHO, "version": 99}, "unsupported-version"),
        ({"agent": "ada", "body": {"type": "vision.look"}}, "unknown-module"),
        ({"agent": "ada", "body": ECHO, "surprise": 1}, "invalid-syscall"),
        ("not an object", "invalid-syscall"),
    ],
)
async def test_what_cannot_be_read_is_answered_with_a_typed_error(
    caller: Caller, request_: object, code: str
) -> None:
    _, reply = await answer(caller, call(ENTRY, request_))

    assert reply.error is not None
    assert (reply.error.code, bool(reply.error.remedy)) == (code, True)


async def test_a_syscall_in_another_modules_queue_is_refused(caller: Caller) -> None:
    body = {"type": "llm.chat", "messages": [{"role": "user", "content": "hi"}]}
    token = await caller.token("ada")

    _, reply = await answer(caller, call(ENTRY, {"agent": "ada", "token": token, "body": body}))

    assert reply.error is not None
    assert reply.error.code == "unknown-module"


async def test_the_kernels_own_jobs_need_no_token(caller: Caller) -> None:
    async with running_worker(caller.url, "tool", await tool_module(4)):
        [syscall_id] = await caller.submit(ToolEcho("ours"))
        assert (await caller.hear(syscall_id)).unwrap() == EchoResult("ours")
