"""Runs calls in processes of tools: one per version of a tool and agent, kept warm for a while.

What an agent's calls leave in files of their process's folder no other agent's calls see; in memory
nothing is left: each call is a fork (`process/__main__.py`).
"""

import asyncio
import base64
import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import msgspec

from aios_broker.contract.errors import (
    KernelError,
    ToolFailed,
    ToolLimit,
    ToolTimeout,
)
from aios_broker.contract.names import Owner
from aios_broker.contract.tools import MadeFile, ToolResult, ToolRunFacts
from aios_broker.places import Holder, Places, Shares
from aios_workers.modules.tool.running import Sandbox, ToolCall, ToolProgram
from aios_workers.modules.tool.tool_process import ToolProcess

KEPT = 16  # processes that do nothing and are kept for the next call
IDLE_S = 60.0
MOST_FILES = 1_000  # that a result tells
MOST_CONTENT_BYTES = 1024 * 1024  # of all files, in a result
MOST_TOLD = 4_000  # characters of what a tool raised
SHARES = Shares(places=32, of_tenant=24, of_agent=12)  # calls at once

_Key = tuple[str, str, Owner]


@dataclass(slots=True)
class _Kept:
    process: ToolProcess
    folder: Path


@dataclass(slots=True)
class _Gate:
    """One at a time looks for a process, or starts it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


class ToolProcesses:
    """The runner of one worker."""

    def __init__(self, folder: Path, sandbox: Sandbox, environ: Mapping[str, str]) -> None:
        """Take where processes may write, what keeps them in, and what they are told."""
        self._folder = folder
        self._sandbox = sandbox
        self._environ = environ
        self._places = Places(SHARES)
        self._kept: dict[_Key, _Kept] = {}  # the longest unused first
        self._starting: dict[_Key, _Gate] = {}
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
        async with self._places.one(Holder(call.owner.tenant, call.owner.agent)):
            kept = await self._process(program, call.owner)
            workspace = kept.folder / call.id
            workspace.mkdir(mode=0o700)
            try:
                return await self._run(kept.process, workspace, call, heard)
            finally:
                await _removed(workspace)

    async def _run(
        self, process: ToolProcess, workspace: Path, call: ToolCall, heard: Callable[[str], None]
    ) -> ToolResult:
        card = process.program.card
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
        ending = await process.run(request, printed)
        output = "".join(parts)
        value = _value_of(ending, process.program, output)
        files = await asyncio.to_thread(made_files, workspace)
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

    async def _process(self, program: ToolProgram, owner: Owner) -> _Kept:
        """Return a process of a tool that runs for this agent; start it where there is none."""
        key = (program.card.name, program.card.version, owner)
        gate = self._starting.setdefault(key, _Gate())
        gate.waiting += 1
        try:
            async with gate.lock:
                kept = self._kept.pop(key, None)
                if kept is not None and not kept.process.is_alive:
                    await self._end(kept)
                    kept = None
                if kept is None:
                    kept = await self._started(program)
                self._kept[key] = kept  # the last that was used
        finally:
            gate.waiting -= 1
            if not gate.waiting:
                del self._starting[key]
        if self._tidying is None or self._tidying.done():
            self._tidying = asyncio.create_task(self._tidy())
        return kept

    async def _started(self, program: ToolProgram) -> _Kept:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Path(mkdtemp(dir=self._folder))
        try:
            process = await ToolProcess.start(program, self._sandbox, folder, self._environ)
        except BaseException:
            await _removed(folder)
            raise
        return _Kept(process, folder)

    async def _tidy(self) -> None:
        """End what has not been used for a while, or is too many; return when nothing is left."""
        while self._kept:
            now = asyncio.get_running_loop().time()
            idle = [key for key, kept in self._kept.items() if not kept.process.running]
            spare = len(idle) - KEPT
            for at, key in enumerate(idle):
                old = now - self._kept[key].process.used_s > IDLE_S
                if (at < spare or old) and key not in self._starting:
                    await self._end(self._kept.pop(key))
            await asyncio.sleep(1.0)

    async def _end(self, kept: _Kept) -> None:
        await kept.process.close()
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


def made_files(workspace: Path) -> tuple[MadeFile, ...]:
    """Return the files of a workspace, small ones with their content; links are none."""
    found: list[MadeFile] = []
    left = MOST_CONTENT_BYTES
    for path, size in _files_below(workspace):
        if len(found) == MOST_FILES:
            break
        content = b""
        if size <= left:
            content = _read(path, size)
            left -= len(content)
        name = path.relative_to(workspace).as_posix()
        if not name.isprintable() or not _is_text(name):
            name = ascii(name)
        found.append(MadeFile(name, size, base64.b64encode(content).decode()))
    return tuple(found)


def _files_below(folder: Path) -> Iterator[tuple[Path, int]]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            try:
                found = path.lstat()
            except OSError:
                continue
            if stat.S_ISREG(found.st_mode):
                yield path, found.st_size


def _read(path: Path, size: int) -> bytes:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    with os.fdopen(file, "rb") as opened:
        return opened.read(size)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


async def _removed(folder: Path) -> None:
    try:
        folder.rmdir()  # noqa: ASYNC240  most calls leave nothing: microseconds
    except OSError:
        await asyncio.to_thread(_remove, folder)


def _remove(folder: Path) -> None:
    """Remove a folder, also where the tool has taken rights on parts of it away."""
    for parent, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):
            os.chmod(parent, 0o700)
    shutil.rmtree(folder, ignore_errors=True)
