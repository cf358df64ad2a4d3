"""What operators and handles do with syscalls: look, cancel, retry, hold, release, renice."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from aios_broker.contract.cores import CoreCard
from aios_broker.contract.errors import InvalidConfig, KernelError, UnknownCore
from aios_broker.contract.names import Module, Owner
from aios_broker.contract.syscall import MODULES, State, known_needs
from aios_broker.queues.functions import Steps
from aios_broker.queues.order import ROUTED
from aios_broker.queues.quota import Subject, suspended
from aios_broker.queues.records import (
    CoreView,
    JobMetadata,
    JobView,
    PolicyRow,
    QueueView,
    Uncut,
    iso_now,
    read_metadata,
    who,
)
from aios_broker.queues.rows import CoreRow, JobRow, QueueRow
from aios_broker.redis.connection import Answer, Argument

Outcome = Literal["done", "unknown", "ended"]
# elsewhere: it is not parked; it runs, and may be about to be, or it waits already.
Unparked = Literal["done", "elsewhere", "unknown", "ended"]
# alive: it runs or waits; ended: it has not failed; bodiless: what it asked for is not kept;
# the rest: a new syscall would be refused for it, too.
Retried = Literal[
    "done",
    "alive",
    "ended",
    "unknown",
    "bodiless",
    "full",
    "unread",
    "core",
    "unserved",
    "quota",
    "stopped",
    "nice",
]

AT_ONCE = 64  # jobs of one step: about 3 ms of Redis' time
SEEN_AT_ONCE = 500  # live jobs that are looked at in one step: about 1 ms
VIEWED_AT_ONCE = 200  # jobs whose rows are read in one step: about 2 ms
PLACES_TOLD = 1_000  # the first of each queue
SUBJECTS_AT_ONCE = 500  # whose they may be


class Control(Steps):
    """The operator's view of all module queues."""

    async def cancel(
        self,
        job_ids: Sequence[str],
        error: KernelError,
        *,
        module: Module,
        owner: Owner | None = None,
    ) -> list[Outcome]:
        """End jobs with `error`, waiting or running; whoever waits hears it at once.

        A running one loses its lease (its worker is told to stop; a late finish is dropped).
        `owner`: who asks, to whom another agent's jobs are `unknown`; None: an operator.
        """
        body = msgspec.json.encode(error.to_wire())
        event = "cancel" if error.code == "cancelled" else "fail"
        arguments = (iso_now(), event, body, who(owner))
        return await self._outcomes(module, "cancel", job_ids, *arguments)

    async def hold(self, job_ids: Sequence[str], *, module: Module) -> list[Outcome]:
        """Take jobs out of the run queue until they are released; what runs is suspended."""
        return await self._outcomes(module, "hold", job_ids)

    async def release(self, job_ids: Sequence[str], *, module: Module) -> list[Outcome]:
        """Put held jobs back into the run queue."""
        return await self._outcomes(module, "release", job_ids)

    async def unpark(self, job_ids: Sequence[str], *, module: Module) -> list[Unparked]:
        """Put parked jobs at the head of the run queue: they ask again whether they may go on."""
        return [
            msgspec.convert(outcome, Unparked)
            for outcome in await self._words(module, "unpark", job_ids)
        ]

    async def retry(
        self, job_ids: Sequence[str], *, module: Module, owner: Owner | None = None
    ) -> list[Retried]:
        """Run failed jobs again, each under its id, from its beginning, with a new deadline.

        Whoever was told of the failure hears nothing more, unless it attaches again. `owner`: who
        asks, to whom another agent's jobs are `unknown`; None: an operator.
        """
        words = await self._words(module, "retry", job_ids, iso_now(), who(owner))
        return [msgspec.convert(word, Retried) for word in words]

    async def stop(self, subject: Subject, *, who: str) -> int:
        """Suspend an agent or a tenant: its syscalls are refused from now on, those alive end.

        Whoever waits for them hears it at once. Returns how many were ended.
        """
        await self._call("stop", MODULES[0], [str(subject), who])
        ended = 0
        for module in MODULES:
            ids = await self.all_owned([subject], module)
            ended += (await self.cancel(ids, suspended(subject), module=module)).count("done")
        return ended

    async def go_on(self, subject: Subject) -> bool:
        """Let an agent or a tenant go on; return whether it was suspended."""
        return bool(await self._call("stop", MODULES[0], [str(subject), ""]))

    async def stopped(self) -> dict[Subject, str]:
        """Return who is suspended, and by whom."""
        flat = await self._execute("HGETALL", self.keys.own("stopped"))
        return {
            Subject.parse(name.decode()): who.decode()
            for name, who in zip(flat[::2], flat[1::2], strict=True)
        }

    async def owned(
        self, subjects: Sequence[Subject], module: Module, cursor: str = "0"
    ) -> tuple[str, list[str]]:
        """Look at some live jobs: return where to go on (`0`: that was all), and those of theirs.

        `subjects` are agents, tenants or programs.
        """
        names = map(str, subjects)
        answer = await self._call("owned", module, [cursor, SEEN_AT_ONCE, *names])
        following, *ids = (each.decode() for each in answer)
        return following, ids

    async def all_owned(self, subjects: Sequence[Subject], module: Module) -> list[str]:
        """Return the jobs of agents, tenants or programs that have not ended."""
        found: dict[str, None] = {}
        for first in range(0, len(subjects), SUBJECTS_AT_ONCE):
            some, cursor = subjects[first : first + SUBJECTS_AT_ONCE], ""
            while cursor != "0":
                cursor, ids = await self.owned(some, module, cursor or "0")
                found.update(dict.fromkeys(ids))
        return list(found)

    async def stopped_among(self, subjects: Sequence[Subject]) -> list[Subject]:
        """Return which of these are suspended."""
        names = [str(subject) for subject in subjects]
        found = await self._execute("HMGET", self.keys.own("stopped"), *names)
        return [one for one, who in zip(subjects, found, strict=True) if who is not None]

    async def live(self, job_ids: Sequence[str], *, module: Module) -> list[bool]:
        """Tell which jobs have not ended."""
        if not job_ids:
            return []
        key = self.keys.own(f"live:{module}")
        found = await self._execute("HMGET", key, *job_ids)
        return [clients is not None for clients in found]

    async def nice(self, job_ids: Sequence[str], nice: int, *, module: Module) -> list[Outcome]:
        """Change the nice value; the scheduler scores the job anew."""
        return await self._outcomes(module, "nice", job_ids, nice)

    async def jobs(self, module: Module, *, limit: int = 1000) -> list[JobView]:
        """Return running jobs, then waiting ones in queue order, then held and parked ones."""
        rows = await self._call("look", module, ["jobs", limit])
        return [_job_view(module, row) for row in rows]

    async def jobs_of(self, job_ids: Sequence[str], module: Module) -> list[JobView]:
        """Return those of these jobs that have not ended, with their places at queues' heads."""
        found: list[JobView] = []
        for first in range(0, len(job_ids), VIEWED_AT_ONCE):
            some = job_ids[first : first + VIEWED_AT_ONCE]
            rows = await self._call("look", module, ["some", PLACES_TOLD, *some])
            found += [_job_view(module, row) for row in rows]
        return found

    async def job(self, job_id: str, modules: Sequence[Module] = MODULES) -> JobView | None:
        """Return one job that has not ended, in whichever of these modules it is."""
        for module in modules:
            rows = await self._call("look", module, ["job", job_id])
            if rows:
                return _job_view(module, rows[0])
        return None

    async def metadata(self, job_id: str) -> JobMetadata | None:
        """Return what is known of a job, also once it has ended; None: it has no record left."""
        found = await self._execute("HGET", self.keys.job(job_id), "aios_metadata")
        return None if found is None else read_metadata(found)

    async def reply_bytes(self, job_id: str) -> int:
        """Return how large the reply is that is kept of a job; 0: there is none."""
        found: int = await self._execute("HSTRLEN", self.keys.job(job_id), "aios_reply")
        return found

    async def queue(self, module: Module) -> QueueView:
        """Return one module's queue at a glance."""
        row = QueueRow(*await self._call("look", module, ["queue"]))
        return QueueView(
            module=module,
            waiting=row.waiting,
            running=row.running,
            held=row.held,
            finished=row.finished,
            failed=row.failed,
            quarantined=row.quarantined,
            policy=row.policy.decode(),
            oldest_wait_s=row.oldest_ms / 1000,
            parked=row.parked,
            cores=await self.cores() if module == ROUTED else (),
        )

    async def cores(self) -> list[CoreView]:
        """Return the cores that are known, in the order of their names."""
        rows = [CoreRow(*row) for row in await self._call("cores", ROUTED, [])]
        return [
            CoreView(
                card=msgspec.json.decode(row.card, type=CoreCard),
                slots=None if row.slots < 0 else row.slots,
                silent_s=row.silent_ms / 1000,
                waiting=row.waiting,
                running=row.running,
            )
            for row in rows
        ]

    async def remove_core(self, name: str) -> None:
        """Forget a core whose workers are gone.

        What waits for it goes where its name leads then; what names it alone ends with UnknownCore.

        Raises:
            UnknownCore: there is none of that name.
            InvalidConfig: a worker serves it.
        """
        answer = await self._call("remove_core", ROUTED, [name])
        if answer == 0:
            raise UnknownCore(
                f"no core is named {name!r}",
                field="name",
                remedy="`aios cores list` shows those that are known",
            )
        if answer < 0:
            raise InvalidConfig(
                f"a worker serves the core {name!r}",
                field="name",
                remedy="stop its workers first; it would register the core anew",
            )

    async def policy(self, module: Module) -> PolicyRow:
        """Return the policy that is in force."""
        fields = await self._execute("HGETALL", self.keys.own(f"policy:{module}"))
        pairs = {fields[i].decode(): fields[i + 1].decode() for i in range(0, len(fields), 2)}
        return msgspec.convert(pairs, PolicyRow, strict=False)

    async def set_policy(self, module: Module, policy: PolicyRow) -> None:
        """Publish a policy: the scheduler and the workers follow it from their next step on."""
        row = msgspec.to_builtins(policy)
        flat = [part for item in row.items() for part in item]
        await self._execute("HSET", self.keys.own(f"policy:{module}"), *flat)

    async def _outcomes(
        self, module: Module, step: str, job_ids: Sequence[str], *arguments: Argument
    ) -> list[Outcome]:
        return [
            msgspec.convert(word, Outcome)
            for word in await self._words(module, step, job_ids, *arguments)
        ]

    async def _words(
        self, module: Module, step: str, job_ids: Sequence[str], *arguments: Argument
    ) -> list[str]:
        """Take a step for jobs, a part of them at a time: Redis serves nobody else meanwhile."""
        words: list[str] = []
        for first in range(0, len(job_ids), AT_ONCE):
            part = job_ids[first : first + AT_ONCE]
            answer = await self._call(step, module, [*arguments, *part])
            words += (word.decode() for word in answer)
        return words


def _job_view(module: str, answer: Answer) -> JobView:
    row = JobRow(*answer)
    known = read_metadata(row.metadata)
    if row.nice is not None:
        known = msgspec.structs.replace(known, nice=int(row.nice))
    return JobView(
        job_id=row.id.decode(),
        module=module,
        state=_state(row.state),
        metadata=known,
        needs=known_needs(row.needs.decode()),
        worker=row.worker.decode(),
        attempt=row.attempt,
        slices=row.slices,
        suspensions=row.suspensions,
        losses=row.losses,
        tokens=row.tokens,
        queued_s=row.queued_ms / 1000,
        ran_s=row.ran_ms / 1000,
        age_s=row.age_ms / 1000,
        submitted_at_s=row.submitted_ms / 1000,
        deadline_in_s=None if row.deadline_ms is None else row.deadline_ms / 1000,
        position=row.position,
        score=None if row.score is None else float(row.score),
        uncut=None if row.uncut is None else _uncut(row.uncut),
        queue=row.queue.decode(),
    )


def _uncut(text: bytes) -> Uncut:
    slice_ms, resume_ms, least_ms, contexts, fits = map(int, text.split())
    return Uncut(slice_ms / 1000, resume_ms / 1000, least_ms / 1000, contexts, fits)


def _state(raw: bytes) -> State:
    state: State = msgspec.convert(raw.decode(), State)
    return state
