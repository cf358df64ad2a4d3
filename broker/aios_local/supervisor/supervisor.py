"""The supervising loop: one thread starts, watches, restarts and stops a kernel's processes.

All children are started from the thread that is in `run`, and die with it (see `child.py`).
"""

import contextlib
import queue
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence

from aios_broker.contract.errors import InvalidConfig, KernelError, Unavailable
from aios_broker.log import KernelLog
from aios_broker.process.child import Service
from aios_local.supervisor.process import EXIT_SETTINGS, SupervisedProcess
from aios_local.supervisor.record import ProcessRecord

START_TICK_S = 0.02  # while something starts or ends
TICK_S = 0.2  # else; an end of output, and so a death, wakes the loop at once
LOOK_EVERY_S = 1.0  # whether other services are wanted
# So long what is not needed may keep a kernel from being ready: most that come, come sooner, and
# who uses the kernel then finds them there.
UNNEEDED_START_S = 60.0


def nothing_new() -> None:
    """Want the services that there were at the start."""


class Supervisor:
    """Runs stages of services: each stage starts when the one before is ready, stops before it."""

    def __init__(
        self,
        stages: Sequence[Sequence[Service]],
        log: KernelLog,
        on_change: Callable[[], None],
        wanted: Callable[[], Sequence[Service] | None] = nothing_new,
    ) -> None:
        """Take the services.

        Args:
            stages: What to start, in order.
            log: Where output goes.
            on_change: Called when a record has changed.
            wanted: Asked again and again; what is to run, when that has changed. What is not
                needed is of the last stage: others of it are started, stopped or replaced; the
                same ones go on. A process that has a variable which is not its own any more is
                started anew.
        """
        self._stages = [[SupervisedProcess(service, log) for service in stage] for stage in stages]
        self._wanted = wanted
        self._look_at = 0.0  # monotonic
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
                    self._look()
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
        by_name = {one.service.name: one for one in self._all}
        if name not in by_name:
            known = ", ".join(by_name)
            raise InvalidConfig(f"no process is called {name!r}", remedy=f"one of: {known}")
        return by_name[name]

    def _bring_up(self, stage: Sequence[SupervisedProcess]) -> None:
        for one in stage:
            if not self._stop_asked.is_set():
                one.start()
        began_at = time.monotonic()
        while not self._stop_asked.is_set():
            self._tick()
            for one in stage:
                if one.state == "failed" and one.service.needed:
                    raise _does_not_start(one)
            is_late = time.monotonic() - began_at > UNNEEDED_START_S
            if all(_is_settled(one, is_late=is_late) for one in stage):
                return

    def _look(self) -> None:
        """Start, stop and replace what is wanted in another way than before."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_EVERY_S
        wanted = self._wanted()
        if wanted is None:
            return
        stage = self._stages[-1]
        there = {one.service.name: one for one in self._all}
        for service in wanted:
            one = there.pop(service.name, None)
            if one is None:
                stage.append(SupervisedProcess(service, self._log))
                stage[-1].start()
            elif _is_another(one, service):
                one.replace(service)
            elif one.service.environment.keys() - service.environment.keys():
                one.give_up_variables(service)
        for one in there.values():
            if not one.service.needed:
                one.replace(None)

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
        soon = any(
            one.state in {"starting", "waiting", "stopping"} or one.mute for one in self._all
        )
        self._read_output(START_TICK_S if soon else TICK_S)
        while not self._orders.empty():
            self._orders.get()()
        for one in self._all:
            one.check()
        for stage in self._stages:
            stage[:] = [one for one in stage if not one.is_gone]
        self._report()

    def _restart(self, one: SupervisedProcess) -> None:
        if one.state == "stopping":  # it makes way for another, or for nobody
            return
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


def _is_another(one: SupervisedProcess, service: Service) -> bool:
    """Whether a process that is not needed is to make way for this one."""
    if service.needed:
        return False
    return one.service.version != service.version or one.state in {"failed", "stopping"}


def _is_settled(one: SupervisedProcess, *, is_late: bool) -> bool:
    """Whether nobody waits for it any more."""
    if one.service.needed:
        return one.state in {"running", "done"}
    return one.state != "starting" or is_late


def _does_not_start(one: SupervisedProcess) -> KernelError:
    message = f"{one.service.name} does not start: {one.last_line or 'it said nothing'}"
    if one.last_exit == EXIT_SETTINGS:
        return InvalidConfig(message, remedy="correct the setting that it names")
    return Unavailable(message, remedy="`aios doctor` checks every part")
