"""Logs: one format for the lines of a process, one readable stream for those of a whole kernel."""

import io
import json
import logging
import logging.handlers
import os
import queue
import sys
import threading
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import Literal, TextIO

from aios_broker.contract.printable import printable

LINE_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
MAX_FILE_BYTES = 10_000_000
KEPT_FILES = 3
MAX_WAITING_LINES = 10_000  # beyond it lines are dropped: a stopped terminal must stop nobody
NAME_WIDTH = 10
COLOURS = (36, 32, 33, 35, 34, 96, 92, 93)  # ANSI foregrounds that read on dark and on light
CLOSE_TIMEOUT_S = 2.0
# Of one line in JSON, so that a supervisor, which reads 8 KiB of a line, can pass it on as it is.
MAX_JSON_BYTES = 8_000
_CUT = " [...] "

NAMES = ("syscall", "program")  # that a single line may say it is about: its `extra`
LogFormat = Literal["text", "json"]  # text: for people. json: an object per line, for collectors

# What the lines of a task, and of those that it starts, are about, such as its syscall and its
# program. Lines in JSON have these names as fields. Whoever begins a task sets it.
about: ContextVar[Mapping[str, str]] = ContextVar("about", default={})  # noqa: B039  never changed


def configure(level: str, log_format: LogFormat = "text", *, stream: TextIO | None = None) -> None:
    """Send this process's log to `stream` (standard error); once, from `main`.

    A supervisor takes the time off each line of text: its own log has one.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(PlainFormatter() if log_format == "text" else JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])


class PlainFormatter(logging.Formatter):
    """Lines in which what others said is shown, and does nothing to a terminal that prints them."""

    def __init__(self) -> None:
        super().__init__(LINE_FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text; a trace below it keeps its lines."""
        return printable(super().format(record))


class JsonFormatter(logging.Formatter):
    """A line is a JSON object in ASCII: what others said does nothing to whoever reads it.

    at, level, logger, message; error: the trace below it; and what the task said it is about.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line; its longest text is cut where it does not fit."""
        fields = {
            "at": _stamp(datetime.fromtimestamp(record.created).astimezone()),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **about.get(),
            **{name: value for name in NAMES if (value := record.__dict__.get(name)) is not None},
        }
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return _fitting(fields)


def message_of(line: str) -> str:
    """Return what a line of a process says, be it text or JSON."""
    return str((_fields_of(line) or {}).get("message", line))


class KernelLog:
    """The lines of all processes of a kernel, in one order: to a file, and to a terminal.

    Lines are written by a thread of its own, so that a slow reader never holds the supervisor.
    In JSON a process's line is passed on with the process's name; what is none becomes a message.
    """

    def __init__(
        self,
        path: Path | None = None,
        terminal: TextIO | None = None,
        *,
        log_format: LogFormat = "text",
    ) -> None:
        self._is_json = log_format == "json"
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
            # Of whatever program wrote it; JSON is escaped when it is written.
            shown = text if self._is_json else printable(text, one_line=True)
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
        line = _json_line(at, name, text) if self._is_json else f"{_stamp(at)} {name} | {text}"
        if self._file is not None:
            self._file.emit(logging.makeLogRecord({"msg": line}))
        if self._terminal is not None:
            try:
                shown = f"{line}\n" if self._is_json else self._readable(at, name, text)
                _put(self._terminal, shown)
            except (OSError, ValueError):  # closed: a pipe into `head` has ended
                self._terminal = None

    def _readable(self, at: datetime, name: str, text: str) -> str:
        head = f"{at:%H:%M:%S}.{at.microsecond // 1000:03d} {name:<{NAME_WIDTH}}|"
        if self._colour:
            colour = self._colours.setdefault(name, COLOURS[len(self._colours) % len(COLOURS)])
            head = f"\x1b[{colour}m{head}\x1b[0m"
        return f"{head} {text}\n"


def _stamp(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds")


def _json_line(at: datetime, process: str, text: str) -> str:
    told = _fields_of(text) or {"message": text}
    return json.dumps({"at": _stamp(at), **told, "process": process})


def _fields_of(line: str) -> dict[str, object] | None:
    """Return the fields of a line in JSON; None: it is none."""
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _fitting(fields: dict[str, str]) -> str:
    """Return fields as JSON that fits one line of a log: of what is too long the middle goes."""
    line = json.dumps(fields)
    while len(line) > MAX_JSON_BYTES:
        name, text = max(fields.items(), key=lambda field: len(field[1]))
        kept = len(text) // 4
        fields[name] = f"{text[:kept]}{_CUT}{text[-kept:]}"
        line = json.dumps(fields)
    return line


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
