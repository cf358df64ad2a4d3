"""Mutants are judged fairly: by more examples where the usual ones may have missed the case."""

from pathlib import Path

import pytest

from tests.mutants.catalogue import Mutant
from tests.mutants.run import (
    MUTANTS,
    TIMEOUT_S,
    chosen_mutants,
    draws_examples,
    git,
    judge,
    touched_files,
)

# A random test, as seen from outside, that meets the broken case with the last of the seeds alone.
RARE = """
import os
from hypothesis import strategies
from odd.number import NUMBER

def test_number():
    assert NUMBER != 2 or os.environ.get("MUTANT_SEED") != "3"
"""
DIRECTED = """
from odd.number import NUMBER

def test_number():
    assert NUMBER != 3
"""
DYING = """
import os
from odd.number import NUMBER

def test_number():
    if NUMBER == 2:
        os.kill(os.getpid(), 9)
"""
UNSHOWABLE = """
import ast
from odd.number import NUMBER

def test_number():
    def parse(*_, **__):
        raise SystemError("AST constructor recursion depth mismatch")

    ast.parse = parse
    assert NUMBER != 2
"""


@pytest.mark.timeout(120)  # up to four runs of pytest
@pytest.mark.parametrize(
    ("test", "verdict"),
    [
        (RARE, "killed late"),
        (DIRECTED, "SURVIVED"),
        (DYING, "killed"),
        (UNSHOWABLE, "killed"),
    ],
    ids=["random", "directed", "dying", "unshowable"],
)
def test_what_survives_random_examples_is_judged_by_others(
    tmp_path: Path, test: str, verdict: str
) -> None:
    package, tests, folder = tmp_path / "odd", tmp_path / "tests", tmp_path / "copies"
    for each in (package, tests, folder):
        each.mkdir()
    test_file = tests / "test_odd.py"
    (package / "__init__.py").touch()
    (package / "number.py").write_text("NUMBER = 1\n")
    test_file.write_text(test)
    mutant = Mutant("odd", str(package / "number.py"), "1", "2", str(test_file))

    assert judge(mutant, folder, TIMEOUT_S) == verdict


def test_the_queue_machine_takes_examples() -> None:
    assert draws_examples("tests/integration/test_queue_properties.py")
    assert not draws_examples("tests/integration/test_last_try.py::test_one")


def commit(root: Path, *names: str) -> None:
    for name in names:
        (root / name).write_text(f"{name} {git(root, 'rev-parse', 'HEAD')}")
    git(root, "add", ".")
    assert (
        git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "more") is not None
    )


def test_what_a_change_touches_is_what_its_branch_and_its_working_tree_changed(
    tmp_path: Path,
) -> None:
    assert touched_files(tmp_path) is None, "no repository"
    git(tmp_path, "init", "-b", "main")
    commit(tmp_path, "one", "two", "three", "four")
    assert touched_files(tmp_path) is None, "the first commit has nothing before it"
    commit(tmp_path, "one")
    assert touched_files(tmp_path) == {"one"}
    git(tmp_path, "switch", "-c", "branch")
    commit(tmp_path, "two")
    commit(tmp_path, "three")
    (tmp_path / "four").write_text("not committed")
    assert touched_files(tmp_path) == {"two", "three", "four"}


def test_a_shallow_clone_has_a_fixed_sample_of_the_mutants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.mutants.run.ROOT", tmp_path)

    assert chosen_mutants(["--touched"]) == list(MUTANTS[::10])
    assert "shallow" in capsys.readouterr().out
