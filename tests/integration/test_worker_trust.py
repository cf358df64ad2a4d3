"""Nothing that Redis holds is believed: foreign jobs, missing tokens, other versions."""

from __future__ import annotations

import json
import pickle
import sys
import uuid
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from aios_broker.contract.errors import KernelError
from aios_broker.contract.job import ENTRY, decode_job, syscall_id_of
from aios_broker.contract.names import Owner
from aios_broker.contract.reply import EchoResult, Reply, decode_reply
from aios_broker.contract.syscall import ToolEcho
from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.quota import Subject
from aios_workers.runtime.registry import tool_module
from tests.caller import Caller, running_worker
from tests.queue_user import proves
from tests.waiting import wait_until_async

ADA = Owner("default", "ada")
ECHO = {"type": "tool.echo", "text": "hi"}


@pytest.fixture
async def caller(redis_url: str) -> AsyncIterator[Caller]:
    caller = Caller(redis_url)
    yield caller
    await caller.aclose()


def call(function: str, *arguments: object) -> bytes:
    return json.dumps([function, None, arguments, {}]).encode()


async def enqueue(caller: Caller, data: bytes, description: str = "") -> str:
    """Put a job into the queue as a stock producer does: a hash and a list entry."""
    job_id = str(uuid.uuid4())
    await caller.connection.execute(
        *("HSET", f"rq:job:{job_id}", "data", data, "origin", "tool", "status", "queued"),
        *("description", description),
    )
    await caller.connection.execute("RPUSH", "rq:queue:tool", job_id)
    return job_id


async def answer(caller: Caller, data: bytes, description: str = "") -> tuple[str, Reply]:
    """Let a worker meet the job; return its id and the stored reply."""
    async with running_worker(caller.url, "tool", await tool_module(4)):
        job_id = await enqueue(caller, data, description)
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


@pytest.mark.parametrize(
    ("token", "code", "field"),
    [
        ("its own", "agent-suspended", "agent"),
        ("another", "access-denied", "token"),  # nothing is told to who is not the agent
    ],
)
async def test_a_stock_job_of_a_suspended_agent_hears_that(
    caller: Caller, token: str, code: str, field: str
) -> None:
    tokens = {"its own": await caller.token("ada"), "another": await caller.token("bob")}
    subject = Subject.of_agent("ada")
    await caller.control.stop(subject, who="test")
    try:
        request = {"agent": "ada", "token": tokens[token], "body": ECHO}
        _, reply = await answer(caller, call(ENTRY, request))
    finally:
        await caller.control.go_on(subject)
    assert reply.error is not None
    assert (reply.error.code, reply.error.field) == (code, field)


async def test_a_stock_job_that_would_go_before_others_hears_that_it_may_not(
    caller: Caller,
) -> None:
    token = await caller.token("ada")
    request = {"agent": "ada", "token": token, "body": ECHO, "nice": -5}
    _, reply = await answer(caller, call(ENTRY, request))
    assert reply.error is not None
    assert (reply.error.code, reply.error.field) == ("access-denied", "nice")
    assert "the least it may is 0" in reply.error.message


@pytest.mark.parametrize("pack", [bytes, zlib.compress])
@pytest.mark.parametrize("function", [ENTRY, "os.system"])
@pytest.mark.parametrize(
    "request_",
    [
        {"agent": "ada", "body": ECHO},
        {"agent": "bob", "body": ECHO},
        {"agent": "ada", "body": ECHO, "surprise": 1},
        {"agent": "ada", "body": {"type": "access.register", "agent": "ada"}},
    ],
)
async def test_the_token_of_a_stock_job_is_gone_from_its_record_when_it_has_been_claimed(
    caller: Caller, pack: Callable[[bytes], bytes], function: str, request_: dict[str, object]
) -> None:
    token = await caller.token("ada")
    data = call(function, {**request_, "token": token})

    job_id, _ = await answer(caller, pack(data), description=f"{function}({token})")

    record = await caller.connection.execute("HGETALL", f"rq:job:{job_id}")
    inflated = [zlib.decompress(field) if field[:2] == b"x\x9c" else field for field in record]
    assert token.encode() not in b" ".join(inflated)
    assert json.loads(record[record.index(b"data") + 1])[0] == function  # RQ's tools can read it


async def test_a_stock_job_is_its_agents_once_it_was_claimed(caller: Caller) -> None:
    token = await caller.token("ada")
    job_id, _ = await answer(caller, call(ENTRY, {"agent": "ada", "token": token, "body": ECHO}))
    queue = caller.queue("tool")
    assert (await queue.attach(job_id, "", ADA))[0] == "finished"
    assert (await queue.attach(job_id, "", Owner("default", "bob")))[0] == "unknown"


async def test_a_worker_that_has_lost_a_stock_job_changes_nothing_in_its_record(
    caller: Caller,
) -> None:
    token, queue = await caller.token("ada"), caller.queue("tool")
    data = call(ENTRY, {"agent": "ada", "token": token, "body": ECHO})
    job_id = await enqueue(caller, data)
    [lease] = await queue.claim("silent", ClaimRequest(1, 60.0))
    await caller.connection.execute("DEL", "rq:aios:leases:tool")
    await queue.disarm(lease)
    with pytest.raises(KernelError, match=r"the lease of job .* is gone"):
        await queue.vouch(lease, decode_job(data, job_id, trusted=False))
    assert await caller.connection.execute("HGET", f"rq:job:{job_id}", "data") == data


async def test_a_revoked_token_is_worth_nothing_and_none_is_kept_in_redis(caller: Caller) -> None:
    token = await caller.token("ada")
    assert await proves(caller.functions, token, ADA)
    kept = await caller.connection.execute("HGETALL", "rq:aios:tokens")
    assert token.encode() not in b" ".join(kept)

    assert await caller.tokens.revoke_all("ada", "default") == 1

    assert not await proves(caller.functions, token, ADA)
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
