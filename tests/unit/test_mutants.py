"""Mutants are judged fairly: by more examples where the usual ones may have missed the case."""

from pathlib import Path

import pytest

from tests.mutants.catalogue import Mutant
from tests.mutants.run import draws_examples, judge

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


@pytest.mark.timeout(120)  # up to four runs of pytest
@pytest.mark.parametrize(
    ("test", "verdict"),
    [
        (RARE, "killed late"),
        (DIRECTED, "SURVIVED"),
    ],
    ids=["random", "directed"],
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

    assert judge(mutant, folder) == verdict


def test_the_queue_machine_takes_examples() -> None:
    assert draws_examples("tests/integration/test_queue_properties.py")
    assert not draws_examples("tests/integration/test_last_try.py::test_one")
