"""Budgets: what an agent or tenant may spend in a day or a month, on cores with a price."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from aios_broker.contract.cores import CoreCard, queue_of
from aios_broker.contract.errors import QuotaExceeded
from aios_broker.contract.syscall import Need, new_id
from aios_broker.queues.admission import Admission
from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.quota import Barrier, Budget, QuotaRow, Quotas, Subject
from aios_broker.queues.records import (
    Charge,
    Ending,
    JobMetadata,
    Lease,
    SliceUse,
    Submission,
    Suspension,
    WorkerCard,
)
from tests.queue_user import QueueUser

ADA, DEFAULT = Subject.of_agent("ada"), Subject.of_tenant("default")
NOTHING = ClaimRequest(0, 30.0)
CENT = 10_000_000  # nano-units of a dollar
CORES = ("paid", "free")
DAY_S = 86_400.0

pytestmark = pytest.mark.usefixtures("far_from_midnight")


@pytest.fixture
async def cores(user: QueueUser) -> QueueUser:
    """A fleet with one core that is paid in dollars and one that is free."""
    cards = (
        CoreCard(name="paid", model="m", currency="USD"),
        CoreCard(name="free", model="m"),
    )
    await user.queue.register(WorkerCard("worker", "llm", 1, "here", 9, cards))
    return user


async def budget(user: QueueUser, subject: Subject = ADA, **budgets: Budget) -> None:
    await Quotas(user.functions).set("llm", QuotaRow(subject, **budgets))  # type: ignore[arg-type]


async def publish(user: QueueUser, core: str = "paid", agent: str = "ada") -> object:
    needs = (Need("core", core),) if core else ()
    job = Submission(new_id(), b"[]", JobMetadata(agent, "llm.chat"), "me", needs=needs)
    [outcome] = await user.queue.submit([job])
    return outcome


async def claim(user: QueueUser, want: int = 1) -> list[Lease]:
    return await user.queue.claim("worker", ClaimRequest(want, 30.0, CORES))


async def spend(user: QueueUser, nano: int, currency: str = "USD", agent: str = "ada") -> None:
    """Let a syscall cost so much."""
    assert await publish(user, agent=agent) == "queued"
    [lease] = await claim(user)
    charge = Charge("paid", nano * 1000, currency)
    await user.queue.finish(
        "worker", [Ending(lease, "finished", b"{}", 0.1, charge=charge)], NOTHING
    )


async def test_over_the_budget_a_submit_is_refused_with_amount_window_and_time(
    cores: QueueUser,
) -> None:
    await budget(cores, budget_per_day=Budget(3 * CENT, "USD"))
    await spend(cores, 2 * CENT)
    await spend(cores, 2 * CENT)  # it began within the budget

    refusal = await publish(cores)

    assert isinstance(refusal, QuotaExceeded)
    assert "agent 'ada' has spent 0.04 USD this day, its budget is 0.03 USD" in str(refusal)
    assert refusal.field == "quota.budget_per_day"
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    left_s = (midnight + timedelta(days=1) - datetime.now(UTC)).total_seconds()
    assert refusal.retry_after_s == pytest.approx(left_s, abs=5.0)


async def test_a_name_that_leads_to_paid_cores_alone_is_refused_at_once(user: QueueUser) -> None:
    """By alias, or by none at all: the default. One that may go to a free core is taken."""
    paid = CoreCard(name="paid", model="m", currency="USD", aliases=("fast", "any"), default=True)
    free = CoreCard(name="free", model="n", aliases=("any",))
    await user.queue.register(WorkerCard("worker", "llm", 1, "here", 9, (paid, free)))
    await budget(user, budget_per_day=Budget(0, "USD"))
    assert isinstance(await publish(user, "fast"), QuotaExceeded)
    assert isinstance(await publish(user, ""), QuotaExceeded)
    assert [await publish(user, "any") for _ in range(4)] == ["queued"] * 4
    queue = user.keys.queue(queue_of("llm", "free"))
    assert await user.redis.execute("LLEN", queue) == 4  # all went where they cost nothing


async def test_cores_without_a_price_and_other_agents_go_on(cores: QueueUser) -> None:
    await budget(cores, budget_per_day=Budget(CENT, "USD"))
    await spend(cores, CENT)
    assert await publish(cores, "free") == "queued"
    assert await publish(cores, agent="bob") == "queued"
    assert len(await claim(cores, 4)) == 2


async def test_a_tenants_budget_is_spent_by_all_its_agents(cores: QueueUser) -> None:
    await budget(cores, DEFAULT, budget_per_month=Budget(3 * CENT, "USD"))
    await spend(cores, CENT)
    await spend(cores, 2 * CENT, agent="bob")
    refusal = await publish(cores, agent="eve")
    assert isinstance(refusal, QuotaExceeded)
    assert "tenant 'default' has spent 0.03 USD this month" in str(refusal)
    first = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = (first + timedelta(days=32)).replace(day=1)
    left_s = (following - datetime.now(UTC)).total_seconds()
    assert refusal.retry_after_s == pytest.approx(left_s, abs=5.0)


async def test_what_waits_when_it_is_used_up_waits_on_and_why_is_told(cores: QueueUser) -> None:
    await budget(cores, budget_per_day=Budget(CENT, "USD"))
    assert await publish(cores) == "queued"
    assert await publish(cores) == "queued"
    [lease, *_] = await claim(cores)
    charge = Charge("paid", CENT * 1000, "USD")
    await cores.queue.finish(
        "worker", [Ending(lease, "finished", b"{}", 0.1, charge=charge)], NOTHING
    )
    assert await claim(cores, 4) == []
    queue = cores.keys.queue(queue_of("llm", "paid"))
    [waiting] = await cores.redis.execute("LRANGE", queue, 0, -1)
    barrier = await Admission(cores.functions).barrier("llm", waiting.decode())
    assert isinstance(barrier, Barrier)
    assert (barrier.limit, barrier.used, barrier.most) == ("budget_per_day", CENT, CENT)
    assert barrier.currency == "USD"
    assert barrier.opens_in_s is not None
    assert 0 < barrier.opens_in_s <= DAY_S


async def test_what_has_begun_goes_on_to_its_end(cores: QueueUser) -> None:
    await budget(cores, budget_per_day=Budget(CENT, "USD"))
    assert await publish(cores) == "queued"
    [lease] = await claim(cores)
    charge = Charge("paid", 2 * CENT * 1000, "USD")
    use = SliceUse(lease, 0.1, 10, b"x", 5, charge)
    assert await cores.queue.slice_end("worker", [use], ClaimRequest(0, 30.0, CORES)) == ["go"]
    suspension = Suspension(lease, b"x", 0.1, 10, "suspend", 5, charge)
    await cores.queue.suspend("worker", [suspension], NOTHING)
    [again] = await claim(cores)
    assert again.job_id == lease.job_id
    assert (again.cost_pico, again.currency) == (2 * CENT * 1000, "USD")
    assert again.read_by == ("paid",)


async def test_the_next_day_begins_with_the_whole_budget(cores: QueueUser) -> None:
    await budget(cores, budget_per_day=Budget(CENT, "USD"))
    await spend(cores, CENT)
    assert isinstance(await publish(cores), QuotaExceeded)
    key, field = cores.keys.own("spent:llm"), "day USD agent:default ada"
    kept = (await cores.redis.execute("HGET", key, field)).decode()
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    assert kept == f"{today} {CENT}"
    await cores.redis.execute("HSET", key, field, f"2000-01-01 {CENT}")  # it was another day's
    await spend(cores, CENT // 2)
    kept = (await cores.redis.execute("HGET", key, field)).decode()
    assert kept == f"{today} {CENT // 2}"
    await cores.redis.execute("HSET", key, field, f"2000-01-01 {CENT}")
    await cores.redis.execute("HDEL", key, "swept")
    await cores.order.reconcile(await cores.lead())
    assert await cores.redis.execute("HEXISTS", key, field) == 0
    assert await cores.redis.execute("HEXISTS", key, "month USD agent:default ada") == 1


async def test_money_of_another_currency_is_not_counted(cores: QueueUser) -> None:
    await budget(cores, budget_per_day=Budget(CENT, "USD"))
    await spend(cores, 5 * CENT, currency="EUR")
    assert await publish(cores) == "queued"


async def test_a_budget_of_nothing_lets_nothing_begin(cores: QueueUser) -> None:
    await budget(cores, budget_per_day=Budget(0, "USD"))
    assert isinstance(await publish(cores), QuotaExceeded)
    await Quotas(cores.functions).unset("llm", ADA)
    assert await publish(cores) == "queued"


async def test_ones_own_budget_goes_before_that_of_all(cores: QueueUser) -> None:
    await budget(cores, Subject.of_agent("*"), budget_per_day=Budget(0, "USD"))
    await budget(cores, budget_per_day=Budget(CENT, "USD"))
    assert await publish(cores) == "queued"
    assert isinstance(await publish(cores, agent="bob"), QuotaExceeded)
    rows = await Quotas(cores.functions).rows("llm")
    assert [row.budget_per_day for row in rows] == [Budget(0, "USD"), Budget(CENT, "USD")]
