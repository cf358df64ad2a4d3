"""The kill switch: a suspended agent, or tenant, is answered at once and may ask no more."""

from __future__ import annotations

import json

import pytest
import redis

from aios_broker.access.audit import in_one, newest_lines, verify
from aios_broker.access.suspensions import go_on, suspend, tidy_suspensions
from aios_broker.client.redis_transport import ReplyBox
from aios_broker.contract.errors import AgentSuspended, InvalidConfig
from aios_broker.contract.syscall import new_id
from aios_broker.postgres.store import Store
from aios_broker.queues.control import Control
from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.quota import Subject
from aios_broker.queues.records import JobMetadata, Submission, Suspension
from tests.queue_user import DATA, QueueUser, submitted
from tests.state_scene import AUDIT_KEY, StateScene

ADA, BOB, EVE = (
    JobMetadata("ada", "llm.chat", tenant="acme"),
    JobMetadata("bob", "llm.chat", tenant="acme"),
    JobMetadata("eve", "llm.chat", tenant="umbrella"),
)
THE_AGENT, THE_TENANT = Subject.of_agent("ada", "acme"), Subject.of_tenant("acme")


async def send(user: QueueUser, metadata: JobMetadata, client: str = "me") -> str:
    job = Submission(new_id(), DATA, metadata, client)
    await submitted(user.queue, [job])
    return job.job_id


async def live(user: QueueUser, *job_ids: str) -> list[bool]:
    return await user.control.live(job_ids, module="llm")


async def replies(user: QueueUser, count: int) -> dict[str, str]:
    """Return the codes of the errors that a client hears, by syscall."""
    box = ReplyBox(user.redis, "me", user.keys)
    heard: dict[str, str] = {}
    while len(heard) < count:
        for message in await box.take(timeout_s=5.0):
            reply = json.loads(message)
            heard[reply["id"]] = reply["error"]["code"]
    return heard


async def test_what_waits_runs_is_held_or_parked_is_answered_and_others_are_not_touched(
    user: QueueUser,
) -> None:
    runs, parked, held = [await send(user, ADA) for _ in range(3)]
    leases = {lease.job_id: lease for lease in await user.claim(3)}
    await user.queue.suspend(
        "worker", [Suspension(leases[parked], None, 0.1, reason="park")], ClaimRequest(0, 30.0)
    )
    await user.suspend(leases[held])
    await user.control.hold([held], module="llm")
    waits = await send(user, ADA)
    others = [await send(user, BOB), await send(user, EVE)]

    assert await user.control.stop(THE_AGENT, who="test") == 4

    assert await replies(user, 4) == dict.fromkeys((runs, parked, held, waits), AgentSuspended.code)
    assert await live(user, runs, parked, held, waits) == [False] * 4
    assert await live(user, *others) == [True, True]
    assert await user.finish(leases[runs]) == [False]  # its worker comes too late
    assert [lease.job_id for lease in await user.claim(9)] == others


async def test_a_suspended_agent_is_refused_until_it_may_go_on(user: QueueUser) -> None:
    await user.control.stop(THE_AGENT, who="test")
    for metadata, is_refused in ((ADA, True), (BOB, False), (EVE, False)):
        [outcome] = await user.queue.submit([Submission(new_id(), DATA, metadata, "me")])
        assert isinstance(outcome, AgentSuspended) == is_refused
    assert await user.control.stopped() == {THE_AGENT: "test"}
    assert await user.control.go_on(THE_AGENT)
    assert not await user.control.go_on(THE_AGENT)
    await send(user, ADA)


async def test_a_suspended_tenant_is_all_its_agents(user: QueueUser) -> None:
    ada, bob, eve = [await send(user, each) for each in (ADA, BOB, EVE)]
    assert await user.control.stop(THE_TENANT, who="test") == 2
    assert await live(user, ada, bob, eve) == [False, False, True]
    [refused] = await user.queue.submit([Submission(new_id(), DATA, BOB, "me")])
    assert isinstance(refused, AgentSuspended)
    assert refused.field == "tenant"
    assert "aios agents resume --tenant acme" in str(refused)
    assert not refused.retryable


async def test_many_are_ended_in_parts(user: QueueUser) -> None:
    jobs = [Submission(new_id(), DATA, ADA, "") for _ in range(1_500)]
    await submitted(user.queue, jobs[:800])
    await submitted(user.queue, jobs[800:])
    other = await send(user, EVE)
    assert await user.control.stop(THE_AGENT, who="test") == 1_500
    assert await live(user, other) == [True]
    assert await user.control.jobs("llm") != []
    assert [job.job_id for job in await user.control.jobs("llm")] == [other]


@pytest.mark.parametrize(
    ("subject", "what"), [(THE_AGENT, "agent ada"), (THE_TENANT, "tenant acme")]
)
async def test_who_was_suspended_by_whom_is_in_the_audit_log(
    scene: StateScene, subject: Subject, what: str
) -> None:
    control = Control(scene.services.functions, scene.services.keys)
    await suspend(scene.store, control, subject, who="root")
    assert await go_on(scene.store, control, subject, who="eve")
    assert not await go_on(scene.store, control, subject, who="eve")  # nothing to be told
    async with scene.store.as_steward() as cursor:
        lines = await newest_lines(cursor, tenant="acme", actor=None, limit=9)
        verdict = await verify(in_one(cursor), AUDIT_KEY, None)
    assert [(one.actor, one.action, one.object, one.outcome) for one in reversed(lines)] == [
        ("operator:root", "access.suspend", what, "done"),
        ("operator:eve", "access.resume", what, "done"),
    ]
    assert lines[1].detail == {"ended": 0}
    assert verdict.broken_seq is None


async def test_who_can_spoil_the_audit_log_is_stopped_all_the_same(
    scene: StateScene, database_url: str
) -> None:
    control = Control(scene.services.functions, scene.services.keys)
    without_key = Store(database_url, name="test")
    try:
        with pytest.raises(InvalidConfig, match=r"agent 'ada' is suspended, .* no line on it"):
            await suspend(without_key, control, THE_AGENT, who="test")
        assert await control.stopped() == {THE_AGENT: "test"}
        await tidy_suspensions(without_key, control)
        assert await control.stopped() == {THE_AGENT: "test"}
        with pytest.raises(InvalidConfig):  # what goes on has its line, or stays as it is
            await go_on(without_key, control, THE_AGENT, who="test")
        assert await control.stopped() == {THE_AGENT: "test"}
    finally:
        await without_key.aclose()
    await go_on(scene.store, control, THE_AGENT, who="test")


@pytest.mark.parametrize("subject", [THE_AGENT, THE_TENANT])
async def test_a_redis_that_lost_its_data_is_told_again(
    scene: StateScene, redis_url: str, subject: Subject
) -> None:
    control = Control(scene.services.functions, scene.services.keys)
    await suspend(scene.store, control, subject, who="test")
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    assert await control.stopped() == {}
    await tidy_suspensions(scene.store, control)
    assert await control.stopped() == {subject: "test"}
    assert await go_on(scene.store, control, subject, who="test")
    await tidy_suspensions(scene.store, control)
    assert await control.stopped() == {}
