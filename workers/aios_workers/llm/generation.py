"""One generation on one core: from its prompt or its snapshot to its end or its suspension."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from aios_broker.contract.errors import CoreError
from aios_broker.contract.reply import ChatResult, Usage
from aios_broker.contract.snapshot import TokenSnapshot, encode_snapshot
from aios_workers.kernel_port import KernelPort
from aios_workers.llm.core import Core, FinishReason, GenerationRequest, Sampling, Step
from aios_workers.llm.text import AnswerText
from aios_workers.run import Done, Outcome, Run, Suspended, SuspendReason

logger = logging.getLogger(__name__)

MAX_CORE_FAILURES = 2  # survived within one attempt; the next one ends the syscall


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be generated, checked and complete."""

    syscall_id: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    stream: bool = False
    return_ids: bool = False
    output_ids: tuple[int, ...] = ()  # of earlier slices
    emitted_characters: int = 0  # streamed in earlier slices


@dataclass(slots=True)
class _Slice:
    """Where the current time slice began."""

    began_s: float
    at_tokens: int


@dataclass(slots=True)
class _Progress:
    """What there is of the answer."""

    ids: list[int]
    text: AnswerText
    finish: FinishReason | None = None
    cached_tokens: int | None = None
    failures: int = 0
    chores: set[asyncio.Task[None]] = field(default_factory=set)


class Generation:
    """Runs a plan. Asks at each slice's end whether to go on, and meanwhile goes on."""

    def __init__(self, core: Core, port: KernelPort, run: Run, plan: Plan) -> None:
        self._core = core
        self._port = port
        self._run = run
        self._plan = plan
        self._clock = asyncio.get_running_loop().time
        self._made = _Progress(ids=[], text=AnswerText(plan.stop))
        self._slice = _Slice(self._clock(), len(plan.output_ids))
        self._asking: asyncio.Task[None] | None = None
        self._cut: SuspendReason | None = None
        self._strand = port.chunks.open(run.lease, plan.syscall_id, plan.emitted_characters)
        self._written = 0  # characters of the answer handed to the strand, or sent before

    async def run(self) -> Outcome:
        """Generate until the end, or until the kernel wants the slot.

        Raises:
            CoreError: The core failed more often than is tried within one attempt.
        """
        self._run.on_suspend(self._suspend)
        self._replay()
        try:
            while not self._is_over():
                await self._stream_once()
            await self._finish_chores()
        except BaseException:
            await self._abandon()
            raise
        return self._done() if self._made.finish else self._suspended()

    def _replay(self) -> None:
        """Take in the ids of earlier slices: their text, and how far it was streamed."""
        for token in self._plan.output_ids:
            self._take_id(token)
        self._write()

    def _is_over(self) -> bool:
        if self._made.finish is None and len(self._made.ids) >= self._plan.max_tokens:
            self._made.finish = "length"
        return self._made.finish is not None or self._cut is not None

    async def _stream_once(self) -> None:
        """Let the core run from the ids so far; on its failure see that it is well again."""
        try:
            await self._stream()
            if not self._is_over():
                raise CoreError("the core ended a generation that nobody aborted")
        except CoreError as error:
            if self._is_over():
                return
            self._made.failures += 1
            if self._made.failures > MAX_CORE_FAILURES:
                raise
            logger.warning("syscall %s: the core failed after %d tokens, once more: %s",
                           self._plan.syscall_id, len(self._made.ids), error)  # fmt: skip
            await self._core.health()

    async def _stream(self) -> None:
        plan = self._plan
        request = GenerationRequest(
            request_id=plan.syscall_id, prompt_ids=plan.prompt_ids, max_tokens=plan.max_tokens,
            sampling=plan.sampling, resume_ids=tuple(self._made.ids),
        )  # fmt: skip
        async for step in self._core.generate(request):
            if self._made.finish is not None:
                continue  # a stop string was found: the core runs out
            self._take(step)
            if self._made.finish is not None and step.finish_reason is None:
                self._abort(keep=False)
            elif self._cut is not None:
                self._abort(keep=True)  # again: the first may have come before the core knew us
            elif self._made.finish is None:
                self._note_slice()

    def _take(self, step: Step) -> None:
        if self._made.cached_tokens is None:
            self._made.cached_tokens = step.cached_tokens
        before = len(self._made.ids)
        for token in step.ids:
            self._take_id(token)
            if self._made.finish is not None:
                break
        else:
            self._made.finish = step.finish_reason
        self._run.count_tokens(len(self._made.ids) - before)
        self._write()

    def _take_id(self, token: int) -> None:
        self._made.ids.append(token)
        if self._made.text.feed(self._core.decode((token,))):
            self._made.finish = "stop"

    def _write(self) -> None:
        """Stream what is certain, but not what was streamed before."""
        if not self._plan.stream:
            return
        ready = self._made.text.take_ready()
        skip = min(len(ready), max(0, self._plan.emitted_characters - self._written))
        self._written += len(ready)
        self._strand.write(ready[skip:])

    # Slices.

    def _note_slice(self) -> None:
        """Ask, at the end of a slice, whether to go on. The generation does not wait for it."""
        if self._asking is not None:
            return
        policy = self._port.policy.row
        used_tokens = len(self._made.ids) - self._slice.at_tokens
        if (
            used_tokens >= policy.quantum_tokens
            or self._clock() - self._slice.began_s >= policy.quantum_s
        ):
            self._asking = self._start(self._ask())

    async def _ask(self) -> None:
        preemptible = self._core.info.capabilities.preemptible
        checkpoint = self._snapshot() if preemptible else None
        verdict = await self._port.slices.end(self._run, checkpoint)
        self._slice = _Slice(self._clock(), len(self._made.ids))
        self._asking = None
        if verdict == "lost":
            self._run.stop("lost")
        elif verdict != "go":
            self._suspend(verdict)

    def _suspend(self, reason: SuspendReason) -> None:
        """Stop at the next token; one that has found its end meanwhile is finished instead."""
        if self._cut is None and self._core.info.capabilities.preemptible:
            self._cut = reason
            self._abort(keep=True)

    def _abort(self, *, keep: bool) -> None:
        self._start(self._abort_core(keep=keep))

    async def _abort_core(self, *, keep: bool) -> None:
        try:
            await self._core.abort(self._plan.syscall_id, keep=keep)
        except CoreError as error:  # its stream fails too, and that is where it is dealt with
            logger.warning("syscall %s: could not be aborted: %s", self._plan.syscall_id, error)

    def _start(self, chore: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(chore)
        self._made.chores.add(task)
        task.add_done_callback(self._made.chores.discard)
        return task

    async def _finish_chores(self) -> None:
        """Wait for what was asked and aborted, so that all use is charged and all text sent."""
        while self._made.chores:
            await asyncio.gather(*self._made.chores)
        if self._made.finish is not None:
            self._made.text.finish()
            self._write()
        await self._strand.flush()

    async def _abandon(self) -> None:
        """Leave nothing running: the core frees the slot, what was asked is dropped."""
        for chore in list(self._made.chores):
            if chore is not asyncio.current_task():
                chore.cancel()
        await self._abort_core(keep=False)

    # Outcomes.

    def _snapshot(self) -> bytes:
        return encode_snapshot(TokenSnapshot(
            model=self._core.info.snapshot_model, prompt_ids=self._plan.prompt_ids,
            output_ids=tuple(self._made.ids), seed=self._plan.sampling.seed,
            emitted_characters=self._strand.delivered,
        ))  # fmt: skip

    def _suspended(self) -> Suspended:
        assert self._cut is not None
        return Suspended(self._snapshot(), self._cut)

    def _done(self) -> Done:
        assert self._made.finish is not None
        prompt_tokens = len(self._plan.prompt_ids)
        usage = Usage(
            prompt_tokens=prompt_tokens, output_tokens=len(self._made.ids),
            cached_tokens=min(prompt_tokens, self._made.cached_tokens or 0),
        )  # fmt: skip
        with_ids = self._plan.return_ids
        return Done(ChatResult(
            text=self._made.text.text, finish_reason=self._made.finish,
            model=self._core.info.model, usage=usage,
            prompt_ids=self._plan.prompt_ids if with_ids else (),
            output_ids=tuple(self._made.ids) if with_ids else (),
        ))  # fmt: skip
