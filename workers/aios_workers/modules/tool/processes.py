"""Runs calls in processes of tools: one per version of a tool and agent, kept warm for a while.

What an agent's calls leave in files of their process's folder no other agent's calls see; in memory
nothing is left: each call is a fork (`process/__main__.py`).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import msgspec

from aios_broker.contract.errors import (
    AccessDenied,
    Fault,
    KernelError,
    SandboxUnavailable,
    ToolFailed,
    ToolLimit,
    ToolTimeout,
)
from aios_broker.contract.names import Owner
from aios_broker.contract.tools import ToolCard, ToolResult, ToolRunFacts
from aios_broker.places import Holder, Places, Shares
from aios_workers.modules.tool.arguments import invalid_arguments
from aios_workers.modules.tool.egress.way_out import Egress, WayOut
from aios_workers.modules.tool.kept_process import KeptProcess
from aios_workers.modules.tool.made_files import made_files
from aios_workers.modules.tool.removal import remove_tree
from aios_workers.modules.tool.running import Sandbox, ToolCall, ToolProgram
from aios_workers.modules.tool.sandbox_files import SPARE_BYTES, SandboxLost
from aios_workers.modules.tool.stored_files import MOST_LAID_BYTES
from aios_workers.modules.tool.tool_process import ToolProcess

KEPT = 16  # processes that do nothing and are kept for the next call
IDLE_S = 60.0
LOOK_S = 0.25  # between two looks at what a call that runs has written
MOST_TOLD = 4_000  # characters of what a tool raised
SHARES = Shares(places=32, of_tenant=24, of_agent=12)  # calls at once

_Key = tuple[str, str, Owner]


@dataclass(slots=True)
class _LaunchLock:
    """One at a time looks for a process, or starts it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


class ToolProcesses:
    """The runner of one worker."""

    def __init__(
        self,
        folder: Path,
        sandbox: Sandbox,
        environ: Mapping[str, str],
        egress: Egress | None = None,
        *,
        without_sandbox: bool = False,
    ) -> None:
        """Take where processes may write, what keeps them in, and what they are told.

        `egress`: their ways out by rule; None: there are none. `without_sandbox`: the operator has
        chosen that there is none, for tools that run code, too.
        """
        self._egress = egress
        self._without_sandbox = without_sandbox
        self._folder = folder
        self._sandbox = sandbox
        self._environ = environ
        self._places = Places(SHARES)
        self._kept: dict[_Key, KeptProcess] = {}  # the longest unused first
        self._starting: dict[_Key, _LaunchLock] = {}
        self._tidying: asyncio.Task[None] | None = None

    async def run(
        self, program: ToolProgram, call: ToolCall, heard: Callable[[str], None]
    ) -> ToolResult:
        """Run a call to its end, within its limits; `heard` is given what it prints.

        Raises:
            ToolFailed: It raised, died, or returned what is no JSON; `ToolTimeout`, `ToolLimit`.
            ToolUnavailable: It could not be loaded.
            ToolChanged: It is another version by now.
            SandboxUnavailable: This machine cannot keep it in.
        """
        holder = Holder(call.owner.tenant, call.owner.agent)
        async with self._places.one(holder), self._laid(call) as laid:
            kept = await self._process(program, call.owner)
            try:
                workspace = kept.begin(call.id)
                if laid is not None:
                    await asyncio.to_thread(kept.lay, call.id, laid)
                return await self._run(kept, workspace, call, heard)
            except SandboxLost as error:
                raise ToolFailed("its sandbox has ended", remedy="try it again") from error
            finally:
                await kept.end(call.id)

    @contextlib.asynccontextmanager
    async def _laid(self, call: ToolCall) -> AsyncIterator[Path | None]:
        """Yield a folder with the files of the agent's storage that a call asks for."""
        if call.lay is None:
            yield None
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Path(await asyncio.to_thread(mkdtemp, dir=self._folder))
        try:
            await call.lay(folder)
            yield folder
        finally:
            await _removed(folder)

    async def _run(
        self, kept: KeptProcess, workspace: Path, call: ToolCall, heard: Callable[[str], None]
    ) -> ToolResult:
        process, card = kept.process, kept.process.program.card
        warm, parts = process.calls > 0, []

        def printed(text: str) -> None:
            parts.append(text)
            heard(text)

        request = {
            "call": call.id,
            "arguments": call.arguments,
            "limits": msgspec.structs.asdict(card.limits),
            "workspace": str(workspace),
        }
        watch = asyncio.create_task(self._watch(kept, call.id))
        try:
            ending = await process.run(request, printed)
        finally:
            was_told = watch.done() and watch.exception() is None
            watch.cancel()
        output, limit = "".join(parts), ending.get("limit")
        if limit in (None, "killed") and (
            was_told or await asyncio.to_thread(kept.is_beyond, call.id)
        ):
            limit = "file_bytes"
        value = _value_of({**ending, "limit": limit}, process.program, output)
        files = await kept.files.read(call.id, made_files)
        return ToolResult(
            value=value,
            output=output,
            output_cut=bool(ending.get("cut")),
            files=files,
            run=ToolRunFacts(
                version=card.version,
                sandbox=self._sandbox.kind,
                wall_s=round(float(ending.get("wall_s", 0.0)), 6),
                cpu_s=round(float(ending.get("cpu_s", 0.0)), 6),
                memory_bytes=int(ending.get("memory_bytes", 0)),
                warm=warm,
                warnings=self._sandbox.warnings,
            ),
        )

    async def _watch(self, kept: KeptProcess, call_id: str) -> None:
        """End a call whose files or processes become too many; return when that is told."""
        while True:
            await asyncio.sleep(LOOK_S)
            if await asyncio.to_thread(kept.process.is_too_many):
                kept.process.end("processes")
                return
            if await asyncio.to_thread(kept.is_beyond, call_id):
                await kept.process.stop(call_id)
                return
            if await asyncio.to_thread(kept.is_full):
                kept.process.end("file_bytes")  # nobody knows which of its calls it was
                return

    async def _process(self, program: ToolProgram, owner: Owner) -> KeptProcess:
        """Return a process of a tool that runs for this agent; start it where there is none."""
        key = (program.card.name, program.card.version, owner)
        gate = self._starting.setdefault(key, _LaunchLock())
        gate.waiting += 1
        try:
            async with gate.lock:
                kept = self._kept.pop(key, None)
                if kept is not None and not kept.process.is_alive:
                    await self._end(kept)
                    kept = None
                if kept is None:
                    kept = await self._started(program, owner)
                self._kept[key] = kept  # the last that was used
        finally:
            gate.waiting -= 1
            if not gate.waiting:
                del self._starting[key]
        if self._tidying is None or self._tidying.done():
            self._tidying = asyncio.create_task(self._tidy())
        return kept

    async def _started(self, program: ToolProgram, owner: Owner) -> KeptProcess:
        way_out = await self._way_out(program.card, owner)
        try:
            return await self._started_with(program, way_out)
        except BaseException:
            if way_out is not None:
                await way_out.close()
            raise

    async def _way_out(self, card: ToolCard, owner: Owner) -> WayOut | None:
        """Open a tool's way out; None: no rule of it leads anywhere, or nothing keeps it in."""
        if self._sandbox.kind == "none" and card.runs_code and not self._without_sandbox:
            raise SandboxUnavailable(
                "; ".join(self._sandbox.warnings) or "this machine has no sandbox",
                remedy="see `aios doctor`; AIOS_TOOL_SANDBOX=none runs code without one",
            )
        if self._sandbox.kind == "none" and card.secrets:
            raise SandboxUnavailable(
                f"{card.name} uses keys, and nothing here keeps them from it",
                field="secrets",
                remedy="run it on a machine that has a sandbox: `run.warnings` of other tools says "
                "why there is none",
            )
        if self._egress is None or self._sandbox.kind == "none":
            return None
        return await self._egress.open(card, owner) if card.network or card.secrets else None

    async def _started_with(self, program: ToolProgram, way_out: WayOut | None) -> KeptProcess:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Path(mkdtemp(dir=self._folder))
        try:
            process = await ToolProcess.start(
                program, self._sandbox, folder, self._environ, way_out, _most_written(program.card)
            )
        except BaseException:
            await _removed(folder)
            raise
        return KeptProcess(process, folder, way_out)

    async def _tidy(self) -> None:
        """End what has not been used for a while, or is too many; return when nothing is left."""
        while self._kept:
            now = asyncio.get_running_loop().time()
            idle = [key for key, kept in self._kept.items() if not kept.calls]
            spare = len(idle) - KEPT
            for at, key in enumerate(idle):
                old = now - self._kept[key].process.used_s > IDLE_S
                if (at < spare or old) and key not in self._starting:
                    await self._end(self._kept.pop(key))
            await asyncio.sleep(1.0)

    async def _end(self, kept: KeptProcess) -> None:
        await kept.process.close()
        if kept.way_out is not None:
            await kept.way_out.close()
        await _removed(kept.folder)

    async def close(self) -> None:
        """End all that runs."""
        if self._tidying is not None:
            self._tidying.cancel()
            await asyncio.wait([self._tidying])
        while self._kept:
            _, kept = self._kept.popitem()
            await self._end(kept)
        with contextlib.suppress(OSError):
            self._folder.rmdir()


def _value_of(ending: Mapping[str, Any], program: ToolProgram, output: str) -> object:
    """Return what a call returned, or raise what became of it."""
    said = ending.get("said")
    said = said if isinstance(said, dict) else {}
    limit = ending.get("limit") or said.get("limit")
    if limit is not None:
        raise _beyond(str(limit), program)
    tail = f"\nIt printed at last: {output[-MOST_TOLD:]}" if output else ""
    if isinstance(why := said.get("error"), dict):
        _raise_for_its_caller(program.card.name, why)
        raise ToolFailed(
            f"it raised {why.get('name')}: {str(why.get('message'))[:MOST_TOLD]}"
            f"\n{str(why.get('traceback'))[-MOST_TOLD:]}{tail}",
            remedy="see what it was given",
        )
    if isinstance(unfit := said.get("unfit"), str):
        raise ToolFailed(
            f"it returned what is no JSON: {unfit[:MOST_TOLD]}",
            field="value",
            remedy="let it return numbers, texts, lists and dicts",
        )
    if isinstance(text := said.get("value"), str):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise ToolFailed("it returned what is no JSON", remedy="correct it") from error
    code = ending.get("code")
    how = "" if code is None else f" with exit code {code}"
    raise ToolFailed(f"its process ended{how} before it returned{tail}", remedy="correct it")


def _raise_for_its_caller(tool: str, why: Mapping[str, Any]) -> None:
    """Raise what a tool says that its caller, or the operator, is to mend."""
    message, argument = str(why.get("message"))[:MOST_TOLD], why.get("argument")
    if isinstance(rule := why.get("rule"), str):
        field = f"body.arguments.{argument}" if argument else None
        raise AccessDenied(message, field=field, remedy=rule)
    if isinstance(argument, str):
        raise invalid_arguments(tool, [Fault(f"/{argument}", message)])


def _beyond(limit: str, program: ToolProgram) -> KernelError:
    if limit == "killed":
        return ToolFailed("its process was ended from outside", remedy="try it again")
    most = getattr(program.card.limits, limit, "its limit")
    if limit == "timeout_s":
        return ToolTimeout(
            f"it ran for longer than {most:g} s",
            field="limits.timeout_s",
            remedy="let it do less at a time, or allow it more",
        )
    return ToolLimit(
        f"it used more than it may: {limit} is {most}",
        field=f"limits.{limit}",
        remedy="let it do less at a time, or allow it more",
    )


def _most_written(card: ToolCard) -> int:
    """Return the most that an agent's calls of a tool write that run at the same time, and more."""
    parallel = card.parallel
    limits = (SHARES.of_agent, parallel.tool, parallel.agent, parallel.tenant)
    laid_bytes = MOST_LAID_BYTES if card.files else 0
    calls = min(limit for limit in limits if limit)
    return calls * (card.limits.file_bytes + laid_bytes) + SPARE_BYTES


async def _removed(folder: Path) -> None:
    """Remove the folder of a process that has ended."""
    await asyncio.to_thread(remove_tree, folder)
