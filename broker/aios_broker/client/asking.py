"""Asking without handles: a session for the length of a block, and replies within a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aios_broker.client.pending import Pending
from aios_broker.client.retry import Limits
from aios_broker.client.session import Session
from aios_broker.client.transport import Transport
from aios_broker.contract.errors import WaitTimeout
from aios_broker.contract.reply import Reply

REPLY_GRACE_S = 15.0  # beyond a syscall's deadline: by then the kernel has said that it is over


@asynccontextmanager
async def open_session(
    transport: Transport, limits: Limits | None = None
) -> AsyncIterator[Session]:
    """Give a session for the length of a block.

    Leaving cancels, within `Limits.cancel_s`, what was submitted in it and has not ended, but for
    what was let go.

    Raises:
        Unavailable: at once, the kernel does not answer.
    """
    session = Session(transport, limits)
    try:
        await session.open()
        yield session
    finally:
        await session.aclose()
        await transport.aclose()  # of one that could not be opened, too


async def reply_of(pending: Pending, timeout_s: float) -> Reply:
    """Return the reply to a syscall that the kernel has taken. Errors of it are replies, too.

    Raises:
        KernelError: the kernel did not take it: refused, unknown, or away for too long.
        WaitTimeout: no reply in time; the syscall goes on.
    """
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.shield(pending.ended)
    except TimeoutError as error:
        raise WaitTimeout(
            f"no reply within {timeout_s:g} s",
            remedy=f"`aios why {pending.id}` says what it waits for; "
            f"`aios submit --attach {pending.id}` waits again",
            syscall_id=pending.id,
        ) from error
    assert pending.reply is not None
    if not pending.was_accepted:
        pending.reply.unwrap()
    return pending.reply


async def taken(pending: Pending) -> None:
    """Return when the kernel has taken a syscall: from then on it gets its answer.

    Raises:
        KernelError: the kernel did not take it: refused, or away for longer than a session waits.
    """
    await asyncio.shield(pending.accepted)
    if not pending.was_accepted and pending.reply is not None:
        pending.reply.unwrap()
