"""Runs of a shell: one bash that reads command after command."""

import fcntl
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
from typing import Any

INTERRUPTED = 130  # the exit code, by convention
LOOK_S = 0.2
_MARK = 9  # the descriptor by which the shell says that a command has ended
_FREE = 20  # from here on no descriptor is in use yet


class ShellRuns:
    """The shell of a session."""

    def __init__(self) -> None:
        program = shutil.which("bash")
        if program is None:
            raise FileNotFoundError("there is no bash")
        self._ended, ending = os.pipe()
        mark, complaints = (fcntl.fcntl(each, fcntl.F_DUPFD, _FREE) for each in (ending, 2))
        os.close(ending)
        self._running: int | None = None
        # Interactive, so that SIGINT ends a command and not the shell; it complains of having no
        # terminal, which nobody has to hear.
        self._shell = subprocess.Popen(
            [program, "--noprofile", "--norc", "--noediting", "-i"],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(mark, complaints),
            env={**os.environ, "PS1": "", "PS2": "", "HISTFILE": ""},  # noqa: TID251  the session's
        )
        os.close(mark)
        os.close(complaints)
        self._say(
            f"set +o history +m +H; PS1= PS2=; exec {_MARK}>&{mark} 2>&{complaints}; "
            f"exec {_closed(mark)} {_closed(complaints)}\n"
        )

    def interrupt(self, number: int) -> None:
        """End a run, if it is the one that runs; called by another thread."""
        if self._running == number:
            os.killpg(self._shell.pid, signal.SIGINT)
            self._say(_mark(number, str(INTERRUPTED)))

    def leave(self) -> None:
        """End the shell with all that is in its group."""
        if self._shell.poll() is None:
            os.killpg(self._shell.pid, signal.SIGKILL)

    def run(self, number: int, code: str) -> dict[str, Any]:
        """Run a command; return what is told of its end."""
        self._running = number
        self._say(f"eval {shlex.quote(code)} </dev/null {_closed(_MARK)}\n{_mark(number, '$?')}")
        status = self._status(number)
        self._running = None
        told: dict[str, Any] = {"end": number}
        if status == INTERRUPTED:
            told["error"] = {"name": "KeyboardInterrupt", "message": "it was interrupted"}
        elif status:
            told["error"] = {"name": "ExitCode", "message": str(status)}
        return told

    def _status(self, number: int) -> int:
        """Return the exit code that the shell says; ends this process where it has ended."""
        said = b""
        while True:
            if select.select([self._ended], [], [], LOOK_S)[0]:
                said += os.read(self._ended, 4096)
                *lines, said = said.split(b"\n")
                for line in lines:
                    of, _, code = line.partition(b" ")
                    if of == b"%d" % number and code.isdigit():
                        return int(code)
            elif self._shell.poll() is not None:
                sys.exit(1)

    def _say(self, text: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(text.encode(errors="replace"))
        self._shell.stdin.flush()


def _closed(descriptor: int) -> str:
    return f"{descriptor}>&-"


def _mark(number: int, code: str) -> str:
    return f"printf '%s %s\\n' {number} {code} >&{_MARK}\n"
