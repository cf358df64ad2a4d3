"""Beam search on a core: one token for each live beam, side by side; suspended between steps."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

from aios_broker.contract.errors import CoreError
from aios_broker.contract.reply import Usage
from aios_broker.contract.snapshot import BeamSnapshot, encode_snapshot
from aios_workers.llm.beam import (
    Beam,
    BeamSearch,
    Expansion,
    Finished,
    Rules,
    Tree,
    alternatives_of,
    search_of,
    tree_of,
)
from aios_workers.llm.core import Core, GenerationRequest
from aios_workers.llm.plan import MAX_CORE_FAILURES, Plan, answer_id
from aios_workers.llm.results import Answer, chat_result, choice_of
from aios_workers.llm.scores import millionths
from aios_workers.llm.slicing import Chores, Slicing
from aios_workers.llm.text import AnswerText
from aios_workers.runtime.kernel_port import KernelPort
from aios_workers.runtime.run import Done, Outcome, Run, Suspended

logger = logging.getLogger(__name__)


class BeamGeneration:
    """Runs a plan with beams.

    Each step asks the core for one token more of each beam: the core is never cut, so that this
    works on every core with log-probabilities. The context of a beam is prefilled at each step,
    as far as the core does not have it in memory.
    """

    def __init__(self, core: Core, port: KernelPort, run: Run, plan: Plan) -> None:
        assert plan.beam_width is not None
        self._core = core
        self._plan = plan
        self._width = plan.beam_width
        self._chores = Chores()
        self._slicing = Slicing(port, run, self._chores, preemptible=True)
        self._rules = Rules(
            plan.beam_width,
            plan.request.max_tokens,
            plan.length_penalty,
            core.is_end,
            self._is_stopped,
        )
        self._search = BeamSearch(self._rules)
        self._generated_tokens = 0
        self._cached_tokens: int | None = None
        self._failures = 0

    async def run(self) -> Outcome:
        """Search until the end, or until the kernel wants the slot.

        Raises:
            CoreError: The core failed more often than is tried within one attempt.
        """
        self._resume()
        try:
            self._slicing.begin(self._snapshot, lambda: None)
            while not self._search.is_over and self._slicing.cut is None:
                await self._step()
            await self._chores.finish()
        except BaseException:
            self._chores.drop()
            raise
        if self._search.is_over:
            return self._done()
        assert self._slicing.cut is not None
        return Suspended(self._snapshot(), self._slicing.cut)

    def _resume(self) -> None:
        saved = self._plan.snapshot
        if isinstance(saved, BeamSnapshot):
            tree = Tree(saved.nodes, saved.live, saved.finished)
            self._search = search_of(tree, self._rules)
            self._generated_tokens = saved.generated_tokens

    async def _step(self) -> None:
        beams = list(self._search.live)
        try:
            expansions = await self._expand_all(beams)
        except CoreError as error:
            self._failures += 1
            if self._failures > MAX_CORE_FAILURES:
                raise
            logger.warning(
                "beam search %s: the core failed at token %d, once more: %s",
                self._plan.syscall_id,
                beams[0].length,
                error,
            )
            await self._core.health()
            return
        self._search.advance(expansions)
        self._generated_tokens += len(beams)
        self._slicing.count(len(beams))
        if not self._search.is_over:
            self._slicing.look()

    async def _expand_all(self, beams: Sequence[Beam]) -> list[Expansion]:
        tasks = [
            asyncio.get_running_loop().create_task(self._expand(number, beam))
            for number, beam in enumerate(beams)
        ]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            raise

    async def _expand(self, number: int, beam: Beam) -> Expansion:
        request = self._request(number, beam)
        found: Expansion | None = None
        async with aclosing(self._core.generate(request)) as steps:
            async for step in steps:
                if self._cached_tokens is None:
                    self._cached_tokens = step.cached_tokens
                for entry in step.logprobs[:1] if found is None else ():
                    top = entry.top
                    found = Expansion(
                        [each.id for each in top],
                        [millionths(each.logprob) for each in top],
                        self._plan.request.logprobs or 0,
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
            logprobs=max(alternatives_of(self._width), self._plan.request.logprobs or 0),
        )

    def _is_stopped(self, ids: Sequence[int]) -> bool:
        return bool(self._plan.stop) and self._text(ids).stopped

    def _text(self, ids: Sequence[int]) -> AnswerText:
        text = AnswerText(self._plan.stop)
        for token in ids:
            if text.feed(self._core.decode((token,))):
                break
        return text

    # Outcomes.

    def _snapshot(self) -> bytes:
        tree = tree_of(self._search)
        return encode_snapshot(
            BeamSnapshot(
                model=self._core.info.snapshot_model,
                prompt_ids=tuple(self._plan.request.prompt_ids),
                nodes=tree.nodes,
                live=tree.live,
                finished=tree.finished,
                generated_tokens=self._generated_tokens,
            )
        )

    def _done(self) -> Done:
        prompt_tokens = len(self._plan.request.prompt_ids)
        choices = [
            choice_of(self._core, self._plan, self._answer(each), number)
            for number, each in enumerate(self._search.best(self._plan.n))
        ]
        usage = Usage(
            prompt_tokens=prompt_tokens,
            output_tokens=self._generated_tokens,
            cached_tokens=min(prompt_tokens, self._cached_tokens or 0),
        )
        return Done(chat_result(self._core, self._plan, choices, usage))

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
