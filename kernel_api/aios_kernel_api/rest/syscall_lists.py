"""Several syscalls in one request, and their answers in one list.

Each answer is written as it comes, and kept so: what is larger than a list may be, or than its
tenant has room for, is left out, and asked for by its id.
"""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TypeVar

import msgspec
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from aios_broker.client.pending import Pending
from aios_broker.contract.syscall import Syscall
from aios_kernel_api.identity import caller_of
from aios_kernel_api.kernel import Kernel, kernel_of
from aios_kernel_api.rest.syscall_view import (
    ended,
    standing,
    taken_view,
    view_of_pending,
)
from aios_kernel_api.room import Share

MOST_ANSWER_BYTES = 32 * 1024 * 1024  # of a list's answer: results beyond that are left out

T = TypeVar("T")
Batch = tuple[int, list[T]]  # syscalls that are submitted at once, and what they weigh


class ListEntry:
    """One syscall of a list. Once it has ended nothing of it is kept but what is answered."""

    def __init__(self, kernel: Kernel, pending: Pending, share: Share) -> None:
        self.id = pending.id
        assert pending.module is not None, "it was submitted"
        self.module = pending.module
        self.ended = pending.ended
        self.part = b""  # what is answered, once it has ended
        self._pending: Pending | None = pending
        self._share = share
        self._held = ExitStack()
        self._held.enter_context(kernel.holding(pending))
        self.ended.add_done_callback(self._hear)

    def _hear(self, _ended: asyncio.Future[None]) -> None:
        if self._pending is not None:
            self.part = self._written(self._pending)
            self.close()

    def _written(self, pending: Pending) -> bytes:
        view = view_of_pending(pending)
        part = msgspec.json.encode(view)
        size_bytes = self._share.size_bytes + len(part)
        if view.result is None or (size_bytes <= MOST_ANSWER_BYTES and self._share.fits(len(part))):
            return part
        return msgspec.json.encode(replace(view, result=None, left_out=True))

    def taken(self) -> bytes:
        """Return what is answered of one that has not ended."""
        assert self._pending is not None, "it has ended"
        return msgspec.json.encode(taken_view(self._pending))

    def close(self) -> None:
        """Wait for it no more."""
        self._pending = None
        self._held.close()


async def several(request: Request, batches: Sequence[Batch[Syscall]], wait_s: float) -> Response:
    """Publish syscalls, and answer how each of them stands when all have ended, or the time has."""
    kernel, owner = kernel_of(request), caller_of(request).owner
    with kernel.answers.room.take(owner.tenant) as share, ExitStack() as held:
        calls: list[ListEntry] = []
        async with kernel.large_work.of(owner) as progress:
            for size_bytes, batch in batches:
                await progress.before(size_bytes)
                sent = [kernel.session.submit(each) for each in batch]
                for pending in sent:
                    calls.append(ListEntry(kernel, pending, share))
                    held.callback(calls[-1].close)
                # One batch at a time: those of others go in between.
                await asyncio.wait([each.accepted for each in sent])
        await ended(request, [each.ended for each in calls], wait_s)
        await asyncio.sleep(0)  # what has just ended is written
        waiting = {each.id: each.module for each in calls if not each.part}
        stands = await standing(kernel, waiting) if wait_s > 0 else {}
        async with kernel.large_work.of(owner) as progress:
            await progress.before(share.size_bytes)
            parts = [
                each.part
                or (msgspec.json.encode(stands[each.id]) if each.id in stands else each.taken())
                for each in calls
            ]
            data = b"[" + b",".join(parts) + b"]"
    return Response(data, 202 if waiting else 200, media_type="application/json")
