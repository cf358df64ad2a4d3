"""Where a syscall stands, as the API shows it; and a list of such, no larger than it may be."""

from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import Response

from aios_broker.client.pending import Pending
from aios_broker.contract.errors import ErrorBody
from aios_broker.contract.names import Module
from aios_broker.contract.reply import Reply, Result, Timings, decode_reply
from aios_broker.contract.syscall import State
from aios_broker.queues.records import JobView
from aios_kernel_api.kernel import Found
from aios_kernel_api.large_work import WorkProgress
from aios_kernel_api.problems import told_body

MOST_ANSWER_BYTES = 32 * 1024 * 1024  # of a list's answer: results beyond that are left out
# refused: nothing of it runs. lost: the kernel did not answer; it may run.
ViewState = Literal[State, "refused", "lost"]


class SyscallView(Struct, frozen=True, omit_defaults=True):
    """Where a syscall stands; a result or an error once it has ended."""

    id: str
    state: ViewState
    module: Module | None = None
    position: int | None = None  # 0 is next; none when it does not wait
    worker: str = ""
    attempt: int = 0
    slices: int = 0
    suspensions: int = 0
    tokens: int = 0
    queued_s: float = 0.0
    ran_s: float = 0.0
    deadline_in_s: float | None = None
    result: Result | None = None
    error: ErrorBody | None = None
    timings: Timings | None = None
    left_out: bool = False  # its result, from a list that is too large with it: ask for it by `id`


def view_of(syscall_id: str, found: Found) -> SyscallView:
    """Return a syscall as it is shown."""
    if found.reply is not None:
        return ended_view(decode_reply(found.reply))
    if found.live is not None:
        return live_view(found.live)
    return SyscallView(syscall_id, msgspec.convert(found.state, State))


def ended_view(reply: Reply) -> SyscallView:
    """Return a syscall that has ended as it is shown."""
    if reply.error is None:
        state: State = "finished"
    else:
        state = "cancelled" if reply.error.code == "cancelled" else "failed"
    return SyscallView(
        reply.id,
        state,
        worker=reply.worker,
        result=reply.result,
        error=reply.error and told_body(reply.error),
        timings=reply.timings,
    )


def answer(view: SyscallView, status: int = 200) -> Response:
    """Return what shows a syscall."""
    headers = {"location": f"/v1/syscalls/{view.id}"}
    return Response(msgspec.json.encode(view), status, headers, "application/json")


def live_view(live: JobView) -> SyscallView:
    """Return a syscall that has not ended as it is shown."""
    return SyscallView(
        live.job_id,
        live.state,
        module=msgspec.convert(live.module, Module),
        position=live.position,
        worker=live.worker,
        attempt=live.attempt,
        slices=live.slices,
        suspensions=live.suspensions,
        tokens=live.tokens,
        queued_s=live.queued_s,
        ran_s=live.ran_s,
        deadline_in_s=live.deadline_in_s,
    )


def view_of_pending(pending: Pending) -> SyscallView:
    """Return a syscall that was submitted here, as far as it was heard of."""
    if pending.reply is None:
        return taken_view(pending)
    view = ended_view(pending.reply)
    if pending.state == "ended":
        return view
    return replace(view, state="refused" if pending.state == "refused" else "lost")


def taken_view(pending: Pending) -> SyscallView:
    """Return a syscall that the kernel has just taken."""
    return SyscallView(pending.id, "queued", pending.module)


async def encoded_list(views: Sequence[SyscallView], progress: WorkProgress) -> bytes:
    """Return a list as JSON that is not much larger than it may be."""
    parts: list[bytes] = []
    size_bytes = 0
    for view in views:
        part = msgspec.json.encode(view)
        await progress.before(len(part))
        size_bytes += len(part)
        if size_bytes > MOST_ANSWER_BYTES and view.result is not None:
            size_bytes -= len(part)
            part = msgspec.json.encode(replace(view, result=None, left_out=True))
        parts.append(part)
    return b"[" + b",".join(parts) + b"]"
