"""`aios test` runs every check, goes on after a failure, and says so in its exit code."""

from pathlib import Path

import pytest

from aios_broker.cli.test_command import (
    Step,
    environment_of_tests,
    find_checkout,
    planned_steps,
    run_step,
)


def test_pytest_is_the_last_step_and_mutants_come_before_it(tmp_path: Path) -> None:
    (tmp_path / "tests" / "mutants").mkdir(parents=True)
    (tmp_path / "tests" / "mutants" / "run.py").touch()

    names = [step.name for step in planned_steps(tmp_path, slow=False, pytest_args=())]

    assert names == ["lint", "format", "types", "imports", "mutants", "pytest"]


@pytest.mark.parametrize(("slow", "skips_slow"), [(False, True), (True, False)])
def test_the_slow_lane_runs_only_when_asked_for(
    tmp_path: Path, *, slow: bool, skips_slow: bool
) -> None:
    last = planned_steps(tmp_path, slow=slow, pytest_args=("-k", "lease"))[-1]

    assert ("not slow" in last.arguments) == skips_slow
    assert last.arguments[-2:] == ("-k", "lease")


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
