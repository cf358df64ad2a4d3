"""The answers to one prompt: from the prompt or a snapshot to their ends or their suspension."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from aios_broker.contract.reply import Choice, Usage
from aios_broker.contract.snapshot import (
    AnswersSnapshot,
    Snapshot,
    TokenSnapshot,
    encode_snapshot,
)
from aios_workers.llm.branch import Branch
from aios_workers.llm.core import Core
from aios_workers.llm.plan import Plan
from aios_workers.llm.results import Answer, chat_result, choice_of
from aios_workers.llm.slicing import Chores, Slicing
from aios_workers.llm.text import AnswerText, Veil
from aios_workers.runtime.kernel_port import KernelPort
from aios_workers.runtime.run import Done, Outcome, Run, Suspended
from aios_workers.runtime.streams import Strand


class Generation:
    """Runs a plan without beams. Its answers are made side by side and suspended together."""

    def __init__(self, core: Core, port: KernelPort, run: Run, plan: Plan) -> None:
        self._core = core
        self._plan = plan
        self._chores = Chores()
        self._slicing = Slicing(
            port, run, self._chores, preemptible=core.info.capabilities.can_cut(plan.request)
        )
        self._branches = [
            Branch(core, plan.answer_request(number), AnswerText(plan.stop), self._chores)
            for number in range(plan.n)
        ]
        strand = port.chunks.open(run.lease, plan.syscall_id, plan.emitted_characters)
        self._stream = _AnswerStream(strand, self._branches[0].text, plan)

    async def run(self) -> Outcome:
        """Generate until the end, or until the kernel wants the slot.

        Raises:
            CoreError: The core failed more often than is tried within one attempt.
        """
        for branch, state in zip(self._branches, self._plan.answer_states(), strict=True):
            branch.replay(state)
        self._stream.write()
        try:
            self._slicing.begin(self._snapshot, self._cut)
            await self._run_branches()
            await self._chores.finish()
            choices = self._conclude() if self._is_done else []
            await self._stream.flush()
        except BaseException:
            await self._abandon()
            raise
        return self._done(choices) if choices else self._suspended()

    @property
    def _is_done(self) -> bool:
        return all(branch.finish is not None for branch in self._branches)

    async def _run_branches(self) -> None:
        if len(self._branches) == 1:
            await self._branches[0].run(partial(self._look, self._branches[0]))
            return
        tasks = [
            asyncio.get_running_loop().create_task(branch.run(partial(self._look, branch)))
            for branch in self._branches
        ]
        try:
            await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            raise

    def _look(self, branch: Branch, tokens: int) -> None:
        """A step of one answer has come."""
        self._slicing.count(tokens)
        if branch is self._branches[0]:
            self._stream.write()
        if branch.finish is None:
            self._slicing.look()

    def _cut(self) -> None:
        for branch in self._branches:
            if branch.finish is None:
                branch.cut()

    async def _abandon(self) -> None:
        """Leave nothing running: the core frees the slots, what was asked is dropped."""
        self._chores.drop()
        for branch in self._branches:
            await branch.abandon()

    # Outcomes.

    def _snapshot(self) -> bytes:
        return encode_snapshot(self._state())

    def _state(self) -> Snapshot:
        """Return what is there now; in the first version's form wherever that can hold it."""
        request, delivered = self._plan.request, self._stream.delivered
        model, prompt_ids = self._core.info.snapshot_model, tuple(request.prompt_ids)
        seed = request.sampling.seed
        if len(self._branches) == 1 and request.logprobs is None:
            ids = tuple(self._branches[0].ids)
            return TokenSnapshot(model, prompt_ids, ids, seed, delivered)
        answers = tuple(branch.state for branch in self._branches)
        return AnswersSnapshot(model, prompt_ids, answers, seed, delivered)

    def _suspended(self) -> Suspended:
        assert self._slicing.cut is not None
        return Suspended(self._snapshot(), self._slicing.cut)

    def _conclude(self) -> list[Choice]:
        """Return the choices; what was kept back of the first one is streamed."""
        choices = []
        for number, branch in enumerate(self._branches):
            assert branch.finish is not None
            branch.text.finish()
            answer = Answer(
                branch.text.text, branch.finish, tuple(branch.ids), tuple(branch.scores)
            )
            choices.append(choice_of(self._core, self._plan, answer, number))
        self._stream.finish(choices[0].text)
        return choices

    def _done(self, choices: Sequence[Choice]) -> Done:
        prompt_tokens = len(self._plan.request.prompt_ids)
        usage = Usage(
            prompt_tokens=prompt_tokens,
            output_tokens=sum(len(branch.ids) for branch in self._branches),
            cached_tokens=min(prompt_tokens, self._branches[0].cached_tokens or 0),
        )
        return Done(chat_result(self._core, self._plan, choices, usage))


class _AnswerStream:
    """What of the first answer has gone to the client, and what may go."""

    def __init__(self, strand: Strand, text: AnswerText, plan: Plan) -> None:
        self._strand = strand
        self._text = text
        self._wanted = plan.stream
        self._sent_before = plan.emitted_characters
        self._veil = Veil(plan.toolbox.marker) if plan.toolbox is not None else None
        self._written = 0  # characters of the answer handed to the strand, or sent before

    @property
    def delivered(self) -> int:
        """How many characters have reached the client's list."""
        return self._strand.delivered

    def write(self) -> None:
        """Stream what is certain, but not what was streamed before."""
        if self._wanted:
            ready = self._text.take_ready()
            self._pass(ready if self._veil is None else self._veil.passed(ready))

    def finish(self, text: str) -> None:
        """The answer is `text`: stream what is left of it."""
        if self._wanted:
            self._pass(text[self._written :])

    async def flush(self) -> None:
        """Return when all text has left, or failed once."""
        await self._strand.flush()

    def _pass(self, ready: str) -> None:
        skip = min(len(ready), max(0, self._sent_before - self._written))
        self._written += len(ready)
        self._strand.write(ready[skip:])
