"""How exec sessions look on a terminal."""

import pytest

from aios_broker.contract.exec import ExecFailure, ExecOutcome, ExecSession, ExecSessions
from aios_broker.contract.tools import MadeFile
from aios_cli.results import show_result


def test_a_session_is_its_id(capsys: pytest.CaptureFixture[str]) -> None:
    show_result(ExecSession("3f2a", warnings=("no sandbox",)))
    said = capsys.readouterr()
    assert (said.out, said.err) == ("3f2a\n", "no sandbox\n")


def test_sessions_are_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    show_result(ExecSessions((ExecSession("3f2a", "notes", runs=2, state="lost", reason="idle"),)))
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["ID", "NAME"]
    assert row.split() == ["3f2a", "notes", "python", "lost", "2", "idle"]


def test_what_a_run_says_goes_where_it_said_it(capsys: pytest.CaptureFixture[str]) -> None:
    show_result(
        ExecOutcome(
            "3f2a",
            stdout="hi\n",
            stderr="careful\n",
            value="42",
            files=(MadeFile("a.txt", 3),),
            output_cut=True,
            error=ExecFailure("ValueError", "no", "Traceback\nValueError: no\n"),
        )
    )
    said = capsys.readouterr()
    assert said.out == "hi\n42\n"
    assert said.err.splitlines() == [
        "careful",
        "made a.txt (3 bytes)",
        "cut: it printed more than its session may",
        "Traceback",
        "ValueError: no",
    ]
