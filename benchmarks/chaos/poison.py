"""Handlers that harm their process, or dawdle: launched workers have them, the product never."""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
from typing import Any

from aios_broker.contract.reply import EchoResult
from aios_broker.contract.syscall import Syscall, ToolEcho
from aios_workers.runtime.executor import Done, Handler, Outcome
from aios_workers.runtime.registry import LoadedModule
from aios_workers.runtime.runs import Run

MARK = "poison:"
SLOW = "slow:"  # an echo that takes longer than a lease
SLOW_S = 2.5
KINDS = ("segfault", "abort", "memory", "loop", "huge", "crash")
# Those that take the process with them: tried until they are quarantined. The others are answered.
DEADLY = ("segfault", "abort", "loop")
HUGE_BYTES = 100 * 1024 * 1024
CHUNK_BYTES = 64 * 1024 * 1024


class PoisonHandler:
    """Runs a handler; an echo whose text begins with MARK or SLOW does what that says instead."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    @property
    def capacity(self) -> int:
        """Of the handler."""
        return self._handler.capacity

    async def run(self, run: Run, syscall: Syscall) -> Outcome:
        """Run a syscall, or be harmed by it."""
        if isinstance(syscall.body, ToolEcho) and syscall.body.text.startswith(MARK):
            return harm(syscall.body.text.removeprefix(MARK).split(":")[0])
        if isinstance(syscall.body, ToolEcho) and syscall.body.text.startswith(SLOW):
            await asyncio.sleep(SLOW_S)
        return await self._handler.run(run, syscall)

    async def close(self) -> None:
        """Close the handler."""
        await self._handler.close()


def poisoned(loaded: LoadedModule) -> LoadedModule:
    """Return the module with poison in it."""
    make = loaded.make_handler
    return LoadedModule(lambda port: PoisonHandler(make(port)), loaded.entry)


def harm(kind: str) -> Done:
    """Harm this process."""
    match kind:
        case "segfault":
            ctypes.string_at(0)
        case "abort":
            os.abort()
        case "memory":
            hoard: list[Any] = []
            while True:  # until the limit says MemoryError
                hoard.append(bytearray(CHUNK_BYTES))
        case "loop":
            while True:
                pass
        case "huge":
            return Done(EchoResult("x" * HUGE_BYTES))
        case _:
            raise RuntimeError("a handler that fails")
    return Done(EchoResult())


def limit_memory(limit_bytes: int) -> None:
    """Limit the address space of this process; and leave no core dumps behind."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limit_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
