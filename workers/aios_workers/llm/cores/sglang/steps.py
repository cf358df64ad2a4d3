"""From a server's events to a core's steps: only new ids, no end token, one kind of ending."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from aios_broker.contract.errors import CoreError
from aios_workers.llm.constraint import Matcher
from aios_workers.llm.core import FinishReason, ScoredToken, Step
from aios_workers.llm.cores.sglang.client import EngineFailure, Event, Finish, LogprobEntry, Meta

NO_LOGPROB = -9_999.0  # JSON has no minus infinity; SGLang writes null


class ConstrainedAnswer:
    """One answer against its form, from its first id on."""

    def __init__(self, matcher: Matcher, grammar_backend: str | None) -> None:
        self._matcher = matcher
        self._backend = grammar_backend

    def take(self, step: Step) -> Step:
        """Return the step if the answer keeps its form; where nothing can be added, as its end.

        Raises:
            CoreError: It does not.
            InvalidSyscall: Reading on costs more than is allowed.
        """
        for token in step.ids:
            if self._matcher.must_end:
                raise self._left("goes on behind the end of its form")
            try:
                self._matcher.add(token)
            except CoreError as error:
                raise self._left(f"leaves its form with token {token}") from error
        if self._matcher.must_end:
            return replace(step, finish_reason="stop")
        if step.finish_reason == "stop" and not self._matcher.may_end:
            raise self._left("ends before its form does")
        return step

    def _left(self, how: str) -> CoreError:
        return CoreError(
            f"the SGLang server's answer {how} (its grammar backend is {self._backend})",
            remedy="simplify the form, or start the server with --grammar-backend llguidance",
        )


@dataclass(slots=True)
class StepMaker:
    """Takes the events of one stream in order.

    `complete` with the last step, `ended` with the last event: a server goes on to its end token
    where the form of an answer lets nothing else follow.
    """

    wanted_tokens: int  # of this request: a generation's `max_tokens` less what it has
    is_end: Callable[[int], bool]
    form: ConstrainedAnswer | None = None
    incremental: bool = False  # events carry new ids alone, not all ids so far
    logprobs: bool = False
    weight_version: str | None = None  # None: not watched
    complete: bool = False
    ended: bool = False
    taken: int = 0  # ids
    began: bool = False

    def take(self, event: Event, *, aborted: bool) -> Step | None:
        """Return the step that an event is; None when it says nothing new.

        Args:
            event: The next event.
            aborted: Whether we have asked for an end.

        Raises:
            EngineFailure: The server refused, aborted on its own, or contradicts itself.
            CoreError: The answer does not keep its form.
        """
        step = self._step(event, aborted=aborted)
        if step is None or self.complete:
            return None
        if self.form is not None:
            step = self.form.take(step)
        self.complete = step.finish_reason is not None
        return step

    def _step(self, event: Event, *, aborted: bool) -> Step | None:
        if event.error is not None:
            raise _refused(event)
        if self.ended:
            raise EngineFailure("the SGLang server went on after the end of a stream")
        meta = event.meta_info
        finish = meta.finish_reason
        if finish is not None and finish.type == "abort":
            self._check_abort(finish, aborted=aborted)
        self._check_weights(meta)
        ids, entries = self._new(event)
        reason = self._reason(finish, ids)
        self.ended = finish is not None
        if reason == "stop":
            ids = ids[:-1]
        if not ids and reason is None:
            return None
        cached_tokens = 0 if self.began else meta.cached_tokens
        self.began = True
        return Step(tuple(ids), reason, cached_tokens, entries)

    def _new(self, event: Event) -> tuple[list[int], tuple[ScoredToken, ...]]:
        if self._is_echo(event):
            return [], ()
        begin = 0 if self.incremental else self.taken
        ids = event.output_ids[begin:]
        if len(event.output_ids) < begin:
            raise EngineFailure("the SGLang server took back tokens that it had sent")
        self.taken += len(ids)
        if self.taken > self.wanted_tokens:
            raise EngineFailure("the SGLang server sent more tokens than were asked for")
        if not self.logprobs:
            return ids, ()
        entries = self._logprobs(event.meta_info, begin, ids)
        return ids, entries

    def _is_echo(self, event: Event) -> bool:
        """Whether an abort found the request waiting, perhaps pushed out of the batch.

        SGLang then repeats its last id alone, or none, and not the ids so far.
        """
        meta = event.meta_info
        if meta.finish_reason is None or meta.finish_reason.type != "abort":
            return False
        before = self.taken if self.incremental else 0
        return meta.completion_tokens not in (None, before + len(event.output_ids))

    def _logprobs(self, meta: Meta, begin: int, ids: list[int]) -> tuple[ScoredToken, ...]:
        chosen = (meta.output_token_logprobs or [])[begin:]
        tops = (meta.output_top_logprobs or [])[begin:] or [None] * len(chosen)
        if [token for _, token, _ in chosen] != ids or len(tops) != len(chosen):
            raise EngineFailure("the SGLang server's log-probabilities are not those of its tokens")
        return tuple(
            _scored(entry, tuple(map(_scored, top or ())))
            for entry, top in zip(chosen, tops, strict=True)
        )

    def _reason(self, finish: Finish | None, ids: list[int]) -> FinishReason | None:
        """Return how it ended; None: it goes on, or was aborted.

        An abort that comes with the last token is none: the answer is complete.
        """
        if finish is None:
            return None
        if self._ends(finish, ids):
            return "stop"
        if finish.type != "stop" and self.taken == self.wanted_tokens:
            return "length"
        if finish.type != "abort":
            raise EngineFailure(
                f"the SGLang server ended by {finish.type!r} ({finish.matched!r}) after "
                f"{self.taken} of {self.wanted_tokens} tokens"
            )
        return None

    def _ends(self, finish: Finish, ids: list[int]) -> bool:
        """Whether the last id is an end token, which does not belong to the answer."""
        if not ids:
            return False
        if finish.type == "stop":
            return finish.matched == ids[-1]
        return self.is_end(ids[-1])

    def _check_abort(self, finish: Finish, *, aborted: bool) -> None:
        if finish.status_code is not None:
            raise EngineFailure(
                f"the SGLang server refused: {finish.message}",
                sick=finish.status_code >= 500,  # as in HTTP
            )
        if not aborted:
            raise EngineFailure(f"the SGLang server aborted on its own: {finish.message}")

    def _check_weights(self, meta: Meta) -> None:
        expected = self.weight_version
        if expected is not None and meta.weight_version not in (None, expected):
            raise EngineFailure(
                f"the SGLang server's weights are now {meta.weight_version!r}, not {expected!r}",
                remedy="restart the worker",
            )


def _refused(event: Event) -> EngineFailure:
    error = event.error
    if isinstance(error, str) or error is None:
        return EngineFailure(f"the SGLang server refused: {error}")
    ours = error.code in (400, "400")
    return EngineFailure(f"the SGLang server refused: {error.message}", sick=not ours)


def _scored(entry: LogprobEntry, top: tuple[ScoredToken, ...] = ()) -> ScoredToken:
    logprob, token, _ = entry
    return ScoredToken(token, NO_LOGPROB if logprob is None else max(logprob, NO_LOGPROB), top)
