"""The commands' own client: who waits is told, whatever happens to Redis."""

import asyncio

import pytest
import redis

from aios_broker.cli.client import KernelClient
from aios_broker.contract.errors import UnknownSyscall
from aios_broker.contract.syscall import Syscall, ToolEcho, new_id


async def test_who_waits_for_a_syscall_that_a_flushall_took_is_told(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as raw:
        async with KernelClient(redis_url) as client:
            [pending] = await client.submit([Syscall(new_id(), "agent", ToolEcho("hello"))])
            waiting = asyncio.create_task(pending.reply(20))
            await asyncio.to_thread(raw.flushall)
            # A lost connection is what makes a client ask for its syscalls by id at once.
            await asyncio.to_thread(raw.client_kill_filter, _type="normal", skipme=True)
            with pytest.raises(UnknownSyscall):
                await waiting
