"""A model of the cores' run queues: random steps on a real Redis, checked against a few facts.

Workers of three cores come, die and are removed; syscalls name a core, an alias, a model or
nothing. Whatever happens, a live syscall stands in one queue, its own; nobody runs another core's;
what names a core stays there, unless a core gave it away before; of whose answer something is there
goes only where its snapshot goes on; and each is answered once.
"""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aios_broker.contract import transitions
from aios_broker.contract.cores import CoreCard
from aios_broker.contract.errors import Cancelled, UnknownCore
from aios_broker.contract.reply import Chunk
from aios_broker.contract.syscall import State, known_needs, new_id
from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.records import Ending, JobMetadata, Lease, Submission, Suspension
from tests.queue_user import DATA, QueueUser

T = TypeVar("T")
CARDS = {
    "big": CoreCard(
        name="big", model="qwen", aliases=("any",), default=True, keeps_kv=True, fallback=("tiny",)
    ),
    "twin": CoreCard(name="twin", model="qwen", aliases=("any", "fast"), fallback=("big", "tiny")),
    "tiny": CoreCard(name="tiny", model="smollm", aliases=("fast",)),
}
CORES = st.sampled_from(sorted(CARDS))
NAMES = st.sampled_from(["", *CARDS, "any", "fast", "qwen", "smollm", "nobody"])
LONG_S = 600.0
CLIENT = "me"


@dataclass
class Known:
    """A syscall that was acknowledged."""

    asked: str
    state: str = "waiting"
    model: str | None = None  # of which something is there of its answer
    tried: set[str] = field(default_factory=set)


class RoutingMachine(RuleBasedStateMachine):
    """Submits, claims, suspends, moves; and looks whether all is as it should be."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.raw: Any = redis.Redis.from_url(self.url, decode_responses=True)
        self.raw.flushall()
        self.runner = asyncio.Runner()
        self.user = self.do(self._open())
        self.epoch = self.do(self.user.lead(LONG_S))
        self.jobs: dict[str, Known] = {}
        self.leases: dict[str, tuple[Lease, str]] = {}
        self.cards: set[str] = set()  # cores that are known
        self.alive: set[str] = set()

    async def _open(self) -> QueueUser:
        return QueueUser(self.url)

    def do(self, step: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(step)

    def teardown(self) -> None:
        for core in self.alive:
            self.dies(core)
        self.do(self.user.control.cancel(list(self.jobs), Cancelled("the end"), module="llm"))
        answers = Counter(self.ids_of_replies())
        self.do(self.user.redis.aclose())
        self.runner.close()
        self.journal_follows_the_transition_table()
        left = [*self.raw.scan_iter("rq:queue:llm*"), *self.raw.scan_iter("rq:wip:*")]
        self.raw.close()
        assert answers == Counter(self.jobs.keys())
        assert left == []

    def ids_of_replies(self) -> list[str]:
        replies = self.raw.lrange(self.user.keys.reply(CLIENT), 0, -1)
        heard = [reply for reply in replies if reply.startswith('{"kind":"reply"')]
        return [reply.partition('"id":"')[2][:32] for reply in heard]

    def journal_follows_the_transition_table(self) -> None:
        states: dict[str, State | None] = {}
        for _, entry in self.raw.xrange(self.user.keys.journal):
            for line in entry.get("t", "").splitlines():
                event, job_id, *_ = line.split("\t")
                state = transitions.after(states.get(job_id), cast("transitions.Event", event))
                states[job_id] = state

    def of(self, state: str) -> list[str]:
        return [job_id for job_id, known in self.jobs.items() if known.state == state]

    # Workers.

    @initialize()
    def begin(self) -> None:
        self.serve("big")

    @rule(core=CORES)
    def serve(self, core: str) -> None:
        self.do(self.user.serve(CARDS[core], slots=2))
        self.cards.add(core)
        self.alive.add(core)

    @rule(core=CORES)
    def dies(self, core: str) -> None:
        if core in self.alive:
            self.raw.hset(self.user.keys.own("core_workers"), f"{core} {core}", "1 2")
        self.alive = self.alive - {core}

    @precondition(lambda self: self.cards - self.alive)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        core = data.draw(st.sampled_from(sorted(self.cards - self.alive)))
        self.do(self.user.control.remove_core(core))
        self.cards.discard(core)

    # Syscalls.

    def leads(self, asked: str) -> set[str]:
        """Return where a name leads, of the cores that are known."""
        cards = {name: CARDS[name] for name in self.cards}
        if asked in cards:
            return {asked}
        if not asked:
            first = [card for card in cards.values() if card.default]
            return {
                name for name, card in cards.items() if not first or card.model == first[0].model
            }
        by_alias = {name for name, card in cards.items() if asked in card.aliases}
        return by_alias or {name for name, card in cards.items() if card.model == asked}

    @rule(names=st.lists(NAMES, min_size=1, max_size=4))
    def submit(self, names: list[str]) -> None:
        jobs = [
            Submission(
                new_id(),
                DATA,
                JobMetadata("ada", "llm.chat"),
                CLIENT,
                known_needs(f"core:{name}" if name else ""),
            )
            for name in names
        ]
        outcomes = self.do(self.user.queue.submit(jobs))
        for name, job, outcome in zip(names, jobs, outcomes, strict=True):
            leads = self.leads(name)
            assert isinstance(outcome, UnknownCore) == (bool(name) and not leads)
            if isinstance(outcome, UnknownCore):
                continue
            self.jobs[job.job_id] = Known(name)
            core = self.core_of(job.job_id)
            assert core in (leads or {""})
            assert core in self.alive or not leads & self.alive

    def queue_of(self, job_id: str) -> str:
        return str(self.raw.hget(self.user.keys.job(job_id), "origin"))

    def core_of(self, job_id: str) -> str:
        return self.queue_of(job_id).partition(".")[2]

    def others(self, known: Known, core: str) -> set[str]:
        """Return where a syscall in a core's queue may go instead, of the cores that are known."""
        names = self.leads(known.asked)
        if known.tried:
            names = names.union(*(CARDS[name].fallback for name in (core, *known.tried)))
        return {
            name
            for name in names & self.cards - known.tried - {core}
            if known.model is None or CARDS[name].model == CARDS[core].model
        }

    @rule(core=CORES, want=st.integers(1, 3))
    def claim(self, core: str, want: int) -> None:
        own = set(self.raw.lrange(self.user.keys.queue(f"llm.{core}"), 0, -1))
        base = set(self.raw.lrange(self.user.keys.queue("llm"), 0, -1))
        leases = self.do(self.user.queue.claim(core, ClaimRequest(want, LONG_S, (core,))))
        assert len(leases) == min(want, len(own) + len(base))
        for lease in leases:
            assert lease.job_id in own | base
            known = self.jobs[lease.job_id]
            assert set(lease.tried) == known.tried
            known.state = "running"
            self.leases[lease.job_id] = (lease, core)

    @precondition(lambda self: self.leases)
    @rule(
        data=st.data(),
        to=st.sampled_from(["", *CARDS]),
        snapshot=st.sampled_from([None, b"half"]),
        tokens=st.sampled_from([0, 3]),
    )
    def suspend(self, data: st.DataObject, to: str, snapshot: bytes | None, tokens: int) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.leases)))
        lease, core = self.leases.pop(job_id)
        at, known = self.core_of(job_id), self.jobs[job_id]
        each = Suspension(lease, snapshot, 0.1, tokens, core=to)
        settled = self.do(self.user.queue.suspend(core, [each], ClaimRequest(0, LONG_S, (core,))))
        assert settled.accepted == [True]
        known.state = "waiting"
        if snapshot or tokens or known.model:
            known.model = CARDS[core].model
        moved = to in self.cards
        assert self.core_of(job_id) == (to if moved else at)
        if moved:
            known.tried.add(core)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), streamed=st.booleans())
    def is_lost(self, data: st.DataObject, *, streamed: bool) -> None:
        """Its worker has died; somebody may have read some of its answer."""
        job_id = data.draw(st.sampled_from(sorted(self.leases)))
        lease, core = self.leases.pop(job_id)
        known = self.jobs[job_id]
        if streamed:
            self.do(self.user.queue.emit([(lease, Chunk(job_id, 0, "x"))]))
            known.model = CARDS[core].model
        member = f"{job_id}:{lease.attempt}"
        self.raw.zadd(self.user.keys.own("leases:llm"), {member: 1})
        self.raw.hset(self.user.keys.job(job_id), "aios_losses", 0)  # or it is quarantined
        assert self.do(self.user.order.reclaim(self.epoch)) == 1
        known.state = "waiting"
        assert self.raw.lindex(self.user.keys.queue(self.queue_of(job_id)), 0) == job_id

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.leases)))
        lease, core = self.leases.pop(job_id)
        reply = f'{{"kind":"reply","id":"{job_id}"}}'.encode()
        request = ClaimRequest(0, LONG_S, (core,))
        self.do(self.user.queue.finish(core, [Ending(lease, "finished", reply, 0.1)], request))
        self.jobs[job_id].state = "ended"

    @precondition(lambda self: self.of("waiting"))
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(self.of("waiting")))
        self.do(self.user.control.hold([job_id], module="llm"))
        self.jobs[job_id].state = "held"

    @precondition(lambda self: self.of("held"))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(self.of("held")))
        self.do(self.user.control.release([job_id], module="llm"))
        self.jobs[job_id].state = "waiting"

    # The scheduler, and stock tools.

    @rule()
    def move(self) -> None:
        before = {job_id: self.core_of(job_id) for job_id in self.of("waiting")}
        self.do(self.user.order.move(self.epoch))
        for job_id, core in before.items():
            known, ended = self.jobs[job_id], job_id in self.ids_of_replies()
            to = self.core_of(job_id)
            others = self.others(known, core) if core else set()
            if ended:
                assert core not in self.cards
                assert not others
                known.state = "ended"
            elif to != core:
                assert to in others
                assert to in self.alive or not others & self.alive
            elif core and core not in self.alive:
                assert core in self.cards
                assert not others & self.alive

    @precondition(lambda self: self.of("waiting"))
    @rule(data=st.data(), core=CORES)
    def stock_tool_pushes_it_elsewhere(self, data: st.DataObject, core: str) -> None:
        job_id = data.draw(st.sampled_from(self.of("waiting")))
        if self.core_of(job_id) != core and core in self.cards:
            self.raw.rpush(self.user.keys.queue(f"llm.{core}"), job_id)
            self.raw.hset(self.user.keys.own("reconciled"), "llm", 0)
            self.do(self.user.order.reconcile(self.epoch))

    @rule()
    def reconcile(self) -> None:
        self.raw.hset(self.user.keys.own("reconciled"), "llm", 0)
        assert self.do(self.user.order.reconcile(self.epoch)) == 0

    @invariant()
    def each_stands_in_one_queue_its_own(self) -> None:
        listed: dict[str, list[str]] = {}
        for key in self.raw.scan_iter("rq:queue:llm*"):
            for job_id in self.raw.lrange(key, 0, -1):
                listed.setdefault(job_id, []).append(key.removeprefix("rq:queue:llm").lstrip("."))
        assert listed.keys() == set(self.of("waiting"))
        for job_id, places in listed.items():
            assert places == [self.core_of(job_id)]

    @invariant()
    def what_runs_is_in_the_registry_of_its_queue(self) -> None:
        shown = {
            member.partition(":")[0]: key.removeprefix("rq:wip:llm").lstrip(".")
            for key in self.raw.scan_iter("rq:wip:llm*")
            for member in self.raw.zrange(key, 0, -1)
        }
        assert shown == {job_id: self.core_of(job_id) for job_id in self.leases}
