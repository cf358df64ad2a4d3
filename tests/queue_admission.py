"""Steps that change who may run, and stock workers, who take what they want."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from aios_broker.contract.errors import KernelError
from aios_broker.contract.syscall import Need
from aios_broker.queues.admission import Resource
from aios_broker.queues.keys import Keys
from aios_broker.queues.records import Lease
from tests.queue_model import NEEDS, TOOL, needs_of, owners
from tests.queue_steps import IDS, ClientsAndWorkers


class WhoMayRun(ClientsAndWorkers):
    """Limits of resources, programs that are barred, and who runs without a claim."""

    @rule(most=st.sampled_from([None, 0, 1, 2]))
    def set_limit(self, most: int | None) -> None:
        if most is None:
            had = self.do(self.admission.unset_limit("llm", TOOL))
            assert had == (self.premises.tool_limit is not None)
        else:
            self.do(self.admission.set_limit("llm", TOOL, most))
        self.premises.tool_limit = most

    @rule(card=st.tuples(*[st.integers(0, 2)] * 3))
    def the_card_of_the_tool_changes(self, card: tuple[int, int, int]) -> None:
        key = Keys().own("tool_limits:llm")
        if any(card):
            self.raw.hset(key, TOOL.name, " ".join(map(str, card)))
        else:
            self.raw.hdel(key, TOOL.name)
        self.premises.card = card

    @precondition(lambda self: self.leases)
    @rule(
        data=st.data(),
        needs=st.sampled_from(NEEDS),
        answer_is_lost=st.booleans(),
        dies=st.booleans(),
    )
    def its_worker_knows_better_what_it_needs(
        self, data: st.DataObject, needs: tuple[Need, ...], *, answer_is_lost: bool, dies: bool
    ) -> None:
        """It takes that, or gives back what it has and goes behind those who have waited longer."""
        lease = data.draw(st.sampled_from(self.leases))
        step = self.queue.take_needs(lease, needs)
        if not self.holds(lease):
            with pytest.raises(KernelError, match="lease"):
                self.do(step)
            return
        known = self.known[lease.job_id]
        before = needs_of(lease.job_id) if known.corrected is None else known.corrected
        has_it = (
            before == needs
            and (not known.turned_away or not needs)
            and self.is_none_above_its_limit(self.held_by(lease.job_id))
        )
        known.corrected = needs
        known.turned_away = False if has_it else not self.has_room_for(lease.job_id)
        assert self.do(step) == (not known.turned_away)
        if answer_is_lost:
            known.turned_away = known.turned_away and not self.has_room_for(lease.job_id)
            assert self.do(self.queue.take_needs(lease, needs)) == (not known.turned_away)
        if known.turned_away and not dies:
            self.leaves(lease, "needs", (0, 0, 0), answer_is_lost=answer_is_lost, held=True)

    def is_none_above_its_limit(self, resources: frozenset[Resource]) -> bool:
        limits = ((self.holders(each), self.premises.limit(each)) for each in resources)
        return all(limit is None or held <= limit for held, limit in limits)

    def has_room_for(self, job_id: str) -> bool:
        return all(
            self.premises.is_free(
                resource,
                self.holders(resource, instead_of=job_id),
                owed=self.is_owed_to_another(resource, job_id),
            )
            for resource in self.needed_by(job_id)
        )

    @rule(ids=st.sets(st.sampled_from(IDS), max_size=2), age=st.sampled_from([0, 1]))
    def bar_programs(self, ids: set[str], age: int) -> None:
        programs = frozenset(owners(job_id)[2] for job_id in ids)
        took = self.do(self.admission.bar("llm", self.epoch - age, programs, 3600.0))
        assert took == (age == 0)
        if took:
            self.premises.barred = programs

    @precondition(lambda self: self.premises.barred)
    @rule()
    def the_policy_that_barred_them_is_silent(self) -> None:
        """No scheduler renews the bars: they end by themselves."""
        for program in self.premises.barred:
            self.raw.zadd(Keys().own("barred:llm"), {str(program): 1})
        self.premises.barred = frozenset()

    @precondition(lambda self: self.line)
    @rule()
    def stock_worker_takes_the_next_one(self) -> None:
        """RQ knows of no need: the job is popped, and our entry point asks before it runs it."""
        job_id = self.raw.lpop(Keys().queue("llm")).decode()
        assert job_id == self.line[0]
        job = Keys().job(job_id)
        self.raw.hset(job, "status", "started")
        lease = self.do(self.queue.claim_one(job_id, "stock", 60.0))
        if not self.may_run(job_id):
            assert lease == "barred"  # it would wait; here its worker gives up
            self.raw.hset(job, "status", "queued")
            self.raw.lpush(Keys().queue("llm"), job_id)
            return
        assert isinstance(lease, Lease)
        known = self.known[job_id]
        self.line.remove(job_id)
        known.state, known.attempt, known.turned_away = "running", known.attempt + 1, False
        self.raw.zadd(Keys().registry("wip", "llm"), {f"{job_id}:{lease.attempt}": 2**32})
        self.leases.append(lease)

    @invariant()
    def what_is_owed_is_what_the_model_owes(self) -> None:
        of_redis, of_model = self.debts_of_redis(), self.premises.owed
        assert {r: d for r, d in of_redis.items() if self.stands(*d)} == {
            r: d for r, d in of_model.items() if self.stands(*d)
        }
        ids = [job_id for job_id, _ in set(of_model.values())]
        assert len(ids) == len(set(ids))
