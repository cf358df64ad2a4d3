"""A model of the queues: random steps on a real Redis, checked against lists and sets.

Clients, workers, operators, the scheduler and stock RQ tools take random steps on a real Redis.
Nobody without a lease changes anything, nobody uses more than he may, what is used is charged once,
and nothing leaks.
"""

from collections.abc import Iterable

import rq
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from rq.serializers import JSONSerializer

from aios_broker.contract import reply
from aios_broker.contract.errors import Cancelled
from aios_broker.queues.keys import Keys
from aios_broker.queues.order import Score
from aios_broker.queues.quota import QuotaRow, Subject
from aios_broker.queues.reconciliation import ALL_AT_ONCE
from aios_broker.queues.records import (
    Charge,
    Ending,
    Lease,
    SliceTerms,
    SliceUse,
    Suspension,
)
from tests.queue_admission import WhoMayRun
from tests.queue_checks import CLIENTS, MAX_LOSSES
from tests.queue_model import ANY_AGENT, STRANGER, Known, charge_of, owners
from tests.queue_steps import CARD, IDS, NOTHING_MORE

__all__ = ["NOTHING_MORE", "QueueMachine"]

# Odd limits and even use: no level is ever nought, whatever fills up while the test runs.
LIMITS = st.builds(
    QuotaRow,
    st.sampled_from([Subject.of_agent("ada"), ANY_AGENT, Subject.of_tenant("default")]),
    max_queued=st.sampled_from([None, 1, 2]),
    max_running=st.sampled_from([None, 0, 1, 2]),
    tokens_per_minute=st.sampled_from([None, 5, 9]),
    slot_seconds_per_minute=st.sampled_from([None, 1.0]),
)

KEPT_OUT = ("held", "parked")


class QueueMachine(WhoMayRun):
    """What becomes of syscalls, who interferes, and who limits whom."""

    all_at_once = ALL_AT_ONCE  # of what is live, looked at in one step

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
            known.state, known.told_to_suspend = "waiting", False
            self.line.insert(0, job_id)
            if times > 1:
                self.claim(1)
            if self.known[job_id].state != "running":
                return  # something keeps it back

    @precondition(lambda self: any(known.state == "running" for known in self.known.values()))
    @rule(data=st.data())
    def an_answer_to_a_claim_is_lost(self, data: st.DataObject) -> None:
        """The worker is alive and does not renew what it does not know of: no loss."""
        job_id = data.draw(self.one_that_is("running"))
        known = self.known[job_id]
        if self.raw.hget(Keys().job(job_id), "worker_name") != b"worker":
            return  # a stock worker's: it says nothing of itself
        self.do(self.queue.renew(CARD, [], 60.0))
        self.raw.zadd(Keys().own("leases:llm"), {f"{job_id}:{known.attempt}": 1}, xx=True)
        assert self.do(self.order.reclaim(self.epoch)) == 1
        known.state, known.told_to_suspend = "waiting", False
        self.line.insert(0, job_id)

    @precondition(lambda self: any(known.alive for known in self.known.values()))
    @rule(data=st.data())
    def deadline_passes(self, data: st.DataObject) -> None:
        job_id = data.draw(self.one_that_is("waiting", "running", "held", "parked"))
        self.raw.zadd(Keys().own("deadlines:llm"), {job_id: 1})
        assert self.do(self.order.expire(self.epoch)) == 1
        self.end(job_id, "failed")

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
        elif known is not None and known.state in ("running", "parked"):
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

    @rule(job_id=st.sampled_from(IDS))
    def unpark(self, job_id: str) -> None:
        known = self.known.get(job_id)
        expected = self.outcome(job_id)
        if known is not None and known.alive and known.state != "parked":
            expected = "elsewhere"
        assert self.do(self.control.unpark([job_id], module="llm")) == [expected]
        if known is None or known.state != "parked":
            return
        known.state = "held" if known.told_to_hold else "waiting"
        known.told_to_hold, known.decided = False, True
        if known.state == "waiting":
            self.line.insert(0, job_id)

    @precondition(lambda self: any(known.state == "parked" for known in self.known.values()))
    @rule(data=st.data())
    def unpark_what_is_parked(self, data: st.DataObject) -> None:
        self.unpark(data.draw(self.one_that_is("parked")))

    @rule(data=st.data(), age=st.sampled_from([0, 1]))
    def reorder(self, data: st.DataObject, age: int) -> None:
        named = data.draw(st.lists(st.sampled_from(IDS), unique=True))
        stale = age > 0
        ranked = [Score(job_id, float(place)) for place, job_id in enumerate(named)]
        step = self.order.reorder(self.epoch - age, named, scored=ranked)
        assert self.do(step) == (not stale)
        if not stale:
            first = [job_id for job_id in named if job_id in self.line]
            self.line = first + [job_id for job_id in self.line if job_id not in first]

    # What the quotas do.

    @rule(row=LIMITS)
    def set_quota(self, row: QuotaRow) -> None:
        self.do(self.quotas.set("llm", row))
        self.accounts.quotas[row.subject] = row

    @precondition(lambda self: self.accounts.quotas)
    @rule(data=st.data())
    def unset_quota(self, data: st.DataObject) -> None:
        self.unset_quotas([data.draw(st.sampled_from(sorted(self.accounts.quotas, key=str)))])

    def unset_quotas(self, subjects: Iterable[Subject]) -> None:
        for subject in subjects:
            assert self.do(self.quotas.unset("llm", subject))
            self.accounts.unset(subject)

    @rule()
    def a_minute_passes(self) -> None:
        self.raw.delete(Keys().own("bucket:llm"))
        self.accounts.levels.clear()

    @precondition(lambda self: self.accounts.quotas)
    @rule(field=st.sampled_from(["q", "r", "r agent:default ada", "q tenant:default"]))
    def the_load_is_wrong(self, field: str) -> None:
        """Processes of an older release do not count it: the sweep counts anew."""
        self.raw.hset(Keys().own("load:llm"), field, 77)
        if len(field) > 1:  # the totals are right: it is seen when a minute has passed
            self.raw.hset(Keys().own("load:llm"), "counted", 1)
            self.accounts.levels = {
                key: level for key, level in self.accounts.levels.items() if self.is_limited(key)
            }
        self.nothing_to_reconcile()

    def is_limited(self, key: tuple[str, Subject]) -> bool:
        names = {"tokens": "tokens_per_minute", "ms": "slot_seconds_per_minute"}
        return self.accounts.limit(key[1], names[key[0]]) is not None

    # What stock RQ tools do.

    @rule(all_at_once=st.sampled_from([0, ALL_AT_ONCE]))
    def the_queue_is_long_or_short(self, all_at_once: int) -> None:
        """A full pass through a long queue is made in parts; it finds the same."""
        self.all_at_once = all_at_once

    def reconcile(self) -> int:
        mended = self.do(self.order.reconcile(self.epoch, all_at_once=self.all_at_once))
        self.settle_debts()
        return mended

    def stock(self, job_id: str) -> rq.job.Job:
        return rq.job.Job.fetch(job_id, connection=self.raw, serializer=JSONSerializer)

    @precondition(lambda self: any(known.alive for known in self.known.values()))
    @rule(data=st.data(), how=st.sampled_from(["delete", "cancel"]))
    def stock_tool_removes(self, data: st.DataObject, how: str) -> None:
        job_id = data.draw(self.one_that_is("waiting", "running", "held", "parked"))
        job = self.stock(job_id)
        if how == "delete":
            job.delete()
        else:
            job.cancel()
        assert self.reconcile() == 1
        self.end(job_id, "cancelled")
        if how == "delete":
            self.forget(job_id)

    @precondition(lambda self: any(map(self.holds, self.leases)))
    @rule(
        data=st.data(),
        how=st.sampled_from(["delete", "cancel"]),
        told=st.sampled_from(["finish", "suspend", "slice", "text", "death"]),
    )
    def stock_tool_removes_before_its_worker_tells(
        self, data: st.DataObject, how: str, told: str
    ) -> None:
        """No step of a worker overwrites that, nor leaves a part of a record."""
        lease = data.draw(st.sampled_from([each for each in self.leases if self.holds(each)]))
        job_id = lease.job_id
        use = (
            (0.0, 0, 0, charge_of(lease.attempt, 0, 0))
            if how == "delete"
            else self.use(lease, (2, 300, 6))
        )
        getattr(self.stock(job_id), how)()
        self.tell_of_removed(lease, told, use)
        status = self.raw.hget(Keys().job(job_id), "status")
        assert status == (None if how == "delete" else b"canceled")
        assert self.raw.exists(Keys().job(job_id)) == (how == "cancel")
        assert self.reconcile() == 1
        self.end(job_id, "cancelled")
        if how == "delete":
            self.forget(job_id)

    def tell_of_removed(self, lease: Lease, told: str, use: tuple[float, int, int, Charge]) -> None:
        ran_s, tokens, prompt, charge = use
        if told == "finish":
            ending = Ending(lease, "finished", b"{}", *use[:2], prompt_tokens=prompt, charge=charge)
            assert self.do(self.queue.finish("worker", [ending], NOTHING_MORE)).accepted == [False]
            return
        slice_use = SliceUse(lease, ran_s, tokens, b"checkpoint", prompt, charge, SliceTerms())
        if told == "suspend":
            suspension = Suspension(
                lease, b"snapshot", ran_s, tokens, "suspend", prompt, charge=charge
            )
            settled = self.do(self.queue.suspend("worker", [suspension], NOTHING_MORE))
            assert settled.accepted == [False]
            return
        assert self.do(self.queue.slice_end("worker", [slice_use], NOTHING_MORE)) == ["lost"]
        if told == "text":
            self.do(self.queue.emit([(lease, reply.Chunk(lease.job_id, 0, "y"))]))
            for client in self.known[lease.job_id].clients:
                self.raw.rpop(Keys().reply(client))
        elif told == "death" and self.raw.exists(Keys().job(lease.job_id)):
            self.raw.zadd(Keys().own("leases:llm"), {f"{lease.job_id}:{lease.attempt}": 1}, xx=True)
            assert self.do(self.order.reclaim(self.epoch)) == 0

    def forget(self, job_id: str) -> None:
        """Know nothing of a syscall whose record was deleted: not even who failed to get it."""
        for subject in owners(job_id):
            self.accounts.charged[subject]["failed"] -= 1
        self.accounts.charge(STRANGER, {"failed": 1})
        del self.known[job_id]
        self.leases = [lease for lease in self.leases if lease.job_id != job_id]

    @precondition(lambda self: any(known.alive for known in self.known.values()))
    @rule(data=st.data(), by=st.sampled_from(CLIENTS))
    def stock_tool_deletes_what_is_sent_again(self, data: st.DataObject, by: str) -> None:
        """Before the sweep has seen it: who waited hears so, and the id begins a new life."""
        job_id = data.draw(self.one_that_is("waiting", "running", "held", "parked"))
        running = self.known[job_id].state == "running"
        attempt, lent = self.known[job_id].attempt, self.leases
        self.unset_quotas(list(self.accounts.quotas))  # what fits is another rule's business
        self.stock(job_id).delete()
        self.end(job_id, "cancelled")
        self.forget(job_id)
        self.submit([job_id], by)
        if running:  # its late words are another attempt's
            self.known[job_id].attempt, self.leases = attempt, lent

    @precondition(lambda self: any(known.state in KEPT_OUT for known in self.known.values()))
    @rule(data=st.data(), want=st.integers(0, 4))
    def stock_tool_enqueues_what_is_held_or_parked(self, data: st.DataObject, want: int) -> None:
        """It is so no more; a worker may take it before the sweep has seen it."""
        job_id = data.draw(self.one_that_is(*KEPT_OUT))
        self.stock(job_id).set_status(rq.job.JobStatus.QUEUED)
        self.raw.rpush(Keys().queue("llm"), job_id)
        self.known[job_id].state = "waiting"
        self.line.append(job_id)
        self.claim(want)
        assert self.reconcile() == 1

    @rule()
    def stock_tool_leaves_a_score_behind(self) -> None:
        """A job that a stock tool enqueued, was given a score, and was deleted again."""
        self.raw.zadd(Keys().own("scores:llm"), {"f" * 32: 1.0})
        self.raw.hset(Keys().own("reconciled"), "llm", 0)  # the next full pass is due
        assert self.reconcile() == 0

    @precondition(lambda self: any(known.state == "failed" for known in self.known.values()))
    @rule(data=st.data())
    def stock_tool_requeues(self, data: st.DataObject) -> None:
        job_id = data.draw(self.one_that_is("failed"))
        self.stock(job_id).requeue()
        assert self.reconcile() == 1
        known = self.known[job_id]
        self.known[job_id] = Known(attempt=known.attempt, used=known.used)
        self.line.append(job_id)

    @rule()
    def nothing_to_reconcile(self) -> None:
        assert self.reconcile() == 0
