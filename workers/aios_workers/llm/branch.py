"""One answer as it grows on the core: its ids, its text, its log-probabilities, its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace

from aios_broker.contract.errors import CoreError
from aios_broker.contract.snapshot import AnswerState, TokenScore
from aios_workers.llm.core import Core, FinishReason, GenerationRequest, Step
from aios_workers.llm.plan import MAX_CORE_FAILURES
from aios_workers.llm.scores import score_of
from aios_workers.llm.slicing import Chores
from aios_workers.llm.text import AnswerText

logger = logging.getLogger(__name__)


class Branch:
    """Generates one answer, from its beginning or from where it was cut."""

    def __init__(
        self, core: Core, request: GenerationRequest, text: AnswerText, chores: Chores
    ) -> None:
        self.ids: list[int] = []
        self.scores: list[TokenScore] = []
        self.text = text
        self.finish: FinishReason | None = None
        self.cached_tokens: int | None = None
        self._core = core
        self._request = request
        self._chores = chores
        self._watch: Callable[[int], None] = lambda _: None
        self._is_cut = False
        self._failures = 0
        self._stepped = False  # this stream has yielded something
        self._streaming: asyncio.Task[None] | None = None

    @property
    def state(self) -> AnswerState:
        """What a snapshot keeps of it."""
        return AnswerState(tuple(self.ids), tuple(self.scores), self.finish)

    def replay(self, state: AnswerState) -> None:
        """Take in what earlier slices made."""
        self.scores.extend(state.scores)
        for token in state.output_ids:
            self._take_id(token)
        self.finish = self.finish or state.finish_reason
        self._note_length()

    async def run(self, watch: Callable[[int], None]) -> None:
        """Generate until the end or the cut; `watch` is told of each step, with its tokens.

        Raises:
            CoreError: The core failed more often than is tried within one attempt.
        """
        self._watch = watch
        while not self._is_over():
            await self._stream_once()

    def cut(self) -> None:
        """Stop at the next token, or at once where the core has not come to it yet."""
        self._is_cut = True
        if self._streaming is not None and not self._stepped:
            self._streaming.cancel()
        else:
            self._abort(keep=True)

    async def abandon(self) -> None:
        """Leave nothing running on the core."""
        await self._abort_core(keep=False)

    def _is_over(self) -> bool:
        return self.finish is not None or self._is_cut

    async def _stream_once(self) -> None:
        """Let the core run from the ids so far; on its failure see that it is well again."""
        try:
            await self._stream_in_task()
            if not self._is_over():
                raise CoreError("the core ended a generation that nobody aborted")
        except CoreError as error:
            if self._is_over():
                return
            self._failures += 1
            if self._failures > MAX_CORE_FAILURES or self._cannot_go_on:
                raise
            logger.warning(
                "generation %s: the core failed after %d tokens, once more: %s",
                self._request.request_id,
                len(self.ids),
                error,
            )
            await self._core.health()

    @property
    def _cannot_go_on(self) -> bool:
        """Whether the core would refuse to go on from here: another attempt begins anew."""
        return bool(self.ids) and not self._core.info.capabilities.can_cut(self._request)

    async def _stream_in_task(self) -> None:
        """Run the stream in a task of its own, which `cut` can end while it waits for the core."""
        self._stepped = False
        self._streaming = asyncio.get_running_loop().create_task(self._stream())
        try:
            await self._streaming
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._is_cut or (task is not None and task.cancelling()):
                raise
        finally:
            self._streaming = None

    async def _stream(self) -> None:
        request = replace(self._request, resume_ids=tuple(self.ids))
        async with aclosing(self._core.generate(request)) as steps:
            async for step in steps:
                if self.finish is not None:
                    continue  # a stop string was found: the core runs out
                self._stepped = True
                before = len(self.ids)
                self._take(step)
                if self.finish is not None and step.finish_reason is None:
                    self._abort(keep=False)
                self._watch(len(self.ids) - before)

    def _take(self, step: Step) -> None:
        if self.cached_tokens is None:
            self.cached_tokens = step.cached_tokens
        alternatives = self._request.logprobs
        if alternatives is not None:
            if len(step.logprobs) < len(step.ids):
                raise CoreError("the core gave no log-probabilities")
            entries = step.logprobs[: len(step.ids)]
            self.scores.extend(score_of(each, alternatives=alternatives) for each in entries)
        for token in step.ids:
            self._take_id(token)
            if self.finish is not None:
                break
        else:
            self.finish = step.finish_reason
        if alternatives is not None:
            del self.scores[len(self.ids) :]  # of tokens behind a stop string
        self._note_length()

    def _take_id(self, token: int) -> None:
        self.ids.append(token)
        if self.text.feed(self._core.decode((token,))):
            self.finish = "stop"

    def _note_length(self) -> None:
        if self.finish is None and len(self.ids) >= self._request.max_tokens:
            self.finish = "length"

    def _abort(self, *, keep: bool) -> None:
        self._chores.start(self._abort_core(keep=keep))

    async def _abort_core(self, *, keep: bool) -> None:
        request_id = self._request.request_id
        try:
            await self._core.abort(request_id, keep=keep)
        except CoreError as error:  # its stream fails too, and that is where it is dealt with
            logger.warning("generation %s: could not be aborted: %s", request_id, error)
