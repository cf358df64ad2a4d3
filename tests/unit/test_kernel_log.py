"""The log of a kernel: every line with its process, readable, and never in anybody's way."""

import io
import os
import re
import threading
from pathlib import Path

from aios_broker import log as log_module
from aios_broker.log import KernelLog


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_each_line_has_its_time_and_its_process(tmp_path: Path) -> None:
    plain = io.StringIO()
    log = KernelLog(tmp_path / "kernel.log", plain)
    log.line("redis", "ready")
    log.line("scheduler", "leads")
    log.close()
    [first, second] = plain.getvalue().splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} redis     \| ready", first)
    assert second.endswith("scheduler | leads")
    [in_file, _] = (tmp_path / "kernel.log").read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.+-]+ redis \| ready", in_file)


def test_only_a_terminal_gets_colours() -> None:
    plain, terminal = io.StringIO(), Terminal()
    for stream in (plain, terminal):
        log = KernelLog(terminal=stream)
        log.line("redis", "ready")
        log.close()
    assert "\x1b[" not in plain.getvalue()
    assert "\x1b[" in terminal.getvalue()


def test_a_reader_that_stopped_reading_holds_nobody() -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w") as stopped:
        log = KernelLog(terminal=stopped)
        done = threading.Event()

        def write_much() -> None:
            for number in range(3 * log_module.MAX_WAITING_LINES):
                log.line("worker", f"{number} {'x' * 50}")
            done.set()

        threading.Thread(target=write_much, daemon=True).start()
        assert done.wait(10)
        os.close(read_end)  # ends the writer, which is stuck
        log.close()


def test_a_reader_that_went_away_stops_only_the_terminal(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as gone:
        log = KernelLog(tmp_path / "kernel.log", gone)
        log.line("redis", "one")
        log.line("redis", "two")
        log.close()
    assert len((tmp_path / "kernel.log").read_text().splitlines()) == 2
