"""What holds where an operator has set nothing: nice values, queue shares, contexts, replies."""

from __future__ import annotations

import pytest

from aios_broker.contract.errors import AccessDenied, KernelError, QueueFull, QuotaExceeded
from aios_broker.contract.llm import Message
from aios_broker.contract.syscall import new_id
from aios_broker.queues.contexts import ContextOwner, Contexts
from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.quota import QuotaRow, Quotas, Subject
from aios_broker.queues.records import JobMetadata, PolicyRow, SliceUse, Submission
from tests.queue_user import DATA, LEASE_S, QueueUser, submitted

ADA = Subject.of_agent("ada")


@pytest.fixture
def quotas(user: QueueUser) -> Quotas:
    return Quotas(user.functions)


def job(
    agent: str = "ada", *, tenant: str = "default", client: str = "", nice: int = 0, width: int = 1
) -> Submission:
    metadata = JobMetadata(agent, "llm.chat", tenant=tenant, nice=nice, width=width)
    return Submission(new_id(), DATA, metadata, client)


async def refusal(user: QueueUser, one: Submission) -> KernelError:
    [outcome] = await user.queue.submit([one])
    assert isinstance(outcome, KernelError), outcome
    return outcome


async def reconcile(user: QueueUser) -> None:
    """Do what the scheduler does each second."""
    await user.redis.execute("DEL", user.keys.own("scheduler"))  # whoever led before leads no more
    await user.order.reconcile(await user.lead())


# Nice values.


async def test_to_go_before_others_is_a_right(user: QueueUser, quotas: Quotas) -> None:
    error = await refusal(user, job(nice=-1))
    assert isinstance(error, AccessDenied)
    assert (error.field, error.retryable) == ("nice", False)
    assert "agent 'ada' may not ask for nice -1, the least it may is 0" in str(error)
    assert "aios quota set ada --tenant default --min-nice -1" in str(error)
    await submitted(user.queue, [job(), job(nice=19)])
    assert len(await user.waiting()) == 2  # what was refused left nothing behind


@pytest.mark.parametrize(
    "whose", [ADA, Subject.of_agent("*"), Subject.of_tenant("default"), Subject.of_tenant("*")]
)
async def test_the_right_is_an_agents_a_tenants_or_everybodys(
    user: QueueUser, quotas: Quotas, whose: Subject
) -> None:
    await quotas.set("llm", QuotaRow(whose, min_nice=-5))
    await submitted(user.queue, [job(nice=-5)])
    assert isinstance(await refusal(user, job(nice=-6)), AccessDenied)
    await quotas.unset("llm", whose)
    assert isinstance(await refusal(user, job(nice=-5)), AccessDenied)


async def test_an_agents_own_right_goes_before_its_tenants(user: QueueUser, quotas: Quotas) -> None:
    await quotas.set("llm", QuotaRow(Subject.of_tenant("default"), min_nice=-20))
    await quotas.set("llm", QuotaRow(ADA, min_nice=0))
    assert isinstance(await refusal(user, job(nice=-1)), AccessDenied)
    await submitted(user.queue, [job("bob", nice=-20)])


# Shares of a queue.


async def fill(user: QueueUser, count: int, agent: str = "ada", tenant: str = "acme") -> None:
    jobs = [job(agent, tenant=tenant) for _ in range(count)]
    for first in range(0, count, 400):
        await submitted(user.queue, jobs[first : first + 400])


async def test_no_agent_and_no_tenant_fills_a_queue_alone(user: QueueUser) -> None:
    await user.control.set_policy("llm", PolicyRow(max_waiting=1_000))
    await fill(user, 400)
    await reconcile(user)  # more than a quarter is taken: it is counted from now on
    await fill(user, 100)
    error = await refusal(user, job("ada", tenant="acme"))
    assert isinstance(error, QuotaExceeded)
    assert error.field == "quota.max_queued"
    await fill(user, 250, "bob")
    error = await refusal(user, job("zoe", tenant="acme"))
    assert "tenant 'acme' has 750 syscalls waiting, its quota is 750" in str(error)
    await fill(user, 1, "eve", "umbrella")


async def test_until_it_is_counted_half_of_the_queue_is_kept_back(user: QueueUser) -> None:
    await user.control.set_policy("llm", PolicyRow(max_waiting=1_000))
    await fill(user, 500)
    assert isinstance(await refusal(user, job("eve", tenant="umbrella")), QueueFull)
    await reconcile(user)
    await fill(user, 1, "eve", "umbrella")
    assert isinstance(await refusal(user, job("ada", tenant="acme")), QuotaExceeded)


async def test_when_the_queue_is_short_again_nothing_is_counted_any_more(user: QueueUser) -> None:
    await user.control.set_policy("llm", PolicyRow(max_waiting=1_000))
    await fill(user, 300)
    await reconcile(user)
    assert await user.redis.execute("EXISTS", user.keys.own("load:llm")) == 1
    await user.control.stop(Subject.of_tenant("acme"), who="test")
    await reconcile(user)
    left = [user.keys.own(f"{name}:llm") for name in ("load", "counted", "bucket", "recount")]
    assert await user.redis.execute("EXISTS", *left) == 0


async def test_a_quota_of_an_agents_own_goes_before_its_share(
    user: QueueUser, quotas: Quotas
) -> None:
    await user.control.set_policy("llm", PolicyRow(max_waiting=1_000))
    await quotas.set("llm", QuotaRow(Subject.of_agent("ada", "acme"), max_queued=700))
    await fill(user, 700)
    assert isinstance(await refusal(user, job("ada", tenant="acme")), QuotaExceeded)


# Replies that nobody reads.


async def test_a_client_that_does_not_read_its_replies_is_refused(
    user: QueueUser, quotas: Quotas
) -> None:
    await quotas.set("llm", QuotaRow(ADA, max_unread=1_500))
    box = user.keys.reply("lazy")
    await user.redis.execute("RPUSH", box, *["reply"] * 1_499)
    await submitted(user.queue, [job(client="lazy")])
    await user.redis.execute("RPUSH", box, "reply")
    error = await refusal(user, job(client="lazy"))
    assert isinstance(error, QuotaExceeded)
    assert (error.field, error.retryable) == ("quota.max_unread", True)
    assert "1500 replies to this client" in str(error)
    await submitted(user.queue, [job(client="another"), job()])
    await user.redis.execute("LTRIM", box, 10, -1)
    await submitted(user.queue, [job(client="lazy")])


# Stored contexts.


async def store(contexts: Contexts, name: str, text: str = "hello") -> None:
    owner = ContextOwner("default", "ada", name)
    await contexts.change(owner, new_id(), "set", [Message("user", text)])


async def test_stored_contexts_are_limited_by_number_and_bytes(
    user: QueueUser, quotas: Quotas
) -> None:
    contexts = Contexts(user.functions, user.keys)
    await quotas.set("llm", QuotaRow(ADA, max_contexts=2, max_context_bytes=1_000))
    for name in ("a", "b", "a"):
        await store(contexts, name)
    with pytest.raises(QuotaExceeded, match="3 stored contexts, it may have 2") as error:
        await store(contexts, "c")
    assert error.value.field == "quota.max_contexts"
    with pytest.raises(QuotaExceeded, match="bytes of stored contexts") as error:
        await store(contexts, "a", "x" * 1_000)
    assert error.value.field == "quota.max_context_bytes"
    await contexts.change(ContextOwner("default", "ada", "b"), new_id(), "clear")
    await store(contexts, "c")
    other = ContextOwner("default", "bob", "c")
    await contexts.change(other, new_id(), "set", [Message("user", "another agent's")])


async def test_contexts_that_were_dropped_count_no_more(user: QueueUser, quotas: Quotas) -> None:
    contexts = Contexts(user.functions, user.keys)
    await quotas.set("llm", QuotaRow(ADA, max_contexts=1))
    await store(contexts, "old")
    await user.redis.execute("ZADD", user.keys.own(f"context_ends:{ADA}"), 1, "old")
    await store(contexts, "new")


# Width.


async def test_slot_time_is_that_of_all_answers(user: QueueUser, quotas: Quotas) -> None:
    await submitted(user.queue, [job(width=4)])
    [lease] = await user.claim()
    use = SliceUse(lease, 2.0, 10, None)
    for _ in range(2):  # told twice, charged once
        await user.queue.slice_end("worker", [use], ClaimRequest(0, LEASE_S))
    assert (await quotas.usage("llm")).of(ADA).ran_s == 8.0
    [view] = await user.control.jobs("llm")
    assert view.ran_s == 2.0  # by the clock
