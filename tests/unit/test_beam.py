"""Beam search against the definition of it, and against all sequences where they can be counted."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios_broker.contract.snapshot import BeamSnapshot, decode_snapshot, encode_snapshot
from aios_workers.llm.answers import MILLION
from aios_workers.llm.beam import BeamSearch, Expansion, Finished, Rules, search_of, snapshot_of

END = 0
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Table:
    """A model of a few tokens: log-probabilities that follow from a seed and the tokens so far."""

    seed: int
    size: int  # tokens, the end included
    grain: int  # few different values: many ties

    def logprobs(self, ids: Sequence[int]) -> list[int]:
        rng = random.Random(f"{self.seed}/{tuple(ids)}")
        return [-rng.randint(1, self.grain) * MILLION // self.grain for _ in range(self.size)]

    def best(self, ids: Sequence[int], count: int, kept: int = 0) -> Expansion:
        logprobs = self.logprobs(ids)
        tokens = sorted(range(self.size), key=lambda token: (-logprobs[token], token))[:count]
        return Expansion(tokens, [logprobs[token] for token in tokens], kept)


tables = st.builds(
    Table, seed=st.integers(0, 10_000), size=st.integers(2, 4), grain=st.sampled_from([2, 9, 9999])
)
penalties = st.sampled_from([0.0, 0.5, 1.0, 2.0, -1.0])


def rules(width: int, max_tokens: int, penalty: float = 1.0, stop: Ids = (99,)) -> Rules:
    def stopped(ids: Sequence[int]) -> bool:
        return tuple(ids[-len(stop) :]) == stop

    return Rules(width, max_tokens, penalty, lambda token: token == END, stopped)


def step(search: BeamSearch, table: Table, width: int) -> None:
    search.advance([table.best(beam.ids, 2 * width) for beam in search.live])


def run(table: Table, wanted: Rules) -> BeamSearch:
    search = BeamSearch(wanted)
    while not search.is_over:
        step(search, table, wanted.width)
    return search


def answers(search: BeamSearch, count: int) -> list[tuple[Ids, str, float]]:
    return [(each.beam.ids, each.finish_reason, search.rank(each)) for each in search.best(count)]


# The definition, over the whole vocabulary and with whole sequences.


@dataclass(frozen=True)
class Known:
    ids: Ids
    total: int
    end: int | None = None

    def score(self, penalty: float) -> float:
        length = len(self.ids) + (self.end is not None)
        return float((self.total + (self.end or 0)) / MILLION / length**penalty)


def by_definition(table: Table, wanted: Rules) -> list[Known]:
    live, finished = [Known((), 0)], list[Known]()
    for _ in range(wanted.max_tokens):
        pool = [
            (-(beam.total + logprob), parent, rank, token)
            for parent, beam in enumerate(live)
            for rank, (token, logprob) in enumerate(ranked(table, beam.ids))
        ]
        going_on = list[Known]()
        for place, (cost, parent, _, token) in enumerate(sorted(pool)):
            beam = live[parent]
            longer = Known((*beam.ids, token), -cost)
            if token != END and not wanted.is_stopped(longer.ids):
                going_on.append(longer)
            elif place < wanted.width:
                ended = Known(beam.ids, beam.total, -cost - beam.total)
                finished.append(ended if token == END else longer)
            if len(going_on) == wanted.width:
                break
        live = going_on
        if len(finished) >= wanted.width or not live:
            break
    return finished + (live if len(finished) < wanted.width else [])


def ranked(table: Table, ids: Ids) -> list[tuple[int, int]]:
    best = table.best(ids, table.size)
    return list(zip(best.tokens, best.logprobs, strict=True))


@given(
    tables, st.integers(1, 4), st.integers(1, 6), penalties, st.sampled_from([(99,), (2,), (1, 1)])
)
@settings(max_examples=300, deadline=None)
def test_it_does_what_the_definition_says(
    table: Table, width: int, max_tokens: int, penalty: float, stop: Ids
) -> None:
    wanted = rules(width, max_tokens, penalty, stop)
    known = sorted(by_definition(table, wanted), key=lambda each: -each.score(penalty))[:width]

    found = answers(run(table, wanted), width)

    assert [(ids, score) for ids, _, score in found] == [
        (each.ids, each.score(penalty)) for each in known
    ]


@given(tables, st.integers(1, 3), penalties)
@settings(max_examples=100, deadline=None)
def test_wide_enough_it_finds_the_best_of_all_sequences(
    table: Table, max_tokens: int, penalty: float
) -> None:
    table = replace(table, size=min(table.size, 3))
    every = [Known((), 0)]
    complete = list[Known]()
    for _ in range(max_tokens):
        longer = []
        for each in every:
            for token, logprob in enumerate(table.logprobs(each.ids)):
                if token == END:
                    complete.append(Known(each.ids, each.total, logprob))
                else:
                    longer.append(Known((*each.ids, token), each.total + logprob))
        every = longer
    best = max(each.score(penalty) for each in complete + every)

    [(_, _, score)] = answers(run(table, rules(16, max_tokens, penalty)), 1)

    assert score == best


@given(tables, st.integers(1, 12), penalties)
def test_one_beam_is_greedy(table: Table, max_tokens: int, penalty: float) -> None:
    greedy, reason = list[int](), "length"
    while len(greedy) < max_tokens:
        [token] = table.best(greedy, 1).tokens
        if token == END:
            reason = "stop"
            break
        greedy.append(token)

    [(ids, finish_reason, _)] = answers(run(table, rules(1, max_tokens, penalty)), 1)

    assert (list(ids), finish_reason) == (greedy, reason)


@given(tables, st.integers(1, 4), st.lists(st.booleans(), min_size=8, max_size=8))
@settings(max_examples=150, deadline=None)
def test_a_search_that_was_put_down_and_taken_up_is_the_same(
    table: Table, width: int, cuts: list[bool]
) -> None:
    wanted = rules(width, len(cuts), stop=(2, 1))
    expected = run(table, wanted)
    search = BeamSearch(wanted)
    for cut in cuts:
        if search.is_over:
            break
        step(search, table, width)
        if cut:
            search = taken_up(search, wanted)

    assert answers(search, width) == answers(expected, width)


def taken_up(search: BeamSearch, wanted: Rules) -> BeamSearch:
    saved = encode_snapshot(snapshot_of(search, "m", (1,), 5))
    read = decode_snapshot(saved, model="m")
    assert isinstance(read, BeamSnapshot)
    return search_of(read, wanted)


def test_a_snapshot_holds_shared_beginnings_once_and_no_dropped_beam() -> None:
    width, steps = 3, 40
    search = BeamSearch(rules(width, steps + 1))
    table = Table(1, 4, 9999)
    for _ in range(steps):  # token 0 never comes: nothing ends
        search.advance(
            [
                Expansion([token + 1 for token in best.tokens], best.logprobs)
                for best in (table.best(beam.ids, 2 * width) for beam in search.live)
            ]
        )
    beginnings = {beam.ids[:length] for beam in search.live for length in range(1, steps + 1)}

    nodes = snapshot_of(search, "m", (1,), 5).nodes

    assert len(nodes) == len(beginnings) < width * steps


def test_the_alternatives_that_are_shown_are_kept() -> None:
    search = BeamSearch(rules(2, 3))
    search.advance([Expansion([5, 6, 7, 8], [-1, -2, -3, -4], 3)])

    [first, second] = search.live
    assert (first.score.logprob, second.score.logprob) == (-1, -2)
    assert first.score.top_ids == second.score.top_ids == (5, 6, 7)


@pytest.mark.parametrize(("penalty", "longer_wins"), [(0.0, False), (1.0, True), (-1.0, False)])
def test_the_penalty_weighs_length(penalty: float, *, longer_wins: bool) -> None:
    search = BeamSearch(rules(2, 2, penalty))
    search.advance([Expansion([END, 5], [-300_000, -200_000])])
    search.advance([Expansion([6, 7], [-200_000, -9_000_000])])

    best = search.best(1)[0]

    assert search.is_over
    assert isinstance(best, Finished)
    assert (best.beam.ids == (5, 6)) is longer_wins
