"""Cutting must pay: which slices are cut when somebody waits, what is told of the others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from aios_broker.contract.syscall import new_id
from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.quota import QuotaRow, Quotas, Subject
from aios_broker.queues.records import (
    JobMetadata,
    Lease,
    PolicyRow,
    SliceTerms,
    SliceUse,
    SliceVerdict,
    Submission,
    Uncut,
)
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore, SimulatedCoreConfig
from aios_workers.runtime.registry import llm_module
from tests.caller import Caller, chat, chat_result, running_worker
from tests.queue_user import DATA, LEASE_S, QueueUser, submitted
from tests.waiting import wait_until_async

FITS_ALL = SliceTerms(slice_ms=500.0, resume_ms=20.0, least_ms=200.0, crowded_ms=9_000.0, fits=9)
CROWDED = SliceTerms(slice_ms=500.0, resume_ms=20.0, least_ms=200.0, crowded_ms=9_000.0, fits=1)


async def slice_end(
    user: QueueUser, lease: Lease, terms: SliceTerms, worker: str = "worker", tokens: int = 24
) -> SliceVerdict:
    use = SliceUse(lease, 0.5, tokens, b"checkpoint", 40, terms=terms)
    [verdict] = await user.queue.slice_end(worker, [use], ClaimRequest(0, LEASE_S))
    return verdict


async def running_and_waiting(user: QueueUser) -> Lease:
    """Let one job run and another wait behind it."""
    await user.submit(0, 0)
    [lease] = await user.claim(1)
    return lease


async def uncut(user: QueueUser, lease: Lease) -> Uncut | None:
    view = await user.control.job(lease.job_id)
    assert view is not None
    return view.uncut


# At the queue.


async def test_a_slice_that_has_lasted_is_cut(user: QueueUser) -> None:
    lease = await running_and_waiting(user)
    assert await slice_end(user, lease, FITS_ALL) == "suspend"
    assert await uncut(user, lease) is None


async def test_one_that_is_too_short_for_its_cost_goes_on_and_says_why(user: QueueUser) -> None:
    lease = await running_and_waiting(user)
    short = SliceTerms(slice_ms=199.0, resume_ms=20.0, least_ms=200.0, crowded_ms=9_000.0, fits=9)
    assert await slice_end(user, lease, short) == "go"
    assert await uncut(user, lease) == Uncut(0.199, 0.02, 0.2, contexts=2, fits=9)


async def test_a_context_is_not_pushed_out_where_another_has_no_room(user: QueueUser) -> None:
    lease = await running_and_waiting(user)
    assert await slice_end(user, lease, CROWDED) == "go"
    found = await uncut(user, lease)
    assert found == Uncut(0.5, 0.02, 9.0, contexts=2, fits=1)
    assert found.is_crowded


async def test_it_is_where_it_has_run_long_enough_for_all_of_it_to_be_read_again(
    user: QueueUser,
) -> None:
    lease = await running_and_waiting(user)
    long = SliceTerms(9_000.0, 20.0, 200.0, 9_000.0, fits=1)
    assert await slice_end(user, lease, long) == "suspend"


async def test_contexts_that_were_suspended_count(user: QueueUser) -> None:
    terms = SliceTerms(500.0, 20.0, 200.0, 9_000.0, fits=3)
    ids = await user.submit(*[0] * 6)
    for _ in range(2):  # one context more is begun with each
        [lease] = await user.claim()
        assert await slice_end(user, lease, terms) == "suspend"
        await user.suspend(lease, b"half")
    [third] = await user.claim()

    assert await slice_end(user, third, terms) == "go"  # a fourth would not fit
    found = await uncut(user, third)
    assert found is not None
    assert (found.contexts, found.fits) == (4, 3)
    for lease in await user.claim(3):  # the newcomers
        await user.finish(lease)
    assert [view.job_id for view in await user.control.jobs("llm")] == [third.job_id, *ids[:2]]
    assert await slice_end(user, third, terms) == "suspend"  # for one that is begun


async def test_cores_with_memories_of_their_own_hold_more_and_those_of_one_server_do_not(
    user: QueueUser,
) -> None:
    await user.submit(0, 0, 0)
    [here, there] = await user.claim(2)
    for worker in ("a", "b"):  # of one server
        shared = SliceTerms(500.0, 20.0, 200.0, 9_000.0, 2, memory="server")
        assert await slice_end(user, here, shared, worker) == "go"
    await user.redis.execute("DEL", user.keys.own("memories:llm"))
    alone = SliceTerms(500.0, 20.0, 200.0, 9_000.0, 2)
    assert await slice_end(user, there, alone, "b") == "go"  # it only knows of one so far
    assert await slice_end(user, here, alone, "a") == "suspend"


async def test_an_operator_and_a_quota_do_not_ask_what_it_costs(user: QueueUser) -> None:
    lease = await running_and_waiting(user)
    of_bob = Submission(new_id(), DATA, JobMetadata("bob", "llm.chat"), "me")
    await submitted(user.queue, [of_bob])
    dear = SliceTerms(1.0, 60_000.0, 60_000.0, 60_000.0, fits=1)
    assert await slice_end(user, lease, dear) == "go"
    await Quotas(user.functions).set("llm", QuotaRow(Subject.of_agent("ada"), tokens_per_minute=9))
    assert await slice_end(user, lease, dear, tokens=48) == "suspend"
    await user.control.hold([lease.job_id], module="llm")
    assert await slice_end(user, lease, dear) == "hold"


async def test_a_score_outranks_the_memory_but_not_the_cost(user: QueueUser) -> None:
    lease = await running_and_waiting(user)
    await user.control.set_policy("llm", PolicyRow("priority", "score"))
    [waiting] = await user.waiting()
    for job_id, score in ((waiting, 1), (lease.job_id, 5)):
        await user.redis.execute("ZADD", user.keys.own("scores:llm"), score, job_id)
    short = SliceTerms(199.0, 20.0, 200.0, 9_000.0, fits=1)
    assert await slice_end(user, lease, short) == "go"
    assert await slice_end(user, lease, CROWDED) == "suspend"


async def test_the_numbers_are_those_of_the_slice_that_runs(user: QueueUser) -> None:
    lease = await running_and_waiting(user)
    assert await slice_end(user, lease, CROWDED) == "go"
    await user.suspend(lease, b"half")
    [_, again] = await user.claim(2)
    assert again.job_id == lease.job_id
    assert await uncut(user, again) is None


# Through the handler, on the simulated core.

ONE_SLOT = SimulatedCoreConfig(slots=1, end_probability=0.0, decode_tokens_per_s=400.0)
LONG, SHORT = 1_200, 4  # tokens: 3 s and 10 ms


@pytest.fixture
async def caller(redis_url: str) -> AsyncIterator[Caller]:
    caller = Caller(redis_url)
    await caller.publish_policy(quantum_s=60.0, quantum_tokens=16)
    yield caller
    await caller.aclose()


async def long_and_short(
    caller: Caller, config: SimulatedCoreConfig, prompt: str = "x" * 100, tokens: int = LONG
) -> tuple[int, float]:
    """Return how often the long one was cut, and how long the short one waited behind it."""
    async with running_worker(caller.url, "llm", await llm_module(SimulatedCore(config))):
        [long] = await caller.submit(chat(prompt, max_tokens=tokens))

        async def runs() -> bool:
            view = await caller.control.job(long)
            return view is not None and view.tokens > 0

        await wait_until_async(runs)
        [short] = await caller.submit(chat("y" * 100, max_tokens=SHORT))
        replies = await caller.hear_all([long, short])
    for reply in replies:
        chat_result(reply)
    return replies[0].timings.suspensions, replies[1].timings.queued_s


async def test_where_contexts_fit_the_short_one_goes_first(caller: Caller) -> None:
    cuts, waited_s = await long_and_short(caller, replace(ONE_SLOT, prefill_tokens_per_s=5_000.0))
    assert cuts == 1
    assert waited_s < 2.0


async def test_where_they_do_not_fit_and_reading_is_dear_the_long_one_ends_first(
    caller: Caller,
) -> None:
    cramped = replace(ONE_SLOT, prefill_tokens_per_s=1_000.0, kv_tokens=150)
    cuts, waited_s = await long_and_short(caller, cramped)
    assert cuts == 0
    assert waited_s > 1.0


async def test_where_they_do_not_fit_nobody_waits_longer_than_reading_is_worth(
    caller: Caller,
) -> None:
    """It is read in 10 ms, and as much more as the machine is busy; its answer takes 4.75 s."""
    cramped = replace(ONE_SLOT, prefill_tokens_per_s=200_000.0, kv_tokens=2_500)
    cuts, waited_s = await long_and_short(caller, cramped, prompt="x" * 2_000, tokens=1_900)
    assert cuts >= 1
    assert waited_s < 4.5


async def test_what_resuming_costs_is_learnt_from_the_resumptions(caller: Caller) -> None:
    """Two that take turns on a memory that forgets each of them: turns become longer."""
    forgetful = replace(ONE_SLOT, prefill_tokens_per_s=2_000.0, kv_tokens=500)
    bodies = [chat(name * 200, max_tokens=400) for name in "ab"]
    async with running_worker(caller.url, "llm", await llm_module(SimulatedCore(forgetful))):
        replies = await caller.hear_all(await caller.submit(*bodies))
    turns = sum(reply.timings.suspensions for reply in replies)
    assert turns < 2 * 400 // 16 // 2  # 16 tokens are the quantum
