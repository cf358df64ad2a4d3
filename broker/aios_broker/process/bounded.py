"""Work whose cost the asker decides: done in a child with little of everything.

    server = ForkServer("aios_broker.comparing", BOUNDS)
    said = await server.ask(request)

No loop and no thread of a worker computes for one agent while all others wait. A small process
with one thread, which has imported what the work needs and nothing of the worker's (no variables,
no files), stands ready; for each piece of work it forks a child, which is bound before it looks at
the request and ends with it. To fork takes some milliseconds, to start an interpreter for each
took 0.1 to 0.25 s of a processor, while a slot waited.

Nothing is left over: a child dies with its server (`PR_SET_PDEATHSIG`), a server when whoever
started it closes its end or dies; a server that died is started anew.
"""

import asyncio
import contextlib
import ctypes
import math
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from aios_broker.contract.errors import ModuleError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
_CHUNK_BYTES = 1 << 16
_REQUEST = struct.Struct("<Q")  # length
_REPLY = struct.Struct("<iQ")  # exit code (of a signal: negative), length


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a child may use."""

    cpu_s: float
    memory_bytes: int
    wall_s: float  # on a machine that has no time for it; the server's start included
    nice: int = 19  # than its server: who answers others goes first


class OutOfBounds(Exception):
    """The work would have taken more than the child may use; nothing came of it."""


class OutOfTime(OutOfBounds):
    """It did not end in time, perhaps since the machine had none for it."""


class ForkServer:
    """Runs one program's work, one request at a time. It starts when it is first asked."""

    def __init__(self, program: str, bounds: Bounds) -> None:
        """`program`: a module of ours that calls `serve` when it is run."""
        self._program = program
        self._bounds = bounds
        self._line: socket.socket | None = None
        self._end: Callable[[], object] = lambda: None
        self.pid: int | None = None  # while it runs

    async def ask(self, request: bytes) -> bytes:
        """Return what the work says to a request. Whoever gives up ends the child.

        Raises:
            OutOfBounds: It needed more than it may use; `OutOfTime`: by the clock.
            ModuleError: It could not be run, or it broke.
        """
        fresh = self._line is None
        try:
            code, said = await self._asked(request)
        except ConnectionError:
            if fresh:
                raise self._broken("could not be started") from None
            try:
                code, said = await self._asked(request)  # of a server that had died since
            except ConnectionError:
                raise self._broken("ended twice") from None
        if code == 0:
            return said
        if code < 0:
            raise OutOfBounds
        raise self._broken(f"ended with exit code {code}")

    async def _asked(self, request: bytes) -> tuple[int, bytes]:
        line = self._line or self._start()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._bounds.wall_s):
                await loop.sock_sendall(line, _REQUEST.pack(len(request)) + request)
                code, size = _REPLY.unpack(await _received(line, _REPLY.size))
                return code, await _received(line, size)
        except TimeoutError as error:
            self.close()
            raise OutOfTime from error
        except BaseException:  # cancelled, or it is gone: what comes now is no answer to the next
            self.close()
            raise

    def close(self) -> None:
        """End it, and what it does. It may be asked again."""
        self._end()
        self._line = self.pid = None

    def _start(self) -> socket.socket:
        line, its_end = socket.socketpair()
        bounds = self._bounds
        with its_end:
            process = subprocess.Popen(
                (
                    *(sys.executable, "-P", "-m", self._program),
                    *(str(bounds.cpu_s), str(bounds.memory_bytes), str(bounds.nice)),
                ),
                stdin=its_end.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                # One thread, as it forks; nothing of what the worker was told.
                env={"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
            )
        line.setblocking(False)
        self._line, self.pid = line, process.pid
        self._end = weakref.finalize(self, _ended, process, line)
        return line

    def _broken(self, how: str) -> ModuleError:
        return ModuleError(f"{self._program} {how}", remedy="see that it is installed")


def _ended(process: "subprocess.Popen[bytes]", line: socket.socket) -> None:
    line.close()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # not reaped before: the group is its own
    process.wait()


async def _received(line: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    parts = bytearray()
    while len(parts) < size:
        part = await loop.sock_recv(line, min(size - len(parts), _CHUNK_BYTES))
        if not part:
            raise ConnectionError("the process at the other end is gone")
        parts += part
    return bytes(parts)


# In the server.


def serve(work: Callable[[bytes], bytes]) -> int:
    """Be the server of a `ForkServer`: its standard input is the line to whoever asks."""
    bounds = Bounds(float(sys.argv[1]), int(sys.argv[2]), wall_s=0.0, nice=int(sys.argv[3]))
    libc = ctypes.CDLL(None, use_errno=True)
    with socket.socket(fileno=0) as line, line.makefile("rb") as requests:
        while head := requests.read(_REQUEST.size):
            request = requests.read(_REQUEST.unpack(head)[0])
            reader, writer = os.pipe()
            server_pid, pid = os.getpid(), os.fork()
            if pid == 0:
                _be_child(libc, server_pid, bounds, writer, partial(work, request))
            os.close(writer)
            code, said = _outcome(line, pid, reader)
            line.sendall(_REPLY.pack(code, len(said)) + said)
    return 0


def _be_child(
    libc: ctypes.CDLL,
    server_pid: int,
    bounds: Bounds,
    writer: int,
    work: Callable[[], bytes],
) -> None:
    """Bind this process, do the work, and end; returns never."""
    code = 1
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 0)  # the line is the server's
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0 and (
            os.getppid() == server_pid
        ):
            _bind(bounds)
            with os.fdopen(writer, "wb") as file:
                file.write(work())
            code = 0
    except MemoryError:
        os.kill(os.getpid(), signal.SIGKILL)  # as those end whose allocator cannot raise
    finally:
        os._exit(code)


def _bind(bounds: Bounds) -> None:
    whole_s = math.ceil(bounds.cpu_s)
    resource.setrlimit(resource.RLIMIT_CPU, (whole_s, whole_s))
    resource.setrlimit(resource.RLIMIT_AS, (bounds.memory_bytes, bounds.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_PROF, bounds.cpu_s)  # parts of seconds; it ends the process
    os.nice(bounds.nice)


def _outcome(line: socket.socket, pid: int, reader: int) -> tuple[int, bytes]:
    """Return how a child ended and what it said; end it when nobody waits for that any more."""
    said = bytearray()
    events = select.poll()
    events.register(reader, select.POLLIN)
    events.register(line, select.POLLRDHUP)
    with os.fdopen(reader, "rb", buffering=0) as file:
        while reader in (ready := dict(events.poll())) or line.fileno() in ready:
            if line.fileno() in ready:
                os.kill(pid, signal.SIGKILL)
                break
            part = file.read(_CHUNK_BYTES)
            if not part:
                break
            said += part
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), bytes(said)
