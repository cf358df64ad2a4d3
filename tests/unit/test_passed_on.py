"""Grants that were passed on, for any of them: each that stays stands on one of the owner's."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from aios_workers.modules.access.passed_on import Standing, rights_of, unfounded
from tests.examples import PHASES, SAME_EACH_TIME

CHECKS = settings(max_examples=300, deadline=None, derandomize=SAME_EACH_TIME, phases=PHASES)
OWNER = 0
agents = st.integers(0, 4)
verbs = st.frozensets(st.sampled_from(("read", "write", "share", "administer")), min_size=1)


@st.composite
def standings(draw: st.DrawFn) -> list[Standing]:
    found = []
    for number in range(draw(st.integers(0, 10))):
        on = draw(st.sampled_from(("directory 1", "directory 2")))
        reach = {on, "directory 1"}  # the second lies in the first
        held = draw(st.frozensets(agents, min_size=1, max_size=2))
        until = float(draw(st.integers(1, 3)))
        by = draw(agents)
        found.append(Standing(number, OWNER, by, held, draw(verbs), frozenset(reach), on, until))
    return found


@CHECKS
@given(standings())
def test_what_stays_is_founded_and_what_goes_is_not(grants: list[Standing]) -> None:
    gone = unfounded(grants)
    stays = [each for each in grants if each not in gone]
    assert all(each.by != OWNER for each in gone)
    for each in stays:
        if each.by != OWNER:
            rights = rights_of(each.by, each.reach, (one for one in stays if one is not each))
            assert all(rights[verb] >= each.until for verb in {"share", *each.verbs})
    for each in gone:
        rights = rights_of(each.by, each.reach, stays)
        assert any(rights.get(verb, 0.0) < each.until for verb in {"share", *each.verbs})


def standing(number: int, by: int, to: int) -> Standing:
    held, reach = frozenset({to}), frozenset({"note a"})
    return Standing(number, OWNER, by, held, frozenset({"share"}), reach, "note a", 1.0)


def test_ten_thousand_are_few() -> None:
    """As many as an owner may have given, the worst way: all others wait for the answer."""
    owners = [standing(number, OWNER, -number) for number in range(1, 5_001)]
    chain = [standing(number, number - 5_000, number - 4_999) for number in range(5_001, 10_001)]
    assert unfounded([*reversed(chain), *owners]) == [*reversed(chain)]
    first = standing(20_000, OWNER, 1)
    assert unfounded([*reversed(chain), *owners, first]) == []


def test_a_circle_stands_on_nothing() -> None:
    circle = [standing(1, 1, 2), standing(2, 2, 1)]
    assert unfounded(circle) == circle
    assert unfounded([*circle, standing(3, OWNER, 1)]) == []
