"""`aios exec` as a prompt: lines are run in a session that keeps what they define.

On a terminal lines can be edited and are kept for the next time; elsewhere they are read as they
come. What is not whole yet waits for its next line.
"""

import codeop
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Protocol

import msgspec

from aios_broker.contract.errors import KernelError, SessionLost, UnknownSession
from aios_broker.contract.exec import ExecOutcome, Interpreter
from aios_cli.results import show_result
from aios_cli.tables import say
from aios_cli.text import utf8
from aios_sdk import Agent

HISTORY = "exec-history"  # in the state directory
KEPT_LINES = 1_000
CHECK_LIMIT_S = 5.0
_GOES_ON = ("else", "elif", "except", "finally")  # what belongs to the block above it
_UNFINISHED = (b"unexpected end of file", b"unexpected EOF", b"delimited by end-of-file")


class Lines(Protocol):
    """Where lines come from."""

    is_terminal: bool

    def next(self, *, goes_on: bool) -> str:
        """Return the next line without its end; `goes_on`: what came before is not whole.

        Raises:
            EOFError: There are no more.
            KeyboardInterrupt: Ctrl-C.
        """
        ...


class TerminalLines:
    """Lines that a person types."""

    is_terminal = True

    def __init__(self, interpreter: Interpreter) -> None:
        self._prompts = (">>> ", "... ") if interpreter == "python" else ("$ ", "> ")

    def next(self, *, goes_on: bool) -> str:
        """Ask for a line."""
        return input(self._prompts[goes_on])

    @contextlib.contextmanager
    def kept(self, state_dir: Path) -> Iterator[None]:
        """Have lines of earlier times at hand, and keep these, for their owner alone."""
        try:
            import readline  # noqa: PLC0415  importing it changes how each `input` reads
        except ImportError:  # a Python without it
            yield
            return
        file = state_dir / HISTORY
        with contextlib.suppress(OSError):
            readline.read_history_file(file)
        readline.set_history_length(KEPT_LINES)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
                readline.write_history_file(file)


class ReadLines:
    """Lines of a file or a pipe."""

    is_terminal = False

    def next(self, *, goes_on: bool) -> str:
        """Read a line."""
        line = sys.stdin.buffer.readline()
        if not line:
            raise EOFError
        return utf8(line, "standard input").rstrip("\r\n")


class Prompt:
    """Runs what is typed in one session."""

    def __init__(
        self, agent: Agent, session_id: str, interpreter: Interpreter, timeout_s: float
    ) -> None:
        """Take whose session it is, and how long a run may take."""
        self._agent = agent
        self._session = session_id
        self._interpreter = interpreter
        self._timeout_s = timeout_s
        self.failed = 0  # runs that ended in an error

    def serve(self, lines: Lines) -> None:
        """Run line after line, until there are no more.

        Raises:
            SessionLost: It is gone, `UnknownSession`; from a pipe any other error, too.
            KeyboardInterrupt: Ctrl-C, where no person types.
        """
        for code in pieces(lines, self._interpreter):
            try:
                self._run(code, live=lines.is_terminal)
            except KernelError as error:
                if not lines.is_terminal or isinstance(error, SessionLost | UnknownSession):
                    raise
                say(f"{error.code}: {error}", err=True)
            except KeyboardInterrupt:
                if not lines.is_terminal:
                    raise
                say("\ncancelled: what does not end within 3 s ends with its session", err=True)

    def _run(self, code: str, *, live: bool) -> None:
        if not live:  # Ctrl-C is an error as any other: it ends all
            self._show(self._agent.exec.run(self._session, code, timeout_s=self._timeout_s))
            return
        run, last = self._agent.exec.run, "\n"
        with _interrupting(lambda: self._agent.exec.interrupt(self._session)):
            with run.stream(self._session, code, timeout_s=self._timeout_s) as stream:
                for text in stream:
                    say(text, nl=False)
                    last = text[-1:]
            if last != "\n":
                say()
        self._show(msgspec.structs.replace(stream.result, stdout="", stderr=""))

    def _show(self, outcome: ExecOutcome) -> None:
        show_result(outcome)
        if outcome.error is not None:
            self.failed += 1


def pieces(lines: Lines, interpreter: Interpreter) -> Iterator[str]:
    """Yield what is whole: one line, or a block with all its lines."""
    is_python = interpreter == "python"
    is_whole = _is_python if is_python else _is_shell
    waiting: list[str] = []
    while True:
        try:
            line = lines.next(goes_on=bool(waiting))
        except EOFError:
            if waiting:
                yield "\n".join(waiting)
            return
        except KeyboardInterrupt:
            if not lines.is_terminal:
                raise
            say(err=True)
            waiting = []  # as Python's own prompt has it
            continue
        if is_python and not lines.is_terminal and _begins_anew(waiting, line):
            yield "\n".join(waiting)
            waiting = []
        if not waiting and not line.strip():
            continue
        waiting.append(line)
        # In a file of Python an empty line ends no block: what follows may be indented.
        may_end = lines.is_terminal or not is_python or bool(line.strip())
        if may_end and is_whole("\n".join(waiting)):
            yield "\n".join(waiting)
            waiting = []


def _begins_anew(waiting: list[str], line: str) -> bool:
    """Whether a line of Python that is not indented ends the block before it."""
    if not waiting or not line[:1].strip():
        return False
    first = line.partition(":")[0].split(" ", 1)[0]
    return first not in _GOES_ON and _is_python("\n".join((*waiting, "")))


@contextlib.contextmanager
def _interrupting(interrupt: Callable[[], object]) -> Iterator[None]:
    """Have Ctrl-C interrupt what runs in the session; the second one ends the waiting for it."""
    sent: list[threading.Thread] = []

    def tell() -> None:
        with contextlib.suppress(KernelError):  # it has ended meanwhile, and whoever waits hears it
            interrupt()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if sent:
            raise KeyboardInterrupt
        # In a thread: what the signal has come into the middle of may hold the agent's lock.
        sent.append(threading.Thread(target=tell, name="interrupt", daemon=True))
        sent[0].start()

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _is_python(text: str) -> bool:
    """Whether Python has all that it needs; what is wrong is told by the session."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return codeop.compile_command(text, "<prompt>", "single") is not None
    except (SyntaxError, ValueError, OverflowError, MemoryError, RecursionError):
        return True


def _is_shell(text: str) -> bool:
    """Whether a shell has all that it needs; where none is here each line is taken for whole."""
    if text.endswith("\\") and not text.endswith("\\\\"):
        return False
    program = shutil.which("bash")
    if program is None:
        return True
    try:
        done = subprocess.run(
            [program, "--noprofile", "--norc", "-n"],
            input=text.encode(errors="surrogateescape") + b"\n",
            env={"PATH": os.defpath, "LC_ALL": "C"},
            capture_output=True,
            timeout=CHECK_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return True
    return not any(words in done.stderr for words in _UNFINISHED)
