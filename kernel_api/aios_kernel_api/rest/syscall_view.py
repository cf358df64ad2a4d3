"""How a syscall is shown: where it stands, and its answer once it has ended."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from aios_broker.client.pending import Pending
from aios_broker.contract.errors import ErrorBody
from aios_broker.contract.names import Module
from aios_broker.contract.reply import Reply, Result, Timings, decode_reply
from aios_broker.contract.syscall import State
from aios_broker.queues.records import JobView
from aios_kernel_api.bodies import left
from aios_kernel_api.kernel import Found, Kernel, kernel_of
from aios_kernel_api.problems import told_body

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


async def ended(request: Request, ends: Sequence[asyncio.Future[None]], wait_s: float) -> None:
    """Return when all have ended, the time is over, the client is gone, or this process stops."""
    if wait_s <= 0 or all(each.done() for each in ends):
        return
    all_ended = asyncio.ensure_future(asyncio.wait(ends))
    others = [
        asyncio.ensure_future(left(request)),
        asyncio.ensure_future(kernel_of(request).leaving.wait()),
    ]
    try:
        await asyncio.wait(
            [all_ended, *others], timeout=wait_s, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        for each in (all_ended, *others):
            each.cancel()


def heard(pending: Pending) -> Reply | None:
    """Return the kernel's reply, if it is here.

    Raises:
        KernelError: there will be none: the kernel refused the syscall, or stayed away.
    """
    if pending.reply is not None and pending.state != "ended":
        pending.reply.unwrap()
    return pending.reply


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


async def standing(kernel: Kernel, ids: Mapping[str, Module]) -> dict[str, SyscallView]:
    """Return where syscalls stand that have not ended, by id; those that have are left out."""
    by_module: dict[Module, list[str]] = {}
    for syscall_id, module in ids.items():
        by_module.setdefault(module, []).append(syscall_id)
    return {
        one.job_id: live_view(one)
        for module, some in by_module.items()
        for one in await kernel.control.jobs_of(some, module)
    }


def view_of_pending(pending: Pending) -> SyscallView:
    """Return a submission as it is shown."""
    if pending.reply is None:
        return taken_view(pending)
    view = ended_view(pending.reply)
    if pending.state == "ended":
        return view
    return replace(view, state="refused" if pending.state == "refused" else "lost")


def taken_view(pending: Pending) -> SyscallView:
    """Return a submission that has not ended as it is shown."""
    return SyscallView(pending.id, "queued", pending.module)
