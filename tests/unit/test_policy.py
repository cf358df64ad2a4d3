"""The policies by example, and how they are chosen."""

import pytest

from aios_broker.contract.errors import InvalidConfig
from aios_broker.queues.order import Waiting
from aios_broker.queues.records import JobMetadata, PolicyRow
from aios_broker.scheduler.policy import (
    AGEING_MS_PER_NICE,
    POLICY_NAMES,
    Needs,
    policy_named,
)
from tests.policies import order_of


def job(job_id: str, *, submitted_ms: int = 0, ready_ms: int = 0, nice: int = 0) -> Waiting:
    metadata = JobMetadata(agent="ada", kind="llm.chat", nice=nice)
    return Waiting(job_id, metadata, "", submitted_ms, ready_ms, 0, 0, 0, 0)


def order(policy: str, *queue: Waiting) -> list[str]:
    return order_of(policy_named(policy), queue, now_ms=10_000)


def test_fifo_goes_by_submission_even_for_one_that_came_back_late() -> None:
    first = job("first", submitted_ms=1, ready_ms=900)
    second = job("second", submitted_ms=2, ready_ms=2)
    assert order("fifo", second, first) == ["first", "second"]


def test_rr_goes_by_arrival_at_the_tail() -> None:
    first = job("had its turn", submitted_ms=1, ready_ms=900)
    second = job("waits", submitted_ms=2, ready_ms=2)
    assert order("rr", first, second) == ["waits", "had its turn"]


def test_priority_prefers_the_lower_nice_value_until_the_other_has_aged() -> None:
    old = job("old", submitted_ms=1_000, nice=5)
    urgent = job("urgent", submitted_ms=1_000 + 5 * AGEING_MS_PER_NICE - 1, nice=0)
    late = job("late", submitted_ms=1_000 + 5 * AGEING_MS_PER_NICE + 1, nice=0)
    assert order("priority", old, urgent, late) == ["urgent", "old", "late"]


def test_equal_scores_keep_the_order_of_the_queue() -> None:
    jobs = [job(name, submitted_ms=7, ready_ms=7) for name in ("c", "a", "b")]
    for policy in POLICY_NAMES:
        assert order(policy, *jobs) == ["c", "a", "b"]


def test_a_job_without_a_submission_time_counts_as_submitted_now() -> None:
    foreign = job("foreign")
    ours = job("ours", submitted_ms=9_000, ready_ms=9_000)
    for policy in POLICY_NAMES:
        assert order(policy, foreign, ours) == ["ours", "foreign"]


@pytest.mark.parametrize(
    ("name", "preempt", "reorders"),
    [("fifo", "none", False), ("rr", "waiting", False), ("priority", "score", True)],
)
def test_what_a_policy_asks_of_workers_and_scheduler(
    name: str, preempt: str, *, reorders: bool
) -> None:
    policy = policy_named(name)
    assert (policy.name, policy.preempt, policy.reorders) == (name, preempt, reorders)
    # Nothing but the jobs themselves, or whose turn it is: nothing else is read.
    assert policy.needs == Needs(turns=name == "rr")
    assert policy.needs.watched is None


def test_an_unknown_name_is_refused_with_the_choices() -> None:
    with pytest.raises(InvalidConfig) as refused:
        policy_named("lottery")
    assert refused.value.field == "AIOS_POLICY"
    assert "'lottery'" in str(refused.value)
    for name in POLICY_NAMES:
        assert name in str(refused.value.remedy)


def test_the_default_row_is_a_policy_of_ours() -> None:
    row = PolicyRow()
    assert policy_named(row.name).preempt == row.preempt
