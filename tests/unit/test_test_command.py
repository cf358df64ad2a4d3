"""`aios test` runs every check, goes on after a failure, and says so in its exit code."""

from pathlib import Path

import click
import pytest

from tests.lanes.command import (
    QUICK_LEAVES_OUT,
    QUICK_TESTS,
    ROOT,
    STEP_NAMES,
    Outcome,
    Step,
    check_sglang,
    chosen_lane,
    chosen_steps,
    environment_of_tests,
    planned_steps,
    report,
    run_step,
)
from tests.lanes.pythons import Python


def names_of(lane: str = "x") -> list[str]:
    return [step.name for step in planned_steps((), lane=lane)]


def test_pytest_is_the_last_step_and_mutants_come_before_it() -> None:
    assert names_of() == list(STEP_NAMES)
    assert names_of()[-2:] == ["mutants", "pytest"]


def test_the_quick_lane_has_tests_that_are_there_and_none_of_the_dear_steps() -> None:
    quick = chosen_steps(quick=True, sglang=False, mutants=False)

    assert set(STEP_NAMES) - set(quick) == {"pythons", "mutants"}
    assert [path for path in QUICK_TESTS if not (ROOT / path).exists()] == []
    for each in QUICK_LEAVES_OUT:
        path, _, test = each.partition("::")
        assert f"def {test}" in (ROOT / path).read_text(encoding="utf-8"), each


def test_real_servers_and_every_mutant_run_alone() -> None:
    assert chosen_steps(quick=False, sglang=True, mutants=False) == ("pytest",)
    assert chosen_steps(quick=False, sglang=False, mutants=True) == ("mutants",)


@pytest.mark.parametrize(
    ("slow", "sglang", "lane"),
    [
        (False, False, "not slow and not sglang"),
        (True, False, "not sglang"),
        (False, True, "sglang and not slow"),
        (True, True, "sglang"),
    ],
)
def test_the_dear_lanes_run_only_when_asked_for(*, slow: bool, sglang: bool, lane: str) -> None:
    last = planned_steps(("-k", "lease"), lane=chosen_lane(slow=slow, sglang=sglang))[-1]

    assert last.arguments[-4:] == ("-m", lane, "-k", "lease")


def test_the_mutants_of_what_was_touched_run_unless_all_are_wanted() -> None:
    usual, every = (planned_steps((), lane="x", every_mutant=all_)[5] for all_ in (False, True))

    assert usual.arguments[1:] == ("--touched",)
    assert every.arguments[1:] == ()


def test_tests_run_side_by_side_unless_told_otherwise() -> None:
    asked = planned_steps(("-n0",), lane="x")[-1].arguments
    usual = planned_steps((), lane="x")[-1].arguments

    assert "--dist" in usual
    assert "--dist" not in asked


def test_the_report_says_which_pythons_the_tests_did_not_run_on_and_the_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = Python("3.12.1", "/bin/python3.12")
    steps = planned_steps((), lane="x", pythons=[other])
    [step] = [step for step in steps if step.name == "pythons"]

    report([Outcome(step.name, 0, 1.0, step.note), Outcome("pytest", 0, 2.0)])

    assert step.arguments[-1] == other.path
    told = capsys.readouterr().out
    assert "ok: on 3.12.1; NOT RUN on " in told
    assert "together       3.0 s" in told


def test_sglang_that_is_not_installed_is_told_with_the_way_to_install_it(tmp_path: Path) -> None:
    with pytest.raises(click.ClickException, match=r"aios setup --sglang-cpu"):
        check_sglang(tmp_path)
    (tmp_path / ".aios" / "sglang").mkdir(parents=True)
    (tmp_path / ".aios" / "sglang" / "aios-sglang-cpu").touch()
    check_sglang(tmp_path)


def test_a_step_reports_its_exit_code_and_runs_in_the_checkout(tmp_path: Path) -> None:
    check = f"import os, sys; sys.exit(7 if os.getcwd() == {str(tmp_path.resolve())!r} else 1)"

    outcome = run_step(Step("seven", ("-c", check)), tmp_path)

    assert (outcome.name, outcome.exit_code) == ("seven", 7)


def test_a_step_does_not_import_from_the_checkout_folder(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(3)")

    outcome = run_step(Step("safe", ("-c", "import json")), tmp_path)

    assert outcome.exit_code == 0


def test_settings_of_the_users_kernel_do_not_reach_the_tests() -> None:
    kept = environment_of_tests({"AIOS_REDIS_URL": "redis://prod", "PATH": "/bin"})

    assert kept == {"PATH": "/bin"}


def test_what_is_compiled_once_is_kept_for_the_processes_of_the_tests() -> None:
    kept = environment_of_tests({"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"})

    assert kept == {"PYTHONUNBUFFERED": "1"}
