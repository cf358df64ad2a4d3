"""The same table on a terminal of 80 columns and in a pipe."""

import io

import pytest
from rich.console import Console

from aios_broker.contract.syscall import State
from aios_broker.queues.records import JobMetadata, JobView
from aios_cli.ps import JOBS, summary
from aios_cli.tables import Column, fitted_widths, plain_lines, rich_table


def job(state: State = "queued", **fields: object) -> JobView:
    known: dict[str, object] = {
        "job_id": "3f2a91bc" + "0" * 24,
        "module": "llm",
        "state": state,
        "metadata": JobMetadata(agent="writer", kind="llm.chat", program="novel"),
        "needs": (),
        "worker": "",
        "attempt": 0,
        "slices": 0,
        "suspensions": 0,
        "losses": 0,
        "tokens": 0,
        "queued_s": 0.0,
        "ran_s": 0.0,
        "age_s": 0.0,
        "deadline_in_s": 600.0,
        "position": 0,
        "score": None,
    }
    return JobView(**{**known, **fields})  # type: ignore[arg-type]


def test_plain_lines_are_aligned_and_nothing_is_cut() -> None:
    name = "a-name-far-longer-than-any-terminal-would-have-room-for" * 2
    lines = plain_lines((Column("Name"), Column("Count", "right")), [[name, "5"], ["b", "17"]])

    assert lines[0].split() == ["NAME", "COUNT"]
    assert name in lines[1]
    assert {line.rstrip()[-1] for line in lines[1:]} == {"5", "7"}
    assert len(lines[1]) == len(lines[2])


def test_a_pipe_gets_no_drawing_and_no_colour(capsys: pytest.CaptureFixture[str]) -> None:
    JOBS.show([job("running", worker="llm-1")])

    printed = capsys.readouterr().out
    assert printed.isascii()
    assert "\x1b" not in printed


def test_ps_fits_80_columns_whatever_the_names() -> None:
    long_name = "n" * 128
    metadata = JobMetadata(agent=long_name, kind="llm.chat", program=long_name)
    jobs = [
        job("suspended", metadata=metadata, tokens=131_072, slices=9_999, queued_s=7505.0),
        job("running", metadata=metadata, worker="host.example.org.12345.llm", slices=3),
    ]
    terminal = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    rows = JOBS.rows(jobs)
    terminal.print(rich_table(JOBS.columns, rows, fitted_widths(JOBS.columns, rows, 80)))

    drawn = terminal.file.getvalue()  # type: ignore[attr-defined]
    lines = drawn.splitlines()
    assert max(len(line) for line in lines) <= 80
    assert len(lines) == 4  # title, rule, two jobs: nothing was folded
    for whole in ("3f2a91bc", "suspended", "131072", "2h05m"):
        assert whole in drawn


def test_a_slice_counts_from_one_while_it_runs() -> None:
    slices = [row[5] for row in JOBS.rows([job("running", slices=2), job("suspended", slices=2)])]
    assert slices == ["3", "2"]


def test_the_summary_names_what_there_is() -> None:
    jobs = [job("running"), job("queued"), job("suspended"), job("held")]
    assert summary(jobs) == "4 syscalls: 1 running, 2 waiting (1 suspended), 1 held"
