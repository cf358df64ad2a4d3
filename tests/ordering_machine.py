"""A model of the order: random steps on a real Redis, ordered by the scheduler under any policy.

Programs submit, workers claim and use, operators interfere, policies change, schedulers take over.
Whenever nothing is left to be done, each job stands with the score that its policy gives it by a
plain count of what was used, in the order of these scores, and nothing more is kept than the policy
needs.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aios_broker.contract.errors import Cancelled
from aios_broker.queues.keys import Keys
from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.records import (
    Ending,
    JobMetadata,
    Lease,
    PolicyRow,
    SliceUse,
    Submission,
    Suspension,
)
from aios_broker.scheduler.ordering import ModuleOrder
from aios_broker.scheduler.policy import AGEING_MS_PER_NICE, policy_named
from tests.policies import OUTPUT_WEIGHT, named
from tests.queue_user import DATA, LEASE_S, QueueUser, submitted

T = TypeVar("T")
KEYS = Keys()
NOTHING_MORE = ClaimRequest(0, LEASE_S)
# A tenant of one program, and one of three, two of which are an agent's.
PROGRAMS = (
    JobMetadata("ada", "llm.chat"),
    JobMetadata("ada", "llm.chat", program="other"),
    JobMetadata("bob", "llm.chat"),
    JobMetadata("eve", "llm.chat", tenant="acme"),
)
WATCHED = {"plas": "program", "vtc": "tenant", "program_fcfs": "program"}
POLICIES = st.sampled_from(["priority", "fifo", *WATCHED])
USES = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))  # 100 ms, out, prompt
TICKS = 2_000  # after so many everything is in order, or never will be


@dataclass
class Job:
    """What the model knows of one that has not ended."""

    metadata: JobMetadata
    nice: int = 0
    lease: Lease | None = None
    ran_ms: int = 0  # since the claim, as the tokens
    tokens: int = 0
    prompt: int = 0  # in all
    held: bool = False


def subject(metadata: JobMetadata, scope: str) -> str:
    if scope == "tenant":
        return f"tenant:{metadata.tenant}"
    return f"program:{metadata.tenant} {metadata.agent} {metadata.program}"


class OrderingMachine(RuleBasedStateMachine):
    """Steps of all who change what the order goes by, and of the scheduler itself."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.raw: Any = redis.Redis.from_url(self.url, decode_responses=True)
        self.raw.flushall()
        self.loop = asyncio.new_event_loop()
        self.user = self.do(self._begin())
        self.jobs: dict[str, Job] = {}
        self.ran_ms: Counter[str] = Counter()  # by subject
        self.output: Counter[str] = Counter()
        self.prompts: Counter[str] = Counter()
        self.numbers = itertools.count()
        self.policy = ""
        self.choose("priority")
        self.take_over()

    async def _begin(self) -> QueueUser:
        return QueueUser(self.url)

    def do(self, step: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(step)

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            self.do(self.user.redis.aclose())
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.close()
            self.raw.close()

    # Programs.

    @rule(metadata=st.sampled_from(PROGRAMS), count=st.integers(1, 4), nice=st.integers(0, 6))
    def submit(self, metadata: JobMetadata, count: int, nice: int) -> None:
        metadata = JobMetadata(
            metadata.agent, metadata.kind, metadata.program, metadata.tenant, nice
        )
        jobs = [Submission(f"{next(self.numbers):032x}", DATA, metadata, "") for _ in range(count)]
        self.do(submitted(self.user.queue, jobs))
        self.jobs |= {job.job_id: Job(metadata, nice) for job in jobs}

    # Workers.

    @rule(count=st.integers(1, 4))
    def claim(self, count: int) -> None:
        for lease in self.do(self.user.claim(count)):
            job = self.jobs[lease.job_id]
            job.lease, job.ran_ms, job.tokens = lease, 0, 0

    def running(self) -> list[str]:
        return [job_id for job_id, job in self.jobs.items() if job.lease is not None]

    def one_that_runs(self, data: st.DataObject) -> tuple[str, Job, Lease]:
        job_id = data.draw(st.sampled_from(self.running()))
        job = self.jobs[job_id]
        assert job.lease is not None
        return job_id, job, job.lease

    def use(self, job: Job, use: tuple[int, int, int]) -> None:
        hundreds_ms, tokens, prompt = use
        more = max(0, prompt - job.prompt)  # a prompt is charged once, however often it is read
        job.ran_ms, job.tokens = job.ran_ms + 100 * hundreds_ms, job.tokens + tokens
        job.prompt += more
        for scope in ("tenant", "program"):
            who = subject(job.metadata, scope)
            self.ran_ms[who] += 100 * hundreds_ms
            self.output[who] += tokens
            self.prompts[who] += more

    @precondition(lambda self: self.running())
    @rule(data=st.data(), use=USES)
    def slice_ends(self, data: st.DataObject, use: tuple[int, int, int]) -> None:
        _, job, lease = self.one_that_runs(data)
        self.use(job, use)
        report = SliceUse(lease, job.ran_ms / 1000, job.tokens, None, job.prompt)
        self.do(self.user.queue.slice_end("worker", [report], NOTHING_MORE))

    @precondition(lambda self: self.running())
    @rule(data=st.data(), use=USES)
    def suspend(self, data: st.DataObject, use: tuple[int, int, int]) -> None:
        _, job, lease = self.one_that_runs(data)
        self.use(job, use)
        suspension = Suspension(
            lease, None, job.ran_ms / 1000, job.tokens, prompt_tokens=job.prompt
        )
        self.do(self.user.queue.suspend("worker", [suspension], NOTHING_MORE))
        job.lease = None

    @precondition(lambda self: self.running())
    @rule(data=st.data(), use=USES)
    def finish(self, data: st.DataObject, use: tuple[int, int, int]) -> None:
        job_id, job, lease = self.one_that_runs(data)
        self.use(job, use)
        ending = Ending(lease, "finished", b"{}", job.ran_ms / 1000, job.tokens, False, job.prompt)
        self.do(self.user.queue.finish("worker", [ending], NOTHING_MORE))
        del self.jobs[job_id]

    # Operators.

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        self.do(self.user.control.cancel([job_id], Cancelled("no"), module="llm"))
        del self.jobs[job_id]

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), nice=st.integers(-3, 3))
    def renice(self, data: st.DataObject, nice: int) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        self.do(self.user.control.nice([job_id], nice, module="llm"))
        self.jobs[job_id].nice = nice

    @precondition(lambda self: any(job.lease is None for job in self.jobs.values()))
    @rule(data=st.data())
    def hold_or_release(self, data: st.DataObject) -> None:
        waiting = [job_id for job_id, job in self.jobs.items() if job.lease is None]
        job_id = data.draw(st.sampled_from(waiting))
        job = self.jobs[job_id]
        step = self.user.control.release if job.held else self.user.control.hold
        self.do(step([job_id], module="llm"))
        job.held = not job.held

    # Schedulers.

    @rule(policy=POLICIES)
    def choose(self, policy: str) -> None:
        row = PolicyRow(policy, named(policy).preempt)
        self.do(self.user.control.set_policy("llm", row))
        self.policy = policy

    @rule()
    def take_over(self) -> None:
        """Another scheduler leads; it knows nothing but what is in Redis."""
        self.raw.hset(KEYS.own("scheduler"), "until", 0)
        self.epoch = self.do(self.user.lead())
        self.order = ModuleOrder(self.user.order, self.user.control, policy_named("rr"), named)
        self.order.forget()

    @rule(ticks=st.integers(1, 3))
    def tick(self, ticks: int) -> None:
        for _ in range(ticks):
            self.do(self.order.tick(self.epoch, time.time_ns() // 1_000_000))

    @rule()
    def settle(self) -> None:
        for _ in range(TICKS):
            if not self.do(self.order.tick(self.epoch, time.time_ns() // 1_000_000)):
                break
        else:
            raise AssertionError("it is never in order")
        self.everything_is_in_order()

    # What must be so.

    @invariant()
    def nobody_is_lost(self) -> None:
        expected = {i for i, job in self.jobs.items() if job.lease is None and not job.held}
        waiting = self.raw.lrange(KEYS.queue("llm"), 0, -1)
        assert sorted(waiting) == sorted(expected)

    def everything_is_in_order(self) -> None:
        waiting = self.raw.lrange(KEYS.queue("llm"), 0, -1)
        self.only_what_is_needed_is_kept(waiting)
        if self.policy == "fifo":
            return  # it keeps no scores: its order was brought in once
        scores = [self.raw.zscore(KEYS.own("scores:llm"), job_id) for job_id in waiting]
        for job_id, score in zip(waiting, scores, strict=True):
            assert score is not None
            self.score_is_right(job_id, score)
        assert scores == sorted(scores)

    def score_is_right(self, job_id: str, score: float) -> None:
        """Compare a job's score with what the model has counted."""
        job = self.jobs[job_id]
        submitted_ms = int(self.raw.hget(KEYS.job(job_id), "aios_submitted_ms"))
        if self.policy == "priority":
            assert score == submitted_ms + job.nice * AGEING_MS_PER_NICE
            return
        who = subject(job.metadata, WATCHED[self.policy])
        if self.policy == "plas":
            assert score == self.ran_ms[who]
            return
        mark = float(self.raw.hget(KEYS.own("marks:llm"), who))
        if self.policy == "program_fcfs":
            # The mark has fallen since this one was ranked, if an earlier one was ranked later.
            assert mark <= score <= submitted_ms
            return
        assert mark >= 0.0
        assert score == mark + self.prompts[who] + OUTPUT_WEIGHT * self.output[who]

    def only_what_is_needed_is_kept(self, waiting: list[str]) -> None:
        assert self.raw.exists(KEYS.own("touched:llm")) == 0
        if self.policy not in WATCHED:
            for name in ("watch", "ranked", "marks"):
                assert self.raw.exists(KEYS.own(f"{name}:llm")) == 0
            return
        scope = WATCHED[self.policy]
        expected = {"policy": self.policy, "scope": scope}
        assert self.raw.hgetall(KEYS.own("watch:llm")) == expected
        ranked = set(self.raw.zrange(KEYS.own("ranked:llm"), 0, -1))
        names = {i: f"{subject(job.metadata, scope)}\t{i}" for i, job in self.jobs.items()}
        assert {names[job_id] for job_id in waiting} <= ranked <= set(names.values())
