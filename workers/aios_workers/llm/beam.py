"""Beam search: which beams go on, which are finished, which is best. Pure: no core, no clock.

Each step extends every live beam by the most probable tokens at its end. All extensions are
ranked together, by the sum of log-probabilities; where sums are equal the better parent goes
first, then the token that ranks higher at its parent. The best `width` that do not end live on;
one that ends is finished if it is among the best `width` of its step. The search is over when
`width` beams are finished, when none lives, or when those that live have `max_tokens`.

A beam's score is sum / length ** length_penalty. An end token counts in both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from aios_broker.contract.snapshot import BeamEnd, BeamNode, BeamSnapshot, EndReason, TokenScore
from aios_workers.llm.answers import MILLION

_NO_SCORE = TokenScore(0)


@dataclass(frozen=True, slots=True, eq=False)
class Beam:
    """A sequence of tokens, as its last one and the beam before it. The root has no token."""

    parent: Beam | None = None
    token: int = -1
    score: TokenScore = _NO_SCORE
    total: int = 0  # sum of log-probabilities, in millionths
    length: int = 0

    def path(self) -> list[Beam]:
        """Return the beams from its first token to itself."""
        beams: list[Beam] = []
        at = self
        while at.parent is not None:
            beams.append(at)
            at = at.parent
        return beams[::-1]

    @property
    def ids(self) -> tuple[int, ...]:
        """Its tokens."""
        return tuple(each.token for each in self.path())

    def child(self, token: int, score: TokenScore) -> Beam:
        """Return it with one token more."""
        return Beam(self, token, score, self.total + score.logprob, self.length + 1)


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """A beam that has ended, with the log-probability of its end token where it chose one."""

    beam: Beam
    finish_reason: EndReason
    end_logprob: int | None = None


class Expansion(NamedTuple):
    """The most probable tokens at the end of one beam, best first, in millionths."""

    tokens: Sequence[int]
    logprobs: Sequence[int]
    kept: int = 0  # alternatives that the answer's log-probabilities show

    def score(self, rank: int) -> TokenScore:
        """Return what is kept of the token at a rank."""
        return TokenScore(
            self.logprobs[rank], tuple(self.tokens[: self.kept]), tuple(self.logprobs[: self.kept])
        )


@dataclass(frozen=True, slots=True)
class Rules:
    """What a search is to do."""

    width: int
    max_tokens: int
    length_penalty: float
    is_end: Callable[[int], bool]  # whether a token ends a beam
    is_stopped: Callable[[Sequence[int]], bool]  # whether ids have come to a stop string


def alternatives_of(width: int) -> int:
    """Return how many tokens each beam is extended by: enough if half of them end it."""
    return 2 * width


class _Candidate(NamedTuple):
    total: int
    parent: int  # index among the live beams
    rank: int  # of the token at its parent


class BeamSearch:
    """The state of one search."""

    def __init__(
        self, rules: Rules, live: Sequence[Beam] = (Beam(),), finished: Sequence[Finished] = ()
    ) -> None:
        self._rules = rules
        self.live = list(live)
        self.finished = list(finished)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to extend."""
        return (
            not self.live
            or len(self.finished) >= self._rules.width
            or self.live[0].length >= self._rules.max_tokens
        )

    def advance(self, expansions: Sequence[Expansion]) -> None:
        """Take one step: an expansion for each live beam, in their order."""
        parents, self.live = self.live, []
        for index, candidate in enumerate(self._ranked(parents, expansions)):
            if len(self.live) == self._rules.width:
                break
            expansion = expansions[candidate.parent]
            self._take(index, parents[candidate.parent], expansion, candidate.rank)

    def _ranked(self, parents: Sequence[Beam], expansions: Sequence[Expansion]) -> list[_Candidate]:
        each_of = alternatives_of(self._rules.width)
        return sorted(
            (
                _Candidate(beam.total + logprob, parent, rank)
                for parent, (beam, best) in enumerate(zip(parents, expansions, strict=True))
                for rank, logprob in enumerate(best.logprobs[:each_of])
            ),
            key=lambda each: (-each.total, each.parent, each.rank),
        )

    def _take(self, index: int, parent: Beam, expansion: Expansion, rank: int) -> None:
        among_best = index < self._rules.width
        if self._rules.is_end(expansion.tokens[rank]):
            if among_best:
                self.finished.append(Finished(parent, "stop", expansion.logprobs[rank]))
            return
        beam = parent.child(expansion.tokens[rank], expansion.score(rank))
        if not self._rules.is_stopped(beam.ids):
            self.live.append(beam)
        elif among_best:
            self.finished.append(Finished(beam, "stop"))

    def best(self, count: int) -> list[Finished]:
        """Return the best of a search that is over: fewer where there are not so many."""
        rivals = list(self.finished)
        if len(rivals) < self._rules.width:
            rivals += [Finished(beam, "length") for beam in self.live]
        return sorted(rivals, key=lambda each: -self.rank(each))[:count]

    def rank(self, each: Finished) -> float:
        """Return the score of a finished beam."""
        total, length = each.beam.total, each.beam.length
        if each.end_logprob is not None:
            total, length = total + each.end_logprob, length + 1
        return float(total / MILLION / length**self._rules.length_penalty)


# To and from the snapshot: the tree as a table, parents first.


def snapshot_of(
    search: BeamSearch, model: str, prompt_ids: Sequence[int], generated_tokens: int
) -> BeamSnapshot:
    """Return all that a search needs to go on; beams that were dropped are not in it."""
    indices: dict[Beam, int] = {}
    for last in (*search.live, *(each.beam for each in search.finished)):
        for beam in last.path():
            indices.setdefault(beam, len(indices))

    def index(beam: Beam | None) -> int:
        return indices.get(beam, -1) if beam is not None else -1

    return BeamSnapshot(
        model=model,
        prompt_ids=tuple(prompt_ids),
        nodes=tuple(BeamNode(index(beam.parent), beam.token, beam.score) for beam in indices),
        live=tuple(index(beam) for beam in search.live),
        finished=tuple(
            BeamEnd(index(each.beam), each.finish_reason, each.end_logprob)
            for each in search.finished
        ),
        generated_tokens=generated_tokens,
    )


def search_of(saved: BeamSnapshot, rules: Rules) -> BeamSearch:
    """Return the search that a snapshot was made of."""
    root = Beam()
    beams: list[Beam] = []

    def beam(index: int) -> Beam:
        return beams[index] if index >= 0 else root

    for node in saved.nodes:  # each after its parent
        beams += [beam(node.parent).child(node.id, node.score)]
    return BeamSearch(
        rules,
        [beam(index) for index in saved.live],
        [Finished(beam(end.node), end.finish_reason, end.end_logprob) for end in saved.finished],
    )
