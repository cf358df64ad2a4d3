"""The command line where it is used: terminals, pipes that close, locales, text of all kinds."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from aios_sdk import Agent, KernelError
from tests.acceptance.test_cli import LONG, aios, detached, kernel, settings, state_of
from tests.waiting import wait_until

LINES, COLUMNS = 24, 80
LIMIT_S = 60
LEAVES_THE_SCREEN = b"\x1b[?1049l"
pytestmark = pytest.mark.timeout(240)

__all__ = ["kernel", "settings"]  # fixtures


@dataclass
class Terminal:
    """A program on a terminal of 80 columns and 24 lines."""

    process: subprocess.Popen[bytes]
    leader: int
    drawn: bytes = b""

    def shows(self, words: str) -> bool:
        """Whether these words have come since they were last waited for."""
        if select.select([self.leader], [], [], 0)[0]:
            self.drawn += os.read(self.leader, 65_536)
        found = words.encode() in self.drawn
        if found:
            self.drawn = b""
        return found

    def press(self, keys: str, then: str) -> None:
        os.write(self.leader, keys.encode())
        wait_until(lambda: self.shows(then), timeout_s=LIMIT_S)


@contextmanager
def terminal(settings: dict[str, str], *arguments: str, term: str = "xterm") -> Iterator[Terminal]:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environ = {
        name: value for name, value in os.environ.items() if name not in ("LINES", "COLUMNS")
    }
    environ |= {**settings, "TERM": term, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-m", "aios_cli", *arguments],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environ,
        start_new_session=True,
    ) as process:
        os.close(follower)
        try:
            yield Terminal(process, leader)
        finally:
            process.kill()
            os.close(leader)


def test_top_is_worked_by_keys(settings: dict[str, str]) -> None:
    novel = detached(settings, "one", *LONG, "--agent", "novelist")
    wait_until(lambda: state_of(settings, novel) == "running")
    poem = detached(settings, "two", *LONG, "--agent", "poet")
    with terminal(settings, "top") as top:
        wait_until(lambda: top.shows("q quit"), timeout_s=LIMIT_S)
        wait_until(lambda: top.shows("tokens/s"), timeout_s=LIMIT_S)
        top.press("h", "end a syscall: type 8 or more digits")
        top.press("h", "q quit")
        top.press("s", "sorted by age")
        top.press("f", "filter: ")
        top.press("poet\r", "1 with 'poet' (Esc)")
        top.press("\x1b", "2 syscalls: 1 running, 1 waiting; sorted by age")
        top.press("knobody\r", "nobody")
        assert {state_of(settings, one) for one in (novel, poem)} == {"running", "queued"}
        top.press(f"k{poem[:8]}\r", f"{poem[:8]} cancelled")
        os.write(top.leader, b"q")
        assert top.process.wait(timeout=LIMIT_S) == 0
    wait_until(lambda: state_of(settings, poem) == "ended")


def test_no_line_of_top_is_wider_than_its_terminal(settings: dict[str, str]) -> None:
    for number in range(30):
        detached(settings, f"story {number}", *LONG, "--agent", "novelist", "--program", "n" * 60)
    with terminal(settings, "top", "-n", "2") as top:
        frames = b""

        def has_ended() -> bool:
            nonlocal frames
            if select.select([top.leader], [], [], 0)[0]:
                try:
                    frames += os.read(top.leader, 65_536)
                except OSError:  # the other end is closed
                    return True
            return LEAVES_THE_SCREEN in frames

        wait_until(has_ended, timeout_s=LIMIT_S)
    text = re.sub(r"\x1b\[[0-9;?]*[A-HJK]", "\n", frames.decode())  # the cursor goes elsewhere
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert "… " in text  # of 30 not all fit: it says how many more
    assert max(len(line.rstrip()) for line in text.replace("\r", "\n").splitlines()) <= COLUMNS


def test_a_terminal_that_cannot_draw_gets_one_frame(settings: dict[str, str]) -> None:
    with terminal(settings, "top", term="dumb") as top:
        wait_until(lambda: top.shows("no syscalls"), timeout_s=LIMIT_S)
        assert top.process.wait(timeout=LIMIT_S) == 0


@pytest.mark.parametrize(
    "command",
    [
        "ps",
        "queues",
        "top",
        "usage",
        "status --json",
        "journal -n 500",
        "submit --max-tokens 60 hello",
        "submit --json --max-tokens 5 hello",
        "--help",
        "no-such-command",
    ],
)
def test_a_reader_that_leaves_is_no_fault(settings: dict[str, str], command: str) -> None:
    line = f'{sys.executable} -m aios_cli {command} | head -0; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", line],
        env={**os.environ, **settings, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    if command == "no-such-command":  # what a person has to read goes to standard error
        assert (done.returncode, b"No such command" in done.stderr) == (2, True)
    else:
        assert (done.returncode in (0, 1), done.stderr) == (True, b"")


ASCII_ALONE = {
    "LC_ALL": "C",
    "PYTHONIOENCODING": "ascii",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
}


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, ASCII_ALONE], ids=["C", "ASCII alone"])
def test_every_locale_can_say_and_hear_everything(
    settings: dict[str, str], locale: dict[str, str]
) -> None:
    environ = {**os.environ, **settings, **locale, "PYTHONPATH": os.pathsep.join(sys.path)}

    def run(*arguments: str) -> bytes:
        command = [sys.executable, "-m", "aios_cli", *arguments]
        done = subprocess.run(
            command, env=environ, capture_output=True, timeout=LIMIT_S, check=False
        )
        assert (done.returncode, done.stderr) == (0, b""), arguments
        return done.stdout

    assert run("submit", "--tool", "echo", "héllo ✓ 状").decode() == "héllo ✓ 状\n"
    for look in ("ps --all", "queues", "status", "journal -n 5", "usage", "top"):
        run(*look.split())
    job_id = run("submit", "--detach", "--tool", "echo", "héllo ✓ 状").decode().strip()
    assert 'tool.echo(text="héllo ✓ 状") = "héllo ✓ 状"' in run("strace", job_id).decode()


SAFE = ["\u2028\u2029\ufeff", "\U0001f468\u200d\U0001f469", "\u202e", "\r\n\t\x1b[31m", '"\\/']
SAFE += ["e\u0301", "\x7f\x80\x9f", ""]


NO_TEXT = ["\x00", "a\x00b", "\ud800", "\udc80x"]


@pytest.fixture
def writer(settings: dict[str, str]) -> Iterator[Agent]:
    with Agent("writer", url=settings["AIOS_REDIS_URL"]) as me:
        yield me


@pytest.mark.parametrize("text", SAFE, ids=ascii)
def test_what_is_text_comes_back_as_it_was(writer: Agent, text: str) -> None:
    assert writer.tool.echo(text).text == text


@pytest.mark.parametrize("text", NO_TEXT, ids=ascii)
def test_what_is_no_text_is_refused_by_every_module(writer: Agent, text: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: writer.tool.echo(text),
        lambda: writer.llm.chat(text, max_tokens=2),
        lambda: writer.memory.add(text),
        lambda: writer.storage.write(f"notes/{text}", "x"),
        lambda: writer.storage.write("notes/today.md", text),
    ]
    for call in calls:
        with pytest.raises(KernelError) as refused:
            call()
        assert refused.value.code == "invalid-syscall"
        assert refused.value.field


@pytest.mark.parametrize("agent", ["a b\n", "", "ada\x1b[31m", "../x"])
def test_a_name_that_is_none_is_refused_before_anything_runs(
    settings: dict[str, str], agent: str
) -> None:
    done = aios(settings, "submit", "--agent", agent, "x")
    assert (done.exit_code, done.stdout) == (4, "")
    assert "\x1b" not in done.stderr
