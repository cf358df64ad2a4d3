"""`aios exec` as a person and as a pipe have it: a real process, a real terminal."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import pytest

from aios_broker.contract.exec import ExecList, ExecSessions
from tests.caller import Caller
from tests.tool_scene import ToolScene, answer
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(240)
SOON_S = 60.0  # each process starts a Python, maybe beside others
CTRL_C, CTRL_D = b"\x03", b"\x04"


@pytest.fixture
async def caller(redis_url: str, tmp_path: Path) -> AsyncIterator[Caller]:
    async with aclosing(Caller(redis_url)) as user, ToolScene(tmp_path).worker(redis_url):
        yield user


def environ(caller: Caller, folder: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HOME": str(folder),
        "TERM": "dumb",
        "AIOS_REDIS_URL": caller.url,
        "AIOS_STATE_DIR": str(folder),
    }


async def piped(
    caller: Caller, folder: Path, text: str, *words: str
) -> subprocess.CompletedProcess[str]:
    """Run the command with a text as its standard input."""
    return await asyncio.to_thread(
        lambda: subprocess.run(
            [sys.executable, "-m", "aios_cli", "exec", *words],
            input=text,
            env=environ(caller, folder),
            capture_output=True,
            text=True,
            timeout=SOON_S * 2,
            check=False,
        )
    )


async def sessions(caller: Caller) -> int:
    """Return how many sessions the command's agent has."""
    found = await answer(caller, ExecList(), agent="cli", tenant="default")
    assert isinstance(found, ExecSessions)
    return len(found.sessions)


async def test_a_pipe_is_read_line_by_line(caller: Caller, tmp_path: Path) -> None:
    done = await piped(caller, tmp_path, "x = 20\nfor n in range(2):\n    print(n)\nx + 1\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n1\n21\n", "")

    wrong = await piped(caller, tmp_path, "1 / 0\n'goes on'\n", "prompt")
    assert (wrong.returncode, wrong.stdout) == (1, "'goes on'\n")
    assert "ZeroDivisionError" in wrong.stderr
    assert await sessions(caller) == 0


async def test_a_session_that_is_named_stays(caller: Caller, tmp_path: Path) -> None:
    opened = await piped(caller, tmp_path, "", "open", "--interpreter", "shell")
    session = opened.stdout.strip()
    await piped(caller, tmp_path, "X=kept\n", "prompt", session)
    done = await piped(caller, tmp_path, "echo $X\n", "prompt", session[:8])
    unknown = await piped(caller, tmp_path, "", "prompt", "ffff")
    other = await piped(caller, tmp_path, "", "prompt", session, "--interpreter", "python")

    assert done.stdout == "kept\n"
    assert (unknown.returncode, "unknown-session" in unknown.stderr) == (4, True)
    assert (other.returncode, "is shell" in other.stderr) == (2, True)
    assert await sessions(caller) == 1


class Terminal:
    """A person at a terminal on which the command runs."""

    def __init__(self, process: subprocess.Popen[bytes], file: int) -> None:
        self.process = process
        self._file = file
        self._seen = ""
        self.all = ""

    def type(self, keys: bytes) -> None:
        os.write(self._file, keys)

    def interrupt(self) -> None:
        """Type Ctrl-C, no sooner than a person could: when the command waits.

        Between showing a prompt and waiting for a key Python's `input` keeps a signal until a key
        comes; on a busy machine a test that is woken up by the prompt is faster than that.
        """
        seen = ""

        def rests() -> bool:
            nonlocal seen
            before, seen = seen, self._turns()
            return seen == before and "S" in before

        wait_until(rests, SOON_S)
        self.type(CTRL_C)

    def _turns(self) -> str:
        """Return the state of its main thread, and how often that has changed."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        said = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        return f"{said['State'][0]} {said['voluntary_ctxt_switches']}"

    def sees(self, words: str) -> None:
        """Wait until something new is shown."""
        until_s = time.monotonic() + SOON_S
        while words not in self._seen:
            left_s = until_s - time.monotonic()
            assert left_s > 0, self.all
            if select.select([self._file], [], [], left_s)[0]:
                try:
                    data = os.read(self._file, 4096).decode(errors="replace")
                except OSError as error:  # nobody writes there any more
                    raise AssertionError(self.all) from error
                self._seen += data
                self.all += data
        self._seen = self._seen.partition(words)[2]


@contextmanager
def terminal(caller: Caller, folder: Path) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "aios_cli", "exec"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environ(caller, folder),
        start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # it is its terminal now
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


async def test_ctrl_c_interrupts_the_run_and_ctrl_d_closes_the_session(
    caller: Caller, tmp_path: Path
) -> None:
    def lives() -> None:
        with terminal(caller, tmp_path) as person:
            person.sees(">>> ")
            person.type(b"import time; kept = 6\n")
            person.sees(">>> ")
            person.type(b"print('be' + 'gun'); time.sleep(600)\n")
            person.sees("begun")  # what is printed comes while it runs
            person.interrupt()
            person.sees("KeyboardInterrupt")
            person.sees(">>> ")
            person.type(b"def f(\n")
            person.sees("... ")
            person.interrupt()  # drops the line
            person.sees(">>> ")
            person.type(b"kept * 7\n")
            person.sees("42")
            person.sees(">>> ")
            person.type(CTRL_D)
            assert person.process.wait(SOON_S) == 0, person.all

    await asyncio.to_thread(lives)
    assert await sessions(caller) == 0


async def test_a_second_ctrl_c_ends_the_waiting(caller: Caller, tmp_path: Path) -> None:
    def lives() -> None:
        with terminal(caller, tmp_path) as person:
            person.sees(">>> ")
            person.type(b"import signal, time\n")
            person.sees(">>> ")
            person.type(b"for _ in [signal.signal(2, lambda *_: print('de' + 'af'))]:\n")
            person.sees("... ")
            person.type(b"    print('be' + 'gun'); time.sleep(600)\n\n")
            person.sees("begun")
            person.interrupt()
            person.sees("deaf")
            person.interrupt()
            person.sees("cancelled")
            person.sees(">>> ")
            person.type(b"1\n")
            person.sees("session-lost")
            assert person.process.wait(SOON_S) == 1, person.all

    await asyncio.to_thread(lives)
