"""Syscalls that code in a session makes: checked here, and made in the name of its agent.

No identity comes from inside: whose the session is, is known here.
"""

import asyncio
from collections.abc import Collection, Mapping
from typing import Any, Protocol, cast

import msgspec

from aios_broker.contract.errors import AccessDenied, InvalidSyscall, KernelError, ToolLimit
from aios_broker.contract.reply import Result
from aios_broker.contract.syscall import Body, Syscall, decode_failure
from aios_broker.contract.tools import ToolRun
from aios_workers.modules.tool.sessions.stubs import BODIES

MOST_CALLS = 1_000  # of one run
MOST_AT_ONCE = 16


class Calls(Protocol):
    """What makes syscalls in the name of the agent whose syscall is run."""

    async def call(self, asked: Syscall, body: Body, step: str) -> Result:
        """Submit `body` for the agent and program of `asked`; return its result."""
        ...


class SessionCalls:
    """The calls of one run."""

    def __init__(self, calls: Calls, asked: Syscall, tools: Collection[str] | None) -> None:
        self._calls = calls
        self._asked = asked
        self._tools = tools  # that it may call; None: all
        self._places = asyncio.Semaphore(MOST_AT_ONCE)
        self.made = 0

    async def answer(self, wanted: object) -> dict[str, Any]:
        """Make a call; return what the code inside hears."""
        self.made += 1
        number = self.made
        try:
            body = self._checked(wanted)
            async with self._places:
                result = await self._calls.call(self._asked, body, f"exec.{number}")
        except KernelError as error:
            said = error.to_wire()
            names = ("code", "message", "field", "remedy")
            return {"error": {name: getattr(said, name) for name in names}}
        return {"value": msgspec.to_builtins(result)}

    def _checked(self, wanted: object) -> Body:
        if self.made > MOST_CALLS:
            raise ToolLimit(
                f"one run makes {MOST_CALLS} syscalls at most",
                field="calls",
                remedy="do the rest in another run",
            )
        kind = wanted.get("type") if isinstance(wanted, Mapping) else None
        body_type = BODIES.get(kind) if isinstance(kind, str) else None
        if body_type is None:
            raise InvalidSyscall(
                f"code in a session makes no syscall {str(kind)[:100]!r}",
                field="body.type",
                remedy="use kernel.tools, kernel.memory and kernel.storage",
            )
        try:
            body = cast("Body", msgspec.convert(wanted, body_type))
        except msgspec.ValidationError as error:
            message, field = decode_failure(error)
            raise InvalidSyscall(
                message, field=f"body.{field}", remedy="help() of the function says what it takes"
            ) from error
        if isinstance(body, ToolRun) and self._tools is not None and body.tool not in self._tools:
            raise AccessDenied(
                f"this session may not call {body.tool!r}",
                field="body.tool",
                remedy="name it in `tools` when the session is opened",
            )
        return body
