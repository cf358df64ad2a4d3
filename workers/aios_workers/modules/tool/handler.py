"""The tool module: runs tools and sessions, tells which there are, and echoes."""

import asyncio
from collections.abc import Mapping
from typing import Any

from aios_broker.contract.errors import ToolUnavailable, UnknownModule, UnknownTool, WorkerLost
from aios_broker.contract.exec import ExecBody
from aios_broker.contract.reply import EchoResult, Result
from aios_broker.contract.syscall import Syscall, ToolEcho
from aios_broker.contract.tools import (
    ToolCard,
    ToolCards,
    ToolList,
    ToolResult,
    ToolRun,
    ToolShow,
)
from aios_broker.retry import patiently
from aios_workers.modules.tool.arguments import ArgumentChecker
from aios_workers.modules.tool.needs import needs_of
from aios_workers.modules.tool.opening import Tools
from aios_workers.modules.tool.running import ToolCall, ToolProgram
from aios_workers.modules.tool.tool_process import ToolChanged
from aios_workers.runtime.executor import Done, Outcome, Suspended
from aios_workers.runtime.kernel import Kernel
from aios_workers.runtime.runs import Run

ASK_AGAIN_S = 0.25  # for what is not free, under a stock RQ worker
CHANGES = 3  # how often a tool may change while it is being started


class ToolHandler:
    """Runs the operations of the tool module."""

    cores: tuple[str, ...] = ()  # tools run on no model

    def __init__(self, capacity: int, kernel: Kernel, tools: Tools) -> None:
        self.capacity = capacity  # how many syscalls it runs at the same time
        self._kernel = kernel
        self._registry = tools.registry
        self._runner = tools.runner
        self._cards = tools.cards
        self._approvals = tools.approvals
        self._sessions = tools.sessions
        self._files = tools.files
        self._checker = ArgumentChecker()

    def answer_at_once(self, run: Run, syscall: Syscall) -> Done | None:
        """Return the text of an echo: there is nothing to wait for."""
        if isinstance(syscall.body, ToolEcho):
            return Done(EchoResult(syscall.body.text))
        return None

    async def run(self, run: Run, syscall: Syscall) -> Outcome:
        """Run one syscall of the module."""
        match syscall.body:
            case ToolEcho(text=text):
                return Done(EchoResult(text))
            case ToolRun():
                return await self._call(run, syscall, syscall.body)
            case ToolList():
                return Done(await patiently(lambda: self._listed(syscall.body)))
            case ToolShow(tool=name):
                return Done(await patiently(lambda: self._shown(name)))
            case body if isinstance(body, ExecBody):
                return await self._of_session(run, syscall)
            case _:
                raise UnknownModule(
                    f"{syscall.kind!r} is not built in this version",
                    field="body.type",
                    remedy="use tool.call",
                )

    async def _of_session(self, run: Run, syscall: Syscall) -> Outcome:
        stream = self._kernel.streams.open(run.lease, syscall.id)
        write = stream.write if run.lease.wants_chunks else _unheard
        done = await self._sessions.answer(run, syscall, write)
        await stream.flush()
        return done

    async def _listed(self, body: object) -> Result:
        assert isinstance(body, ToolList)
        words = body.query.lower().split()
        found = []
        for card in await self._cards.all():
            text = f"{card.name} {card.description}".lower()
            if all(word in text for word in words):
                found.append(card if body.parameters else _without_schema(card))
        return ToolCards(tuple(found))

    async def _shown(self, name: str) -> Result:
        if name in self._registry.names():
            return await self._registry.card(name)
        card = await self._cards.one(name)
        if card is None:
            raise UnknownTool(
                f"there is no tool {name!r}",
                field="body.tool",
                remedy="`aios tools list` shows all",
            )
        return card

    async def _call(self, run: Run, syscall: Syscall, asked: ToolRun) -> Outcome:
        body = await patiently(lambda: self._approvals.body_of(run, syscall, asked))
        program = await self._registry.program(body.tool, body.version)
        arguments = self._checker.checked(program.card, body.arguments)
        if run.lease.losses and not program.card.idempotent:
            raise _lost(program)
        if program.card.destructive:
            # First what it has to wait for: an approval would be used up when it comes back.
            if not await self._has_its_needs(run, program.card, arguments):
                return Suspended(None, "needs")
            parked = await patiently(
                lambda: self._approvals.asked(syscall, body, program.card, arguments)
            )
            if parked is not None:
                return parked
        try:
            ran = await self._ran(run, syscall, arguments, program, body)
            return Suspended(None, "needs") if ran is None else Done(ran)
        except asyncio.CancelledError:
            if run.stopping == "drain" and not program.card.idempotent:
                raise _lost(program) from None  # nobody may run it again
            raise

    async def _ran(
        self,
        run: Run,
        syscall: Syscall,
        taken: dict[str, Any],
        program: ToolProgram,
        body: ToolRun,
    ) -> ToolResult | None:
        """Run a call; of a tool that changes just now, what it is then. None: it has to wait."""
        stream = self._kernel.streams.open(run.lease, syscall.id)
        write = stream.write if run.lease.wants_chunks else _unheard
        for _ in range(CHANGES):
            if not await self._has_its_needs(run, program.card, taken):
                return None
            lay = self._files.lay(syscall, program.card, taken)
            call = ToolCall(syscall.id, syscall.owner, taken, lay)
            try:
                result = await self._runner.run(program, call, write)
                await stream.flush()
                return result
            except ToolChanged:
                self._registry.forget(body.tool)
                program = await self._registry.program(body.tool, body.version)
                taken = self._checker.checked(program.card, body.arguments)
        raise ToolUnavailable(
            f"{body.tool} changes again and again while it is started",
            remedy="wait until it is written",
        )

    async def _has_its_needs(
        self, run: Run, card: ToolCard, arguments: Mapping[str, object]
    ) -> bool:
        """Take the place at the tool and the locks that its caller could not know of.

        False: they are not free, and it goes back to where it waits for them. Under a stock RQ
        worker it cannot go back: it waits here.
        """
        needs = needs_of(card, arguments)
        queue = self._kernel.queue
        while not await patiently(lambda: queue.take_needs(run.lease, needs, card)):
            if self._kernel.may_leave:
                return False
            await asyncio.sleep(ASK_AGAIN_S)
        return True

    async def close(self) -> None:
        """Nothing of its own to free: the tools are the worker's."""


def _without_schema(card: ToolCard) -> ToolCard:
    return ToolCard(
        name=card.name,
        version=card.version,
        description=card.description,
        parallel=card.parallel,
        idempotent=card.idempotent,
        destructive=card.destructive,
        source=card.source,
        problem=card.problem,
    )


def _unheard(_: str) -> None:
    """Nobody streams."""


def _lost(program: ToolProgram) -> WorkerLost:
    return WorkerLost(
        f"a worker was lost while it ran {program.card.name}, which may have run or not: it is not "
        "declared idempotent, and so it is not tried again",
        remedy="see what it did, and call it under a new id",
    )
