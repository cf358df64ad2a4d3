"""Who may run, by the model of the queues: the rules of admission, said once more, plainly."""

from collections.abc import Sequence

from aios_broker.queues.admission import Resource
from aios_broker.queues.keys import Keys
from tests.queue_checks import QueueChecks
from tests.queue_model import LOCK, TOOL, owners

PATIENCE_MS = 5_000
LONG_MS = 10_000


class Debts(QueueChecks):
    """What a claim lends next, and what those are owed that it passes over."""

    def next_ones(self, want: int) -> list[str]:
        """Return what is lent next; one that lost a worker goes alone."""
        chosen: list[str] = []
        if want == 0:
            return chosen
        self.settle_debts()
        owed = sorted(set(self.premises.owed.values()), key=lambda d: (d[1], d[0]))
        first = [job_id for job_id, _ in owed]
        for job_id in [*first, *self.line]:
            suspect = self.known[job_id].losses or (chosen and self.known[chosen[0]].losses)
            if job_id in chosen:
                continue
            if len(chosen) == want or (chosen and suspect):
                break
            if self.may_run(job_id, also=chosen):
                chosen.append(job_id)
                self.pay(job_id)
            elif job_id not in first:
                self.pass_over(job_id, chosen)
        return chosen

    def may_run(self, job_id: str, *, also: Sequence[str] = (), instead_of: str = "") -> bool:
        """Return whether nothing keeps it from running beside those that run."""
        return self.is_within_rules(job_id, also=also, instead_of=instead_of) and all(
            self.premises.is_free(
                resource,
                self.holders(resource, also=also, instead_of=instead_of),
                owed=self.is_owed_to_another(resource, job_id),
            )
            for resource in self.needed_by(job_id)
        )

    def is_within_rules(
        self, job_id: str, *, also: Sequence[str] = (), instead_of: str = ""
    ) -> bool:
        """Return whether its program is admitted, and no quota keeps it back."""
        tenant, agent, program = owners(job_id)
        beside = [i for i in [*self.running(), *also] if i != instead_of]
        return program not in self.premises.barred and all(
            self.accounts.admits(subject, sum(subject in owners(i) for i in beside))
            for subject in (tenant, agent)
        )

    def running(self) -> list[str]:
        return [i for i, known in self.known.items() if known.state == "running"]

    def holders(self, resource: Resource, *, also: Sequence[str] = (), instead_of: str = "") -> int:
        beside = [i for i in [*self.running(), *also] if i != instead_of]
        return sum(resource in self.held_by(i) for i in beside)

    def is_owed_to_another(self, resource: Resource, job_id: str) -> bool:
        debt = self.premises.owed.get(resource)
        return debt is not None and self.stands(*debt) and debt[0] != job_id

    # Debts.

    def waits_since_ms(self, job_id: str) -> int | None:
        """Return the time in the record of one that waits, or did before the claim in hand."""
        status, since = self.raw.hmget(Keys().job(job_id), ("status", "aios_ready_ms"))
        lent_now = status == b"started" and job_id in self.line
        return int(since) if status == b"queued" or lent_now else None

    def stands(self, job_id: str, since_ms: int) -> bool:
        """Return whether a debt lasts: it waits still, and only for resources."""
        return (
            self.waits_since_ms(job_id) == since_ms
            and self.can_be_owed(job_id)
            and self.is_within_rules(job_id)
        )

    def can_be_owed(self, job_id: str) -> bool:
        resources = self.needed_by(job_id)
        return bool(resources) and all(self.premises.limit(r) != 0 for r in resources)

    def settle_debts(self) -> None:
        self.premises.owed = {r: d for r, d in self.premises.owed.items() if self.stands(*d)}

    def pay(self, job_id: str) -> None:
        self.premises.owed = {r: d for r, d in self.premises.owed.items() if d[0] != job_id}

    def pass_over(self, job_id: str, chosen: Sequence[str]) -> None:
        """Owe it all that it needs, if it waits for that alone, and long enough."""
        seconds, micros = self.raw.time()
        since_ms = self.waits_since_ms(job_id)
        limited = [r for r in self.needed_by(job_id) if self.premises.limit(r) is not None]
        own_are_free = all(
            self.premises.is_free(
                resource,
                self.holders(resource, also=chosen),
                owed=self.is_owed_to_another(resource, job_id),
            )
            for resource in limited
            if resource not in (TOOL, LOCK)
        )
        if (
            since_ms is not None
            and seconds * 1000 + micros // 1000 - since_ms >= PATIENCE_MS
            and self.is_within_rules(job_id, also=chosen)
            and self.can_be_owed(job_id)
            and own_are_free  # else its own agent's or tenant's calls keep it back
            and not any(resource in self.premises.owed for resource in limited)
        ):
            self.premises.owed |= dict.fromkeys(limited, (job_id, since_ms))

    def debts_of_redis(self) -> dict[Resource, tuple[str, int]]:
        debts = {}
        for name, debt in self.raw.hgetall(Keys().own("owed:llm")).items():
            job_id, since = debt.decode().split(" ")
            debts[Resource.parse(name.decode())] = (job_id, int(since))
        return debts

    def all_have_waited_long(self) -> None:
        owed = {job_id for job_id, _ in self.premises.owed.values()}
        for job_id in self.line:
            if job_id not in owed:
                self.raw.hincrby(Keys().job(job_id), "aios_ready_ms", -LONG_MS)
