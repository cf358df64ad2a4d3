"""The steps of clients and workers on the model of the queues."""

import json
import zlib
from typing import Literal

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from aios_broker.contract import reply
from aios_broker.contract.errors import AccessDenied, Cancelled, QuotaExceeded
from aios_broker.queues.keys import Keys
from aios_broker.queues.module_queue import ClaimRequest, Differs
from aios_broker.queues.records import (
    Charge,
    Ending,
    JobMetadata,
    Lease,
    SliceTerms,
    SliceUse,
    Submission,
    Suspension,
    WorkerCard,
)
from tests.queue_checks import CLIENTS
from tests.queue_debts import Debts
from tests.queue_model import Known, Used, charge_of, needs_of, owners

IDS = [f"{number:032x}" for number in range(4)]  # few, so that steps meet
NOTHING_MORE = ClaimRequest(want=0, lease_s=60.0)
CARD = WorkerCard("worker", "llm", pid=1, hostname="here", slots=4)
# What an attempt uses more: tokens, ms, prompt tokens. Even, see LIMITS.
TERMS = st.sampled_from([SliceTerms(), SliceTerms(49.0, 5.0, 50.0), SliceTerms(50.0, 5.0, 50.0)])
MORE = st.tuples(st.sampled_from([0, 2, 4]), st.sampled_from([0, 300]), st.sampled_from([0, 6]))


def metadata_of(job_id: str) -> JobMetadata:
    tenant, agent, program = owners(job_id)
    return JobMetadata(agent.agent, "llm.chat", program.program, tenant.tenant)


class ClientsAndWorkers(Debts):
    """Who submits and who runs."""

    # What clients do.

    @initialize()
    def some_jobs_wait(self) -> None:
        self.submit(IDS[:3], CLIENTS[0])

    @rule(ids=st.lists(st.sampled_from(IDS), min_size=1, max_size=4), by=st.sampled_from(CLIENTS))
    def submit(self, ids: list[str], by: str) -> None:
        jobs = [Submission(i, b'["x",null,[],{}]', metadata_of(i), by, needs_of(i)) for i in ids]
        refused: set[str] = set()  # one that comes twice in a batch is refused twice
        for job_id, status in zip(ids, self.do(self.queue.submit(jobs)), strict=True):
            known = self.known.get(job_id)
            if isinstance(status, Differs):  # a stock tool packed it anew: the client joins by id
                assert known is not None
                assert json.loads(zlib.decompress(status.data)) == json.loads(jobs[0].data)
                self.attach(job_id, by)
            elif known is None and (job_id in refused or self.over_quota(job_id)):
                assert isinstance(status, QuotaExceeded)
                refused.add(job_id)
            elif known is None:
                assert status == "queued"
                self.known[job_id] = Known(clients={by})
                self.line.append(job_id)
            elif known.alive:
                assert status == "known"
                known.clients.add(by)
            else:
                assert status == "ended"
                self.heard[job_id, by] += 1

    def over_quota(self, job_id: str) -> bool:
        """Return whether a new one does not fit what its owners may have waiting."""
        waiting = [
            i for i, known in self.known.items() if known.state in ("waiting", "held", "parked")
        ]
        for subject in owners(job_id)[:2]:
            most = self.accounts.limit(subject, "max_queued")
            if most is not None and sum(subject in owners(i) for i in waiting) >= most:
                return True
        return False

    @rule(job_id=st.sampled_from(IDS), by=st.sampled_from(CLIENTS))
    def attach(self, job_id: str, by: str) -> None:
        state, stored = self.do(self.queue.attach(job_id, by, None))
        known = self.known.get(job_id)
        assert (state == "unknown") == (known is None)
        assert (stored is not None) == (known is not None and not known.alive)
        if known is not None and known.alive:
            known.clients.add(by)

    @rule(job_id=st.sampled_from(IDS), by=st.sampled_from(CLIENTS))
    def another_agent_asks(self, job_id: str, by: str) -> None:
        """Whoever knows an id of another agent's hears nothing, ends nothing, and takes nothing."""
        known, other = self.known.get(job_id), metadata_of(job_id)
        other = JobMetadata("mallory", other.kind, tenant=other.tenant)
        assert self.do(self.queue.attach(job_id, by, other.owner)) == ("unknown", None)
        ended = self.control.cancel([job_id], Cancelled("no"), module="llm", owner=other.owner)
        assert self.do(ended) != ["done"]
        if known is not None:
            [refused] = self.do(self.queue.submit([Submission(job_id, b"[]", other, by)]))
            assert isinstance(refused, AccessDenied)

    @rule(job_id=st.sampled_from(IDS))
    def its_agent_asks(self, job_id: str) -> None:
        """Where it is known to the kernel, it is known to its agent."""
        state, _ = self.do(self.queue.attach(job_id, "", metadata_of(job_id).owner))
        assert (state == "unknown") == (job_id not in self.known)

    # What workers do.

    @rule(want=st.integers(0, 3), after_long=st.booleans())
    def claim(self, want: int, *, after_long: bool = False) -> None:
        if after_long:
            self.all_have_waited_long()
        self.take(self.do(self.queue.claim("worker", ClaimRequest(want, 60.0))), want)

    def take(self, leases: list[Lease], want: int) -> None:
        assert [lease.job_id for lease in leases] == self.next_ones(want)
        for lease in leases:
            for resource in self.needed_by(lease.job_id):
                limit = self.premises.limit(resource)
                assert limit is None or self.holders(resource) < limit
            self.line.remove(lease.job_id)
            known = self.known[lease.job_id]
            known.state, known.attempt, known.turned_away = "running", known.attempt + 1, False
            assert lease.attempt == known.attempt
            assert lease.trusted
            assert lease.wants_chunks == bool(known.clients)
            assert lease.losses == known.losses
            assert lease.decided == known.decided  # whoever claims it, however often
            assert lease.cost_pico == sum(known.used.pico.values())
            assert lease.cached_tokens == sum(known.used.cached_tokens.values())
            self.leases.append(lease)

    def holds(self, lease: Lease) -> bool:
        known = self.known.get(lease.job_id)
        return known is not None and (known.state, known.attempt) == ("running", lease.attempt)

    def use(self, lease: Lease, more: tuple[int, int, int]) -> tuple[float, int, int, Charge]:
        """Let an attempt use more; return its totals: ran_s, tokens, prompt tokens, and the cost.

        Whoever tells them holds the lease: what others tell is charged to nobody.
        """
        used = self.known[lease.job_id].used if lease.job_id in self.known else Used()
        tokens = used.tokens.get(lease.attempt, 0) + more[0]
        ran_ms = used.ran_ms.get(lease.attempt, 0) + more[1]
        charge = charge_of(lease.attempt, tokens, more[2] // 2)
        if self.holds(lease):
            new = used.tell(lease.attempt, tokens, ran_ms, more[2], charge)
            self.accounts.charge(owners(lease.job_id), new)
        return ran_ms / 1000, tokens, more[2], charge

    @precondition(lambda self: self.leases)
    @rule(
        data=st.data(),
        status=st.sampled_from(["finished", "failed"]),
        want=st.integers(0, 2),
        more=MORE,
        answer_is_lost=st.booleans(),
    )
    def finish(
        self,
        data: st.DataObject,
        status: Literal["finished", "failed"],
        want: int,
        more: tuple[int, int, int],
        *,
        answer_is_lost: bool,
    ) -> None:
        lease = data.draw(st.sampled_from(self.leases))  # those of dead workers included
        held = self.holds(lease)
        answer = reply.encode(reply.Reply(id=lease.job_id, result=reply.EchoResult("done")))
        ran_s, tokens, prompt, charge = self.use(lease, more)
        ending = Ending(lease, status, answer, ran_s, tokens, prompt_tokens=prompt, charge=charge)
        if answer_is_lost:
            settled = self.do(self.queue.finish("worker", [ending], NOTHING_MORE))
            assert settled.accepted == [held]
        settled = self.do(self.queue.finish("worker", [ending], ClaimRequest(want, 60.0)))
        assert settled.accepted == [held and not answer_is_lost]
        if held:
            self.end(lease.job_id, status)
        self.take(settled.leases, want)

    @precondition(lambda self: self.leases)
    @rule(
        data=st.data(),
        reason=st.sampled_from(["suspend", "drain", "hold", "park"]),
        more=MORE,
        answer_is_lost=st.booleans(),
    )
    def suspend(
        self,
        data: st.DataObject,
        reason: Literal["suspend", "drain", "hold", "park"],
        more: tuple[int, int, int],
        *,
        answer_is_lost: bool,
    ) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        held = self.holds(lease)
        self.leaves(lease, reason, more, answer_is_lost=answer_is_lost, held=held)

    def leaves(
        self,
        lease: Lease,
        reason: Literal["suspend", "drain", "hold", "park", "needs"],
        more: tuple[int, int, int],
        *,
        answer_is_lost: bool,
        held: bool,
    ) -> None:
        ran_s, tokens, prompt, charge = self.use(lease, more)
        suspension = Suspension(lease, b"snapshot", ran_s, tokens, reason, prompt, charge=charge)
        settled = self.do(self.queue.suspend("worker", [suspension], NOTHING_MORE))
        assert settled.accepted == [held]
        if answer_is_lost:
            settled = self.do(self.queue.suspend("worker", [suspension], NOTHING_MORE))
            assert settled.accepted == [False]
        if not held:
            return
        known = self.known[lease.job_id]
        known.state = "held" if known.told_to_hold else "waiting"  # whatever its worker heard
        if reason == "park":
            known.state = "parked"
        known.told_to_suspend = known.turned_away = False
        known.told_to_hold = known.told_to_hold and reason == "park"  # it is when it is unparked
        if known.state == "waiting" and reason == "needs":
            self.line.insert(self.place_by_age(lease.job_id), lease.job_id)
        elif known.state == "waiting":
            self.line.insert(0 if reason == "drain" else len(self.line), lease.job_id)

    def place_by_age(self, job_id: str) -> int:
        """Return the place before the first in the line that was submitted later."""
        since = self.submitted_ms(job_id)
        later = (n for n, other in enumerate(self.line) if self.submitted_ms(other) > since)
        return next(later, len(self.line))

    def submitted_ms(self, job_id: str) -> int:
        return int(self.raw.hget(Keys().job(job_id), "aios_submitted_ms") or 0)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), more=MORE, answer_is_lost=st.booleans())
    def slice_end(
        self, data: st.DataObject, more: tuple[int, int, int], *, answer_is_lost: bool
    ) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        ran_s, tokens, prompt, charge = self.use(lease, more)
        terms = data.draw(TERMS)
        use = SliceUse(lease, ran_s, tokens, b"checkpoint", prompt, charge, terms)
        [verdict] = self.do(self.queue.slice_end("worker", [use], NOTHING_MORE))
        if answer_is_lost:
            assert self.do(self.queue.slice_end("worker", [use], NOTHING_MORE)) == [verdict]
        others = [known for i, known in self.known.items() if i != lease.job_id]
        suspending = sum(known.told_to_suspend for known in others)
        if not self.holds(lease):
            assert verdict == "lost"
            return
        known = self.known[lease.job_id]
        if known.told_to_hold:
            assert verdict == "hold"
        else:
            able = [i for i in self.line if self.may_run(i, instead_of=lease.job_id)]
            over = any(map(self.accounts.is_over, owners(lease.job_id)[:2]))
            cut = suspending < len(able) and (over or terms.slice_ms >= terms.least_ms)
            assert verdict == ("suspend" if cut else "go")
            known.told_to_suspend = known.told_to_suspend or verdict == "suspend"

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
        self.do(self.queue.emit([(lease, reply.Chunk(lease.job_id, 0, "y"))]))
        for client in CLIENTS:
            expected = self.holds(lease) and client in self.known[lease.job_id].clients
            last = self.raw.lindex(Keys().reply(client), -1)
            assert (last is not None and b'"chunk"' in last) == expected
            if expected:
                self.raw.rpop(Keys().reply(client))

    def end(self, job_id: str, state: str) -> None:
        known = self.known[job_id]
        for client in known.clients:
            self.heard[job_id, client] += 1
        if job_id in self.line:
            self.line.remove(job_id)
        self.known[job_id] = Known(state=state, attempt=known.attempt, used=known.used)
        well = state == "finished"
        self.accounts.charge(owners(job_id), {"finished": int(well), "failed": int(not well)})

    def one_that_is(self, *states: str) -> st.SearchStrategy[str]:
        return st.sampled_from([i for i, known in self.known.items() if known.state in states])
