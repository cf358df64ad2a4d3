"""Cut generations at random tokens, resume them, and compare with the uninterrupted answer.

Works on every core that claims `exact_resume`: it sees the `Core` protocol alone. Each answer is
generated once without a cut and once with several; every resumption goes to the same core (which
may have kept something) or to another one (which cannot have). Half of the cuts happen while
nothing else runs, the other half while other generations run in the same batch.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from msgspec import structs

from aios_broker.contract.llm import PENALTIES, Message
from aios_workers.llm.core import (
    Constraint,
    Core,
    FinishReason,
    GenerationRequest,
    Sampling,
    ScoredToken,
)

ANSWER_TOKENS = (16, 48)
CUTS_PER_ANSWER = (2, 6)
LANES = 3  # one more than the default slots, so that some wait
GREEDY_SHARE = 0.4
STEP_LIMIT_S = 240.0  # of one answer: a machine may be busy, and a model not small
MAX_ANSWERS_PER_CUT = 4  # a core that answers faster than it can be cut ends the check

TOPICS = (
    "Explain in two sentences why the sky is blue.",
    "Write a short poem about a lighthouse keeper who counts ships.",
    "List five things to pack for a week in the mountains, with a reason for each.",
    "def fibonacci(n):\n    # continue this function and explain it",
    "Translate to French: the queue is empty and the worker waits. 東京 ñandú 🚢",
    "What is 17 * 23? Show the steps, then check the result.",
    "Tell me a story that begins with: The last train left at 03:47.",
)
FORMS = (
    Constraint(
        "json",
        '{"type":"object","properties":{"name":{"type":"string","maxLength":30},'
        '"age":{"type":"integer"},"kind":{"enum":["fox","ship"]}},'
        '"required":["name","age","kind"],"additionalProperties":false}',
    ),
    Constraint("json", '{"type":"array","items":{"type":"string","maxLength":12},"maxItems":4}'),
    Constraint("regex", r"[A-Z][a-zé]{2,9}( [a-z]{1,8}){3,9}\."),
    Constraint("grammar", 'start: "(" item ("," item){2,6} ")"\nitem: /[a-z]{1,6}/ | /[0-9]{1,3}/'),
)
FILLER = "The log says that request 4711 waited 12.5 ms, ran 80 ms and then yielded its slot."


@dataclass(frozen=True, slots=True)
class Answer:
    """What a generation said, and how it ended."""

    ids: tuple[int, ...]
    finish_reason: FinishReason | None
    logprobs: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One answer that differs from its reference."""

    request: GenerationRequest
    cut_at: tuple[int, ...]
    resumed_on: tuple[str, ...]
    expected: Answer
    actual: Answer

    def __str__(self) -> str:
        """Say where they part."""
        pairs = zip(self.expected.ids, self.actual.ids, strict=False)
        shared = next((i for i, (a, b) in enumerate(pairs) if a != b), len(self.actual.ids))
        return (
            f"parted at token {shared} of {len(self.expected.ids)} (prompt "
            f"{len(self.request.prompt_ids)}, cuts {self.cut_at}, on {self.resumed_on}, "
            f"{self.request.sampling}): expected {self.expected}, got {self.actual}"
        )


@dataclass(slots=True)
class Report:
    """The sums of one check."""

    cuts: int = 0
    answers: int = 0
    same_core: int = 0  # resumptions
    other_core: int = 0
    beside_others: int = 0  # cuts with other generations in the batch
    sampled: int = 0  # cuts of answers that were not greedy
    constrained: int = 0  # cuts of answers that were held to a form
    scored: int = 0  # cuts of answers with log-probabilities
    cached_tokens: int = 0
    wall_s: float = 0.0
    mismatches: list[Mismatch] = field(default_factory=list)

    def assert_exact(self, *, cuts: int) -> None:
        """Fail unless there were that many cuts, of every kind, and not one difference."""
        assert self.cuts >= cuts, f"only {self.cuts} of {cuts} cuts happened"
        assert self.same_core, "no generation was resumed on its own core"
        assert self.other_core, "no generation was resumed on another core"
        assert self.beside_others, "no generation was cut with others beside it"
        assert self.sampled, "no sampled generation was cut"
        shown = "\n".join(str(mismatch) for mismatch in self.mismatches[:5])
        assert not self.mismatches, f"{len(self.mismatches)} of {self.answers} differ:\n{shown}"


async def check_cuts(
    core_a: Core,
    core_b: Core,
    *,
    cuts: int,
    seed: int,
    greedy: bool = False,
    forms: Sequence[Constraint] = (),
) -> Report:
    """Make at least `cuts` cuts on two started cores of the same model and compare.

    With `greedy` nothing is sampled: for cores that promise the same answer only then. With
    `forms` every answer is held to one of them, and half have log-probabilities and a bias.

    Ends early, with fewer cuts in the report, when the core finishes answers before they can
    be cut. The prompts, the sampling values and the cut points follow from `seed`.
    """
    report = Report()
    began = time.monotonic()
    cores = (core_a, core_b)
    alone = _Lane(
        cores, report, random.Random(f"{seed}/alone"), beside=False, greedy=greedy, forms=forms
    )
    await alone.run(until=cuts // 2)
    beside = [
        _Lane(
            cores, report, random.Random(f"{seed}/{lane}"), beside=True, greedy=greedy, forms=forms
        )
        for lane in range(LANES)
    ]
    await asyncio.gather(*(lane.run(until=cuts) for lane in beside))
    report.wall_s = time.monotonic() - began
    return report


async def generate(core: Core, request: GenerationRequest) -> Answer:
    """Run a generation to its end; its answer includes `resume_ids`."""
    answer, _ = await _run(core, request, cut_at=None)
    return answer


def random_request(core: Core, rng: random.Random) -> GenerationRequest:
    """Return a request with a prompt and sampling values that follow from `rng`."""
    filler = " ".join([FILLER] * rng.choice((0, 0, 1, 2, 4)))
    messages = [Message("user", f"{filler} {rng.choice(TOPICS)}".strip())]
    if rng.random() < 0.5:
        messages.insert(0, Message("system", "Answer briefly."))
    return GenerationRequest(
        request_id=uuid.UUID(int=rng.getrandbits(128)).hex,
        prompt_ids=core.render(messages),
        max_tokens=rng.randint(*ANSWER_TOKENS),
        sampling=_random_sampling(core, rng),
    )


def held_to_a_form(
    request: GenerationRequest, rng: random.Random, forms: Sequence[Constraint]
) -> GenerationRequest:
    """Return the request with a constraint, and perhaps log-probabilities and a bias."""
    request = replace(request, constraint=rng.choice(forms))
    if rng.random() < 0.5:
        bias = tuple((token, rng.choice((-100.0, 3.0))) for token in rng.sample(range(300), k=5))
        sampling = structs.replace(request.sampling, logit_bias=dict(bias))
        request = replace(request, logprobs=rng.choice((0, 3, 32)), sampling=sampling)
    return request


def _random_sampling(core: Core, rng: random.Random) -> Sampling:
    if rng.random() < GREEDY_SHARE:
        sampling = Sampling()
    else:
        sampling = Sampling(
            temperature=rng.choice((0.3, 0.7, 1.0, 1.3)),
            top_p=rng.choice((1.0, 0.95, 0.8)),
            top_k=rng.choice((0, 0, 40, 5)),
            min_p=rng.choice((0.0, 0.0, 0.05, 0.3)),
            seed=rng.getrandbits(63),
        )
    if core.info.capabilities.keeps >= PENALTIES and rng.random() < 0.3:
        sampling = structs.replace(
            sampling,
            frequency_penalty=rng.choice((0.0, 0.5, -0.2)),
            presence_penalty=rng.choice((0.0, 0.4)),
            repetition_penalty=rng.choice((1.0, 1.15)),
        )
    return sampling


@dataclass(frozen=True, slots=True)
class _Lane:
    """One stream of answers, each compared before the next."""

    cores: tuple[Core, Core]
    report: Report
    rng: random.Random
    beside: bool  # other lanes run at the same time
    greedy: bool
    forms: Sequence[Constraint]

    async def run(self, *, until: int) -> None:
        """Compare answers until the report has `until` cuts."""
        answers_left = MAX_ANSWERS_PER_CUT * until
        while self.report.cuts < until and answers_left > 0:
            answers_left -= 1
            request = random_request(self.cores[0], self.rng)
            if self.greedy:
                request = replace(request, sampling=Sampling())
            if self.forms:
                request = held_to_a_form(request, self.rng, self.forms)
            expected = await generate(self.cores[0], replace(request, request_id=uuid.uuid4().hex))
            await self._compare(request, expected)

    async def _compare(self, request: GenerationRequest, expected: Answer) -> None:
        cut_at, resumed_on = list[int](), list[str]()
        on, answer = 0, Answer((), None)
        for point in self._cut_points(len(expected.ids)):
            if point is not None and point < len(answer.ids):
                continue  # the core was ahead of the last abort
            before = answer.logprobs  # the handler keeps those of earlier slices
            answer, cached_tokens = await _run(
                self.cores[on], replace(request, resume_ids=answer.ids), cut_at=point
            )
            answer = replace(answer, logprobs=before + answer.logprobs)
            self.report.cached_tokens += cached_tokens
            if answer.finish_reason is not None:
                break
            cut_at.append(len(answer.ids))
            same = self.rng.random() < 0.5
            on = on if same else 1 - on
            resumed_on.append("same" if same else "other")
        self._count(request, resumed_on)
        if answer != expected:
            self.report.mismatches.append(
                Mismatch(request, tuple(cut_at), tuple(resumed_on), expected, answer)
            )

    def _cut_points(self, length: int) -> list[int | None]:
        count = min(length, self.rng.randint(*CUTS_PER_ANSWER))
        return [*sorted(self.rng.sample(range(length), k=count)), None]

    def _count(self, request: GenerationRequest, resumed_on: list[str]) -> None:
        cuts = len(resumed_on)
        self.report.answers += 1
        self.report.cuts += cuts
        self.report.same_core += resumed_on.count("same")
        self.report.other_core += resumed_on.count("other")
        self.report.beside_others += cuts if self.beside else 0
        self.report.sampled += cuts if request.sampling.temperature > 0 else 0
        self.report.constrained += cuts if request.constraint is not None else 0
        self.report.scored += cuts if request.logprobs is not None else 0


async def _run(core: Core, request: GenerationRequest, *, cut_at: int | None) -> tuple[Answer, int]:
    """Generate; abort, keeping the state, as soon as there are `cut_at` output ids."""
    ids = list(request.resume_ids)
    logprobs: list[ScoredToken] = []
    finish_reason: FinishReason | None = None
    cached_tokens = 0
    aborting: asyncio.Task[None] | None = None
    if cut_at is not None and cut_at <= len(ids):
        aborting = asyncio.create_task(core.abort(request.request_id, keep=True))
    async with asyncio.timeout(STEP_LIMIT_S):
        async for step in core.generate(request):
            ids.extend(step.ids)
            logprobs.extend(step.logprobs)
            finish_reason = step.finish_reason
            cached_tokens += step.cached_tokens
            if aborting is None and cut_at is not None and len(ids) >= cut_at:
                aborting = asyncio.create_task(core.abort(request.request_id, keep=True))
        if aborting is not None:
            await aborting
    return Answer(tuple(ids), finish_reason, tuple(logprobs)), cached_tokens
