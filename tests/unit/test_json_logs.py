"""Logs in JSON: an object per line, with the syscall and the program that it is about."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from aios_broker import log
from aios_broker.log import MAX_JSON_BYTES, JsonFormatter, KernelLog, about, message_of

Fields = dict[str, str]


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.Logger("aios_workers.test")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger.addHandler(handler)
    yield logger
    handler.close()


def lines(logger: logging.Logger) -> list[Fields]:
    [handler] = logger.handlers
    assert isinstance(handler, logging.StreamHandler)
    return [json.loads(line) for line in handler.stream.getvalue().splitlines()]


def test_a_line_is_an_object(logger: logging.Logger) -> None:
    logger.warning("the core %s is slow", "small")
    [line] = lines(logger)
    assert line["message"] == "the core small is slow"
    assert (line["level"], line["logger"]) == ("warning", "aios_workers.test")
    assert line["at"][10] == "T"
    assert "syscall" not in line


async def test_each_task_has_lines_about_its_own_syscall(logger: logging.Logger) -> None:
    async def run(syscall: str) -> None:
        about.set({"syscall": syscall, "program": "main"})
        await asyncio.sleep(0)
        logger.info("begun")
        about.set({**about.get(), "core": "small"})
        logger.info("ended")

    await asyncio.gather(run("a"), run("b"))
    logger.info("nobody's")
    *told, nobodys = lines(logger)
    assert sorted(line["syscall"] for line in told) == ["a", "a", "b", "b"]
    assert all(line["program"] == "main" for line in told)
    assert [line.get("core") for line in told if line["syscall"] == "a"] == [None, "small"]
    about.set({"request": "r"})
    logger.info("of a request")
    assert lines(logger)[-1].get("syscall") is None
    assert "syscall" not in nobodys


def test_a_single_line_may_say_what_it_is_about(logger: logging.Logger) -> None:
    logger.info("it may go on", extra={"syscall": "a", "program": "report", "other": "x"})
    [line] = lines(logger)
    assert (line["syscall"], line["program"], line.get("other")) == ("a", "report", None)


def test_what_others_said_cannot_break_out(logger: logging.Logger) -> None:
    logger.info("it said %s", 'x\n{"level":"error"}\x1b[2J\u202e\x9b1m')
    [handler] = logger.handlers
    assert isinstance(handler, logging.StreamHandler)
    text = handler.stream.getvalue()
    assert text.isascii()
    assert text.count("\n") == 1
    [line] = lines(logger)
    assert line["level"] == "info"
    assert "\u202e" in line["message"]


def test_an_error_comes_with_its_trace_and_fits_a_line(logger: logging.Logger) -> None:
    try:
        raise ValueError("é" * 20_000)
    except ValueError:
        logger.exception("it failed")
    [handler] = logger.handlers
    assert isinstance(handler, logging.StreamHandler)
    assert len(handler.stream.getvalue()) <= MAX_JSON_BYTES + 1
    [line] = lines(logger)
    assert line["message"] == "it failed"
    assert line["error"].startswith("Traceback")


def test_a_kernel_passes_lines_on_with_the_name_of_their_process(tmp_path: Path) -> None:
    path, terminal = tmp_path / "kernel.log", io.StringIO()
    kernel_log = KernelLog(path, terminal, log_format="json")
    kernel_log.line("llm-1", '{"at":"2026-01-01T00:00:00.000+00:00","message":"m","syscall":"a"}')
    kernel_log.line("redis", "Ready \x1b[2J to accept")
    kernel_log.line("tool-1", "{no JSON")
    kernel_log.line("tool-1", "[1]")
    kernel_log.close()
    told = [json.loads(line) for line in path.read_text().splitlines()]
    assert told == [json.loads(line) for line in terminal.getvalue().splitlines()]
    assert [line["process"] for line in told] == ["llm-1", "redis", "tool-1", "tool-1"]
    assert told[0]["syscall"] == "a"
    assert [line["message"] for line in told] == ["m", "Ready \x1b[2J to accept", "{no JSON", "[1]"]
    assert all(line["at"] for line in told)


def test_what_a_process_said_last_is_told_without_its_frame() -> None:
    assert message_of('{"level":"error","message":"no room"}') == "no room"
    assert message_of("ERROR aios: no room") == "ERROR aios: no room"


def test_a_process_writes_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    root, stream = logging.getLogger(), io.StringIO()
    monkeypatch.setattr(root, "handlers", [])  # those of the test run
    monkeypatch.setattr(root, "level", root.level)
    log.configure("info", "json", stream=stream)
    root.info("here")
    assert json.loads(stream.getvalue())["message"] == "here"
