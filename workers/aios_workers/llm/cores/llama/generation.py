"""One stream of the engine: its tokens so far, and how the next is chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from aios_broker.contract.errors import UnsupportedOption
from aios_workers.llm.core import Constraint, FinishReason
from aios_workers.llm.cores.llama.protocol import Generate, Scored, Tokens
from aios_workers.llm.cores.llama.sampler import Sampler
from aios_workers.llm.cores.llama.scores import score


class MatcherLike(Protocol):
    """What a generation needs of a `constraint.Matcher`."""

    @property
    def must_end(self) -> bool:
        """Whether nothing can be added."""
        ...

    def allowed(self) -> NDArray[np.bool_]:
        """Return for every token whether it may come next."""
        ...

    def add(self, token: int) -> None:
        """Read an output token."""
        ...


StartMatcher = Callable[[Constraint, Sequence[int]], MatcherLike]


def unconstrained(constraint: Constraint, output_ids: Sequence[int]) -> MatcherLike:
    """Stand in where there is no vocabulary: refuse."""
    raise UnsupportedOption(f"no vocabulary to keep a {constraint.kind} constraint with")


class Generation:
    """Chooses one token after the other."""

    def __init__(self, request: Generate, start_matcher: StartMatcher) -> None:
        self.request = request
        self.ids = [*request.prompt_ids, *request.resume_ids]
        self.cached_tokens = 0  # set to 0 again when the first step has told it
        self._output_tokens = len(request.resume_ids)
        self._sampler = Sampler(request.sampling, request.resume_ids)
        self._matcher: MatcherLike | None = None
        if request.constraint is not None:
            self._matcher = start_matcher(request.constraint, request.resume_ids)

    @property
    def has_answered(self) -> bool:
        """Whether it has added anything to what it began with."""
        return self._output_tokens > len(self.request.resume_ids)

    @property
    def finished(self) -> Tokens | None:
        """What there is to say if nothing is left to generate."""
        reason = self._finish_reason()
        return self._tokens((), reason) if reason is not None else None

    def answer(self, logits: NDArray[np.float32], is_end: Callable[[int], bool]) -> Tokens:
        """Choose the next token from the model's logits.

        Raises:
            CoreError: they are not numbers.
            InvalidSyscall: the constraint turned out to be too much.
        """
        allowed = self._matcher.allowed() if self._matcher is not None else None
        token = self._sampler.choose(logits, position=len(self.ids), allowed=allowed)
        wanted = self.request.logprobs
        scores = (score(logits, token, wanted),) if wanted is not None else ()
        if is_end(token):
            return self._tokens((), "stop", scores)
        self.ids.append(token)
        self._output_tokens += 1
        if self._matcher is not None:
            self._matcher.add(token)
        return self._tokens((token,), self._finish_reason(), scores)

    def _finish_reason(self) -> FinishReason | None:
        if self._matcher is not None and self._matcher.must_end:
            return "stop"
        return "length" if self._output_tokens >= self.request.max_tokens else None

    def _tokens(
        self,
        ids: tuple[int, ...],
        finish_reason: FinishReason | None,
        scores: tuple[Scored, ...] = (),
    ) -> Tokens:
        cached_tokens, self.cached_tokens = self.cached_tokens, 0
        return Tokens(self.request.stream, ids, finish_reason, cached_tokens, scores)
