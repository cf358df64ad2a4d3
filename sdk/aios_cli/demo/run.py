"""Run the demo's load on a running kernel, under one policy after the other, and compare."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from aios_broker.client.pending import REPLY_GRACE_S, Pending
from aios_broker.client.session import Session
from aios_broker.contract.errors import RedisUnavailable, WaitTimeout
from aios_broker.contract.reply import ChatResult, Reply
from aios_broker.contract.syscall import State
from aios_broker.ledger.journal import Transition
from aios_broker.ledger.ledger import Ledger
from aios_broker.queues.control import Control
from aios_broker.queues.records import JobView, PolicyRow
from aios_cli.demo.load import Ask, DemoAgent, syscall_of

LOOK_EVERY_S = 0.25  # how often the view is fed while the load runs
QUANTUM_TOKENS = 24  # long against the cost of resuming; a short answer fits into one
QUANTUM_S = 10.0  # not what ends a slice here: tokens do, so that runs are alike
REFERENCE_TRIES = 3
WARM_UP_TOKENS = 4
LEDGER_TIMEOUT_S = 20.0  # for the scheduler to drain the journal; it does so all the time
POLL_S = 0.2
_ENDINGS = frozenset({"finish", "fail", "cancel"})
_ENDS_SLICE = _ENDINGS | {"suspend", "hold", "park", "reclaim"}

ROUND_ROBIN = PolicyRow("rr", "waiting", QUANTUM_S, QUANTUM_TOKENS)
FIFO = PolicyRow("fifo", "none", QUANTUM_S, QUANTUM_TOKENS)


@dataclass(frozen=True, slots=True)
class Answer:
    """One ask and its reply."""

    agent: DemoAgent
    ask: Ask
    reply: Reply

    @property
    def output_ids(self) -> tuple[int, ...]:
        """The generated ids; empty where it failed."""
        result = self.reply.result
        return result.output_ids if isinstance(result, ChatResult) else ()

    @property
    def was_interrupted(self) -> bool:
        """Whether it was suspended, or lost a worker and ran again."""
        return self.reply.timings.suspensions > 0 or self.reply.timings.attempts > 1


@dataclass(frozen=True, slots=True)
class Slice:
    """One stretch for which a worker held a job. `lane` counts a worker's slots from 0.

    Times are seconds since 1970, by Redis' clock.
    """

    job_id: str
    worker: str
    lane: int
    start_s: float
    end_s: float
    ended_by: str


@dataclass(slots=True)
class PolicyRun:
    """What one policy made of the load."""

    policy: str
    answers: list[Answer] = field(default_factory=list)
    makespan_s: float = 0.0  # first submission to last reply
    slices: list[Slice] = field(default_factory=list)  # only where a chart is wanted
    owners: dict[str, DemoAgent] = field(default_factory=dict)  # by syscall id
    identical: int = 0
    compared: int = 0
    others_share: float | None = None  # of the processors, that other programs took; None: unknown


@dataclass(slots=True)
class Request:
    """One ask, from its submission on."""

    agent: DemoAgent
    pending: Pending
    job: JobView | None = None  # as the queue was last seen with it

    @property
    def state(self) -> State:
        """Its state now."""
        if self.pending.reply is not None:
            return "failed" if self.pending.reply.error else "finished"
        return self.job.state if self.job else "queued"

    @property
    def tokens(self) -> int:
        """How many tokens were generated so far."""
        result = self.pending.reply and self.pending.reply.result
        if isinstance(result, ChatResult):
            return result.usage.output_tokens
        return self.job.tokens if self.job else 0

    @property
    def waited_s(self) -> float:
        """How long it has waited so far."""
        if self.pending.reply is not None:
            return self.pending.reply.timings.queued_s
        return self.job.queued_s if self.job else 0.0


class Progress:
    """Who watches the load run: what is known of it at this moment. Views show it."""

    def __init__(self) -> None:
        Progress.began(self, "", ())  # and not what a view makes of it

    def began(self, policy: str, agents: Sequence[DemoAgent]) -> None:
        """A policy begins: forget the last one's requests."""
        self.policy, self.agents = policy, agents
        self.total = sum(len(agent.asks) for agent in agents)
        self.began_s = time.monotonic()
        self.requests: dict[str, Request] = {}

    def looked(self, jobs: Sequence[JobView]) -> None:
        """The queue was looked at."""
        for job in jobs:
            if job.job_id in self.requests:
                self.requests[job.job_id].job = job

    def answered(self, answer: Answer) -> None:
        """A reply came."""

    @property
    def elapsed_s(self) -> float:
        """Seconds since this policy began."""
        return time.monotonic() - self.began_s

    @property
    def counts(self) -> str:
        """How many run, are suspended, wait, have ended."""
        states = Counter(request.state for request in self.requests.values())
        ended = states["finished"] + states["failed"] + states["cancelled"]
        return (
            f"{states['running']} running, {states['suspended']} suspended, "
            f"{states['queued']} waiting, {ended} of {self.total} answered"
        )

    def ended(self, run: PolicyRun) -> None:
        """A policy has ended."""

    def stop(self) -> None:
        """Nothing more comes, for whatever reason; safe to call twice."""


class Demo:
    """The load on one kernel."""

    def __init__(
        self,
        client: Session,
        control: Control,
        agents: Sequence[DemoAgent],
        view: Progress,
    ) -> None:
        self._client = client
        self._control = control
        self._agents = agents
        self._view = view

    async def warm_up(self) -> str:
        """Let the core answer once, under the quantum to come; return its model name."""
        await self._control.set_policy("llm", ROUND_ROBIN)
        ask = Ask("question", "Hello", WARM_UP_TOKENS, 0.0, 0)
        agent = DemoAgent("question", 0, 0.0, (ask,))
        result = (await self._ask_alone(agent, ask)).reply.unwrap()
        assert isinstance(result, ChatResult)
        return result.model

    async def run(self, policy: PolicyRow) -> PolicyRun:
        """Run the whole load under a policy; switches the running kernel to it."""
        await self._control.set_policy("llm", policy)
        run = PolicyRun(policy.name)
        self._view.began(policy.name, self._agents)
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._watch())
            programs = [tasks.create_task(self._program(agent, run)) for agent in self._agents]
            for program in programs:
                run.answers += await program
            run.makespan_s = time.monotonic() - began_s
            watching.cancel()
        self._view.ended(run)
        return run

    async def compare(self, preempted: PolicyRun, uninterrupted: PolicyRun) -> None:
        """Compare each interrupted generation, id for id, with its uninterrupted run.

        The other policy's run serves where it was not interrupted itself; else the generation
        runs once more, alone.
        """
        references = {
            (answer.agent.name, answer.ask): answer
            for answer in uninterrupted.answers
            if not answer.was_interrupted and answer.reply.error is None
        }
        for answer in preempted.answers:
            if not answer.was_interrupted:
                continue
            reference = references.get((answer.agent.name, answer.ask))
            if reference is None:
                reference = await self._reference(answer)
            preempted.compared += 1
            same = answer.output_ids == reference.output_ids and answer.reply.error is None
            preempted.identical += same

    async def _program(self, agent: DemoAgent, run: PolicyRun) -> list[Answer]:
        """Be one agent: come, ask everything at once, wait for all answers."""
        await asyncio.sleep(agent.arrival_s)
        program = f"demo-{run.policy}"
        built = [syscall_of(agent, ask, program=program) for ask in agent.asks]
        syscalls = [self._client.identified(syscall) for syscall in built]
        run.owners.update((syscall.id, agent) for syscall in syscalls)
        pending = [self._client.submit(syscall) for syscall in syscalls]
        self._view.requests.update((one.id, Request(agent, one)) for one in pending)
        limit_s = syscalls[0].deadline_s + REPLY_GRACE_S
        return list(
            await asyncio.gather(
                *(
                    self._answer(agent, ask, one, limit_s)
                    for ask, one in zip(agent.asks, pending, strict=True)
                )
            )
        )

    async def _answer(self, agent: DemoAgent, ask: Ask, pending: Pending, limit_s: float) -> Answer:
        answer = Answer(agent, ask, await pending.reply_within(limit_s))
        self._view.answered(answer)
        return answer

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(RedisUnavailable):  # it comes back; the answers wait for it
                self._view.looked(await self._control.jobs("llm"))
            await asyncio.sleep(LOOK_EVERY_S)

    async def _reference(self, answer: Answer) -> Answer:
        """Run a generation again until nothing interrupts it."""
        await self._control.set_policy("llm", FIFO)
        for _ in range(REFERENCE_TRIES):
            reference = await self._ask_alone(answer.agent, answer.ask)
            if not reference.was_interrupted:
                break
        return reference

    async def _ask_alone(self, agent: DemoAgent, ask: Ask) -> Answer:
        syscall = self._client.identified(syscall_of(agent, ask, program="demo-reference"))
        pending = self._client.submit(syscall)
        return Answer(agent, ask, await pending.reply_within(syscall.deadline_s + REPLY_GRACE_S))


async def read_slices(ledger: Ledger, job_ids: Sequence[str]) -> list[Slice]:
    """Return the slices of syscalls that have ended, once the ledger knows of their ends.

    Raises:
        WaitTimeout: it does not within LEDGER_TIMEOUT_S.
        DatabaseUnavailable: Postgres does not answer.
    """
    missing, found = list(job_ids), []
    try:
        async with asyncio.timeout(LEDGER_TIMEOUT_S):
            while missing:
                job_id = missing[-1]
                history = await ledger.history(job_id)
                if any(transition.event in _ENDINGS for transition in history):
                    found += history
                    missing.pop()
                else:
                    await asyncio.sleep(POLL_S)
    except TimeoutError as error:
        raise WaitTimeout(
            f"the ledger lacks the end of {len(missing)} syscalls after {LEDGER_TIMEOUT_S:g} s",
            remedy="see the scheduler's lines in the kernel's log",
        ) from error
    return slices_of(found)


def slices_of(transitions: Iterable[Transition]) -> list[Slice]:
    """Return the slices that the transitions make, in the order in which they ended."""
    running: dict[str, tuple[str, int, float]] = {}
    found: list[Slice] = []
    for one in sorted(transitions, key=lambda one: (one.position, one.ordinal)):
        at_s = one.position.ms / 1000
        if one.event in _ENDS_SLICE and one.job_id in running:
            worker, lane, start_s = running.pop(one.job_id)
            found.append(Slice(one.job_id, worker, lane, start_s, at_s, one.event))
        elif one.event == "claim":
            taken = {lane for worker, lane, _ in running.values() if worker == one.who}
            lane = next(lane for lane in range(len(taken) + 1) if lane not in taken)
            running[one.job_id] = (one.who, lane, at_s)
    return found
