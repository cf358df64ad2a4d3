"""What agents say is text wherever a person reads it."""

import io
import logging
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_broker.contract.printable import INVISIBLE, printable
from aios_broker.log import KernelLog, PlainFormatter

EVIL = "\x1b[2K\x1b[1A\x1b]0;owned\x07\x1b[8mhidden\x1b[0m\u202egnp.exe\u2066 \r\x9b31m"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("plain", "plain"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b[2K\x1b]0;owned\x07", "\\x1b[2K\\x1b]0;owned\\x07"),
        ("a\rb\x9b31m\x7f", "a\\x0db\\x9b31m\\x7f"),
        ("exe.\u202egnp\u2066", "exe.\\u202egnp\\u2066"),
        ("zero\u200bwidth \ufeff \U000e0041", "zero\\u200bwidth \\ufeff \\U000e0041"),
        ("\u2028\u2029\x85", "\\u2028\\u2029\\x85"),
        ("half \ud800", "half \\ud800"),
        ("blank \u3164.", "blank \\u3164."),
        ("join\u034fed \u17b4 \u180b \U000e0100", "join\\u034fed \\u17b4 \\u180b \\U000e0100"),
        (
            "\u2764\ufe0f, not \u2764\ufe0f\ufe0f or a\ufe0f",
            "\u2764\ufe0f, not \u2764\ufe0f\\ufe0f or a\\ufe0f",
        ),
        ("žluťoučký 水 \u00a0🙂", "žluťoučký 水 \u00a0🙂"),
    ],
)
def test_nothing_is_obeyed_and_nothing_is_hidden(said: str, shown: str) -> None:
    assert printable(said) == shown


@given(st.text())
def test_what_is_shown_has_no_character_that_does_something(said: str) -> None:
    shown = printable(said, one_line=True)
    assert not [each for each in shown if unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl")]
    seen = re.sub("[\u2190-\u23ff\u2600-\u27bf\U0001f300-\U0001f64f]\ufe0f", "", shown)
    assert not INVISIBLE.search(seen)
    assert printable(shown, one_line=True) == shown


def test_a_log_says_what_an_agent_said_and_does_not_do_it() -> None:
    said = "id\x1b]0;owned\x07\x1b[8m\u202e\r2026-11-28 INFO all is well"
    record = logging.LogRecord("aios", logging.WARNING, "", 1, "it is %s", (said,), None)
    line = PlainFormatter().format(record)
    assert "\\x1b]0;owned\\x07\\x1b[8m\\u202e\\x0d" in line
    assert "\x1b" not in line

    terminal = io.StringIO()
    log = KernelLog(terminal=terminal)
    log.line("llm-1", said)
    log.close()
    assert "\\x1b]0;owned" in terminal.getvalue()
    assert "\x1b" not in terminal.getvalue()
