"""Whose turn it is, by example and for any arrivals: nobody has two while others wait for one."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from aios_broker.queues.records import JobMetadata
from aios_broker.scheduler.turns import Turn, Turns, first_wrong, wanted_at_head
from tests.examples import PHASES, SAME_EACH_TIME

CHECKS = settings(max_examples=150, deadline=None, derandomize=SAME_EACH_TIME, phases=PHASES)

names = st.sampled_from("abc")
paths = st.tuples(names, names, names)
# An arrival of so many jobs of a program, or a claim of so many.
events = st.lists(
    st.one_of(st.tuples(paths, st.integers(1, 5)), st.integers(1, 6)), min_size=1, max_size=30
)


def turn(job_id: str, tenant: str, agent: str = "a", program: str = "main", width: int = 1) -> Turn:
    return Turn(job_id, (tenant, agent, program), width)


def served(turns: Turns, count: int) -> list[str]:
    """Let so many have their turn, one by one, as claims between two looks would."""
    ids = []
    for _ in range(count):
        [first] = turns.next(1)
        turns.had_turn(first.job_id)
        ids.append(first.job_id)
    return ids


def test_a_flood_of_one_tenant_does_not_stand_before_anothers_only_job() -> None:
    turns = Turns()
    for number in range(600):
        turns.add(turn(f"flood{number}", "acme"))
    turns.add(turn("alone", "other"))
    assert "alone" in served(turns, 2)


def test_splitting_a_flood_among_agents_and_programs_gains_nothing() -> None:
    turns = Turns()
    for number in range(300):
        turns.add(turn(f"flood{number}", "acme", f"agent{number}", f"program{number}"))
        turns.add(turn(f"plain{number}", "other"))
    ids = served(turns, 100)
    assert sum(each.startswith("plain") for each in ids) == 50


def test_agents_of_a_tenant_and_programs_of_an_agent_take_turns() -> None:
    turns = Turns()
    for number in range(4):
        turns.add(turn(f"long{number}", "acme", "ada", "long"))
    turns.add(turn("short", "acme", "ada", "short"))
    turns.add(turn("bob", "acme", "bob"))
    assert served(turns, 6) == ["long0", "bob", "short", "long1", "long2", "long3"]


def test_programs_of_one_tree_have_the_turns_of_one() -> None:
    [first, second, other] = (
        Turn.of(job_id, JobMetadata("ada", "llm.chat", program, "acme"))
        for job_id, program in (("1", "p/a"), ("2", "p/b"), ("3", "q"))
    )
    assert first.path == second.path == ("acme", "ada", "p")
    assert other.path == ("acme", "ada", "q")


def test_a_wide_job_counts_as_so_many_turns() -> None:
    turns = Turns()
    for number in range(8):
        turns.add(turn(f"wide{number}", "acme", width=4))
        turns.add(turn(f"plain{number}", "other"))
    ids = served(turns, 10)
    assert sum(each.startswith("wide") for each in ids) == 2


def test_who_comes_back_has_saved_up_nothing() -> None:
    turns = Turns()
    for number in range(40):
        turns.add(turn(f"busy{number}", "acme"))
    served(turns, 20)
    for number in range(20):
        turns.add(turn(f"back{number}", "other"))
    ids = served(turns, 10)
    assert sum(each.startswith("back") for each in ids) == 5


def test_what_is_planned_is_what_is_served() -> None:
    turns = Turns()
    for number, (tenant, agent) in enumerate(itertools.product("xyz", "ab")):
        for more in range(number + 1):
            turns.add(turn(f"{tenant}{agent}{more}", tenant, agent))
    planned = [each.job_id for each in turns.next(12)]
    assert served(turns, 12) == planned


@CHECKS
@given(events)
def test_no_owner_has_two_turns_while_another_waits_for_one(
    happened: list[tuple[tuple[str, str, str], int] | int],
) -> None:
    turns, numbers = Turns(), itertools.count()
    waiting: dict[str, Turn] = {}
    # Of each pair of owners of one kind: turns of the first since the other began to wait.
    ahead: Counter[tuple[tuple[str, ...], tuple[str, ...]]] = Counter()
    for event in happened:
        if isinstance(event, int):
            for _ in range(min(event, len(waiting))):
                [first] = turns.next(1)
                turns.had_turn(first.job_id)
                del waiting[first.job_id]
                _check(first, waiting, ahead)
        else:
            path, count = event
            for _ in range(count):
                new = Turn(f"{next(numbers):04d}", path)
                turns.add(new)
                waiting[new.job_id] = new
    assert len(turns) == len(waiting)


@CHECKS
@given(st.lists(paths, min_size=1, max_size=40), st.integers(0, 40), st.integers(0, 40))
def test_what_is_read_backwards_has_the_same_turns(
    waiting: list[tuple[str, str, str]], known: int, late: int
) -> None:
    """Read from the newest on while more come: as if all had been known from the first."""
    all_turns = [Turn(f"{number:04d}", path) for number, path in enumerate(waiting)]
    plain, backwards = Turns(), Turns()
    for each in all_turns:
        plain.add(each)
    old, new = all_turns[:known], all_turns[known:]
    for each in new[: max(0, len(new) - late)]:
        backwards.add(each)
    for each in reversed(old):
        backwards.add_older(each)
    for each in new:
        backwards.add(each)
    assert served(backwards, len(waiting)) == served(plain, len(waiting))


@CHECKS
@given(st.lists(paths, max_size=30), st.integers(1, 30), st.integers(1, 30), st.integers(1, 4))
def test_what_is_taken_in_as_it_comes_to_the_head_has_the_same_turns(
    later: list[tuple[str, str, str]], num_alone: int, num_read: int, at_once: int
) -> None:
    """What one program had alone is read from both ends: as if all had been known."""
    alone = ("a", "a", "a")
    all_turns = [
        Turn(f"{number:04d}", path) for number, path in enumerate([alone] * num_alone + later)
    ]
    plain, gapped = Turns(), Turns()
    for each in all_turns:
        plain.add(each)
    gap = max(0, num_alone - num_read)
    for each in all_turns[gap:]:
        gapped.add(each)
    ids: list[str] = []
    for _ in all_turns:
        done = sum(each.job_id in ids for each in all_turns[:gap])
        for each in all_turns[:gap][: done + at_once]:
            if each.job_id not in ids:
                gapped.add_first(each)
        ids += served(gapped, 1)
    assert ids == served(plain, len(all_turns))


def _check(
    had: Turn,
    waiting: dict[str, Turn],
    ahead: Counter[tuple[tuple[str, ...], tuple[str, ...]]],
) -> None:
    """Count a turn against all who waited for one beside it, at each level."""
    for level in range(3):
        mine = had.path[: level + 1]
        siblings = {each.path[: level + 1] for each in waiting.values()}
        for other in siblings:
            if other != mine and other[:level] == mine[:level]:
                ahead[mine, other] += 1
                assert ahead[mine, other] <= 2, f"{mine} goes before {other} again and again"
        for pair in list(ahead):
            if pair[1] == mine or (pair[1] not in siblings and len(pair[1]) == level + 1):
                del ahead[pair]
    program = [each.job_id for each in waiting.values() if each.path == had.path]
    assert all(had.job_id < each for each in program), "jobs of a program keep their order"


def test_what_stands_deep_is_searched_for_within_a_budget_and_programs_keep_their_order() -> None:
    turns = [turn("near", "a"), turn("deep", "b"), turn("deeper", "c"), turn("behind", "c")]
    wanted, searched = wanted_at_head(turns, {"near", "behind"}, 1)
    assert (wanted, searched) == (["near", "deep"], 1)
    assert wanted_at_head(turns, None, 0) == (["near", "deep", "deeper", "behind"], 0)


def test_only_what_stands_wrong_is_put_in_order() -> None:
    assert first_wrong(["a", "b", "c"], ["a", "b", "c", "d"]) == 0
    assert first_wrong(["a", "b", "c"], ["b", "a", "c", "d"]) == 2
    assert first_wrong(["a", "b"], ["a"]) == 2


def test_width_is_that_of_the_metadata() -> None:
    metadata = JobMetadata("ada", "llm.chat", "p", "acme", width=8)
    assert Turn.of("1", metadata) == Turn("1", ("acme", "ada", "p"), 8)
