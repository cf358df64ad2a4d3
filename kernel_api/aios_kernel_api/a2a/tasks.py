"""A task is a syscall: where it stands, in the protocol's words, by whichever door it came.

Who may see the syscall sees the task. Who may only decide about it (an administrator, an agent that
the operator lets decide) sees what it asks, and not what it makes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from aios_broker.access.requests import find_approvals
from aios_broker.contract.access import Approval, ApprovalState
from aios_broker.contract.errors import UnknownSyscall
from aios_broker.contract.names import SyscallId
from aios_broker.contract.reply import ChatResult, Reply, Result, decode_reply
from aios_broker.contract.syscall import State
from aios_broker.queues.records import JobView
from aios_kernel_api.a2a.model import (
    JSON,
    TEXT,
    Artifact,
    Message,
    Part,
    Task,
    TaskState,
    TaskStatus,
)
from aios_kernel_api.a2a.refusals import unknown_task
from aios_kernel_api.identity import Caller
from aios_kernel_api.kernel import Kernel
from aios_kernel_api.large_work import weight_of
from aios_kernel_api.openapi import Json
from aios_kernel_api.problems import told_body
from aios_kernel_api.rest.access import cursor_of

ANSWER, REASONING, RESULT = "answer", "reasoning", "result"  # ids of artifacts
_STATES: Mapping[State, TaskState] = {
    "queued": "TASK_STATE_SUBMITTED",
    "running": "TASK_STATE_WORKING",
    "suspended": "TASK_STATE_WORKING",
    "held": "TASK_STATE_WORKING",
    "parked": "TASK_STATE_INPUT_REQUIRED",
    "finished": "TASK_STATE_COMPLETED",
    "failed": "TASK_STATE_FAILED",
    "cancelled": "TASK_STATE_CANCELED",
}
_DECIDED: Mapping[ApprovalState, TaskState] = {
    "waiting": "TASK_STATE_INPUT_REQUIRED",
    "approved": "TASK_STATE_WORKING",
    "used": "TASK_STATE_WORKING",
    "denied": "TASK_STATE_REJECTED",
    "expired": "TASK_STATE_FAILED",
}
_ERRORS: Mapping[str, TaskState] = {
    "cancelled": "TASK_STATE_CANCELED",
    "approval-denied": "TASK_STATE_REJECTED",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """A task as somebody may see it."""

    task: Task
    live: JobView | None = None  # of one that has not ended, for whom it is told to
    approval: Approval | None = None  # what it asks, where it waits for that


async def look(kernel: Kernel, caller: Caller, task_id: str) -> Seen:
    """Return a task as the caller may see it.

    Raises:
        Refusal: there is none of that id that the caller may know of.
    """
    try:
        msgspec.convert(task_id, SyscallId)
    except msgspec.ValidationError as error:
        raise unknown_task(task_id) from error
    try:
        found = await kernel.find(task_id, caller.asks_as)
    except UnknownSyscall as error:
        approval = await approval_of(kernel, caller, task_id)
        if approval is None:
            raise unknown_task(task_id) from error
        return Seen(decided_task(approval), None, approval)
    if found.live is not None:
        return await look_at(kernel, caller, found.live)
    metadata = await kernel.control.metadata(task_id)
    program = "" if metadata is None else metadata.program
    if found.reply is not None:
        async with kernel.large_work.of(caller.owner) as progress:
            await progress.before(weight_of(found.reply))
            return Seen(ended_task(decode_reply(found.reply), program))
    return Seen(Task(task_id, program, TaskStatus("TASK_STATE_WORKING")))  # it is just ending


async def look_at(kernel: Kernel, caller: Caller, job: JobView) -> Seen:
    """Return a task that has not ended, with what it asks."""
    if job.state != "parked":
        return Seen(live_task(job), job)
    approval = await approval_of(kernel, caller, job.job_id)
    if approval is None or approval.state != "waiting":  # decided: it goes on in a moment
        return Seen(Task(job.job_id, job.metadata.program, TaskStatus("TASK_STATE_WORKING")), job)
    return Seen(asking_task(approval, job.metadata.program), job, approval)


async def approval_of(kernel: Kernel, caller: Caller, task_id: str) -> Approval | None:
    """Return the newest approval of a task that the caller may see; None: there is none."""
    if kernel.store is None:
        return None
    async with cursor_of(kernel, caller) as cursor:
        found = await find_approvals(cursor, task_id, 1)
    return next((one for one in found if one.syscall_id == task_id), None)


def live_task(job: JobView) -> Task:
    """Return a task that has not ended; what one asks that is parked is not looked up."""
    state = _STATES[job.state]
    if job.state == "queued" and job.attempt:  # it has run before
        state = "TASK_STATE_WORKING"
    return Task(job.job_id, job.metadata.program, TaskStatus(state))


def asking_task(approval: Approval, context_id: str) -> Task:
    """Return a task that waits for a person."""
    task_id = approval.syscall_id
    expires_at = told_time(approval.expires_at)
    asked: Json = {
        "approval": approval.id,
        "kind": approval.kind,
        "operation": approval.operation,
        "arguments": approval.arguments,
        "diff": approval.diff,
        "objects": msgspec.to_builtins(approval.objects),
        "expiresAt": expires_at,
    }
    words = f"{approval.what}\n\nAnswer `approve`, or `deny` and why, before {expires_at}."
    message = Message(
        f"{task_id}.{approval.id}",
        "ROLE_AGENT",
        (Part(text=words, media_type=TEXT), Part(data=asked, media_type=JSON)),
        context_id,
        task_id,
    )
    status = TaskStatus("TASK_STATE_INPUT_REQUIRED", message, told_time(approval.asked_at))
    return Task(task_id, context_id, status)


def decided_task(approval: Approval) -> Task:
    """Return a task as somebody sees it who may decide about it, and may not see what it makes."""
    if approval.state == "waiting":
        return asking_task(approval, "")
    return Task(approval.syscall_id, "", TaskStatus(_DECIDED[approval.state]))


def ended_task(reply: Reply, context_id: str, timestamp: str = "") -> Task:
    """Return a task that has ended."""
    if reply.error is None:
        artifacts = () if reply.result is None else artifacts_of(reply.result)
        status = TaskStatus("TASK_STATE_COMPLETED", timestamp=timestamp)
        return Task(reply.id, context_id, status, artifacts)
    error = told_body(reply.error)
    words = f"{error.message}: {error.remedy}" if error.remedy else error.message
    message = Message(
        f"{reply.id}.error",
        "ROLE_AGENT",
        (
            Part(text=words, media_type=TEXT),
            Part(data=msgspec.to_builtins(error), media_type=JSON),
        ),
        context_id,
        reply.id,
    )
    state = _ERRORS.get(error.code, "TASK_STATE_FAILED")
    return Task(reply.id, context_id, TaskStatus(state, message, timestamp))


def final_state(state: str, error_code: str | None) -> TaskState | None:
    """Return where a task stands that has ended as the ledger has it; None: it has not, there."""
    if state == "finished":
        return "TASK_STATE_COMPLETED"
    if state in ("failed", "cancelled"):
        return _ERRORS.get(error_code or state, "TASK_STATE_FAILED")
    return None


def without_artifacts(task: Task) -> Task:
    """Return a task without what it made."""
    return msgspec.structs.replace(task, artifacts=())


def artifacts_of(result: Result) -> Sequence[Artifact]:
    """Return what a result says: its text, and all else as data."""
    data: Json = msgspec.to_builtins(result)
    texts = []
    if isinstance(result, ChatResult):
        for name, text in ((REASONING, result.reasoning), (ANSWER, result.text)):
            if text:
                texts.append(Artifact(name, (Part(text=text, media_type=TEXT),)))
        data = {name: value for name, value in data.items() if name not in ("text", "reasoning")}
    return (*texts, Artifact(RESULT, (Part(data=data, media_type=JSON),)))


def told_time(unix_s: float) -> str:
    """Return a time as the protocol writes it."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
