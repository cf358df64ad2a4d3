"""The reference of the command line lists every option that exists, and no other."""

from tests.lanes.reference import section, written


def test_every_option_stands_in_the_reference_as_it_is_declared() -> None:
    listed = section()

    assert "`aios submit [PROMPT]`: " in listed
    assert written().endswith(listed), "run ./aios python tests/lanes/reference.py"
