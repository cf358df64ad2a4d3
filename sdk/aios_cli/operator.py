"""An operator's way into a kernel: one connection, and what its commands look at and change."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from aios_broker.client.redis_transport import RedisTransport
from aios_broker.client.session import Session
from aios_broker.queues.control import Control
from aios_broker.queues.fleet import Fleet
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.module_queue import ModuleQueue
from aios_broker.redis.connection import Connection

NAME = "aios-cli"  # what CLIENT LIST shows


class Operator:
    """An async context manager, for one event loop. It connects when it is first used."""

    def __init__(self, redis_url: str, *, keys: Keys | None = None, name: str = NAME) -> None:
        self.keys = keys or Keys()
        self.connection = Connection(redis_url, name=name)
        self._name = name
        self._functions = Functions(self.connection)
        self.control = Control(self._functions, self.keys)
        self.fleet = Fleet(self.connection, self.keys)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.connection.aclose()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Session]:
        """Open a client of the same kernel beside it, for what submits syscalls or attaches."""
        transport = RedisTransport(self.connection.url, self._name, self.keys)
        async with Session(transport) as session:
            yield session

    async def peek(self, syscall_id: str) -> tuple[str, bytes | None]:
        """Return a syscall's state and, if it ended, its encoded reply; nobody waits for it.

        The state is `unknown` where nothing is left of it.
        """
        queue = ModuleQueue(self._functions, "llm", self.keys)
        return await queue.attach(syscall_id, "")  # what ended is in no module's queue
