"""An id tells whose it is to whoever has the kernel's secret, and tells nobody else anything."""

import re

from hypothesis import given
from hypothesis import strategies as st

from aios_broker.contract.ids import MOST_KEPT, IdMaker, Ids
from aios_broker.contract.names import Owner
from aios_broker.contract.syscall import Syscall, ToolEcho, check_syscall

SECRET = b"the kernel's own"
ADA = Owner("default", "ada")
names = st.from_regex(r"\A[A-Za-z0-9._:@/-]{1,128}\Z")
owners = st.builds(Owner, names, names)


@given(owners, owners, st.text(), st.text())
def test_a_key_stands_for_one_id_of_its_agent(
    owner: Owner, other: Owner, key: str, another: str
) -> None:
    ids, others = Ids(SECRET, owner), Ids(SECRET, other)
    named = ids.from_key(key)
    assert check_syscall(Syscall(named, "ada", ToolEcho())).id == named
    assert (named == others.from_key(another)) == ((owner, key) == (other, another))
    for each in (named, ids.fresh()):
        assert ids.owns(each)
        assert others.owns(each) == (owner == other)


def test_a_key_may_be_any_string() -> None:
    ids = Ids(SECRET, ADA)
    assert len({ids.from_key(key) for key in ("", "\ud800", "\x1f", "x\x1fy")}) == 4


def test_the_id_of_a_key_never_changes_between_releases() -> None:
    assert Ids(SECRET, ADA).from_key("order-1") == "fb99d58b952b2bd5f89da743e1411c34"


def test_without_the_secret_no_id_can_be_told() -> None:
    ours, guessed = Ids(SECRET, ADA), Ids(b"", ADA)
    assert ours.from_key("daily-report") != guessed.from_key("daily-report")
    assert not ours.owns(guessed.from_key("daily-report"))


def test_fresh_ids_are_all_different() -> None:
    ids = Ids(SECRET, ADA)
    made = {ids.fresh() for _ in range(10_000)}
    assert len(made) == 10_000
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in made)


def test_any_number_of_agents_is_served_by_one_maker() -> None:
    maker = IdMaker(SECRET)
    first = maker.of(ADA).from_key("k")
    for number in range(MOST_KEPT + 1):
        maker.of(Owner("default", f"agent-{number}"))
    assert maker.of(ADA).from_key("k") == first
