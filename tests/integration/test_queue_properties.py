"""Whatever is done to the queues, in whatever order, no syscall is lost and none answered twice."""

from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from aios_broker.contract.cores import CoreCard
from aios_broker.contract.syscall import Need
from aios_broker.queues.keys import Keys
from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.records import JobMetadata, PolicyRow, SliceUse, Submission, WorkerCard
from tests.examples import AT_MUTANTS, PHASES, SAME_EACH_TIME
from tests.queue_machine import NOTHING_MORE, QueueMachine
from tests.queue_user import submitted


@pytest.mark.timeout(240)  # 15 s of work, on a machine that has more to do
def test_no_order_of_steps_loses_or_doubles_a_reply(redis_url: str) -> None:
    QueueMachine.url = redis_url
    run_state_machine_as_test(
        QueueMachine,
        settings=settings(
            max_examples=80,
            stateful_step_count=60,
            deadline=None,
            derandomize=SAME_EACH_TIME,
            database=None,
            phases=PHASES,
            report_multiple_bugs=not AT_MUTANTS,
            suppress_health_check=list(HealthCheck),
        ),
    )


@settings(
    max_examples=60,
    deadline=None,
    derandomize=SAME_EACH_TIME,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    running=st.integers(1, 6),
    waiting=st.integers(0, 20),
    preempt=st.sampled_from(["none", "waiting", "score"]),
    outranked=st.integers(0, 6),
    at_once=st.booleans(),
)
def test_as_many_yield_as_wait_and_deserve_it(
    redis_url: str,
    running: int,
    waiting: int,
    preempt: Literal["none", "waiting", "score"],
    outranked: int,
    at_once: object,
) -> None:
    """Each waiting job frees one slot at most; by score, only jobs behind the head give way."""
    QueueMachine.url = redis_url
    machine = QueueMachine()
    machine.do(machine.control.set_policy("llm", PolicyRow(preempt=preempt)))
    jobs = [
        Submission(f"{number:032x}", b"[]", JobMetadata("agent", "llm.chat"), "")
        for number in range(running + waiting)
    ]
    machine.do(submitted(machine.queue, jobs))
    leases = machine.do(machine.queue.claim("worker", ClaimRequest(running, 60.0)))
    head_score = 100.0
    scores = {job.job_id: head_score for job in jobs}
    scores |= {lease.job_id: head_score + 1 for lease in leases[:outranked]}
    scores |= {lease.job_id: head_score - 1 for lease in leases[outranked:]}
    machine.raw.zadd(Keys().own("scores:llm"), scores)
    uses = [SliceUse(lease, 0.1, 1, None) for lease in leases]
    calls = [uses] if at_once else [[use] for use in uses]
    verdicts = [
        verdict
        for call in calls
        for verdict in machine.do(machine.queue.slice_end("worker", call, NOTHING_MORE))
    ]
    deserving = {"none": 0, "waiting": running, "score": min(outranked, running)}[preempt]
    assert verdicts.count("suspend") == min(deserving, waiting)
    assert verdicts.count("go") == running - verdicts.count("suspend")
    machine.known = {}
    machine.teardown()


def test_jobs_for_other_cores_do_not_hide_ones_own(redis_url: str) -> None:
    QueueMachine.url = redis_url
    machine = QueueMachine()
    for core in ("large", "small"):
        card = WorkerCard(
            core, "llm", pid=1, hostname="here", slots=2, cores=(CoreCard(name=core, model=core),)
        )
        machine.do(machine.queue.register(card))
    jobs = [
        Submission(
            f"{number:032x}",
            b"[]",
            JobMetadata("agent", "llm.chat"),
            "",
            needs=(Need("core", "large"),),
        )
        for number in range(500)
    ]
    mine = Submission(
        "f" * 32, b"[]", JobMetadata("agent", "llm.chat"), "", needs=(Need("core", "small"),)
    )
    machine.do(submitted(machine.queue, [*jobs, mine]))
    leases = machine.do(machine.queue.claim("small", ClaimRequest(2, 60.0, ("small",))))
    assert [lease.job_id for lease in leases] == [mine.job_id]
    large = machine.order.of_queue("llm.large")
    assert machine.do(large.head(1))[0] == 500
    leases = machine.do(machine.queue.claim("large", ClaimRequest(2, 60.0, ("large",))))
    assert [lease.job_id for lease in leases] == [job.job_id for job in jobs[:2]]
    machine.known = {}
    machine.teardown()
