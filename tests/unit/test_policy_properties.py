"""Whatever is submitted, whenever: the policies keep their word in a simulated queue.

The queue is simulated as the kernel runs it: a list that grows at its tail, one slot, the
policy's order applied before each claim if it reorders, by what the scheduler itself computes of a
view, and its rule for who yields at the end of a slice. Time counts in slices of SLICE_MS.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from aios_broker.queues.order import Waiting
from aios_broker.queues.records import JobMetadata
from aios_broker.scheduler.policy import (
    AGEING_MS_PER_NICE,
    NICE_MAX,
    NICE_MIN,
    POLICY_NAMES,
    Policy,
    policy_named,
)
from tests.examples import PHASES, SAME_EACH_TIME
from tests.policies import order_of, scores_of

SLICE_MS = 500
START_MS = 1_700_000_000_000
CHECKS = settings(max_examples=100, deadline=None, derandomize=SAME_EACH_TIME, phases=PHASES)

names = st.sampled_from(POLICY_NAMES)
nices = st.integers(NICE_MIN, NICE_MAX)
times = st.integers(START_MS, START_MS + 120_000)


@dataclass(frozen=True)
class Arrival:
    """A job to be: when it is submitted, how many slices it needs, how nice it is."""

    at_ms: int
    slices: int
    nice: int


arrivals = st.lists(st.builds(Arrival, times, st.integers(1, 4), nices), min_size=1, max_size=12)


@st.composite
def waiting_jobs(draw: st.DrawFn) -> Waiting:
    metadata = JobMetadata(agent="ada", kind="llm.chat", nice=draw(nices))
    submitted_ms = draw(times)
    ready_ms = submitted_ms + draw(st.integers(0, 10_000))
    return Waiting(
        f"{draw(st.integers(0, 2**64)):032x}", metadata, "", submitted_ms, ready_ms, 0, 0, 0, 0
    )


queues = st.lists(waiting_jobs(), max_size=20, unique_by=lambda waiting: waiting.job_id)


@dataclass
class Simulation:
    """One slot and one queue under a policy; remembers who ran in each slice."""

    policy: Policy
    queue: list[Waiting] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    overtakers: dict[str, set[str]] = field(default_factory=dict)  # of each: who ran before it
    submitted_ms: dict[str, int] = field(default_factory=dict)

    def run(self, jobs: list[Arrival]) -> None:
        """Run all jobs to their end."""
        to_come = sorted(enumerate(jobs), key=lambda numbered: numbered[1].at_ms)
        left = {f"job{number}": one.slices for number, one in enumerate(jobs)}
        now_ms, running = START_MS, None
        while to_come or self.queue or running:
            while to_come and to_come[0][1].at_ms <= now_ms:
                number, one = to_come.pop(0)
                self._submit(f"job{number}", one, now_ms)
            running = running or self._claim(now_ms)
            if running is None:
                now_ms = to_come[0][1].at_ms
                continue
            self.ran.append(running.job_id)
            for waiting in self.queue:
                self.overtakers[waiting.job_id].add(running.job_id)
            now_ms += SLICE_MS
            left[running.job_id] -= 1
            if not left[running.job_id]:
                running = None
            elif self._must_yield(running, now_ms):
                self.queue.append(replace(running, ready_ms=now_ms, slices=running.slices + 1))
                running = None

    def _submit(self, job_id: str, one: Arrival, now_ms: int) -> None:
        metadata = JobMetadata(agent="ada", kind="llm.chat", nice=one.nice)
        self.queue.append(Waiting(job_id, metadata, "", one.at_ms, now_ms, 0, 0, 0, 0))
        self.overtakers[job_id] = set()
        self.submitted_ms[job_id] = one.at_ms

    def _claim(self, now_ms: int) -> Waiting | None:
        self._reorder(now_ms)
        return self.queue.pop(0) if self.queue else None

    def _reorder(self, now_ms: int) -> None:
        if self.policy.reorders:
            by_id = {waiting.job_id: waiting for waiting in self.queue}
            self.queue = [by_id[job_id] for job_id in order_of(self.policy, self.queue, now_ms)]

    def _must_yield(self, running: Waiting, now_ms: int) -> bool:
        if not self.queue or self.policy.preempt == "none":
            return False
        self._reorder(now_ms)
        scores = scores_of(self.policy, [running, self.queue[0]], now_ms)
        outranked = scores[self.queue[0].job_id] < scores[running.job_id]
        return self.policy.preempt == "waiting" or outranked


def simulate(policy: str, jobs: list[Arrival]) -> Simulation:
    simulation = Simulation(policy_named(policy))
    simulation.run(jobs)
    return simulation


@CHECKS
@given(names, queues, times)
def test_ranking_is_total_and_loses_nobody(name: str, queue: list[Waiting], now_ms: int) -> None:
    policy = policy_named(name)
    ranked, scores = order_of(policy, queue, now_ms), scores_of(policy, queue, now_ms)
    assert sorted(ranked) == sorted(waiting.job_id for waiting in queue)
    assert scores.keys() == set(ranked)
    in_order = [scores[job_id] for job_id in ranked]
    assert in_order == sorted(in_order)


@CHECKS
@given(names, queues, times, st.randoms())
def test_ranking_depends_on_the_jobs_alone(
    name: str, queue: list[Waiting], now_ms: int, random: Random
) -> None:
    policy = policy_named(name)
    shuffled = list(queue)
    random.shuffle(shuffled)
    scores = scores_of(policy, queue, now_ms)
    assert scores_of(policy, shuffled, now_ms) == scores
    if len(set(scores.values())) == len(
        scores
    ):  # no ties: the queue's order does not matter either
        assert order_of(policy, shuffled, now_ms) == order_of(policy, queue, now_ms)


@CHECKS
@given(names, queues, times)
def test_equal_scores_keep_the_order_of_the_queue(
    name: str, queue: list[Waiting], now_ms: int
) -> None:
    policy = policy_named(name)
    scores = scores_of(policy, queue, now_ms)
    stable = sorted((waiting.job_id for waiting in queue), key=scores.__getitem__)
    assert order_of(policy, queue, now_ms) == stable


@CHECKS
@given(names, queues, times, st.integers(0, 10_000_000))
def test_scores_do_not_change_while_a_job_waits(
    name: str, queue: list[Waiting], now_ms: int, later_ms: int
) -> None:
    policy = policy_named(name)
    assert scores_of(policy, queue, now_ms) == scores_of(policy, queue, now_ms + later_ms)


@CHECKS
@given(names, arrivals)
def test_everybody_ends(name: str, jobs: list[Arrival]) -> None:
    ran = simulate(name, jobs).ran
    for number, one in enumerate(jobs):
        assert ran.count(f"job{number}") == one.slices


@CHECKS
@given(arrivals)
def test_fifo_never_interrupts_and_keeps_the_order_of_submission(jobs: list[Arrival]) -> None:
    ran = simulate("fifo", jobs).ran
    by_time = sorted(enumerate(jobs), key=lambda numbered: numbered[1].at_ms)
    assert ran == [f"job{number}" for number, one in by_time for _ in range(one.slices)]


@CHECKS
@given(st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_under_rr_nobody_runs_twice_before_all_who_wait_ran_once(slices: list[int]) -> None:
    ran = simulate("rr", [Arrival(START_MS, count, 0) for count in slices]).ran
    for place, job_id in enumerate(ran):
        later = ran[place + 1 :]
        if job_id not in later:
            continue
        between = set(later[: later.index(job_id)])
        assert {other for other in later if other != job_id} <= between


@CHECKS
@given(arrivals)
def test_waiting_is_bounded_under_priority(jobs: list[Arrival]) -> None:
    """A job is overtaken only by jobs submitted less than its bound after it."""
    simulation = simulate("priority", jobs)
    for job_id, overtakers in simulation.overtakers.items():
        nice = jobs[int(job_id.removeprefix("job"))].nice
        bound_ms = (nice - NICE_MIN) * AGEING_MS_PER_NICE + SLICE_MS
        for other in overtakers:
            assert simulation.submitted_ms[other] - simulation.submitted_ms[job_id] <= bound_ms


@CHECKS
@given(queues, times)
def test_of_two_submitted_at_once_the_less_nice_goes_first(
    queue: list[Waiting], at_ms: int
) -> None:
    at_once = [replace(waiting, submitted_ms=at_ms) for waiting in queue]
    by_id = {waiting.job_id: waiting.metadata.nice for waiting in at_once}
    ranked = [by_id[job_id] for job_id in order_of(policy_named("priority"), at_once, at_ms)]
    assert ranked == sorted(ranked)


@CHECKS
@given(waiting_jobs(), st.integers(1, 60_000), nices)
def test_a_job_overtakes_one_that_waits_exactly_by_the_worth_of_its_nice_value(
    first: Waiting, later_ms: int, nice: int
) -> None:
    metadata = JobMetadata(agent="bob", kind="llm.chat", nice=nice)
    second = replace(
        first, job_id="second", metadata=metadata, submitted_ms=first.submitted_ms + later_ms
    )
    ranked = order_of(policy_named("priority"), [first, second], 0)
    worth_ms = (first.metadata.nice - nice) * AGEING_MS_PER_NICE
    assert (ranked[0] == "second") == (later_ms < worth_ms)
