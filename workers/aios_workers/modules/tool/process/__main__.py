"""A tool's process: loads its function once, and forks a process of its own for each call.

    python -I PATH_OF_THIS_FILE describe|serve REQUEST_JSON

Messages are a length (4 bytes, big end first) and JSON; requests come by standard input, events go
by what was standard output, which nothing of the tool writes to. `describe` says what the function
is, and ends. `serve` says `ready`, then for each call what it prints and how it ended. No call runs
in this process: what one leaves in memory the next one does not see.

When its standard input ends, so does all that runs.
"""

import contextlib
import ctypes
import json
import os
import selectors
import signal
import struct
import sys
import time
from collections.abc import Mapping
from typing import Any

_PACKAGES = os.path.dirname(os.path.abspath(__file__)).partition("/aios_workers/")[0]
sys.dont_write_bytecode = True
sys.path.insert(0, _PACKAGES)

from aios_workers.modules.tool.process import calls, loading  # noqa: E402  from there alone

sys.path.remove(_PACKAGES)

LENGTH = struct.Struct(">I")
MOST_REQUEST_BYTES = 16 * 1024 * 1024
CHUNK = 1 << 16
ORPHANS_LIMIT_S = 2.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


class Line:
    """The two ends to whoever started this process."""

    def __init__(self) -> None:
        """Keep standard input and output for us; the tool gets others."""
        self.requests, self._events = os.dup(0), os.dup(1)
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 0)
        os.dup2(2, 1)
        os.close(nowhere)
        self._read = bytearray()

    def tell(self, event: Mapping[str, Any]) -> None:
        """Send an event."""
        data = json.dumps(event).encode()
        view = memoryview(LENGTH.pack(len(data)) + data)
        while view:
            view = view[os.write(self._events, view) :]

    def heard(self) -> list[dict[str, Any]] | None:
        """Return the requests that have come; None: there will be no more."""
        data = os.read(self.requests, CHUNK)
        if not data:
            return None
        self._read += data
        found: list[dict[str, Any]] = []
        while len(self._read) >= LENGTH.size:
            (size,) = LENGTH.unpack_from(self._read)
            if size > MOST_REQUEST_BYTES:
                return None
            if len(self._read) < LENGTH.size + size:
                break
            found.append(json.loads(bytes(self._read[LENGTH.size : LENGTH.size + size])))
            del self._read[: LENGTH.size + size]
        return found

    def is_told(self) -> bool:
        """Wait for a request; return whether one has come."""
        while (found := self.heard()) is not None:
            if found:
                return True
        return False

    def close(self) -> None:
        """Close both: a call has none of them."""
        os.close(self.requests)
        os.close(self._events)


def main(mode: str, asked: Mapping[str, Any]) -> int:
    """Do what is asked; return the exit code."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what a call leaves behind comes to us
    line = Line()
    line.tell({"begun": True})
    if not line.is_told():
        return 0
    sys.path.extend(asked["last_paths"])
    try:
        function = loading.load(asked["function"], asked["import_paths"])
        said = {
            "ready": True,
            "content": loading.content(function, asked["roots"], whole=asked["whole"]),
        }
        if mode == "describe":
            said |= loading.described(function)
            said["parameters"] = loading.schema_of(function) if asked["by_hints"] else None
        elif asked["by_hints"]:
            function = loading.converting(function)
    except BaseException as error:  # noqa: BLE001  whatever a tool raises when it is loaded
        line.tell({"broken": loading.failure(error)})
        return 0
    sys.stdout.flush()  # else the first call prints it
    # From here on the end of standard input ends it: it has to end what calls have begun, first.
    libc.prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0)
    line.tell(said)
    if mode == "serve":
        Server(line, function, libc).serve()
    return 0


class Server:
    """Runs calls, each in a process of its own, until nobody asks any more."""

    def __init__(self, line: Line, function: loading.Function, libc: ctypes.CDLL) -> None:
        """Serve a function; nothing runs yet."""
        self._line = line
        self._function = function
        self._libc = libc
        self._calls: dict[str, calls.Call] = {}
        self._selector = selectors.DefaultSelector()

    def serve(self) -> None:
        """Return when standard input has ended; nothing runs then."""
        self._selector.register(self._line.requests, selectors.EVENT_READ, None)
        while True:
            for key, _ in self._selector.select(self._wait_s()):
                if key.data is not None:
                    self._look(*key.data)
                elif not self._hear():
                    self._leave()
                    return
            now = time.monotonic()
            for call in self._calls.values():
                if now >= call.ends_at:
                    call.stop("timeout_s")

    def _wait_s(self) -> float | None:
        ends = [call.ends_at for call in self._calls.values() if call.stopped is None]
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def _hear(self) -> bool:
        requests = self._line.heard()
        for request in requests or ():
            if "kill" not in request:
                self._begin(request)
            elif (call := self._calls.get(request["kill"])) is not None:
                call.stop("killed")
        return requests is not None

    def _begin(self, request: Mapping[str, Any]) -> None:
        server, call = os.getpid(), calls.Call(request)
        pid = os.fork()
        if pid == 0:
            try:
                self._line.close()
                self._selector.close()
                for other in self._calls.values():
                    other.close()
                self._libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                # What it detaches stays below it for as long as it runs, and only then comes to the
                # server: what comes there is of calls that have ended, and of no other.
                self._libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
                if os.getppid() == server:
                    calls.be_call(call, self._function, request)
            finally:
                os._exit(1)
        call.begin(pid)
        self._calls[call.id] = call
        for what, file in call.files():
            self._selector.register(file, selectors.EVENT_READ, (call, what))

    def _look(self, call: calls.Call, what: str) -> None:
        if call.id not in self._calls:
            return
        if what == "exit":
            self._end(call)
        elif what == "result":
            if not call.read_result():
                self._selector.unregister(call.result)
        elif (text := call.read_printed()) is None:
            self._selector.unregister(call.printed)
        elif text:
            self._line.tell({"out": call.id, "text": text})

    def _end(self, call: calls.Call) -> None:
        call.end_group()
        end_orphans({each.pid for each in self._calls.values()} - {call.pid})
        if text := call.rest():
            self._line.tell({"out": call.id, "text": text})
        watched = self._selector.get_map()
        for _, file in call.files():
            if file in watched:
                self._selector.unregister(file)
        del self._calls[call.id]
        self._line.tell(call.ending())
        call.close()

    def _leave(self) -> None:
        for call in self._calls.values():
            call.stop("killed")
            call.end_group()
        end_orphans(set())


def end_orphans(kept: set[int]) -> None:
    """End the children of this process that are no calls: what calls that ended have left."""
    until = time.monotonic() + ORPHANS_LIMIT_S
    path = f"/proc/self/task/{os.getpid()}/children"
    while time.monotonic() < until:
        try:
            with open(path) as file:
                found = {int(each) for each in file.read().split()} - kept
        except OSError:
            return
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], json.loads(sys.argv[2])))
