"""One process below the supervisor: its present run, and the history of its deaths."""

import os
import random
import re
import select
import signal
import subprocess
import time
from dataclasses import dataclass

from aios_broker.contract.errors import KernelError
from aios_broker.log import KernelLog, message_of
from aios_broker.process.child import Child, Service, always_ready
from aios_local.supervisor.record import ProcessRecord, ProcessState

FIRST_PAUSE_S = 0.05  # a server that was killed is back before most callers notice
LONGEST_PAUSE_S = 10.0
LONGEST_PAUSE_UNNEEDED_S = 30.0  # of one that may be waiting for a server elsewhere
LONGEST_PAUSE_AT_WORK_S = 2.0  # of one that can start, and is ended by what it is given to do
PAUSE_GROWTH = 4.0
# Given up after so many short lives in a row: its fault does not pass by itself. Not so where it
# was ever seen at work: then poison jobs may have ended it, some before anybody saw it ready again,
# or Redis was away. Poison is quarantined before long, and Redis comes back.
MAX_SHORT_LIVES = 5
STABLE_S = 5.0  # a run as long as this was not a short life
ASK_READY_EVERY_S = 0.03
ASK_READY_SHARE = 0.05  # of its age: one that loads for minutes is asked once a second
READ_BYTES = 65_536
MAX_LINE_BYTES = 8_192
EXIT_SETTINGS = 2  # our processes' exit code for a wrong setting: trying again changes nothing
LEVEL = re.compile(r"^[A-Z]+ [\w.]+: ")  # what our own processes put before a line
# What Python's logging and Valkey put before each line: this log has the time already.
FOREIGN_STAMP = re.compile(
    r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} |\d+:[A-Z] \d+ \w+ \d{4} [\d:.]+ [.\-*#] )"
)


@dataclass(slots=True)
class SupervisedProcess:
    """The present run of a service and the history of its deaths."""

    service: Service
    log: KernelLog
    state: ProcessState = "stopped"
    child: Child | None = None
    restarts: int = 0
    last_exit: int | None = None
    last_line: str = ""
    start_at: float = 0.0  # monotonic; when `state` is "waiting"
    mute: bool = False  # its output has ended, or it closed it
    expected_death: bool = False  # somebody of ours kills it: that says nothing about its health
    successor: Service | None = None  # what it becomes when it has stopped; None: nothing
    is_gone: bool = False  # it has stopped, and is nothing any more
    _stop_by: float = 0.0  # monotonic; when `state` is "stopping"
    _last_words: str = ""
    _asked_ready_at: float = 0.0
    _short_lives: int = 0
    _has_worked: bool = False  # in this run or an earlier one
    _rest: bytes = b""  # of the output: a line that has not ended

    @property
    def record(self) -> ProcessRecord:
        """What `kernel.json` says of it."""
        pid = self.child.pid if self.child is not None else None
        return ProcessRecord(
            self.service.name, self.state, pid, self.restarts, self.last_exit, self._last_words
        )

    @property
    def output(self) -> int | None:
        """The descriptor of its output, while it runs."""
        if self.child is None or self.child.process.stdout is None:
            return None
        return self.child.process.stdout.fileno()

    def start(self) -> None:
        """Start it; a start that fails counts as a death."""
        try:
            self.child = Child.start(self.service, subprocess.PIPE)
        except KernelError as error:
            self.last_line = str(error)
            self.say(str(error))
            self._short_lives += 1
            self._go_on_or_give_up()
            return
        assert self.output is not None
        os.set_blocking(self.output, False)
        self.state = "starting"
        self.mute = False

    def check(self) -> None:
        """Take notice of what happened since the last time: ended, ready, late, due."""
        if self.state == "waiting":
            if time.monotonic() >= self.start_at:
                self.restarts += 1
                self.start()
            return
        if self.child is None:
            return
        if self.state == "stopping":
            if self.child.exit_code is not None or time.monotonic() >= self._stop_by:
                self._become_successor()
        elif self.child.exit_code is not None:
            self._ended(self.child.exit_code)
        elif self.state == "starting":
            self._check_start(self.child)

    def read(self) -> None:
        """Copy its new output into the log."""
        if self.output is None:
            return
        try:
            new = os.read(self.output, READ_BYTES)
        except BlockingIOError:
            return
        self.mute = not new
        *lines, self._rest = (self._rest + new).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES or not new:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._log_line(line)

    def ask_to_stop(self) -> None:
        """Send its stop signal, if it runs and has not got it: a second one is a hard one."""
        if self.child is not None and self.state != "stopping":
            self.child.signal(self.service.stop_signal)

    def replace(self, successor: Service | None) -> None:
        """Let it stop in order, without waiting for that, and start again as another; or not."""
        if successor is None:
            self.say("is stopped: it is not wanted any more")
        else:
            same = successor.version == self.service.version
            self.say("is tried again" if same else "is changed: it starts anew")
        self._make_way(successor)

    def give_up_variables(self, service: Service) -> None:
        """Go on as the same service without variables that are another one's, keys mostly."""
        if self.child is None:
            self.service = service  # with its next start, if there is one
            return
        self.say("starts anew: it had a key that is a core's")
        self._make_way(service)

    def _make_way(self, successor: Service | None) -> None:
        self.successor = successor
        if self.child is None:
            self._become_successor()
            return
        self.ask_to_stop()
        if self.state != "stopping":
            self._stop_by = time.monotonic() + self.service.stop_timeout_s
            self.state = "stopping"

    def end(self) -> None:
        """Take the end of an asked-for stop: kill what is left, forget the run."""
        if self.child is not None:
            if self.child.exit_code is None:
                self.say("did not stop in time and was killed")
            self.child.kill_session()
            self.last_exit = self.child.process.wait()
            self._forget_run()
        if self.state != "failed":
            self.state = "stopped"

    def say(self, text: str) -> None:
        """Write a line about the process into the log."""
        self.log.line("kernel", f"{self.service.name}: {text}")

    def _become_successor(self) -> None:
        self.end()
        self.state = "stopped"
        self.is_gone = self.successor is None
        if self.successor is not None:
            self.service, self.successor = self.successor, None
            self._short_lives, self._has_worked, self._last_words = 0, False, ""
            self.start()

    def _check_start(self, child: Child) -> None:
        now = time.monotonic()
        age_s = now - child.started_at
        if now - self._asked_ready_at < min(1.0, max(ASK_READY_EVERY_S, age_s * ASK_READY_SHARE)):
            return
        self._asked_ready_at = now
        # One that runs once is done when it has ended.
        if not self.service.one_shot and child.is_ready():
            self.state = "running"
            self._last_words = ""
            self.say(f"ready after {age_s:.1f} s (process {child.pid})")
        elif age_s > self.service.ready_timeout_s:
            self.say(f"not ready after {age_s:.0f} s: killed")
            child.kill_session()

    def _ended(self, code: int) -> None:
        assert self.child is not None
        self.last_exit = code
        lived_s = time.monotonic() - self.child.started_at
        was_at_work = self._was_at_work(self.child.pid)
        self._has_worked = self._has_worked or was_at_work
        self.child.kill_session()  # what it forked and left behind
        self._forget_run()
        if self.service.one_shot and code == 0:
            self.state = "done"
            return
        self._last_words = LEVEL.sub("", self.last_line)
        # One that loads for minutes and dies before it is ready has not lived long.
        is_stable = lived_s >= STABLE_S and (was_at_work or not self._must_be_ready)
        if is_stable or self.expected_death:
            self._short_lives = 0
            self.expected_death = False
        else:
            self._short_lives += 1
        self.say(f"ended by {_cause(code)} after {lived_s:.1f} s")
        if code == EXIT_SETTINGS:
            self.state = "failed"
            self.say(f"not started again: a setting is wrong: {self.last_line}")
            return
        self._go_on_or_give_up()

    @property
    def _must_be_ready(self) -> bool:
        return self.service.is_ready is not always_ready and self.service.lock_path is None

    def _was_at_work(self, pid: int) -> bool:
        """Tell whether one that has ended had been ready; a worker's record outlives it.

        Never of a server with data: what ends that is its own fault.
        """
        if not self._must_be_ready:
            return False
        return self.state == "running" or self.service.is_ready(pid)

    def _go_on_or_give_up(self) -> None:
        needed = self.service.needed
        if needed and self._short_lives >= MAX_SHORT_LIVES and not self._has_worked:
            self.state = "failed"
            self.say(
                f"crash loop: {self._short_lives} short lives in a row; not started again. "
                f"Its last words: {self.last_line or 'none'}"
            )
            return
        longest_s = LONGEST_PAUSE_AT_WORK_S if self._has_worked else LONGEST_PAUSE_S
        if not needed and not self._has_worked:
            longest_s = LONGEST_PAUSE_UNNEEDED_S
        pause_s = FIRST_PAUSE_S * PAUSE_GROWTH ** max(self._short_lives - 1, 0)
        # Processes that died together do not come back together.
        self.start_at = time.monotonic() + min(pause_s, longest_s) * random.uniform(0.8, 1.2)
        self.state = "waiting"

    def _forget_run(self) -> None:
        assert self.child is not None
        # Not until its end: a descendant may hold the pipe open without ever writing.
        output = self.output
        while output is not None and not self.mute and select.select([output], [], [], 0)[0]:
            self.read()
        if self._rest:
            self._log_line(self._rest)
            self._rest = b""
        if self.child.process.stdout is not None:
            self.child.process.stdout.close()
        self.child = None
        self.mute = False

    def _log_line(self, line: bytes) -> None:
        text = FOREIGN_STAMP.sub("", line.decode(errors="replace").rstrip())
        if text:
            self.last_line = message_of(text)
            self.log.line(self.service.name, text)


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
