"""Steps that change who may run, and stock workers, who take what they want."""

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from aios_broker.queues.keys import Keys
from aios_broker.queues.records import Lease
from tests.queue_model import TOOL, owners
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
        known.state, known.attempt = "running", known.attempt + 1
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
