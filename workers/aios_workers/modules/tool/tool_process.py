"""A tool's process as the worker sees it: started, spoken to, ended with all that it began."""

import asyncio
import contextlib
import os
import signal
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from aios_broker.contract.errors import ToolFailed, ToolUnavailable
from aios_workers.modules.tool.egress.way_out import WayOut
from aios_workers.modules.tool.running import Launch, Sandbox, ToolProgram
from aios_workers.modules.tool.sandbox_files import SandboxFiles

MAIN = Path(__file__).with_name("process") / "__main__.py"
PACKAGE = MAIN.parents[3]  # aios_workers: what its process reads of ours
LENGTH = struct.Struct(">I")
MOST_EVENT_BYTES = 256 * 1024 * 1024  # what says more is no process of ours
LOAD_LIMIT_S = 60.0
LEAVE_LIMIT_S = 5.0
# Of a sandbox, below the first: what ends it, the server of the calls, the relay to its way out.
OWN_PROCESSES = 3


class ToolChanged(Exception):
    """What was started is another version than the one that was asked for."""


@dataclass(slots=True)
class _Heard:
    """A call that runs: who is told what it prints, and how it ended."""

    printed: Callable[[str], None]
    ended: asyncio.Future[dict[str, Any]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class ToolProcess:
    """One process of a tool, and the calls that run below it."""

    def __init__(self, program: ToolProgram, process: asyncio.subprocess.Process) -> None:
        self.program = program
        self.files: SandboxFiles | None = None  # what its calls write, once it is ready
        self.used_s = asyncio.get_running_loop().time()
        self.calls = 0  # that it has run
        self._met: str | None = None  # the limit for which it was ended
        self._process = process
        self._running: dict[str, _Heard] = {}
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        program: ToolProgram,
        sandbox: Sandbox,
        workspace: Path,
        environ: Mapping[str, str],
        way_out: WayOut | None = None,
        written_bytes: int | None = None,
    ) -> "ToolProcess":
        """Start one that is ready for calls; they all work below this workspace.

        Args:
            program: The tool.
            sandbox: What it is kept in by.
            workspace: Where it works.
            environ: What it is told.
            way_out: Its way out; None: it has none.
            written_bytes: The most that its calls write together; None: as one may.

        Raises:
            ToolUnavailable: It cannot be loaded.
            ToolChanged: It is another version by now.
            SandboxUnavailable: This machine cannot keep it in.
        """
        launch = launch_of(program, "serve", workspace, environ)
        launch = replace(launch, written_bytes=written_bytes)
        if way_out is not None:
            launch = way_out.through(launch, program.python)
        launch = sandbox.confined(program, launch)
        process = await started(launch)
        found = cls(program, process)
        try:
            said = await first_event(process)
            content = tuple((str(path), str(digest)) for path, digest in said["content"])
            if content != program.content:
                raise ToolChanged
            found.files = sandbox.files(launch, process.pid)
        except BaseException:
            await found.close()
            raise
        found._reading = asyncio.create_task(found._read())
        return found

    @property
    def is_alive(self) -> bool:
        """Whether it takes calls."""
        return self._process.returncode is None and not (
            self._reading is None or self._reading.done()
        )

    def is_too_many(self) -> bool:
        """Whether below it there are more processes than its calls may have."""
        most = self.program.card.limits.processes * max(1, len(self._running))
        return count_below(self._process.pid, most + OWN_PROCESSES) > most + OWN_PROCESSES

    def end(self, limit: str) -> None:
        """End it at once, with all its calls, which hear that they met this limit."""
        self._met = limit
        kill(self._process)

    @property
    def running(self) -> int:
        """How many calls run."""
        return len(self._running)

    async def run(
        self, request: Mapping[str, Any], printed: Callable[[str], None]
    ) -> dict[str, Any]:
        """Run a call; return its ending. Who cancels it ends it."""
        call_id = str(request["call"])
        heard = self._running[call_id] = _Heard(printed)
        self.used_s = asyncio.get_running_loop().time()
        try:
            await self._send(request)
            # Its own process keeps the time; this is for one that keeps nothing.
            async with asyncio.timeout(request["limits"]["timeout_s"] + LEAVE_LIMIT_S):
                # Shielded: who cancels this waits for the ending, too.
                return await asyncio.shield(heard.ended)
        except (TimeoutError, ConnectionError) as error:
            await self.close()
            raise ToolFailed("its process does not answer", remedy="try it again") from error
        except asyncio.CancelledError:
            await asyncio.shield(self._killed(call_id, heard))
            raise
        finally:
            self._running.pop(call_id, None)
            self.calls += 1
            self.used_s = asyncio.get_running_loop().time()

    async def stop(self, call_id: str) -> None:
        """Have a call end: its ending comes to who runs it."""
        with contextlib.suppress(ConnectionError):
            await self._send({"kill": call_id})

    async def _killed(self, call_id: str, heard: _Heard) -> None:
        try:
            async with asyncio.timeout(LEAVE_LIMIT_S):
                await self._send({"kill": call_id})
                await asyncio.wait([heard.ended])
        except (TimeoutError, ConnectionError):
            await self.close()

    async def _send(self, request: Mapping[str, Any]) -> None:
        await tell(self._process, request)

    async def _read(self) -> None:
        try:
            while True:
                event = await next_event(self._process)
                heard = self._running.get(str(event.get("out", event.get("end"))))
                if heard is None:
                    continue
                if "out" in event:
                    heard.printed(str(event["text"]))
                elif not heard.ended.done():
                    heard.ended.set_result(event)
        except (ConnectionError, msgspec.DecodeError, KeyError):
            kill(self._process)
        finally:
            for heard in self._running.values():
                if not heard.ended.done():
                    heard.ended.set_result({"code": None, "limit": self._met})

    async def close(self) -> None:
        """End it and all its calls; return when they have ended."""
        await ended(self._process)
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
        if self.files is not None:
            self.files.close()


def launch_of(
    program: ToolProgram, mode: str, workspace: Path, environ: Mapping[str, str]
) -> Launch:
    """Return how a process of a tool is started."""
    request = msgspec.json.encode(program.request()).decode()
    return Launch(
        command=(str(program.python), "-I", "-u", str(MAIN), mode, request),
        environ={**environ, "HOME": str(workspace), "TMPDIR": str(workspace)},
        workspace=workspace,
        readable=(
            PACKAGE,
            program.python.parent.parent,
            *program.import_paths,
            *program.roots,
            *program.last_paths,
        ),
    )


async def started(launch: Launch) -> asyncio.subprocess.Process:
    """Start a process.

    Raises:
        ToolUnavailable: It cannot be started.
    """
    try:
        return await asyncio.create_subprocess_exec(
            *launch.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=dict(launch.environ),
            cwd=launch.workspace,
            start_new_session=True,
            pass_fds=launch.descriptors,
        )
    except OSError as error:
        raise ToolUnavailable(
            f"its process cannot be started: {error}", remedy="see that its Python is there"
        ) from error
    finally:
        for each in launch.descriptors:
            os.close(each)


async def ended(process: asyncio.subprocess.Process) -> None:
    """Have a process leave, or end it; return when it has ended."""
    if process.stdin is not None:
        process.stdin.close()  # it ends its calls and leaves
    try:
        async with asyncio.timeout(LEAVE_LIMIT_S):
            await process.wait()
    except TimeoutError:
        kill(process)
        await process.wait()


def kill(process: asyncio.subprocess.Process) -> None:
    """End a process and its group at once, also what is left of the group when it has ended.

    Linux gives its number to no other process as long as something of the group is left: if it is
    another's by now, nothing is.
    """
    if process.returncode is not None and Path(f"/proc/{process.pid}").exists():
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def count_below(pid: int, most: int) -> int:
    """Return how many processes are below one; counts on from `most` no further."""
    count, left = 0, [pid]
    while left and count <= most:
        one = left.pop()
        for path in Path(f"/proc/{one}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found = [int(each) for each in path.read_bytes().split()]
                count += len(found)
                left += found
    return count


async def first_event(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """Have a process load its tool; return what it says then.

    It has begun by then: from here on it ends with this process, also by a `kill -9`.

    Raises:
        ToolUnavailable: It could not load it.
    """
    try:
        async with asyncio.timeout(LOAD_LIMIT_S):
            await next_event(process)
            await tell(process, {"load": True})
            said = await next_event(process)
    except TimeoutError as error:
        raise ToolUnavailable(
            f"it was not loaded within {LOAD_LIMIT_S:g} s",
            remedy="let its module do less when it is imported",
        ) from error
    except (ConnectionError, msgspec.DecodeError) as error:
        raise ToolUnavailable(
            "its process ended when it was loaded", remedy="see what its module does when imported"
        ) from error
    if "broken" in said:
        why = said["broken"]
        raise ToolUnavailable(
            f"{why['name']}: {why['message']}\n{why['traceback']}".rstrip(),
            remedy="correct it, and try `aios tools test`",
        )
    return said


async def tell(process: asyncio.subprocess.Process, request: Mapping[str, Any]) -> None:
    """Send a process a request.

    Raises:
        ConnectionError: It has ended.
    """
    writer = process.stdin
    assert writer is not None
    data = msgspec.json.encode(request)
    writer.write(LENGTH.pack(len(data)) + data)
    await writer.drain()


async def next_event(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """Return the next event of a process.

    Raises:
        ConnectionError: It has ended, or says what no process of a tool says.
    """
    reader = process.stdout
    assert reader is not None
    try:
        (size,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
        if size > MOST_EVENT_BYTES:
            raise ConnectionError("an event of a tool's process is too large")
        data = await reader.readexactly(size)
    except asyncio.IncompleteReadError as error:
        raise ConnectionError("the process of a tool has ended") from error
    event = msgspec.json.decode(data)
    if not isinstance(event, dict):
        raise ConnectionError("an event of a tool's process is none")
    return event
