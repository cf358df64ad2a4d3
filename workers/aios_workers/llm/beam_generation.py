"""Beam search on a core: one token for each live beam, side by side; suspended between steps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

from aios_broker.contract.errors import CoreError
from aios_broker.contract.reply import ChatResult
from aios_broker.contract.snapshot import BeamSnapshot, encode_snapshot
from aios_workers.llm.answers import (
    Answer,
    AnswerText,
    Plan,
    answer_id,
    chat_result,
    choice_of,
    millionths,
)
from aios_workers.llm.beam import (
    Beam,
    BeamSearch,
    Expansion,
    Finished,
    Rules,
    alternatives_of,
    search_of,
    snapshot_of,
)
from aios_workers.llm.core import Core, CoreRetries, GenerationRequest
from aios_workers.llm.generation import Slicing
from aios_workers.runtime.executor import (
    BackgroundTasks,
    Done,
    Outcome,
    Run,
    Suspended,
    gathered,
)
from aios_workers.runtime.kernel import Kernel


class BeamGeneration:
    """Runs a plan with beams.

    Each step asks the core for one token more of each beam: no stream of the core is suspended, so
    that this works on every core with log-probabilities. The context of a beam is prefilled at
    each step, as far as the core does not have it in memory.
    """

    def __init__(self, core: Core, kernel: Kernel, run: Run, plan: Plan) -> None:
        body = plan.body
        assert body.beam_width is not None
        self._core = core
        self._plan = plan
        self._tasks = BackgroundTasks()
        self._slicing = Slicing(kernel, run, self._tasks, self._snapshot, preemptible=True)
        self._retries = CoreRetries(core, f"beam search {plan.syscall_id}")
        rules = Rules(
            body.beam_width, body.max_tokens, body.length_penalty, core.is_end, self._is_stopped
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
        text = AnswerText(self._plan.body.stop)
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
        )
