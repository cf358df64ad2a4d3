"""Which other Pythons `aios test` finds, what it installs there, what it says when one lacks."""

import os
import sys
from pathlib import Path

import pytest

from aios_broker.contract.errors import InvalidConfig
from tests.lanes.pythons import (
    LEFT_OUT,
    OWN,
    PROMISED,
    Python,
    find_pythons,
    in_words,
    quick_tests,
    requirements_of,
    run_on,
)

ROOT = Path(__file__).resolve().parents[2]


def interpreter(path: Path, version: str) -> str:
    """Make a program that says it is that Python."""
    return program(path, f"echo {version} cpython {path}")


def program(path: Path, script: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_a_shim_that_does_not_start_is_passed_over(tmp_path: Path) -> None:
    program(tmp_path / "shims/python3.12", "echo 'pyenv: python3.12: command not found'; exit 127")
    real = interpreter(tmp_path / "bin/python3.12", "3.12.7")
    path = f"{tmp_path / 'shims'}:relative:{tmp_path / 'bin'}"

    assert find_pythons({"PATH": path}, own="3.11") == [Python("3.12.7", real)]


def test_the_version_folders_of_pyenv_are_looked_into(tmp_path: Path) -> None:
    for version in ("3.10.13", "3.12.1", "3.13.0"):
        interpreter(tmp_path / "versions" / version / "bin/python3", version)
    variables = {"PATH": str(tmp_path / "none"), "PYENV_ROOT": str(tmp_path)}

    found = find_pythons(variables, own="3.11")

    assert [python.version for python in found] == ["3.12.1", "3.13.0"]


def test_those_that_are_named_come_first_and_must_start(tmp_path: Path) -> None:
    interpreter(tmp_path / "bin/python3.13", "3.13.1")
    named = interpreter(tmp_path / "mine/python", "3.13.9")
    old = interpreter(tmp_path / "old/python", "3.10.1")
    variables = {"PATH": str(tmp_path / "bin"), "AIOS_TEST_PYTHONS": named}

    assert find_pythons(variables, own="3.11") == [Python("3.13.9", named)]
    for wrong in (old, str(tmp_path / "nobody"), "python3.13"):
        with pytest.raises(InvalidConfig, match="AIOS_TEST_PYTHONS names"):
            find_pythons({**variables, "AIOS_TEST_PYTHONS": f"{named}:{wrong}"}, own="3.11")


def test_its_own_python_and_what_is_no_cpython_are_not_others(tmp_path: Path) -> None:
    interpreter(tmp_path / "python3.11", "3.11.9")
    program(tmp_path / "python3.12", f"echo 3.12.1 pypy {tmp_path}/python3.12")
    program(tmp_path / "python3.13", "exit 1")  # as one without venv

    assert find_pythons({"PATH": str(tmp_path)}, own="3.11") == []


def test_the_running_python_is_one_that_is_found(tmp_path: Path) -> None:
    """The probe is a real interpreter's, too."""
    other = next(minor for minor in PROMISED if minor != OWN)
    found = find_pythons({"AIOS_TEST_PYTHONS": sys.executable, "PATH": ""}, own=other)

    assert [python.minor for python in found] == [OWN]
    assert os.path.samefile(found[0].path, sys.executable)


def test_what_is_not_here_is_said() -> None:
    twelve = Python("3.12.1", "/bin/python3.12")

    assert in_words([twelve], own="3.11") == "on 3.12.1; NOT RUN on 3.13: not on this machine"
    assert in_words([], own="3.11") == "NOT RUN on 3.12, 3.13: not on this machine"
    assert in_words([twelve, Python("3.13.0", "")], own="3.11") == "on 3.12.1, 3.13.0"


def test_what_is_heavy_is_left_out_and_every_hash_is_kept() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    kept = requirements_of(lock)

    assert requirements_of("a==1 \\\n    --hash=sha256:1\nruff==2 \\\n    --hash=sha256:2\n") == (
        "a==1 \\\n    --hash=sha256:1\n"
    )
    assert "\nmsgspec==" in kept
    for name in LEFT_OUT:
        assert f"\n{name}==" in lock, "a name that no longer is locked"
        assert f"\n{name}==" not in kept
    assert kept.count("--hash=") < lock.count("--hash=")


def test_the_tests_that_it_names_are_there() -> None:
    named = [each.rpartition("=")[2] for each in quick_tests("python") if "tests/" in each]
    paths = [path.partition("::")[0] for path in named]

    assert len(paths) > 3
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_an_environment_that_cannot_be_made_is_a_failure_and_is_not_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "requirements.lock").write_text("a==1 \\\n    --hash=sha256:1\n")
    broken = Python("3.12.1", program(tmp_path / "python3.12", "exit 3"))

    assert not run_on(broken, tmp_path, {})
    assert "exit status 3" in capsys.readouterr().err
    assert not (tmp_path / ".aios/pythons/3.12/aios-stamp").exists()
