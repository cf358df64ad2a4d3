"""Quotas where the model of the queues does not reach: time, long queues, other modules."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aios_broker.contract.errors import Cancelled, KernelError, QuotaExceeded
from aios_broker.contract.syscall import new_id
from aios_broker.ledger.fold import SyscallRow, fold
from aios_broker.ledger.journal import parse_entry
from aios_broker.queues.admission import Admission
from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.quota import (
    AgentStanding,
    Barrier,
    QuotaRow,
    Quotas,
    Standing,
    Subject,
    Use,
)
from aios_broker.queues.records import (
    Ending,
    JobMetadata,
    Lease,
    PolicyRow,
    SliceUse,
    Submission,
    Suspension,
)
from tests.queue_user import QueueUser, queue_user, submitted

ADA, BOB = Subject.of_agent("ada"), Subject.of_agent("bob", "acme")
NOTHING_MORE = ClaimRequest(0, 30.0)


@pytest.fixture
def quotas(user: QueueUser) -> Quotas:
    return Quotas(user.functions)


async def submit(user: QueueUser, subject: Subject, count: int = 1) -> list[str]:
    metadata = JobMetadata(subject.agent, "llm.chat", tenant=subject.tenant)
    jobs = [Submission(new_id(), b"[]", metadata, "me") for _ in range(count)]
    await submitted(user.queue, jobs)
    return [job.job_id for job in jobs]


async def slice_end(user: QueueUser, lease: Lease, tokens: int, ran_s: float = 0.0) -> str:
    [verdict] = await user.queue.slice_end(
        "w", [SliceUse(lease, ran_s, tokens, None)], NOTHING_MORE
    )
    return verdict


async def test_a_refusal_says_whose_limit_and_leaves_nothing_behind(
    user: QueueUser, quotas: Quotas
) -> None:
    await quotas.set("llm", QuotaRow(BOB, max_queued=2))
    await submit(user, BOB)
    jobs = [
        Submission(new_id(), b"[]", JobMetadata("bob", "llm.chat", tenant="acme"), "me")
        for _ in "ab"
    ]
    status, error = await user.queue.submit(jobs)
    assert status == "queued"
    assert isinstance(error, QuotaExceeded)
    assert (error.field, error.retryable, error.retry_after_s) == ("quota.max_queued", True, 1.0)
    assert "agent 'bob' has 2 syscalls waiting, its quota is 2" in str(error)
    assert len(await user.waiting()) == 2
    await submit(user, ADA, 5)  # of another agent


async def test_rows_come_back_as_they_were_set(user: QueueUser, quotas: Quotas) -> None:
    rows = [
        QuotaRow(Subject.of_agent("*"), tokens_per_minute=10**9),
        QuotaRow(BOB, 1, 2, 3, 0.5),
        QuotaRow(Subject.of_tenant("acme"), max_running=0),
    ]
    for row in rows:
        await quotas.set("llm", row)
    assert await quotas.rows("llm") == sorted(rows, key=lambda row: str(row.subject))
    assert await quotas.rows("tool") == []
    assert await quotas.unset("llm", BOB)
    assert not await quotas.unset("llm", BOB)


async def test_a_minute_fills_up_and_the_barrier_says_when(user: QueueUser, quotas: Quotas) -> None:
    await quotas.set("llm", QuotaRow(ADA, tokens_per_minute=600))
    await submit(user, ADA, 2)
    [lease] = await user.claim()
    assert await slice_end(user, lease, 600 + 100) == "go"  # nobody else waits
    [waiting] = await user.waiting()
    assert await user.claim() == []
    barrier = await Admission(user.functions).barrier("llm", waiting)
    assert isinstance(barrier, Barrier)
    assert (barrier.limit, barrier.subject, barrier.most) == ("tokens_per_minute", ADA, 600)
    assert barrier.opens_in_s is not None
    assert 5.0 < barrier.opens_in_s <= 10.01  # 100 tokens at 600 a minute
    # Given that they have passed
    key, field = user.keys.own("bucket:llm"), f"tokens {ADA}"
    level, at = (await user.redis.execute("HGET", key, field)).split()
    await user.redis.execute("HSET", key, field, f"{level.decode()} {int(at) - 10_010}")
    assert await Admission(user.functions).barrier("llm", waiting) is None
    assert [lease.job_id for lease in await user.claim()] == [waiting]


async def test_slot_time_bars_as_tokens_do(user: QueueUser, quotas: Quotas) -> None:
    await quotas.set("llm", QuotaRow(Subject.of_tenant("*"), slot_seconds_per_minute=6.0))
    await submit(user, ADA, 2)
    [lease] = await user.claim()
    await slice_end(user, lease, 0, ran_s=7.0)
    barrier = await Admission(user.functions).barrier("llm", (await user.waiting())[0])
    assert isinstance(barrier, Barrier)
    assert (barrier.limit, barrier.subject.words, barrier.used) == (
        "slot_seconds_per_minute",
        "tenant 'default'",
        7.0,
    )


async def test_who_is_over_yields_to_others_whatever_the_policy(
    user: QueueUser, quotas: Quotas
) -> None:
    await user.control.set_policy("llm", PolicyRow(name="fifo", preempt="none"))
    await quotas.set("llm", QuotaRow(ADA, tokens_per_minute=10))
    await submit(user, ADA, 2)
    [lease] = await user.claim()
    assert await slice_end(user, lease, 20) == "go"  # the one that waits is ada's, too
    [other] = await submit(user, BOB)
    assert await slice_end(user, lease, 20) == "suspend"
    await user.suspend(lease, tokens=20)
    assert [taken.job_id for taken in await user.claim(3)] == [other]


async def test_no_slot_is_freed_for_who_may_not_run(user: QueueUser, quotas: Quotas) -> None:
    await quotas.set("llm", QuotaRow(ADA, max_running=0))
    await submit(user, BOB)
    [lease] = await user.claim()
    await submit(user, ADA)
    assert await slice_end(user, lease, 1) == "go"


async def test_one_told_to_suspend_hears_the_same_again(user: QueueUser) -> None:
    """The answer was lost: nobody else is told in its place."""
    await submit(user, ADA, 3)
    first, second = await user.claim(2)
    assert await slice_end(user, first, 1) == "suspend"
    assert await slice_end(user, first, 1) == "suspend"
    assert await slice_end(user, second, 1) == "go"


async def test_the_journal_says_what_was_used_when_no_worker_can(user: QueueUser) -> None:
    cancelled, dies = await submit(user, ADA, 2)
    for lease in await user.claim(2):
        await slice_end(user, lease, 5, ran_s=1.0)
    await user.control.cancel([cancelled], Cancelled("no"), module="llm")
    await user.redis.execute("ZADD", user.keys.own("leases:llm"), "XX", 1, f"{dies}:1")
    assert await user.order.reclaim(await user.lead()) == 1
    rows: dict[str, SyscallRow] = {}
    for entry in await user.redis.execute("XRANGE", user.keys.journal, "-", "+"):
        parsed = parse_entry(entry)
        if parsed is not None:
            fold(rows, parsed)
    for job_id, state in ((cancelled, "cancelled"), (dies, "queued")):
        row = rows[job_id]
        assert (row.state, row.tokens, row.ran_ms) == (state, 5, 1000)
    assert rows[cancelled].error_code == "cancelled"


async def test_what_earlier_attempts_used_is_the_base_of_the_next(user: QueueUser) -> None:
    await user.submit(0)
    for attempt in (1, 2, 3):
        [lease] = await user.claim()
        assert lease.attempt == attempt
        await slice_end(user, lease, tokens=5, ran_s=0.25)
        await user.suspend(lease, b"snapshot", tokens=10)  # 0.5 s
    [view] = await user.control.jobs("llm")

    assert (view.tokens, view.ran_s) == (30, 1.5)


async def test_a_prompt_is_charged_once_however_often_it_is_read(
    user: QueueUser, quotas: Quotas
) -> None:
    await submit(user, ADA)
    for tokens in (1, 2):  # its worker reads the prompt again in each attempt
        [lease] = await user.claim()
        use = SliceUse(lease, 0.1, tokens, None, 40)
        for _ in range(2):
            await user.queue.slice_end("w", [use], NOTHING_MORE)
        suspension = Suspension(lease, b"half", 0.1, tokens, "suspend", 40)
        await user.queue.suspend("w", [suspension], NOTHING_MORE)
    [lease] = await user.claim()
    await user.queue.finish(
        "w", [Ending(lease, "finished", b"{}", 0.1, 3, False, 41)], NOTHING_MORE
    )
    use_of_ada = (await quotas.usage("llm", [ADA])).of(ADA)
    assert (use_of_ada.prompt_tokens, use_of_ada.tokens) == (41, 6)


async def test_a_batch_of_an_agent_is_claimed_up_to_its_limit(
    user: QueueUser, quotas: Quotas
) -> None:
    await quotas.set("llm", QuotaRow(ADA, max_running=2))
    mine = await submit(user, ADA, 4)
    others = await submit(user, BOB, 1)
    assert [lease.job_id for lease in await user.claim(5)] == [*mine[:2], *others]


async def test_a_cancelled_job_frees_the_place_that_it_had(user: QueueUser, quotas: Quotas) -> None:
    await quotas.set("llm", QuotaRow(ADA, max_running=1, max_queued=2))
    running, waiting = await submit(user, ADA, 2)
    await user.claim()
    await submit(user, ADA)
    await user.control.cancel([running, waiting], Cancelled("no"), module="llm")
    await submit(user, ADA)
    assert len(await user.claim(3)) == 1


async def test_an_agent_at_its_limit_takes_turns_with_itself(
    user: QueueUser, quotas: Quotas
) -> None:
    await quotas.set("llm", QuotaRow(ADA, max_running=1))
    await submit(user, ADA, 2)
    [lease] = await user.claim(2)
    assert await slice_end(user, lease, 1) == "suspend"


async def test_those_behind_a_long_line_of_barred_ones_get_their_turn(
    user: QueueUser, quotas: Quotas
) -> None:
    """A look passes by many, goes on where the last one ended, and costs little in between."""
    await quotas.set("llm", QuotaRow(ADA, max_running=0))
    await submit(user, ADA, 2500)
    [mine] = await submit(user, BOB)
    note = user.keys.own("far:llm")
    for _ in range(4):
        if leases := await user.claim():
            break
        at_ms, place = (await user.redis.execute("GET", note)).split()
        just_now = b"%d " % (int(at_ms) + 60_000)  # however slow this machine is
        await user.redis.execute("SET", note, just_now + place)
        assert await user.claim() == []  # nobody looks far again so soon
        await user.redis.execute("SET", note, b"0 " + place)
    assert [lease.job_id for lease in leases] == [mine]
    assert len(await user.waiting()) == 2500


async def test_a_module_is_metered_when_it_has_quotas(redis_url: str) -> None:
    async with queue_user(redis_url, "tool") as user:
        quotas = Quotas(user.functions)
        await submit(user, ADA)
        [lease] = await user.claim()
        await user.finish(lease, tokens=3)
        assert (await quotas.usage("tool")).by_subject == {}
        await quotas.set("tool", QuotaRow(Subject.of_agent("*")))  # no limit: it is only metered
        await submit(user, ADA)
        [lease] = await user.claim()
        await user.finish(lease, tokens=3)
        usage = await quotas.usage("tool", [ADA, BOB])
        assert usage.of(ADA) == Use(tokens=3, ran_s=0.25, finished=1)
        assert usage.of(BOB) == Use()


async def test_counters_of_programs_that_are_over_are_dropped(
    user: QueueUser, quotas: Quotas
) -> None:
    await submit(user, ADA)
    [lease] = await user.claim()
    await user.finish(lease, tokens=3)
    program = str(Subject.of_program("main", "ada"))
    used = user.keys.own("used:llm")
    seconds, _ = await user.redis.execute("TIME")
    left_ms = int(await user.redis.execute("ZSCORE", used, program)) - int(seconds) * 1000
    assert 3_590_000 < left_ms < 3_602_000
    await user.redis.execute("ZADD", used, 1, program)
    await user.order.reconcile(await user.lead())
    assert set((await quotas.usage("llm")).by_subject) == {ADA, Subject.of_tenant("default")}


async def test_without_quotas_nothing_is_kept_of_them(user: QueueUser, quotas: Quotas) -> None:
    await quotas.set("llm", QuotaRow(ADA, max_queued=5, tokens_per_minute=5))
    await submit(user, ADA)
    [lease] = await user.claim()
    await slice_end(user, lease, 7)
    await quotas.unset("llm", ADA)
    names = [user.keys.own(f"{name}:llm") for name in ("quota", "load", "bucket")]
    assert await user.redis.execute("EXISTS", *names) == 0
    ending = Ending(lease, "finished", b"{}", 0.1, 7)
    await user.queue.finish("w", [ending], NOTHING_MORE)
    assert await user.redis.execute("EXISTS", *names) == 0


async def test_full_buckets_are_dropped_when_the_load_is_counted(
    user: QueueUser, quotas: Quotas
) -> None:
    await quotas.set("llm", QuotaRow(Subject.of_agent("*"), tokens_per_minute=6000))
    await submit(user, ADA)
    [lease] = await user.claim()
    await slice_end(user, lease, 1)  # full again after 10 ms
    epoch = await user.lead()
    await user.redis.execute("HSET", user.keys.own("load:llm"), "counted", 1)
    key, field = user.keys.own("bucket:llm"), f"tokens {ADA}"
    level, at = (await user.redis.execute("HGET", key, field)).split()
    await user.redis.execute("HSET", key, field, f"{level.decode()} {int(at) - 1000}")
    await user.order.reconcile(epoch)
    assert await user.redis.execute("EXISTS", key) == 0


@pytest.mark.parametrize("text", ["", "agent:", "agent:a", "robot:a b", "program:a b", "tenant:"])
def test_what_names_nobody_is_refused(text: str) -> None:
    with pytest.raises(KernelError):
        Subject.parse(text)


def test_names_are_read_back() -> None:
    for subject in (
        ADA,
        BOB,
        Subject.of_tenant("t"),
        Subject.of_agent("*"),
        Subject.of_tenant("*"),
        Subject.of_program("p", "a", "t"),
    ):
        assert Subject.parse(str(subject)) == subject
    assert Subject.of_agent("*").words == "every agent"
    assert replace(ADA, tenant="x").words == "agent 'ada'"


async def test_an_agent_stands_by_what_binds_it_first(user: QueueUser, quotas: Quotas) -> None:
    assert await quotas.standings("llm", "bob", "acme") == AgentStanding()
    everybody, tenant = Subject.of_agent("*"), Subject.of_tenant("acme")
    await quotas.set("llm", QuotaRow(everybody, max_queued=9, tokens_per_minute=600, min_nice=-3))
    await quotas.set("llm", QuotaRow(tenant, max_queued=4, min_nice=-9))
    await submit(user, BOB)
    [lease] = await user.claim()
    await slice_end(user, lease, 60)
    await submit(user, BOB, 2)
    found = await quotas.standings("llm", "bob", "acme")
    assert (found.min_nice, found.queued) == (-3, Standing(4, 2, 0.0))
    assert found.tokens is not None
    assert found.tokens.most == 600
    assert 540 <= found.tokens.left <= 545  # it fills up again by ten in each second
    assert found.tokens.opens_in_s == pytest.approx((600 - found.tokens.left) / 10)
    await quotas.set("llm", QuotaRow(BOB, max_queued=3))
    assert (await quotas.standings("llm", "bob", "acme")).queued == Standing(3, 1, 0.0)


async def test_a_tree_of_programs_is_counted_as_one(user: QueueUser, quotas: Quotas) -> None:
    for program in ("paper", "paper/search", "paper/search/read", "papers"):
        metadata = JobMetadata("ada", "llm.chat", program)
        await submitted(user.queue, [Submission(new_id(), b"[]", metadata, "me")])
        [lease] = await user.claim()
        await slice_end(user, lease, 10)
    tree = Subject.of_program("paper/search", "ada")
    assert tree == Subject.of_program("paper", "ada")
    used = await quotas.usage("llm")
    assert used.of(tree).tokens == 30
    assert used.of(Subject.of_program("papers", "ada")).tokens == 10
