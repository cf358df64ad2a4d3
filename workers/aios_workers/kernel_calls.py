"""Syscalls that a module makes itself."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from aios_broker.contract.llm import LlmBody
from aios_broker.contract.reply import Result
from aios_broker.contract.syscall import Syscall
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys


class SubmittedCalls:
    """Submits them to the queue of their module and waits for the replies."""

    def __init__(self, functions: Functions, keys: Keys, redis_url: str, name: str) -> None:
        self._functions = functions

    async def call(self, asked: Syscall, body: LlmBody, step: str) -> Result:
        """Submit, and return the result."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing yet."""
