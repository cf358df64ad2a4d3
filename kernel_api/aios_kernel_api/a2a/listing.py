"""Which tasks an agent has: such as have not ended, and of those that have what is still kept."""

import asyncio
import re

from aios_broker.contract.errors import UnknownSyscall
from aios_broker.contract.names import Owner
from aios_broker.contract.reply import decode_reply
from aios_broker.contract.syscall import MODULES
from aios_broker.ledger.programs import RecentSyscall, recent_syscalls
from aios_broker.queues.quota import Subject
from aios_broker.queues.records import JobView
from aios_broker.views.live import owned_jobs
from aios_kernel_api.a2a.model import ListParams, Task, TaskPage
from aios_kernel_api.a2a.refusals import invalid
from aios_kernel_api.a2a.tasks import ended_task, live_task, without_artifacts
from aios_kernel_api.kernel import Kernel

MOST_LISTED = 1_000  # tasks of one agent that have not ended, that a list looks at
MOST_ENDED = 200  # of those that have: each is looked for
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
    tasks = {**await _ended(kernel, owner, known), **live}
    meant = {age: task for age, task in tasks.items() if _is_meant(task, params)}
    rest = sorted(age for age in meant if after is None or age > after)
    page = rest[: params.page_size]
    last = "{}:{}".format(*page[-1]) if len(page) < len(rest) else ""
    shown = [meant[age] for age in page]
    if not params.include_artifacts:
        shown = [without_artifacts(task) for task in shown]
    return TaskPage(shown, last, len(page), len(meant))


async def _live(kernel: Kernel, owner: Owner) -> list[JobView]:
    subject = Subject.of_agent(owner.agent, owner.tenant)
    found: dict[str, JobView] = {}
    after: str | None = ""
    while after is not None and len(found) < MOST_LISTED:
        owned = await owned_jobs(kernel.control, subject, MODULES, MOST_LISTED, after)
        found.update((one.job_id, one) for one in owned.jobs)
        after = owned.after
    return list(found.values())


async def _ended(kernel: Kernel, owner: Owner, live: set[str]) -> dict[Age, Task]:
    """Return the newest of those that the ledger has and whose replies are kept."""
    if kernel.database is None:
        return {}

    async def kept(one: RecentSyscall) -> Task | None:
        try:
            reply = (await kernel.find_ended(one.job_id, owner)).reply  # in one step each
        except UnknownSyscall:
            return None
        return None if reply is None else ended_task(decode_reply(reply), one.program)

    recent = await recent_syscalls(kernel.database, owner.tenant, owner.agent, MOST_ENDED)
    recent = [one for one in recent if one.job_id not in live]
    tasks = await asyncio.gather(*map(kept, recent))
    return {
        (-round(one.submitted_at.timestamp() * 1000), one.job_id): task
        for one, task in zip(recent, tasks, strict=True)
        if task is not None
    }


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
