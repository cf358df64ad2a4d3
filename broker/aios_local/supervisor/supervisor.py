"""The supervising loop: one thread starts, watches, restarts and stops a kernel's processes.

All children are started from the thread that is in `run`, and die with it (see `child.py`).
"""

import contextlib
import os
import queue
import random
import re
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aios_broker.contract.errors import InvalidConfig, KernelError, Unavailable
from aios_broker.log import KernelLog
from aios_broker.process.child import Child, Service, always_ready
from aios_local.supervisor.record import ProcessRecord, ProcessState

START_TICK_S = 0.02  # while something starts or ends
TICK_S = 0.2  # else; an end of output, and so a death, wakes the loop at once

FIRST_PAUSE_S = 0.05  # a server that was killed is back before most callers notice
LONGEST_PAUSE_S = 10.0
LONGEST_PAUSE_AT_WORK_S = 2.0  # of one that can start, and is ended by what it is given to do
PAUSE_GROWTH = 4.0
# Given up after so many short lives in a row: its fault does not pass by itself. Not so where it
# was ever seen at work: then poison jobs may have ended it, some before anybody saw it ready again,
# or Redis was away. Poison is quarantined before long, and Redis comes back.
MAX_SHORT_LIVES = 5
STABLE_S = 5.0  # a run as long as this was not a short life
ASK_READY_EVERY_S = 0.03
READ_BYTES = 65_536
MAX_LINE_BYTES = 8_192
EXIT_SETTINGS = 2  # our processes' exit code for a wrong setting: trying again changes nothing
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
    _asked_ready_at: float = 0.0
    _short_lives: int = 0
    _has_worked: bool = False  # in this run or an earlier one
    _rest: bytes = b""  # of the output: a line that has not ended

    @property
    def record(self) -> ProcessRecord:
        """What `kernel.json` says of it."""
        pid = self.child.pid if self.child is not None else None
        return ProcessRecord(self.service.name, self.state, pid, self.restarts, self.last_exit)

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
        if self.child.exit_code is not None:
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
        """Send its stop signal, if it runs."""
        if self.child is not None:
            self.child.signal(self.service.stop_signal)

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

    def _check_start(self, child: Child) -> None:
        now = time.monotonic()
        if now - self._asked_ready_at < ASK_READY_EVERY_S:
            return
        self._asked_ready_at = now
        age_s = now - child.started_at
        # One that runs once is done when it has ended.
        if not self.service.one_shot and child.is_ready():
            self.state = "running"
            self.say(f"ready after {age_s:.1f} s (process {child.pid})")
        elif age_s > self.service.ready_timeout_s:
            self.say(f"not ready after {age_s:.0f} s: killed")
            child.kill_session()

    def _ended(self, code: int) -> None:
        assert self.child is not None
        self.last_exit = code
        lived_s = time.monotonic() - self.child.started_at
        self._has_worked = self._has_worked or self._was_at_work(self.child.pid)
        self.child.kill_session()  # what it forked and left behind
        self._forget_run()
        if self.service.one_shot and code == 0:
            self.state = "done"
            return
        if lived_s >= STABLE_S or self.expected_death:
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

    def _was_at_work(self, pid: int) -> bool:
        """Tell whether one that has ended had been ready; a worker's record outlives it.

        Never of a server with data: what ends that is its own fault.
        """
        if self.service.is_ready is always_ready or self.service.lock_path is not None:
            return False
        return self.state == "running" or self.service.is_ready(pid)

    def _go_on_or_give_up(self) -> None:
        if self._short_lives >= MAX_SHORT_LIVES and not self._has_worked:
            self.state = "failed"
            self.say(
                f"crash loop: {self._short_lives} short lives in a row; not started again. "
                f"Its last words: {self.last_line or 'none'}"
            )
            return
        longest_s = LONGEST_PAUSE_AT_WORK_S if self._has_worked else LONGEST_PAUSE_S
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
            self.last_line = text
            self.log.line(self.service.name, text)


class Supervisor:
    """Runs stages of services: each stage starts when the one before is ready, stops before it."""

    def __init__(
        self,
        stages: Sequence[Sequence[Service]],
        log: KernelLog,
        on_change: Callable[[], None],
    ) -> None:
        self._stages = [[SupervisedProcess(service, log) for service in stage] for stage in stages]
        self._by_name = {one.service.name: one for one in self._all}
        self._log = log
        self._on_change = on_change
        self._reported: tuple[ProcessRecord, ...] = ()
        self._stop_asked = threading.Event()
        self._hurry = threading.Event()
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake_up: socket.socket | None = None  # both ends of a pair, while `run` runs
        self._alarm: socket.socket | None = None

    @property
    def records(self) -> tuple[ProcessRecord, ...]:
        """The processes as they are now."""
        return tuple(one.record for one in self._all)

    def run(self, on_ready: Callable[[], None]) -> None:
        """Start everything, call `on_ready`, watch until `stop`; then stop everything in order.

        Raises:
            Unavailable: A process could not be started, or one that all need is in a crash loop.
        """
        self._wake_up, self._alarm = socket.socketpair()
        with self._wake_up, self._alarm:
            self._wake_up.setblocking(False)
            self._alarm.setblocking(False)
            try:
                for stage in self._stages:
                    self._bring_up(stage)
                if not self._stop_asked.is_set():
                    on_ready()
                while not self._stop_asked.is_set():
                    self._tick()
                    self._check_servers()
            finally:
                self._bring_down()

    def stop(self) -> None:
        """Ask for the end, from any thread or signal handler; a second time: at once."""
        if self._stop_asked.is_set():
            self._hurry.set()
        self._stop_asked.set()
        self._wake()

    def signal(self, name: str, number: signal.Signals) -> int:
        """Send a signal to the named process; return its process id.

        Raises:
            InvalidConfig: No process has this name.
            Unavailable: It does not run at this moment.
        """
        one = self._named(name)
        child = one.child
        if child is None:
            raise Unavailable(f"process {name} does not run now: it is {one.state}")
        one.expected_death = True
        child.signal(number)
        self._wake()
        return child.pid

    def restart(self, name: str) -> None:
        """Stop the named process in order and start it again; one that was given up, too."""
        one = self._named(name)
        self._orders.put(lambda: self._restart(one))
        self._wake()

    @property
    def _all(self) -> list[SupervisedProcess]:
        return [one for stage in self._stages for one in stage]

    def _named(self, name: str) -> SupervisedProcess:
        if name not in self._by_name:
            known = ", ".join(self._by_name)
            raise InvalidConfig(f"no process is called {name!r}", remedy=f"one of: {known}")
        return self._by_name[name]

    def _bring_up(self, stage: Sequence[SupervisedProcess]) -> None:
        for one in stage:
            if not self._stop_asked.is_set():
                one.start()
        while not self._stop_asked.is_set():
            self._tick()
            for one in stage:
                if one.state == "failed":
                    raise _does_not_start(one)
            if all(one.state in {"running", "done"} for one in stage):
                return

    def _check_servers(self) -> None:
        """End the kernel when a server is given up: nothing works without the first stage."""
        for one in self._stages[0] if self._stages else ():
            if one.state == "failed":
                raise Unavailable(
                    f"{one.service.name} is in a crash loop: {one.last_line or 'it said nothing'}",
                    remedy="`aios doctor` checks every part",
                )

    def _bring_down(self) -> None:
        for stage in reversed(self._stages):
            running = [one for one in stage if one.child is not None]
            for one in running:
                one.ask_to_stop()
            self._wait_for_end(running)
            for one in stage:
                one.end()
            self._report()

    def _wait_for_end(self, stopping: Sequence[SupervisedProcess]) -> None:
        started_at = time.monotonic()
        while not self._hurry.is_set():
            waited_s = time.monotonic() - started_at
            left = [
                one
                for one in stopping
                if one.child is not None
                and one.child.exit_code is None
                and waited_s < one.service.stop_timeout_s
            ]
            if not left:
                return
            self._read_output(START_TICK_S)

    def _tick(self) -> None:
        """Wait for news, for a moment at most, and take notice of it."""
        soon = any(one.state in {"starting", "waiting"} or one.mute for one in self._all)
        self._read_output(START_TICK_S if soon else TICK_S)
        while not self._orders.empty():
            self._orders.get()()
        for one in self._all:
            one.check()
        self._report()

    def _restart(self, one: SupervisedProcess) -> None:
        one.say("is restarted")
        one.ask_to_stop()
        self._wait_for_end([one])
        one.end()
        one.restarts += 1
        one.start()

    def _read_output(self, timeout_s: float) -> None:
        outputs = {one.output: one for one in self._all if one.output is not None and not one.mute}
        assert self._wake_up is not None
        wake_up = self._wake_up.fileno()
        ready, _, _ = select.select([wake_up, *outputs], [], [], timeout_s)
        for source in ready:
            if source == wake_up:
                with contextlib.suppress(BlockingIOError):
                    self._wake_up.recv(1024)
            else:
                outputs[source].read()

    def _report(self) -> None:
        records = self.records
        if records != self._reported:
            self._reported = records
            self._on_change()

    def _wake(self) -> None:
        alarm = self._alarm
        if alarm is not None:
            with contextlib.suppress(OSError):  # full of alarms: it wakes anyway; closed: it ended
                alarm.send(b"!")


def _does_not_start(one: SupervisedProcess) -> KernelError:
    message = f"{one.service.name} does not start: {one.last_line or 'it said nothing'}"
    if one.last_exit == EXIT_SETTINGS:
        return InvalidConfig(message, remedy="correct the setting that it names")
    return Unavailable(message, remedy="`aios doctor` checks every part")


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
