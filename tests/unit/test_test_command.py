"""`aios test` runs every check, goes on after a failure, and says so in its exit code."""

from pathlib import Path

import click
import pytest

from aios_cli.pythons import Python
from aios_cli.test_command import (
    Outcome,
    Step,
    check_sglang,
    chosen_lane,
    environment_of_tests,
    find_checkout,
    mutants_part,
    planned_steps,
    report,
    run_step,
)


def test_pytest_is_the_last_step_and_mutants_come_before_it(tmp_path: Path) -> None:
    (tmp_path / "tests" / "mutants").mkdir(parents=True)
    (tmp_path / "tests" / "mutants" / "run.py").touch()

    names = [step.name for step in planned_steps(tmp_path, lane="x", pytest_args=())]

    assert names == ["lint", "format", "types", "imports", "pythons", "mutants", "pytest"]


@pytest.mark.parametrize(
    ("slow", "sglang", "lane"),
    [
        (False, False, "not slow and not sglang"),
        (True, False, "not sglang"),
        (False, True, "sglang and not slow"),
        (True, True, "sglang"),
    ],
)
def test_the_dear_lanes_run_only_when_asked_for(
    tmp_path: Path, *, slow: bool, sglang: bool, lane: str
) -> None:
    chosen = chosen_lane(slow=slow, sglang=sglang)
    last = planned_steps(tmp_path, lane=chosen, pytest_args=("-k", "lease"))[-1]

    assert last.arguments[-4:] == ("-m", lane, "-k", "lease")


def test_each_commit_runs_its_fifth_of_the_mutants_and_the_slow_lane_all(tmp_path: Path) -> None:
    (tmp_path / "tests" / "mutants").mkdir(parents=True)
    (tmp_path / "tests" / "mutants" / "run.py").touch()
    quick, slow = (
        planned_steps(tmp_path, lane=chosen_lane(slow=slow, sglang=False), pytest_args=())[5]
        for slow in (False, True)
    )

    assert quick.arguments[1:] == ("--part", "1/5"), "where there is no commit"
    assert slow.arguments[1:] == ()
    assert mutants_part(tmp_path) == "1/5"


def test_tests_run_side_by_side_unless_told_otherwise(tmp_path: Path) -> None:
    asked = planned_steps(tmp_path, lane="x", pytest_args=("-n0",))[-1].arguments
    usual = planned_steps(tmp_path, lane="x", pytest_args=())[-1].arguments

    assert "--dist" in usual
    assert "--dist" not in asked


def test_the_report_says_which_pythons_the_tests_did_not_run_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Python("3.12.1", "/bin/python3.12")
    steps = planned_steps(tmp_path, lane="x", pytest_args=(), pythons=[other])
    [step] = [step for step in steps if step.name == "pythons"]

    report([Outcome(step.name, 0, 1.0, step.note)])

    assert step.arguments[-1] == other.path
    assert "ok: on 3.12.1; NOT RUN on " in capsys.readouterr().out


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


def test_an_installed_package_has_no_checkout(tmp_path: Path) -> None:
    installed = tmp_path / "lib" / "site-packages" / "aios_broker" / "__init__.py"
    installed.parent.mkdir(parents=True)
    installed.touch()

    assert find_checkout(installed) is None


def test_this_checkout_is_found() -> None:
    root = Path(__file__).resolve().parents[2]

    assert find_checkout(root / "broker" / "aios_broker" / "__init__.py") == root
