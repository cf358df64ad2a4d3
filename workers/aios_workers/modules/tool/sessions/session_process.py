"""A session's process as the worker sees it: started, spoken to, ended with all that it began.

What comes from it is what hostile code may have written: messages are bounded and read by their
types, and one that breaks them is ended.
"""

import asyncio
import codecs
import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from aios_broker.contract.errors import SandboxUnavailable, ToolUnavailable
from aios_broker.contract.exec import ExecFailure, ExecOpen
from aios_broker.contract.tools import RunLimits, ToolCard
from aios_workers.modules.tool.running import Launch, Sandbox, ToolProgram
from aios_workers.modules.tool.sandbox_files import SandboxFiles
from aios_workers.modules.tool.sessions.session_calls import MOST_CALLS, SessionCalls
from aios_workers.modules.tool.sessions.session_line import MOST_BYTES, NoMessage, SessionLine
from aios_workers.modules.tool.sessions.stubs import kernel_source
from aios_workers.modules.tool.tool_process import PACKAGE, kill

MAIN = Path(__file__).with_name("interpreter") / "__main__.py"
MOST_UNANSWERED = 64  # calls; whoever makes more waits
MOST_REFUSED = 10_000  # messages beyond the calls that a run may make, and while nothing runs
CHUNK = 1 << 16
START_LIMIT_S = 30.0
GRACE_S = 3.0  # from an interrupt to the end
OWN_PROCESSES = 4  # of the sandbox and the interpreter


class SessionEnded(Exception):
    """The process is gone; says why."""


class RunEnding(Struct, frozen=True):
    """What the process says of the end of a run; what it says beyond that is read past."""

    end: int
    value: str = ""
    rich: tuple[dict[str, Any], ...] = ()
    error: ExecFailure | None = None


@dataclass(slots=True)
class SessionRun:
    """A run that is under way."""

    number: int
    code: str
    timeout_s: float
    heard: Callable[[str], None]  # is given what is printed as it comes
    calls: SessionCalls
    output_bytes: int
    printed: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    cut: bool = False
    timed_out: bool = False


class SessionProcess:
    """The process of one session."""

    def __init__(
        self, process: asyncio.subprocess.Process, line: SessionLine, outputs: tuple["_Output", ...]
    ) -> None:
        self.files: SandboxFiles | None = None  # what it writes, once it is ready
        self.reason = ""  # why it was ended
        self._process = process
        self._line = line
        self._outputs = outputs
        self._run: SessionRun | None = None
        self._loop = asyncio.get_running_loop()
        self._told: asyncio.Future[RunEnding] = self._loop.create_future()
        self._ready = asyncio.Event()
        self._answering: dict[asyncio.Task[None], int] = {}  # and the bytes of what was asked
        self._messages = 0  # since the last run began
        for at, output in enumerate(outputs):
            output.listen(partial(self._printed, at))
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(
        cls, asked: ExecOpen, sandbox: Sandbox, python: Path, place: Launch
    ) -> "SessionProcess":
        """Start one that is ready for runs.

        Args:
            asked: What kind, and its limits.
            sandbox: What keeps it in.
            python: The interpreter.
            place: Its workspace, and what it is told of the environment.

        Raises:
            ToolUnavailable: It does not start.
            SandboxUnavailable: This machine cannot keep it in.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        outputs = (_Output(), _Output())
        try:
            launch = _launch(python, place)
            process = await _spawned(asked, sandbox, launch, theirs, outputs)
        except BaseException:
            ours.close()
            for output in outputs:
                output.close()
            raise
        finally:
            theirs.close()
            for output in outputs:
                output.close_writing()
        ours.setblocking(False)
        found = cls(process, SessionLine(*await asyncio.open_unix_connection(sock=ours)), outputs)
        try:
            await found._begin(asked)
            found.files = sandbox.files(launch, process.pid)
        except BaseException:
            await found.end("it did not start")
            raise
        return found

    async def _begin(self, asked: ExecOpen) -> None:
        await self._line.send(
            {
                "interpreter": asked.interpreter,
                "limits": msgspec.structs.asdict(asked.limits),
                "kernel": kernel_source() if asked.interpreter == "python" else "",
            }
        )
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait(
            [ready, self._reading], timeout=START_LIMIT_S, return_when=asyncio.FIRST_COMPLETED
        )
        ready.cancel()
        if not self._ready.is_set():
            said = "".join(output.last for output in self._outputs).strip()
            raise ToolUnavailable(
                f"the interpreter did not start: {said[-500:] or 'it said nothing'}",
                remedy="see `aios doctor`; allow it more memory",
            )

    @property
    def is_alive(self) -> bool:
        """Whether it takes runs."""
        return not self.reason and not self._reading.done()

    @property
    def pid(self) -> int:
        """Of the first of its processes."""
        return self._process.pid

    async def run(self, run: SessionRun) -> RunEnding:
        """Run code to its end. Who cancels it interrupts it.

        Raises:
            SessionEnded: The process is gone.
        """
        self._told = self._loop.create_future()
        self._run, self._messages = run, 0
        try:
            self._line.post({"run": run.number, "code": run.code})
            if not await self._has_ended(run.timeout_s):
                run.timed_out = True
                await self._settled(f"it ran for longer than {run.timeout_s:g} s")
            return await self._ending()
        except asyncio.CancelledError:
            await asyncio.shield(self._settled("it was cancelled"))
            raise
        except ConnectionError as error:
            raise await self._gone() from error
        finally:
            for output in self._outputs:
                output.drain()
            self._run = None
            for task in self._answering:
                task.cancel()

    async def _ending(self) -> RunEnding:
        if self._told.done():
            return self._told.result()
        raise await self._gone()

    async def _gone(self) -> SessionEnded:
        await self.end("")
        if self.reason:
            return SessionEnded(self.reason)
        code = self._process.returncode
        return SessionEnded(f"its interpreter ended (exit code {code})")

    async def _settled(self, why: str) -> None:
        """Interrupt what runs; end all where that does not help."""
        await self.interrupt()
        if not await self._has_ended(GRACE_S):
            await self.end(f"{why}, and did not end when it was interrupted")

    async def _has_ended(self, limit_s: float) -> bool:
        """Wait for the end of the run, or of the process; return whether it came in time."""
        ends: list[asyncio.Future[Any]] = [self._told, self._reading]
        done, _ = await asyncio.wait(ends, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)

    async def interrupt(self) -> bool:
        """Interrupt what runs; return whether something does."""
        if self._run is None:
            return False
        self._line.post({"interrupt": self._run.number})
        return True

    async def end(self, reason: str) -> None:
        """End it, with all that it began. The first reason counts."""
        self.reason = self.reason or reason
        kill(self._process)
        await self._process.wait()
        self._line.close()
        for task in self._answering:
            task.cancel()
        if self._reading is not asyncio.current_task():
            await asyncio.wait([self._reading])
        for output in self._outputs:
            output.close()
        if self.files is not None:
            self.files.close()

    def _printed(self, at: int, text: str) -> None:
        run = self._run
        if run is None:
            return  # what is printed between runs is nobody's
        room = run.output_bytes - sum(map(len, run.printed[at]))
        kept = text[: max(room, 0)]
        run.cut = run.cut or len(kept) < len(text)
        if kept:
            run.printed[at].append(kept)
            run.heard(kept)

    async def _read(self) -> None:
        try:
            while True:
                message, size = await self._line.received()
                self._hear(message, size)
                while len(self._answering) >= MOST_UNANSWERED or (
                    sum(self._answering.values()) > MOST_BYTES
                ):
                    await asyncio.wait(self._answering, return_when=asyncio.FIRST_COMPLETED)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self.reason = self.reason or "it sent what no session sends: no message"
        except NoMessage as error:
            self.reason = self.reason or f"it sent what no session sends: {error}"
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # it has ended

    def _hear(self, message: dict[str, Any], size: int) -> None:
        """Take a message.

        Raises:
            NoMessage: It is none that its process would send; `msgspec.ValidationError`.
        """
        run = self._run
        self._messages += 1
        if self._messages > MOST_REFUSED + MOST_CALLS:
            raise NoMessage("more messages than it may")
        if "ready" in message:
            self._ready.set()
        elif run is None:
            return  # of a run that has ended
        elif "end" in message:
            told = msgspec.convert(message, RunEnding)
            if told.end == run.number and not self._told.done():
                self._told.set_result(told)
        elif isinstance(number := message.get("call"), int):
            task = asyncio.create_task(self._answer(run.calls, number, message.get("body")))
            self._answering[task] = size
            task.add_done_callback(self._answering.pop)
        else:
            raise NoMessage("one of no kind")

    async def _answer(self, calls: SessionCalls, number: int, body: object) -> None:
        answer = await calls.answer(body)
        with contextlib.suppress(ConnectionError):
            await self._line.send({"answer": number, **answer})


class _Output:
    """What is printed to one stream: read as it comes, and to its end when a run has ended."""

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe()
        os.set_blocking(self._reading, False)
        self._is_open = True
        self._is_writable = True
        self._heard: Callable[[str], None] = lambda _: None
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self.last = ""  # of what came last

    def listen(self, heard: Callable[[str], None]) -> None:
        self._heard = heard
        asyncio.get_running_loop().add_reader(self._reading, self._read)

    def drain(self) -> None:
        """Take what is there: no more than a pipe holds, whatever goes on writing."""
        for _ in range(1 + (1 << 20) // CHUNK):
            if not self._is_open or not self._read():
                return

    def close_writing(self) -> None:
        if self._is_writable:
            self._is_writable = False
            os.close(self.writing)

    def close(self) -> None:
        self.close_writing()
        if self._is_open:
            self._is_open = False
            asyncio.get_running_loop().remove_reader(self._reading)
            os.close(self._reading)

    def _read(self) -> bool:
        try:
            data = os.read(self._reading, CHUNK)
        except BlockingIOError:
            return False
        if not data:
            asyncio.get_running_loop().remove_reader(self._reading)
            return False
        text = self._characters.decode(data)
        self.last = text
        self._heard(text)
        return True


def _launch(python: Path, place: Launch) -> Launch:
    environ = {
        **place.environ,
        "HOME": str(place.workspace),
        "TMPDIR": str(place.workspace),
        "MPLBACKEND": "agg",
    }
    return Launch(
        (str(python), "-I", "-u", str(MAIN)),
        environ,
        place.workspace,
        (PACKAGE, python.parent.parent),
    )


async def _spawned(
    asked: ExecOpen,
    sandbox: Sandbox,
    launch: Launch,
    theirs: socket.socket,
    outputs: tuple[_Output, _Output],
) -> asyncio.subprocess.Process:
    limits = RunLimits(
        file_bytes=asked.limits.file_bytes, processes=asked.limits.processes + OWN_PROCESSES
    )
    card = ToolCard(name=f"exec/{asked.interpreter}", limits=limits)
    program = ToolProgram(card, "", Path(launch.command[0]), ())
    confined = sandbox.confined(program, launch)
    try:
        return await asyncio.create_subprocess_exec(
            *confined.command,
            stdin=theirs.fileno(),
            stdout=outputs[0].writing,
            stderr=outputs[1].writing,
            env=dict(confined.environ),
            cwd=confined.workspace,
            start_new_session=True,
            pass_fds=confined.descriptors,
        )
    except OSError as error:
        raise SandboxUnavailable(
            f"a session's process cannot be started: {error}", remedy="see `aios doctor`"
        ) from error
    finally:
        for each in confined.descriptors:
            os.close(each)
