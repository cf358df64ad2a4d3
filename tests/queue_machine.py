"""A model of the queues: random steps on a real Redis, checked against lists and sets.

Clients, workers, operators, the scheduler and stock RQ tools take random steps on a real Redis.
Nobody without a lease changes anything, and nothing leaks.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable
from typing import Any, Literal, TypeVar, cast

import msgspec
import redis
import rq
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from rq.serializers import JSONSerializer

from aios_broker.contract import reply, transitions
from aios_broker.contract.errors import Cancelled
from aios_broker.contract.syscall import State
from aios_broker.queues.connection import Connection
from aios_broker.queues.control import Control
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.module_queue import Appetite, ModuleQueue
from aios_broker.queues.order import Order
from aios_broker.queues.records import (
    Ending,
    Facts,
    Lease,
    Pause,
    PolicyRow,
    SliceUse,
    Submission,
    WorkerCard,
)
from tests.queue_model import Known

T = TypeVar("T")
IDS = [f"{number:032x}" for number in range(4)]  # few, so that steps meet
CLIENTS = ("alice", "bob")
NOTHING_MORE = Appetite(want=0, lease_s=60.0)
MAX_LOSSES = 2  # so that random steps reach it
CARD = WorkerCard("worker", "llm", pid=1, hostname="here", slots=4)


class QueueMachine(RuleBasedStateMachine):
    """Random steps on a real Redis, checked against a model of lists and sets."""

    url: str

    def __init__(self) -> None:
        super().__init__()
        self.raw: Any = redis.Redis.from_url(self.url)
        self.raw.flushall()
        self.loop = asyncio.new_event_loop()
        self.connection = Connection(self.url)
        functions = Functions(self.connection)
        self.queue = ModuleQueue(functions, "llm")
        self.order = Order(functions, "llm")
        self.control = Control(functions)
        self.known: dict[str, Known] = {}
        self.line: list[str] = []  # the run queue, head first
        self.leases: list[Lease] = []  # all that were ever given
        self.heard: Counter[tuple[str, str]] = Counter()  # (id, client) -> replies expected
        self.epoch = self.do(self.order.lead("scheduler", 60.0)).epoch
        self.do(self.control.set_policy("llm", PolicyRow(max_losses=MAX_LOSSES)))

    def do(self, step: Awaitable[T]) -> T:
        return self.loop.run_until_complete(step)

    def teardown(self) -> None:
        self.journal_follows_the_transition_table()
        self.do(self.connection.aclose())
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()
        self.raw.close()

    # What clients do.

    @initialize()
    def some_jobs_wait(self) -> None:
        self.submit(IDS[:3], CLIENTS[0])

    @rule(ids=st.lists(st.sampled_from(IDS), min_size=1, max_size=4), by=st.sampled_from(CLIENTS))
    def submit(self, ids: list[str], by: str) -> None:
        jobs = [Submission(i, b'["x",null,[],{}]', Facts("agent", "llm.chat"), by) for i in ids]
        statuses = self.do(self.queue.submit(jobs))
        for job_id, status in zip(ids, statuses, strict=True):
            known = self.known.get(job_id)
            if known is None:
                assert status == "queued"
                self.known[job_id] = Known(clients={by})
                self.line.append(job_id)
            elif known.alive:
                assert status == "known"
                known.clients.add(by)
            else:
                assert status == "ended"
                self.heard[job_id, by] += 1

    @rule(job_id=st.sampled_from(IDS), by=st.sampled_from(CLIENTS))
    def attach(self, job_id: str, by: str) -> None:
        state, stored = self.do(self.queue.attach(job_id, by))
        known = self.known.get(job_id)
        assert (state == "unknown") == (known is None)
        assert (stored is not None) == (known is not None and not known.alive)
        if known is not None and known.alive:
            known.clients.add(by)

    # What workers do.

    @rule(want=st.integers(0, 3))
    def claim(self, want: int) -> None:
        self.take(self.do(self.queue.claim("worker", Appetite(want, 60.0))), want)

    def take(self, leases: list[Lease], want: int) -> None:
        assert [lease.job_id for lease in leases] == self.line[:want]
        self.line = self.line[want:]
        for lease in leases:
            known = self.known[lease.job_id]
            known.state, known.attempt = "running", known.attempt + 1
            assert lease.attempt == known.attempt
            assert lease.trusted
            assert lease.wants_chunks == bool(known.clients)
            assert lease.losses == known.losses
            self.leases.append(lease)

    def holds(self, lease: Lease) -> bool:
        known = self.known.get(lease.job_id)
        return known is not None and (known.state, known.attempt) == ("running", lease.attempt)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), status=st.sampled_from(["finished", "failed"]), want=st.integers(0, 2))
    def finish(self, data: st.DataObject, status: Literal["finished", "failed"], want: int) -> None:
        lease = data.draw(st.sampled_from(self.leases))  # those of dead workers included
        held = self.holds(lease)
        answer = reply.encode(reply.Reply(id=lease.job_id, result=reply.EchoResult("done")))
        settled = self.do(
            self.queue.finish("worker", [Ending(lease, status, answer, 0.1)], Appetite(want, 60.0))
        )
        assert settled.accepted == [held]
        if held:
            self.end(lease.job_id, status)
        self.take(settled.leases, want)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), reason=st.sampled_from(["yield", "drain", "hold"]))
    def pause(self, data: st.DataObject, reason: Literal["yield", "drain", "hold"]) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        held = self.holds(lease)
        pause = Pause(lease, b"snapshot", 0.1, tokens=2, reason=reason)
        settled = self.do(self.queue.pause("worker", [pause], NOTHING_MORE))
        assert settled.accepted == [held]
        if not held:
            return
        known = self.known[lease.job_id]
        known.state = "held" if known.told_to_hold else "waiting"  # whatever its worker heard
        known.told_to_yield = known.told_to_hold = False
        if known.state == "waiting":
            self.line.insert(0 if reason == "drain" else len(self.line), lease.job_id)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def slice_end(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        yielding = sum(known.told_to_yield for known in self.known.values())
        use = SliceUse(lease, 0.1, 3, b"checkpoint")
        [verdict] = self.do(self.queue.slice_end("worker", [use], NOTHING_MORE))
        if not self.holds(lease):
            assert verdict == "lost"
            return
        known = self.known[lease.job_id]
        if known.told_to_hold:
            assert verdict == "hold"
        else:
            assert verdict == ("yield" if yielding < len(self.line) else "go")
            known.told_to_yield = known.told_to_yield or verdict == "yield"

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        [verdict] = self.do(self.queue.renew(CARD, [lease], 60.0))
        known = self.known.get(lease.job_id)
        if not self.holds(lease):
            assert verdict == "lost"
        else:
            assert known is not None
            assert verdict == ("hold" if known.told_to_hold else "go")

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def emit(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        self.do(self.queue.emit([(lease, b'{"kind":"chunk","id":"x","offset":0,"text":"y"}')]))
        for client in CLIENTS:
            expected = self.holds(lease) and client in self.known[lease.job_id].clients
            last = self.raw.lindex(Keys().reply(client), -1)
            assert (last is not None and b'"chunk"' in last) == expected
            if expected:
                self.raw.rpop(Keys().reply(client))

    # What happens to them.

    @precondition(lambda self: any(known.state == "running" for known in self.known.values()))
    @rule(data=st.data(), times=st.integers(1, MAX_LOSSES))
    def workers_die(self, data: st.DataObject, times: int) -> None:
        """A job loses its worker, comes back to the head, and perhaps kills the next one, too."""
        job_id = data.draw(self.one_that_is("running"))
        known = self.known[job_id]
        for _ in range(times):
            self.raw.hset(Keys().worker("worker"), "aios_seen_ms", 1)
            self.raw.zadd(Keys().own("leases:llm"), {f"{job_id}:{known.attempt}": 1}, xx=True)
            assert self.do(self.order.reclaim(self.epoch)) == 1
            known.losses += 1
            if known.losses >= MAX_LOSSES:
                self.end(job_id, "failed")
                return
            known.state, known.told_to_yield = "waiting", False
            self.line.insert(0, job_id)
            if times > 1:
                self.claim(1)

    @precondition(lambda self: any(known.state == "running" for known in self.known.values()))
    @rule(data=st.data())
    def an_answer_to_a_claim_is_lost(self, data: st.DataObject) -> None:
        """The worker is alive and does not renew what it does not know of: no loss."""
        job_id = data.draw(self.one_that_is("running"))
        known = self.known[job_id]
        self.do(self.queue.renew(CARD, [], 60.0))
        self.raw.zadd(Keys().own("leases:llm"), {f"{job_id}:{known.attempt}": 1}, xx=True)
        assert self.do(self.order.reclaim(self.epoch)) == 1
        known.state, known.told_to_yield = "waiting", False
        self.line.insert(0, job_id)

    @precondition(lambda self: any(known.alive for known in self.known.values()))
    @rule(data=st.data())
    def deadline_passes(self, data: st.DataObject) -> None:
        job_id = data.draw(self.one_that_is("waiting", "running", "held"))
        self.raw.zadd(Keys().own("deadlines:llm"), {job_id: 1})
        assert self.do(self.order.expire(self.epoch)) == 1
        self.end(job_id, "failed")

    def end(self, job_id: str, state: str) -> None:
        known = self.known[job_id]
        for client in known.clients:
            self.heard[job_id, client] += 1
        if job_id in self.line:
            self.line.remove(job_id)
        self.known[job_id] = Known(state=state, attempt=known.attempt)

    def one_that_is(self, *states: str) -> st.SearchStrategy[str]:
        return st.sampled_from([i for i, known in self.known.items() if known.state in states])

    # What operators and the scheduler do.

    @rule(ids=st.lists(st.sampled_from(IDS), max_size=2, unique=True))
    def cancel(self, ids: list[str]) -> None:
        outcomes = self.do(self.control.cancel(ids, Cancelled("no"), module="llm"))
        assert outcomes == [self.outcome(job_id) for job_id in ids]
        for job_id in ids:
            if job_id in self.known and self.known[job_id].alive:
                self.end(job_id, "cancelled")

    def outcome(self, job_id: str) -> str:
        known = self.known.get(job_id)
        return "unknown" if known is None else "done" if known.alive else "ended"

    @rule(job_id=st.sampled_from(IDS))
    def hold(self, job_id: str) -> None:
        assert self.do(self.control.hold([job_id], module="llm")) == [self.outcome(job_id)]
        known = self.known.get(job_id)
        if known is not None and known.state == "waiting":
            known.state = "held"
            self.line.remove(job_id)
        elif known is not None and known.state == "running":
            known.told_to_hold = True

    @rule(job_id=st.sampled_from(IDS))
    def release(self, job_id: str) -> None:
        assert self.do(self.control.release([job_id], module="llm")) == [self.outcome(job_id)]
        known = self.known.get(job_id)
        if known is not None and known.alive:
            known.told_to_hold = False
            if known.state == "held":
                known.state = "waiting"
                self.line.append(job_id)

    @precondition(lambda self: any(known.state == "held" for known in self.known.values()))
    @rule(data=st.data())
    def release_what_is_held(self, data: st.DataObject) -> None:
        self.release(data.draw(self.one_that_is("held")))

    @rule(data=st.data(), age=st.sampled_from([0, 1]))
    def reorder(self, data: st.DataObject, age: int) -> None:
        named = data.draw(st.lists(st.sampled_from(IDS), unique=True))
        stale = age > 0
        ranked = [(job_id, float(place)) for place, job_id in enumerate(named)]
        assert self.do(self.order.reorder(self.epoch - age, ranked)) == (not stale)
        if not stale:
            first = [job_id for job_id in named if job_id in self.line]
            self.line = first + [job_id for job_id in self.line if job_id not in first]

    # What stock RQ tools do.

    def stock(self, job_id: str) -> rq.job.Job:
        return rq.job.Job.fetch(job_id, connection=self.raw, serializer=JSONSerializer)

    @precondition(lambda self: any(known.alive for known in self.known.values()))
    @rule(data=st.data(), how=st.sampled_from(["delete", "cancel"]))
    def stock_tool_removes(self, data: st.DataObject, how: str) -> None:
        job_id = data.draw(self.one_that_is("waiting", "running", "held"))
        job = self.stock(job_id)
        if how == "delete":
            job.delete()
        else:
            job.cancel()
        assert self.do(self.order.reconcile(self.epoch)) == 1
        self.end(job_id, "cancelled")
        if how == "delete":
            del self.known[job_id]
            self.leases = [lease for lease in self.leases if lease.job_id != job_id]

    @precondition(lambda self: any(known.state == "failed" for known in self.known.values()))
    @rule(data=st.data())
    def stock_tool_requeues(self, data: st.DataObject) -> None:
        job_id = data.draw(self.one_that_is("failed"))
        self.stock(job_id).requeue()
        assert self.do(self.order.reconcile(self.epoch)) == 1
        self.known[job_id] = Known(attempt=self.known[job_id].attempt)
        self.line.append(job_id)

    @rule()
    def nothing_to_reconcile(self) -> None:
        assert self.do(self.order.reconcile(self.epoch)) == 0

    # What must hold after every step.

    @invariant()
    def redis_agrees_with_the_model(self) -> None:
        own = Keys().own
        running = {f"{i}:{k.attempt}" for i, k in self.known.items() if k.state == "running"}
        alive = {i for i, known in self.known.items() if known.alive}
        assert [i.decode() for i in self.raw.lrange(Keys().queue("llm"), 0, -1)] == self.line
        assert self.members(own("leases:llm")) == running
        assert self.members(Keys().registry("wip", "llm")) == running
        assert self.members(own("held:llm")) == {
            i for i, known in self.known.items() if known.state == "held"
        }
        assert {i.decode() for i in self.raw.hkeys(own("live:llm"))} == alive
        assert self.members(own("deadlines:llm")) == alive

    def members(self, key: str) -> set[str]:
        return {member.decode() for member in self.raw.zrange(key, 0, -1)}

    @invariant()
    def each_client_heard_each_reply_once(self) -> None:
        heard: Counter[tuple[str, str]] = Counter()
        for client in CLIENTS:
            for message in self.raw.lrange(Keys().reply(client), 0, -1):
                heard[msgspec.json.decode(message)["id"], client] += 1
        assert heard == +self.heard

    @invariant()
    def snapshots_are_accounted_for(self) -> None:
        own = Keys().own
        sizes = {i.decode(): int(n) for i, n in self.raw.hgetall(own("snapshot_bytes")).items()}
        assert {i for i in self.known if self.raw.exists(Keys().snapshot(i))} == set(sizes)
        assert all(self.known[i].alive for i in sizes)
        assert int(self.raw.get(own("snapshot_total")) or 0) == sum(sizes.values())
        assert self.members(own("snapshots")) == set(sizes)

    def journal_follows_the_transition_table(self) -> None:
        states: dict[str, State | None] = {}
        for _, entry in self.raw.xrange(Keys().journal):
            for line in entry[b"t"].decode().split("\n") if b"t" in entry else ():
                name, job_id, *_ = line.split("\t")
                event = cast("transitions.Event", name)
                states[job_id] = transitions.after(states.get(job_id), event)
        names = {"queued": "waiting", "suspended": "waiting"}
        for job_id, known in self.known.items():
            state = states[job_id]
            assert state is not None
            assert names.get(state, state) == known.state
