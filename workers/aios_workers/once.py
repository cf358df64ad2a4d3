"""Change something in one transaction, once however often the syscall runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aios_broker.contract.reply import Result
from aios_broker.store.effects import earlier_effect, enter_effect
from aios_broker.store.session import Cursor, Store
from aios_workers.state_handler import Asked


async def once(
    store: Store, asked: Asked, work: Callable[[Cursor], Awaitable[Result]]
) -> Result:  # fmt: skip
    """Do the work as the agent that asks, and enter its effect; return what it came to."""
    async with store.as_agent(asked.agent) as cursor:
        earlier = await earlier_effect(cursor, asked.syscall)
        if earlier is not None:
            return earlier
        result = await work(cursor)
        await enter_effect(cursor, asked.agent, asked.syscall, result)
        return result
