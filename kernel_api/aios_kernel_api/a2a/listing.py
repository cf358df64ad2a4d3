"""Which tasks an agent has: such as have not ended, and of those that have what is still kept."""

import asyncio
import re
from dataclasses import dataclass

from aios_broker.contract.errors import UnknownSyscall
from aios_broker.contract.names import Owner
from aios_broker.contract.reply import decode_reply
from aios_broker.contract.syscall import MODULES
from aios_broker.ledger.programs import recent_syscalls
from aios_broker.queues.quota import Subject
from aios_broker.queues.records import JobView
from aios_broker.views.live import owned_jobs
from aios_kernel_api.a2a.model import ListParams, Task, TaskPage, TaskStatus
from aios_kernel_api.a2a.refusals import invalid
from aios_kernel_api.a2a.tasks import (
    ended_task,
    final_state,
    live_task,
    without_artifacts,
)
from aios_kernel_api.kernel import Kernel

MOST_LISTED = 1_000  # tasks of one agent that have not ended, that a list looks at
MOST_ENDED = 200  # of those that have: each is looked for
# Of the replies that are read for one page, and one that is larger: then the next page begins.
MOST_PAGE_BYTES = 4 * 1024 * 1024
_PLACE = re.compile(r"(-?[0-9]{1,15}):([0-9a-f]{32})")
Age = tuple[int, str]  # a task's place among its agent's: the newest has the lowest


async def task_page(kernel: Kernel, owner: Owner, params: ListParams) -> TaskPage:
    """Return some of an agent's tasks, newest first.

    Raises:
        InvalidSyscall: by when they changed, which is not known of those that run.
    """
    if params.status_timestamp_after is not None:
        raise invalid(
            "statusTimestampAfter",
            "when a task changed last is not known",
            "leave it out: the newest come first",
        )
    after = _place(params.page_token)
    live = {_age_of(job): live_task(job) for job in await _live(kernel, owner)}
    known = {task.id for task in live.values()}
    ended = await _ended(kernel, owner, known)
    tasks = {**{age: one.task for age, one in ended.items()}, **live}
    meant = [age for age, task in tasks.items() if _is_meant(task, params)]
    rest = sorted(age for age in meant if after is None or age > after)
    shown: list[Task] = []
    size_bytes, last = 0, ""
    async with kernel.large_work.of(owner) as progress:
        for age in rest:
            one = None if age in live else ended[age]
            if one is not None and (params.include_artifacts or not one.is_whole):
                size_bytes += one.size_bytes
            if len(shown) == params.page_size or (shown and size_bytes > MOST_PAGE_BYTES):
                break
            last = "{}:{}".format(*age)
            if one is None or (one.is_whole and not params.include_artifacts):
                shown.append(tasks[age])
                continue
            await progress.before(one.size_bytes)
            read = await _read(kernel, owner, one.task)
            if read is not None:
                shown.append(read if params.include_artifacts else without_artifacts(read))
        else:
            last = ""
    return TaskPage(shown, last, len(shown), len(meant))


async def _live(kernel: Kernel, owner: Owner) -> list[JobView]:
    subject = Subject.of_agent(owner.agent, owner.tenant)
    found: dict[str, JobView] = {}
    after: str | None = ""
    while after is not None and len(found) < MOST_LISTED:
        owned = await owned_jobs(kernel.control, subject, MODULES, MOST_LISTED, after)
        found.update((one.job_id, one) for one in owned.jobs)
        after = owned.after
    return list(found.values())


@dataclass(frozen=True, slots=True)
class EndedTask:
    """A task that has ended, as far as that is known without its reply."""

    task: Task
    size_bytes: int  # of its reply
    is_whole: bool  # but for what it made: nothing more is told of it


async def _ended(kernel: Kernel, owner: Owner, live: set[str]) -> dict[Age, EndedTask]:
    """Return the newest of those that the ledger has and whose replies are kept."""
    if kernel.database is None:
        return {}
    recent = await recent_syscalls(kernel.database, owner.tenant, owner.agent, MOST_ENDED)
    recent = [one for one in recent if one.job_id not in live]
    sizes = await asyncio.gather(*(kernel.control.reply_bytes(one.job_id) for one in recent))
    found: dict[Age, EndedTask] = {}
    read_bytes = 0
    for one, size_bytes in zip(recent, sizes, strict=True):
        if not size_bytes:
            continue
        state = final_state(one.state, one.error)
        task = Task(one.job_id, one.program, TaskStatus(state or "TASK_STATE_WORKING"))
        if state is None and read_bytes + size_bytes <= MOST_PAGE_BYTES:
            read_bytes += size_bytes  # the ledger is a moment behind: the reply says how it ended
            read = await _read(kernel, owner, task)
            if read is None:
                continue
            task = without_artifacts(read)
        is_whole = state in (None, "TASK_STATE_COMPLETED")
        age = -round(one.submitted_at.timestamp() * 1000), one.job_id
        found[age] = EndedTask(task, size_bytes, is_whole)
    return found


async def _read(kernel: Kernel, owner: Owner, task: Task) -> Task | None:
    """Return a task that has ended as its reply has it; None: that is kept no more."""
    try:
        reply = (await kernel.find_ended(task.id, owner)).reply  # one step each
    except UnknownSyscall:
        return None
    return task if reply is None else ended_task(decode_reply(reply), task.context_id)


def _is_meant(task: Task, params: ListParams) -> bool:
    return params.context_id in ("", task.context_id) and params.status in (
        "TASK_STATE_UNSPECIFIED",
        task.status.state,
    )


def _age_of(job: JobView) -> Age:
    return -round(job.submitted_at_s * 1000), job.job_id


def _place(token: str) -> Age | None:
    """Return the place behind which a page begins: that of the last task of the one before."""
    if not token:
        return None
    found = _PLACE.fullmatch(token)
    if found is None:
        raise invalid(
            "pageToken", "it is of no page", "send the nextPageToken of the page before, or none"
        )
    return int(found[1]), found[2]
