"""Logs: one format for the lines of a process, one readable stream for those of a whole kernel."""

import io
import logging
import logging.handlers
import os
import queue
import sys
import threading
from datetime import datetime
from pathlib import Path
from typing import TextIO

from aios_broker.contract.printable import printable

LINE_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
MAX_FILE_BYTES = 10_000_000
KEPT_FILES = 3
MAX_WAITING_LINES = 10_000  # beyond it lines are dropped: a stopped terminal must stop nobody
NAME_WIDTH = 10
COLOURS = (36, 32, 33, 35, 34, 96, 92, 93)  # ANSI foregrounds that read on dark and on light
CLOSE_TIMEOUT_S = 2.0


def configure(level: str, *, stream: TextIO | None = None) -> None:
    """Send this process's log to `stream` (standard error); once, from `main`.

    A supervisor takes the time off each line: its own log has one.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(PlainFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])


class PlainFormatter(logging.Formatter):
    """Lines in which what others said is shown, and does nothing to a terminal that prints them."""

    def __init__(self) -> None:
        super().__init__(LINE_FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text; a trace below it keeps its lines."""
        return printable(super().format(record))


class KernelLog:
    """The lines of all processes of a kernel, in one order: to a file, and to a terminal.

    Lines are written by a thread of its own, so that a slow reader never holds the supervisor.
    """

    def __init__(self, path: Path | None = None, terminal: TextIO | None = None) -> None:
        self._file = _rotating(path) if path is not None else None
        self._terminal = terminal
        self._colour = terminal is not None and terminal.isatty()
        self._colours: dict[str, int] = {}
        self._lines: queue.Queue[tuple[datetime, str, str] | None] = queue.Queue(MAX_WAITING_LINES)
        self._dropped_lines = 0
        self._writer: threading.Thread | None = None
        self._starting = threading.Lock()

    def line(self, name: str, text: str) -> None:
        """Write one line of the process `name`; never blocks."""
        if self._writer is None:
            self._start()
        try:
            shown = printable(text, one_line=True)  # of whatever program wrote it
            self._lines.put_nowait((datetime.now().astimezone(), name, shown))
        except queue.Full:
            self._dropped_lines += 1

    def close(self) -> None:
        """Write what waits, then end; gives up on a reader that does not read."""
        if self._writer is None:
            return
        try:
            self._lines.put(None, timeout=CLOSE_TIMEOUT_S)
        except queue.Full:
            return
        self._writer.join(CLOSE_TIMEOUT_S)

    def _start(self) -> None:
        with self._starting:
            if self._writer is None:
                self._writer = threading.Thread(
                    target=self._write_all, name="kernel-log", daemon=True
                )
                self._writer.start()

    def _write_all(self) -> None:
        while (entry := self._lines.get()) is not None:
            self._write(*entry)
            if self._dropped_lines and self._lines.empty():
                dropped, self._dropped_lines = self._dropped_lines, 0
                self._write(entry[0], "kernel", f"{dropped} lines of the log were dropped")
        if self._file is not None:
            self._file.close()

    def _write(self, at: datetime, name: str, text: str) -> None:
        if self._file is not None:
            stamp = at.isoformat(timespec="milliseconds")
            self._file.emit(logging.makeLogRecord({"msg": f"{stamp} {name} | {text}"}))
        if self._terminal is not None:
            try:
                _put(self._terminal, self._readable(at, name, text))
            except (OSError, ValueError):  # closed: a pipe into `head` has ended
                self._terminal = None

    def _readable(self, at: datetime, name: str, text: str) -> str:
        head = f"{at:%H:%M:%S}.{at.microsecond // 1000:03d} {name:<{NAME_WIDTH}}|"
        if self._colour:
            colour = self._colours.setdefault(name, COLOURS[len(self._colours) % len(COLOURS)])
            head = f"\x1b[{colour}m{head}\x1b[0m"
        return f"{head} {text}\n"


def _put(stream: TextIO, text: str) -> None:
    """Write past the stream's buffer: what a reader never took must not hold up the exit."""
    try:
        descriptor = stream.fileno()
    except io.UnsupportedOperation:  # a stream in memory
        stream.write(text)
        return
    left = text.encode(errors="replace")
    while left:
        left = left[os.write(descriptor, left) :]


def _rotating(path: Path) -> logging.handlers.RotatingFileHandler:
    return logging.handlers.RotatingFileHandler(
        path, maxBytes=MAX_FILE_BYTES, backupCount=KEPT_FILES, encoding="utf-8", delay=True
    )
