"""Beam search: which beams go on, which are finished, which is best; and its run on a core.

Each step extends every live beam by the most probable tokens at its end. All extensions are
ranked together, by the sum of log-probabilities; where sums are equal the better parent goes
first, then the token that ranks higher at its parent. The best `width` that do not end live on;
one that ends is finished if it is among the best `width` of its step. The search is over when
`width` beams are finished, when none lives, or when those that live have `max_tokens`.

A beam's score is sum / length ** length_penalty. An end token counts in both. The search itself
touches no core and no clock; its run asks for one token of each live beam, side by side, and is
suspended between steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import NamedTuple

from aios_broker.contract.errors import CoreError
from aios_broker.contract.reply import ChatResult
from aios_broker.contract.snapshot import (
    BeamEnd,
    BeamNode,
    BeamSnapshot,
    EndReason,
    TokenScore,
    encode_snapshot,
)
from aios_workers.llm.answers import (
    MILLION,
    Answer,
    AnswerText,
    Plan,
    answer_id,
    chat_result,
    choice_of,
    millionths,
)
from aios_workers.llm.core import Core, CoreRetries, GenerationRequest
from aios_workers.llm.fallback import Progress
from aios_workers.llm.slicing import Cutting, Slicing
from aios_workers.runtime.executor import BackgroundTasks, Done, Outcome, Suspended, gathered
from aios_workers.runtime.kernel import Kernel
from aios_workers.runtime.runs import Run

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


class BeamGeneration:
    """Runs a plan with beams.

    Each step asks the core for one token more of each beam: no stream of the core is suspended, so
    that this works on every core with log-probabilities. The context of a beam is prefilled at
    each step, as far as the core does not have it in memory.
    """

    def __init__(self, core: Core, kernel: Kernel, run: Run, plan: Plan, cutting: Cutting) -> None:
        body = plan.body
        assert body.beam_width is not None
        self._core = core
        self._note = run.note_step
        self._plan = plan
        self._tasks = BackgroundTasks()
        self._slicing = Slicing(kernel, run, self._tasks, self._snapshot, cutting, preemptible=True)
        self._retries = CoreRetries(core, f"beam search {plan.syscall_id}")
        rules = Rules(
            body.beam_width,
            plan.request.max_tokens,
            body.length_penalty,
            core.is_end,
            self._is_stopped,
        )
        self._shown = body.logprobs or 0  # alternatives that the result shows
        self._asked = max(alternatives_of(body.beam_width), self._shown)
        self._search = BeamSearch(rules)
        self._generated_tokens = 0
        self._cached_tokens: int | None = None
        if isinstance(plan.snapshot, BeamSnapshot):
            self._search = search_of(plan.snapshot, rules)
            self._generated_tokens = plan.snapshot.generated_tokens

    async def run(self) -> Outcome:
        """Search until the end, or until the kernel wants the slot.

        Raises:
            CoreError: The core failed more often than is tried within one attempt.
        """
        try:
            self._slicing.begin()
            while not self._search.is_over and self._slicing.suspended is None:
                await self._step()
            await self._tasks.finish()
        except BaseException:
            self._tasks.drop()
            raise
        if self._search.is_over:
            return Done(self._result())
        assert self._slicing.suspended is not None
        return Suspended(self._snapshot(), self._slicing.suspended)

    @property
    def progress(self) -> Progress:
        """How far it has come: what another core needs to know when this one has failed."""
        return Progress(self._generated_tokens > 0, snapshot=self._snapshot())

    async def _step(self) -> None:
        beams = list(self._search.live)
        try:
            expansions = await gathered(
                self._expand(number, beam) for number, beam in enumerate(beams)
            )
        except CoreError as error:
            await self._retries.recover(error, beams[0].length)
            return
        self._search.advance(expansions)
        self._generated_tokens += len(beams)
        self._slicing.count(len(beams))
        if not self._search.is_over:
            self._slicing.check()

    async def _expand(self, number: int, beam: Beam) -> Expansion:
        found: Expansion | None = None
        async with aclosing(self._core.generate(self._request(number, beam))) as steps:
            async for step in steps:
                self._note(step.cached_tokens, step.billed)
                if self._cached_tokens is None:
                    self._cached_tokens = step.cached_tokens
                if found is None and step.logprobs:
                    top = step.logprobs[0].top
                    found = Expansion(
                        [each.id for each in top],
                        [millionths(each.logprob) for each in top],
                        self._shown,
                    )
        if found is None:
            raise CoreError("the core gave no log-probabilities")
        return found

    def _request(self, number: int, beam: Beam) -> GenerationRequest:
        return replace(
            self._plan.request,
            request_id=answer_id(self._plan.syscall_id, number),
            resume_ids=beam.ids,
            max_tokens=beam.length + 1,
            logprobs=self._asked,
        )

    def _is_stopped(self, ids: Sequence[int]) -> bool:
        return bool(self._plan.body.stop) and self._text(ids).stopped

    def _text(self, ids: Sequence[int]) -> AnswerText:
        text = self._plan.answer_text()
        for token in ids:
            if text.feed(self._core.decode((token,))):
                break
        return text

    def _snapshot(self) -> bytes:
        return encode_snapshot(
            snapshot_of(
                self._search,
                self._core.info.snapshot_model,
                self._plan.request.prompt_ids,
                self._generated_tokens,
            )
        )

    def _result(self) -> ChatResult:
        choices = [
            choice_of(self._core, self._plan, self._answer(each), number)
            for number, each in enumerate(self._search.best(self._plan.body.n))
        ]
        return chat_result(
            self._core,
            self._plan,
            choices,
            output_tokens=self._generated_tokens,
            cached_tokens=self._cached_tokens,
        )

    def _answer(self, finished: Finished) -> Answer:
        path = finished.beam.path()
        ids = tuple(each.token for each in path)
        text = self._text(ids)
        text.finish()
        return Answer(
            text.text,
            finished.finish_reason,
            ids,
            tuple(each.score for each in path),
            self._search.rank(finished),
            text.reasoning,
            stopped_by=text.stopped_by,
        )
