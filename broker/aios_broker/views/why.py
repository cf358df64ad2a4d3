"""Why a syscall is where it is: the rule that keeps it there, and the numbers of that rule.

`explain` is pure: what was read goes in, an explanation comes out. Rules are tried in the order in
which they would have to be lifted for the syscall to run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from aios_broker.contract.access import Approval
from aios_broker.contract.money import NANO_PER_UNIT, shown
from aios_broker.contract.names import Module
from aios_broker.contract.reply import Reply
from aios_broker.contract.syscall import State
from aios_broker.queues.admission import Admission, NotAdmitted, RateLimited, Shortage
from aios_broker.queues.control import Control
from aios_broker.queues.fleet import Fleet, WorkerView
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.quota import BUDGET_WINDOWS, Barrier
from aios_broker.queues.records import CoreView, JobView, PolicyRow, Uncut
from aios_broker.views.words import plural, seconds, short_id

HOLDERS_NAMED = 4  # of who has what it waits for
JOBS_LIMIT = 1000  # of its module; who runs, and the head of those that wait

Rule = Literal[
    "running",
    "held",
    "parked",
    "fleet-suspended",
    "no-worker",
    "no-core",
    "program",
    "quota",
    "rate",
    "resource",
    "next",
    "order",
    "finished",
    "failed",
    "cancelled",
]

Number = int | float | str | None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What decides over a waiting syscall, read at one moment."""

    policy: PolicyRow
    jobs: Sequence[JobView]  # of its module: running ones, waiting ones in order, held ones
    workers: Sequence[WorkerView]  # of its module
    fleet_suspended: bool  # `rq suspend`: workers take nothing new
    scheduler: str | None  # who leads; None: nobody, the last order holds, then arrival
    barrier: Barrier | Shortage | NotAdmitted | RateLimited | None = (
        None  # what keeps it from running
    )
    approval: Approval | None = None  # that it waits for, where the database answers
    core: CoreView | None = None  # in whose run queue it is


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer of `aios why`. A number has its unit in its name: `waited_s`, `resume_ms`."""

    rule: Rule
    text: str
    numbers: dict[str, Number]
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A syscall that has ended and whose reply has not expired. `reply` None: only the state."""

    job_id: str
    state: State
    reply: Reply | None


async def surroundings(
    functions: Functions, keys: Keys, job: JobView, approval: Approval | None
) -> Surroundings:
    """Read what decides over a job; `approval`: that it waits for, where it is parked."""
    module = msgspec.convert(job.module, Module)
    control, fleet = Control(functions, keys), Fleet(functions.connection, keys)
    admission = Admission(functions, keys)
    workers = [worker for worker in await fleet.live_workers() if worker.module == module]
    return Surroundings(
        policy=await control.policy(module),
        jobs=await control.jobs(module, limit=JOBS_LIMIT),
        workers=workers,
        fleet_suspended=await fleet.suspended(),
        scheduler=await fleet.leading_scheduler(),
        barrier=None if job.position is None else await admission.barrier(module, job.job_id),
        approval=approval,
        core=await _core_of(control, job),
    )


async def _core_of(control: Control, job: JobView) -> CoreView | None:
    """Return the core in whose run queue a syscall is; None where it is in its module's own."""
    if not job.core:
        return None
    cores = {view.card.name: view for view in await control.cores()}
    return cores.get(job.core)


def explain(job: JobView, around: Surroundings) -> Explanation:
    """Say what a syscall that has not ended waits for, or where it runs."""
    common: dict[str, Number] = {
        "state": job.state,
        "module": job.module,
        "tenant": job.metadata.tenant,
        "agent": job.metadata.agent,
        "program": job.metadata.program,
        "nice": job.metadata.nice,
        "waited_s": round(job.queued_s, 3),
        "ran_s": round(job.ran_s, 3),
        "slices": job.slices,
        "tokens": job.tokens,
        "losses": job.losses,
        "deadline_in_s": None if job.deadline_in_s is None else round(job.deadline_in_s, 3),
    }
    rules = (_runs, _kept_out, _nobody_serves, _barred, _ordered)
    found = next(found for rule in rules if (found := rule(job, around)) is not None)
    return Explanation(found.rule, found.text, {**common, **found.numbers}, found.remedy)


def explain_ended(ended: Ended) -> Explanation:
    """Say how a syscall ended."""
    rule: Rule = "failed"
    if ended.state in ("finished", "cancelled"):
        rule = ended.state
    reply = ended.reply
    if reply is None:
        return Explanation(rule, f"It has ended ({ended.state}); its reply has expired.", {})
    numbers: dict[str, Number] = {}
    # A syscall that no worker answered (cancelled, late, removed) has no timings in its reply.
    if reply.timings.attempts:
        numbers = {
            "waited_s": round(reply.timings.queued_s, 3),
            "ran_s": round(reply.timings.ran_s, 3),
            "slices": reply.timings.slices,
            "suspensions": reply.timings.suspensions,
            "attempts": reply.timings.attempts,
            "worker": reply.worker or None,
        }
    error = reply.error
    if error is None:
        return Explanation(rule, "It has finished; its reply is still there.", numbers)
    text = f"It has ended with {error.code}: {error.message}"
    return Explanation(rule, text, {**numbers, "error": error.code}, error.remedy)


def _quantum(policy: PolicyRow) -> str:
    return f"{policy.quantum_tokens} tokens or {seconds(policy.quantum_s)}"


def _uncut_words(uncut: Uncut) -> str:
    pays = f"it pays after {seconds(uncut.least_s)}, its slice has lasted {seconds(uncut.slice_s)}"
    if uncut.is_crowded:
        return f"{uncut.contexts} contexts are begun and {uncut.fits} fit the memory, so {pays}"
    return f"resuming it costs {seconds(uncut.resume_s)}, so {pays}"


def _uncut_numbers(uncut: Uncut | None) -> dict[str, Number]:
    if uncut is None:
        return {}
    return {
        "resume_ms": round(uncut.resume_s * 1000),
        "slice_ms": round(uncut.slice_s * 1000),
        "cut_pays_after_ms": round(uncut.least_s * 1000),
        "contexts": uncut.contexts if uncut.fits else None,
        "contexts_that_fit": uncut.fits or None,
    }


def _runs(job: JobView, around: Surroundings) -> Explanation | None:
    if job.state != "running":
        return None
    policy = around.policy
    preempted = (
        "it is not preempted"
        if policy.preempt == "none"
        else f"it is suspended after {_quantum(policy)} if somebody deserving waits"
    )
    text = f"It runs on {job.worker}; under {policy.name} {preempted}."
    if job.uncut is not None:
        text += f" It was not interrupted lately: {_uncut_words(job.uncut)}."
    numbers: dict[str, Number] = {
        "worker": job.worker,
        "policy": policy.name,
        "attempt": job.attempt,
        **_uncut_numbers(job.uncut),
    }
    return Explanation("running", text, numbers)


def _kept_out(job: JobView, around: Surroundings) -> Explanation | None:
    typed, asked = short_id(job.job_id), around.approval
    if job.state == "held":
        text = "An operator took it out of the run queue."
        return Explanation("held", text, {}, f"`aios resume {typed}` puts it back")
    if job.state != "parked":
        return None
    if asked is None:
        return Explanation(
            "parked",
            "It waits for a person's approval.",
            {},
            "`aios approvals` shows what it would do; `aios approve ID` or `aios deny ID` decides",
        )
    if asked.state != "waiting":
        return Explanation(
            "parked",
            f"Its approval is {asked.state}: it goes on within a second.",
            {"approval": asked.id, "decided_by": asked.decided_by or None},
        )
    return Explanation(
        "parked",
        f"It waits for a person's approval: {asked.what}.",
        {"approval": asked.id, "expires_at_s": asked.expires_at},
        f"`aios approve {typed}` shows what would be lost and asks; `aios deny {typed}` refuses",
    )


def _nobody_serves(job: JobView, around: Surroundings) -> Explanation | None:
    if around.fleet_suspended:
        return Explanation(
            "fleet-suspended",
            "The fleet is suspended (`rq suspend`): workers take nothing new.",
            {},
            "`rq resume` lets them go on",
        )
    if around.core is not None and around.core.slots is None:
        return _core_without_worker(job, around.core)
    if not around.workers:
        return Explanation(
            "no-worker",
            f"No worker of module {job.module} lives.",
            {"live_workers": 0},
            "`aios status` shows the processes; `aios up` starts them",
        )
    if job.core and not any(job.core in worker.cores for worker in around.workers):
        served = sorted({core for worker in around.workers for core in worker.cores})
        return Explanation(
            "no-core",
            f"No live worker serves the core {job.core!r}.",
            {"live_workers": len(around.workers), "cores": ", ".join(served) or "none"},
            "start a worker with that core, or submit without a core",
        )
    return None


def _core_without_worker(job: JobView, core: CoreView) -> Explanation:
    name, silent, asked = core.card.name, seconds(core.silent_s), job.asked_core
    text = f"No worker serves the core {name!r} since {silent}."
    if asked != name:
        text += " It goes to another one that its name leads to, as soon as one lives."
        if job.attempt:
            text = f"{text[:-1]} and has the same model: it has begun."
    return Explanation(
        "no-core",
        text,
        {
            "core": name,
            "asked_for": asked or None,
            "silent_s": round(core.silent_s, 3),
            "waiting": core.waiting,
        },
        "start its worker; `aios kill` ends the syscall, "
        "`aios cores remove` ends all that wait for the core",
    )


def _barred(_job: JobView, around: Surroundings) -> Explanation | None:
    match around.barrier:
        case Shortage() as shortage:
            return _short_of(shortage)
        case Barrier() as barrier:
            return _over_budget(barrier) if barrier.currency else _over_quota(barrier)
        case RateLimited() as limited:
            return _held_back(limited)
        case NotAdmitted(program=program, ends_in_s=ends_in_s):
            return Explanation(
                "program",
                f"The policy does not admit {program.full_words} now.",
                {"program": program.program, "for_another_s": round(ends_in_s, 3)},
                "`aios policy` shows the policy; it is admitted when others have ended",
            )
        case None:
            return None


def _short_of(shortage: Shortage) -> Explanation:
    what, owed_to = shortage.resource.words, shortage.owed_to
    text = f"It waits for {what}: {shortage.holders} of {plural(shortage.limit, 'place')} taken"
    if shortage.held_by:
        named = ", ".join(map(short_id, shortage.held_by[:HOLDERS_NAMED]))
        more = len(shortage.held_by) - HOLDERS_NAMED
        text += f" by {named}" + (f" and {more} more" if more > 0 else "")
    if owed_to is not None:
        text += f", and the next place is owed to {short_id(owed_to)}, which has waited longer"
    return Explanation(
        "resource",
        f"{text}.",
        {
            "resource": str(shortage.resource),
            "limit": shortage.limit,
            "held": shortage.holders,
            "held_by": " ".join(shortage.held_by[:HOLDERS_NAMED]) or None,
            "owed_to": owed_to,
        },
        "it goes on when one of them ends or is suspended" if shortage.limit else "raise its limit",
    )


def _over_quota(barrier: Barrier) -> Explanation:
    who, most = barrier.subject.full_words, f"{barrier.most:g}"
    opens_in = None if barrier.opens_in_s is None else seconds(barrier.opens_in_s)
    when = f"in {opens_in}" if opens_in else "never, under this quota"
    if barrier.limit == "max_running":
        text = f"{who} runs {barrier.used:g} syscalls, and its quota is {most}"
        when = "when one of them ends or is suspended" if barrier.most else when
    else:
        unit = "tokens" if barrier.limit == "tokens_per_minute" else "slot-seconds"
        text = f"{who} has used up its {most} {unit} per minute"
    return Explanation(
        "quota",
        f"{text[0].upper()}{text[1:]}. It may go on {when}.",
        {
            "quota": barrier.limit,
            "limit": barrier.most,
            "used": round(barrier.used, 3),
            "opens_in_s": None if barrier.opens_in_s is None else round(barrier.opens_in_s, 3),
        },
        "`aios quota show` shows the quotas, `aios quota set` changes them",
    )


def _over_budget(barrier: Barrier) -> Explanation:
    who, window = barrier.subject.full_words, BUDGET_WINDOWS[barrier.limit]
    spent, most = (shown(int(each), barrier.currency) for each in (barrier.used, barrier.most))
    opens_in = seconds(barrier.opens_in_s or 0.0)
    text = f"{who} has spent {spent} this {window} (UTC), and its budget is {most}"
    return Explanation(
        "quota",
        f"{text[0].upper()}{text[1:]}. It may begin in {opens_in}.",
        {
            "quota": barrier.limit,
            "budget": barrier.most / NANO_PER_UNIT,
            "spent": barrier.used / NANO_PER_UNIT,
            "currency": barrier.currency,
            "opens_in_s": round(barrier.opens_in_s or 0.0, 3),
        },
        "`aios quota set` raises the budget; a core without a price needs none",
    )


def _held_back(limited: RateLimited) -> Explanation:
    core, opens_in = limited.core, seconds(limited.opens_in_s)
    numbers: dict[str, Number] = {"core": core, "opens_in_s": round(limited.opens_in_s, 3)}
    if limited.what == "told":
        text = f"The endpoint of core {core!r} has asked all workers to wait (429)"
    else:
        numbers |= {"limit": limited.most, "sent": limited.used}
        text = (
            f"The account of core {core!r} has had {limited.used} {limited.what} in the last "
            f"minute, and its limit is {limited.most}"
        )
    return Explanation(
        "rate",
        f"{text}. More may be sent in {opens_in}.",
        numbers,
        f"the limits are those of core {core!r} in cores.toml",
    )


def _ordered(job: JobView, around: Surroundings) -> Explanation:
    policy = around.policy
    waiting = [
        other
        for other in around.jobs
        if other.position is not None and other.queue == job.queue  # the line that it stands in
    ]
    running = [other for other in around.jobs if other.state == "running"]
    serving = [each for each in around.workers if not job.core or job.core in each.cores]
    slots = sum(worker.slots for worker in serving)
    names = {worker.name for worker in serving}
    busy = sum(other.worker in names for other in running)
    position = job.position if job.position is not None else len(waiting)
    numbers: dict[str, Number] = {
        "core": job.core or None,
        "position": position + 1,
        "waiting": max(len(waiting), 1),
        "slots": slots,
        "free_slots": max(slots - busy, 0),
        "policy": policy.name,
        "score": job.score,
        "head_score": waiting[0].score if waiting else None,
        "quantum_tokens": policy.quantum_tokens,
        "quantum_s": policy.quantum_s,
        "scheduler": around.scheduler or "none lives: the last order, then arrival",
    }
    if slots - busy > position:
        return Explanation(
            "next", f"{plural(slots - busy, 'slot')} free: a worker is about to take it.", numbers
        )
    who = ", ".join(f"{_whose(other)} ({short_id(other.job_id)})" for other in running)
    before = {0: "it is next", 1: "1 syscall goes before it"}
    ends = (
        "a slot is freed when one of them ends"
        if policy.preempt == "none"
        else f"each may be interrupted after {_quantum(policy)}"
    )
    text = (
        f"{busy} of {plural(slots, 'slot')} busy, and under {policy.name} "
        f"{before.get(position, f'{position} syscalls go before it')}. "
        f"Running: {who or 'nobody we see'}; {ends}."
    )
    uncut = next((other for other in running if other.uncut is not None), None)
    if policy.preempt != "none" and uncut is not None and uncut.uncut is not None:
        text += f" {short_id(uncut.job_id)} was not interrupted: {_uncut_words(uncut.uncut)}."
        numbers |= _uncut_numbers(uncut.uncut)
    return Explanation("order", text, numbers)


def _whose(job: JobView) -> str:
    return f"{job.metadata.tenant}/{job.metadata.agent}"
