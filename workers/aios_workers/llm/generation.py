"""The answers to one prompt: each as it grows on the core, all side by side, in time slices."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from aios_broker.contract.errors import CoreError
from aios_broker.contract.money import Billed
from aios_broker.contract.reply import ChatResult, TokenLogprob
from aios_broker.contract.snapshot import (
    AnswersSnapshot,
    AnswerState,
    TokenScore,
    encode_snapshot,
)
from aios_workers.llm.answer_stream import AnswerStream
from aios_workers.llm.answers import (
    Answer,
    AnswerText,
    Plan,
    chat_result,
    choice_of,
    score_of,
)
from aios_workers.llm.core import Core, CoreRetries, FinishReason, GenerationRequest, Step
from aios_workers.llm.fallback import Progress
from aios_workers.llm.slicing import Cutting, ResumeCost, Slicing
from aios_workers.runtime.executor import BackgroundTasks, Done, Outcome, Suspended, gathered
from aios_workers.runtime.kernel import Kernel
from aios_workers.runtime.runs import Run

logger = logging.getLogger(__name__)

NoteStep = Callable[[int, Billed | None], None]  # what a step says of what is paid for


class Branch:
    """Generates one answer, from its beginning or from where it was suspended."""

    def __init__(
        self,
        core: Core,
        request: GenerationRequest,
        text: AnswerText,
        tasks: BackgroundTasks,
        cost: ResumeCost,
        note: NoteStep = lambda _cached, _billed: None,
    ) -> None:
        self.ids: list[int] = []
        self.tokens = 0  # that these ids were
        self.scores: list[TokenScore] = []
        self.text_logprobs: list[TokenLogprob] = []
        self.text = text
        self.finish: FinishReason | None = None
        self.cached_tokens: int | None = None
        self._core = core
        self._request = request
        self._tasks = tasks
        self._cost = cost
        self._clock = asyncio.get_running_loop().time
        self._retries = CoreRetries(core, f"generation {request.request_id}")
        self._watch: Callable[[int], None] = lambda _: None
        self._note = note
        self._counts_apart = core.info.capabilities.text_ids
        self._is_suspended = False
        self._stepped = False  # this stream has yielded something
        self._streaming: asyncio.Task[None] | None = None

    @property
    def state(self) -> AnswerState:
        """What a snapshot keeps of it."""
        tokens = self.tokens if self._counts_apart else None
        return AnswerState(tuple(self.ids), tuple(self.scores), self.finish, tokens)

    def replay(self, state: AnswerState) -> None:
        """Take in what earlier slices made."""
        self.scores.extend(state.scores)
        for token in state.output_ids:
            self._take_id(token)
        self.tokens = len(self.ids) if state.output_tokens is None else state.output_tokens
        self.finish = self.finish or state.finish_reason
        self._note_length()

    async def run(self, watch: Callable[[int], None]) -> None:
        """Generate until the end or the suspension; `watch` hears how many tokens a step has.

        Raises:
            CoreError: The core failed more often than is tried within one attempt.
        """
        self._watch = watch
        while not self._is_over:
            await self._stream_once()

    def suspend(self) -> None:
        """Stop at the next token, or at once where the core has not come to it yet."""
        self._is_suspended = True
        if self._streaming is not None and not self._stepped:
            self._streaming.cancel()
        else:
            self._tasks.start(self.abort(keep=True))

    async def abort(self, *, keep: bool) -> None:
        """End what runs of it on the core; `keep`: it will be resumed soon."""
        request_id = self._request.request_id
        try:
            await self._core.abort(request_id, keep=keep)
        except CoreError as error:  # its stream fails too, and that is where it is dealt with
            logger.warning("generation %s: could not be aborted: %s", request_id, error)

    @property
    def _is_over(self) -> bool:
        return self.finish is not None or self._is_suspended

    async def _stream_once(self) -> None:
        """Let the core run from the ids so far; on its failure see that it is well again."""
        try:
            await self._stream_in_task()
            if not self._is_over:
                raise CoreError("the core ended a generation that nobody aborted")
        except CoreError as error:
            if self._is_over:
                return
            if self.ids and not self._core.info.capabilities.can_suspend(self._request):
                raise  # the core would refuse to go on from here: another attempt begins anew
            await self._retries.recover(error, len(self.ids))

    async def _stream_in_task(self) -> None:
        """Run the stream in a task of its own: `suspend` can end it while it waits for the core."""
        self._stepped = False
        self._streaming = asyncio.get_running_loop().create_task(self._stream())
        try:
            await self._streaming
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._is_suspended or (task is not None and task.cancelling()):
                raise
        finally:
            self._streaming = None

    async def _stream(self) -> None:
        request = replace(self._request, resume_ids=tuple(self.ids), resume_tokens=self.tokens)
        is_billed = False
        try:
            async with aclosing(self._core.generate(request)) as steps:
                asked_s, steps_before = self._clock(), 0
                async for step in steps:
                    is_billed = is_billed or step.billed is not None
                    self._note(step.cached_tokens, step.billed)
                    if steps_before < 2:
                        asked_s, since_s = self._clock(), asked_s
                        self._measure(request, step, 1000 * (asked_s - since_s), steps_before)
                        steps_before += 1
                    self._hear(step)
        except asyncio.CancelledError:
            if self._stepped and not is_billed:
                self._note_unbilled(request)
            raise

    def _hear(self, step: Step) -> None:
        if self.finish is not None:
            return  # a stop string was found: the core runs out
        self._stepped = True
        before = self.tokens
        self._take(step)
        if self.finish is not None and step.finish_reason is None:
            self._tasks.start(self.abort(keep=False))
        self._watch(self.tokens - before)

    def _note_unbilled(self, request: GenerationRequest) -> None:
        """Charge what a request took whose endpoint will not say it any more: about so much."""
        info = self._core.info
        if info.capabilities.bills_requests:
            read = info.tokens_of(request.prompt_ids) + request.resume_tokens
            self._note(0, Billed(read, output_tokens=self.tokens - request.resume_tokens))

    def _measure(
        self, request: GenerationRequest, step: Step, took_ms: float, steps_before: int
    ) -> None:
        """Note what the first token took, and the second, which needed nothing but itself."""
        if steps_before == 0:
            resumed = bool(request.resume_ids)
            info = self._core.info
            tokens = info.tokens_of(request.prompt_ids) + info.tokens_of(request.resume_ids)
            self._cost.began(tokens, step.cached_tokens, took_ms, resumed=resumed)
        else:
            self._cost.stepped(took_ms / max(1, step.token_count))

    def _take(self, step: Step) -> None:
        if self.cached_tokens is None:
            self.cached_tokens = step.cached_tokens
        alternatives = None if self._counts_apart else self._request.logprobs
        if alternatives is not None:
            if len(step.logprobs) < len(step.ids):
                raise CoreError("the core gave no log-probabilities")
            entries = step.logprobs[: len(step.ids)]
            self.scores.extend(score_of(each, alternatives=alternatives) for each in entries)
        held = len(self.ids)
        for token in step.ids:
            self._take_id(token)
            if self.finish is not None:
                break
        else:
            self.finish = step.finish_reason
        self.tokens += len(self.ids) - held if step.tokens is None else step.tokens
        self._take_text_logprobs(step.text_logprobs, len(self.ids) - held)
        if alternatives is not None:
            del self.scores[len(self.ids) :]  # of tokens behind a stop string
        self._note_length()

    def _take_text_logprobs(self, found: Sequence[TokenLogprob], characters: int) -> None:
        """Keep what is of the answer: nothing that begins behind its stop string."""
        begin = 0
        for each in found:
            if self.text.stopped and begin >= characters:
                return
            self.text_logprobs.append(each)
            begin += len(each.text)

    @property
    def cannot_be_cut(self) -> bool:
        """Whether all that there is would be lost: an endpoint goes on with no thought."""
        return self._counts_apart and self.text.is_thinking

    def _take_id(self, token: int) -> None:
        self.ids.append(token)
        if self.text.feed(self._core.decode((token,))):
            self.finish = "stop"

    def _note_length(self) -> None:
        if self._counts_apart:
            return  # the core says when it is over
        if self.finish is None and len(self.ids) >= self._request.max_tokens:
            self.finish = "length"


class Generation:
    """Runs a plan without beams. Its answers are made side by side and suspended together."""

    def __init__(self, core: Core, kernel: Kernel, run: Run, plan: Plan, cutting: Cutting) -> None:
        self._core = core
        self._run = run
        self._plan = plan
        self._cutting = cutting
        self._tasks = BackgroundTasks()
        can_suspend = core.info.capabilities.can_suspend(plan.request)
        self._slicing = Slicing(
            kernel, run, self._tasks, self._snapshot, cutting, preemptible=can_suspend
        )
        self._branches = [
            Branch(
                core,
                plan.answer_request(number),
                plan.answer_text(),
                self._tasks,
                cutting.cost,
                run.note_step,
            )
            for number in range(plan.body.n)
        ]
        self._stream = AnswerStream(kernel.streams, run.lease, plan) if plan.stream else None

    async def run(self) -> Outcome:
        """Generate until the end, or until the kernel wants the slot.

        Raises:
            CoreError: The core failed more often than is tried within one attempt.
        """
        for branch, state in zip(self._branches, self._plan.answer_states(), strict=True):
            branch.replay(state)
        self._write()
        request, count = self._plan.request, len(self._branches)
        most_tokens = count * (len(request.prompt_ids) + request.max_tokens)
        self._cutting.begin(self._run, self._context_tokens, most_tokens)
        result: ChatResult | None = None
        try:
            self._slicing.begin(self._suspend)
            await self._run_branches()
            await self._tasks.finish()
            result = self._result() if all(each.finish for each in self._branches) else None
            if self._stream is not None:
                await self._stream.flush()
        except BaseException:
            self._tasks.drop()
            for branch in self._branches:  # the core frees the slots
                await branch.abort(keep=False)
            raise
        finally:
            self._cutting.end(self._run, complete=result is not None)
        if result is not None:
            return Done(result)
        assert self._slicing.suspended is not None
        return Suspended(self._snapshot(), self._slicing.suspended)

    @property
    def progress(self) -> Progress:
        """How far it has come: what another core needs to know when this one has failed."""
        request = self._plan.request
        begun = any(branch.ids for branch in self._branches)
        resumes = begun and self._core.info.capabilities.can_suspend(request)
        return Progress(
            begun,
            streamed=self._plan.emitted[0] > 0 if self._stream is None else self._stream.has_begun,
            snapshot=self._snapshot() if resumes else None,
        )

    def _context_tokens(self) -> int:
        """Return how many tokens its answers have, the prompt in each of them."""
        prompt_tokens = len(self._plan.request.prompt_ids)
        return sum(prompt_tokens + len(branch.ids) for branch in self._branches)

    async def _run_branches(self) -> None:
        runs = [branch.run(partial(self._step, branch)) for branch in self._branches]
        if len(runs) == 1:
            await runs[0]
        else:
            await gathered(runs)

    def _step(self, branch: Branch, tokens: int) -> None:
        """A step of one answer has come."""
        self._slicing.count(tokens)
        if branch is self._branches[0]:
            self._write()
        if branch.finish is None and not any(each.cannot_be_cut for each in self._branches):
            self._slicing.check()

    def _write(self) -> None:
        """Stream what is certain of the first answer."""
        if self._stream is not None:
            self._stream.write(self._branches[0].text)

    def _suspend(self) -> None:
        for branch in self._branches:
            if branch.finish is None:
                branch.suspend()

    def _snapshot(self) -> bytes:
        request = self._plan.request
        return encode_snapshot(
            AnswersSnapshot(
                self._core.info.snapshot_model,
                tuple(request.prompt_ids),
                tuple(branch.state for branch in self._branches),
                request.sampling.seed,
                *(self._plan.emitted if self._stream is None else self._stream.delivered),
            )
        )

    def _result(self) -> ChatResult:
        """Return the result; what was kept back of its first answer is streamed."""
        choices = []
        for number, branch in enumerate(self._branches):
            assert branch.finish is not None
            branch.text.finish()
            answer = Answer(
                branch.text.text,
                branch.finish,
                tuple(branch.ids),
                tuple(branch.scores),
                reasoning=branch.text.reasoning,
                logprobs=tuple(branch.text_logprobs),
                stopped_by=branch.text.stopped_by,
            )
            choices.append(choice_of(self._core, self._plan, answer, number))
        if self._stream is not None:
            self._stream.complete(self._branches[0].text, choices[0].text)
        return chat_result(
            self._core,
            self._plan,
            choices,
            output_tokens=sum(branch.tokens for branch in self._branches),
            cached_tokens=self._branches[0].cached_tokens,
        )
