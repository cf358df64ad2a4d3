"""Mutants follow the code: those of the files that a change touches run, and all must fit."""

import pytest

from tests.mutants.catalogue import ROOT, Mutant
from tests.mutants.run import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_what_stands_in_the_code(mutant: Mutant) -> None:
    assert mutant.old in (ROOT / mutant.file).read_text()
    assert (ROOT / mutant.test.partition("::")[0]).is_file()


def test_mutants_have_names_of_their_own() -> None:
    names = [(mutant.file, mutant.name) for mutant in MUTANTS]
    assert len(set(names)) == len(names)
