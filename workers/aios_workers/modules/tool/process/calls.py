"""One call of a tool: the process that runs it, and what its server knows of that."""

import asyncio
import codecs
import contextlib
import errno
import fcntl
import inspect
import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Mapping
from typing import Any

from aios_workers.modules.tool.process import loading
from aios_workers.modules.tool.process.tasks import bound_tasks

CHUNK = 1 << 16
EXTRA_BYTES = 64 * 1024  # of a result beside its value: what it raised
MORE_CPU_S = 1  # between the signal that ends and the one that cannot be caught
_CLOSED = -1
_NO_MORE = (errno.EFBIG, errno.ENOSPC)  # of one file, of all


class Call:
    """A call, as its server sees it."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        """Make its pipes."""
        self.id: str = request["call"]
        self.limits: Mapping[str, Any] = request["limits"]
        self.pid = _CLOSED
        self.stopped: str | None = None  # the limit that it met, or `killed`
        self.cut = False  # it printed more than it may
        self.printed, self._print_to = os.pipe()
        self.result, self._result_to = os.pipe()
        self._exit = _CLOSED
        self._said = bytearray()
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._left: int = self.limits["output_bytes"]
        self._code: int | None = None
        self._usage: resource.struct_rusage | None = None
        self._began_s = time.monotonic()
        self.ends_at = self._began_s + float(self.limits["timeout_s"])

    def begin(self, pid: int) -> None:
        """Take note of its process."""
        self.pid = pid
        os.close(self._print_to)
        os.close(self._result_to)
        self._print_to = self._result_to = _CLOSED
        self._exit = os.pidfd_open(pid)
        for file in (self.printed, self.result):
            os.set_blocking(file, False)

    def files(self) -> tuple[tuple[str, int], ...]:
        """Return what of it is to be looked at, and what that is."""
        return (("printed", self.printed), ("result", self.result), ("exit", self._exit))

    def writing_ends(self) -> tuple[int, int]:
        """Return the ends of its pipes that its process writes to."""
        return self._print_to, self._result_to

    def read_printed(self) -> str | None:
        """Return what it printed, as far as it may; None: nothing more will come."""
        try:
            data = os.read(self.printed, CHUNK)
        except BlockingIOError:
            return ""
        if not data:
            return None
        self.cut = self.cut or len(data) > self._left
        kept = data[: self._left]
        self._left -= len(kept)
        return self._characters.decode(kept)

    def read_result(self) -> bool:
        """Read of its result; return whether more may come."""
        try:
            data = os.read(self.result, CHUNK)
        except BlockingIOError:
            return True
        self._said += data
        if len(self._said) > self.limits["value_bytes"] + EXTRA_BYTES:
            self.stop("value_bytes")
            return False
        return bool(data)

    def rest(self) -> str:
        """Return what it printed and nobody has read; its processes have ended."""
        parts: list[str] = []
        before = -1
        while before < len(self._said) and self.stopped is None:
            before = len(self._said)
            self.read_result()
        while not self.cut and (text := self.read_printed()) is not None:
            if not text and self._left == 0:
                break
            parts.append(text)
            if not text:
                break
        parts.append(self._characters.decode(b"", final=True))
        return "".join(parts)

    def stop(self, why: str) -> None:
        """End its processes."""
        if self.stopped is None:
            self.stopped = why
            self._kill()

    def _kill(self) -> None:
        if self.pid <= 0:  # it has none: to the kernel -1 is everybody
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)  # it may have no group yet
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def end_group(self) -> None:
        """End what is left of its group, and note how it ended."""
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            self._kill()  # its number is not another's yet
            _, status, self._usage = os.wait4(self.pid, 0)
            self._code = os.waitstatus_to_exitcode(status)

    def ending(self) -> dict[str, Any]:
        """Return how it ended, as it is told."""
        usage = self._usage
        cpu_s = 0.0 if usage is None else usage.ru_utime + usage.ru_stime
        told: dict[str, Any] = {
            "end": self.id,
            "code": self._code,
            "limit": self.stopped,
            "cut": self.cut,
            "wall_s": time.monotonic() - self._began_s,
            "cpu_s": cpu_s,
            "memory_bytes": 0 if usage is None else usage.ru_maxrss * 1024,
        }
        if self.stopped is None:
            with contextlib.suppress(ValueError):
                told["said"] = json.loads(bytes(self._said))
            by_cpu = self._code == -signal.SIGKILL and cpu_s >= self.limits["cpu_s"]
            if by_cpu or self._code == -signal.SIGXCPU:
                told["limit"] = "cpu_s"
        return told

    def close(self) -> None:
        """Close its files."""
        ends = (self.printed, self.result, self._exit, self._print_to, self._result_to)
        self.printed = self.result = self._exit = self._print_to = self._result_to = _CLOSED
        for file in ends:
            if file != _CLOSED:
                os.close(file)


def be_call(call: Call, function: loading.Function, request: Mapping[str, Any]) -> None:
    """Be the process of a call; returns never."""
    code = 1
    try:
        os.setsid()
        print_to, result_to = call.writing_ends()
        os.dup2(print_to, 1)
        os.dup2(print_to, 2)
        answer = fcntl.fcntl(result_to, fcntl.F_DUPFD_CLOEXEC, 3)
        call.close()
        bind(request["limits"])
        os.chdir(request["workspace"])
        home = {"HOME": request["workspace"], "TMPDIR": request["workspace"]}
        os.environ.update(home)  # noqa: TID251  what the tool is told
        said = outcome(function, request["arguments"], request["limits"])
        with os.fdopen(answer, "wb") as file:
            file.write(json.dumps(said).encode())
        code = 0
    finally:
        os._exit(code)


def bind(limits: Mapping[str, Any]) -> None:
    """Limit this process and all that it begins."""
    whole_s = math.ceil(limits["cpu_s"])
    memory, files = limits["memory_bytes"], limits["file_bytes"]
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, whole_s, whole_s + MORE_CPU_S),
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_FSIZE, files, files),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        _, most = resource.getrlimit(kind)
        wanted = (soft, hard)
        if most != resource.RLIM_INFINITY:
            wanted = (min(soft, most), min(hard, most))
        resource.setrlimit(kind, wanted)
    bound_tasks(limits["processes"])


def outcome(
    function: loading.Function, arguments: Mapping[str, Any], limits: Mapping[str, Any]
) -> dict[str, Any]:
    """Run the function; return its value as JSON, what it raised, or the limit that it met."""
    try:
        value = function(**arguments)
        if inspect.isawaitable(value):
            value = asyncio.run(_awaited(value))
        return _as_json(value, limits)
    except MemoryError:
        return {"limit": "memory_bytes"}
    except BaseException as error:  # noqa: BLE001  whatever a tool raises is told
        if isinstance(error, OSError) and error.errno in _NO_MORE:
            return {"limit": "file_bytes"}
        return {"error": loading.failure(error)}
    finally:
        _flush()


def _as_json(value: object, limits: Mapping[str, Any]) -> dict[str, Any]:
    try:
        text = json.dumps(loading.plain(value), allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        return {"unfit": str(error)}
    return {"limit": "value_bytes"} if len(text) > limits["value_bytes"] else {"value": text}


async def _awaited(value: Awaitable[object]) -> object:
    return await value


def _flush() -> None:
    """Have what was printed leave; a stream that the tool has closed is left alone."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError, OSError):
            stream.flush()
