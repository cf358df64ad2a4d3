"""Continuous batching: many generations, one context, one step at a time.

Every step computes one row of each generation that is answering and, beside them, a piece of the
prompts that are still being read, so that a long prompt slows its neighbours and does not stop
them. What a step computes for a generation is the same, bit for bit, whatever runs beside it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from aios_broker.contract.errors import CoreError, KernelError, UnsupportedOption
from aios_workers.llm.constraint import Matcher
from aios_workers.llm.core import Constraint, FinishReason, ScoredToken
from aios_workers.llm.cores.llama.kv_state import KvState, StateCache, shared_prefix_tokens
from aios_workers.llm.cores.llama.llama_context import Row
from aios_workers.llm.cores.llama.protocol import ContextShape, Ended, Generate, Tokens
from aios_workers.llm.cores.llama.sampler import Sampler, score
from aios_workers.llm.cores.llama.state_store import NoStates

StartMatcher = Callable[[Constraint, Sequence[int]], Matcher]

# Prompt tokens computed in a step in which others answer: about 0.1 s of the small model.
PREFILL_BESIDE_ANSWERS_TOKENS = 16
# No step takes much longer than this, whatever the model's size: what was said meanwhile waits.
STEP_MS = 1_000.0
STEP_BESIDE_ANSWERS_MS = 250.0
Event = Tokens | Ended


def unconstrained(constraint: Constraint, output_ids: Sequence[int]) -> Matcher:
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
        self._matcher: Matcher | None = None
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
        if token in self.request.turn_ends or is_end(token):
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
        scores: tuple[ScoredToken, ...] = (),
    ) -> Tokens:
        cached_tokens, self.cached_tokens = self.cached_tokens, 0
        return Tokens(self.request.stream, ids, finish_reason, cached_tokens, scores)


class ContextLike(Protocol):
    """What the engine needs of a `Context`."""

    @property
    def shape(self) -> ContextShape:
        """How many slots, and how many rows fit a step."""
        ...

    def compute(self, rows: Sequence[Row]) -> dict[int, NDArray[np.float32]]:
        """Compute rows; return the wanted logits by slot."""
        ...

    def truncate(self, slot: int, length: int) -> int:
        """Forget KV state from a position on; return how many tokens are left, or none."""
        ...

    def export_state(self, slot: int) -> bytes:
        """Return a slot's KV state."""
        ...

    def import_state(self, slot: int, state: bytes) -> bool:
        """Replace a slot's KV state; False leaves it empty."""
        ...

    def is_end(self, token: int) -> bool:
        """Whether a token ends a generation."""
        ...


@dataclass(slots=True)
class _Slot:
    """One KV stream. It keeps its state when a generation ends: the next may begin alike."""

    number: int
    ids: list[int] = field(default_factory=list)  # whose KV state is here, in order
    running: Generation | None = None
    used_at: int = 0  # the step of its last use
    kv_owner: str = ""  # for whom its state was read

    @property
    def pending_tokens(self) -> int:
        return len(self.running.ids) - len(self.ids) if self.running else 0

    def held_tokens(self, known: Sequence[int], kv_owner: str) -> int:
        """Return how many of these tokens it has read, for this owner."""
        return shared_prefix_tokens(self.ids, known) if self.kv_owner == kv_owner else 0


class Engine:
    """Runs generations on a context. For one thread.

    More generations than slots wait in the order of their arrival.
    """

    def __init__(
        self,
        context: ContextLike,
        *,
        state_budget_bytes: int,
        start_matcher: StartMatcher = unconstrained,
        prefill_ms_per_token: float = 0.0,
    ) -> None:
        """`prefill_ms_per_token`: as measured; steps have fewer rows where it is long."""
        self._context = context
        rows = context.shape.micro_batch_tokens
        self._rows_alone = _rows_within(STEP_MS, prefill_ms_per_token, rows)
        self._rows_beside_answers = _rows_within(
            STEP_BESIDE_ANSWERS_MS, prefill_ms_per_token, PREFILL_BESIDE_ANSWERS_TOKENS
        )
        self._start_matcher = start_matcher
        self._slots = [_Slot(number) for number in range(context.shape.slots)]
        self._waiting: deque[Generation] = deque()
        self._states = StateCache(state_budget_bytes)
        self.shared: NoStates = NoStates()  # what other processes may read, too
        self._events: list[Event] = []
        self._steps = 0

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return bool(
            self._waiting or self._events or any(slot.running is not None for slot in self._slots)
        )

    def submit(self, request: Generate, start_matcher: StartMatcher | None = None) -> None:
        """Let a generation begin at the next step at which a slot is free.

        `start_matcher`: of this one, where its matcher was begun before.
        """
        try:
            generation = Generation(request, start_matcher or self._start_matcher)
        except KernelError as error:
            self._events.append(Ended(request.stream, error.to_wire()))
            return
        finished = generation.finished
        if finished is not None:
            self._events.append(finished)
            self.shared.drop(request.request_id)
        else:
            self._waiting.append(generation)

    def abort(self, stream: int, *, keep: bool) -> None:
        """End a stream; its `Ended` comes with the next step. An unknown one is ignored.

        `keep`: hold its KV state for a generation of the same request id.
        """
        for slot in self._slots:
            if slot.running is not None and slot.running.request.stream == stream:
                if keep and slot.ids:
                    self._keep(slot, slot.running.request.request_id)
                elif slot.running.has_answered:  # else it may only have been cut before it began
                    self.shared.drop(slot.running.request.request_id)
                slot.running = None
                self._events.append(Ended(stream))
                return
        for generation in self._waiting:
            if generation.request.stream == stream:
                self._waiting.remove(generation)
                self._events.append(Ended(stream))
                return

    def close(self) -> None:
        """Leave the states of all that can go on to the processes that come after this one."""
        self.shared.close(self._left_behind())

    def step(self) -> tuple[Event, ...]:
        """Compute one batch and return what came of it."""
        self._steps += 1
        self._admit()
        rows = self._rows()
        if rows:
            try:
                self._advance(rows, self._context.compute(rows))
            except CoreError as error:
                self._fail_all(error)
        events, self._events = tuple(self._events), []
        return events

    def _admit(self) -> None:
        while self._waiting and any(slot.running is None for slot in self._slots):
            self._place(self._waiting.popleft())

    def _place(self, generation: Generation) -> None:
        """Put a generation in the free slot, or on the kept state, that saves most work."""
        free = [slot for slot in self._slots if slot.running is None]
        # The last token is computed in any case: its logits choose the next one.
        known, owner = generation.ids[:-1], generation.request.kv_owner
        slot = max(free, key=lambda slot: (slot.held_tokens(known, owner), -slot.used_at))
        held_tokens = slot.held_tokens(known, owner)
        slot = self._restored(generation, free, held_tokens) or slot
        self._cut(slot, slot.held_tokens(known, owner))
        slot.kv_owner = owner
        generation.cached_tokens = len(slot.ids)
        slot.running = generation
        slot.used_at = self._steps

    def _restored(
        self, generation: Generation, free: Sequence[_Slot], held_tokens: int
    ) -> _Slot | None:
        """Load the state that has most of the known tokens, if one has more than a slot holds."""
        request_id, known = generation.request.request_id, generation.ids[:-1]
        state = self._states.take(request_id)
        kept_tokens = shared_prefix_tokens(state.ids, known) if state is not None else 0
        found = self.shared.find(request_id, known, beyond_tokens=max(held_tokens, kept_tokens))
        best = found or (state if kept_tokens > held_tokens else None)
        if best is None:
            return None
        slot = min(free, key=lambda slot: slot.used_at)
        restored = self._context.import_state(slot.number, best.data)
        slot.ids = list(best.ids) if restored else []
        slot.kv_owner = generation.request.kv_owner
        if found is not None:
            self.shared.tried(request_id, restored=restored)
        return slot

    def _keep(self, slot: _Slot, request_id: str) -> None:
        state = self._state_of(slot)
        shared = self.shared.keep(request_id, state)
        self._states.keep(request_id, replace(state, shared=shared))

    def _state_of(self, slot: _Slot) -> KvState:
        return KvState(tuple(slot.ids), self._context.export_state(slot.number))

    def _left_behind(self) -> Iterator[tuple[str, KvState]]:
        """Yield the states that no file has: of what runs, then of what was suspended."""
        for slot in self._slots:
            if slot.running is not None and slot.ids:
                yield slot.running.request.request_id, self._state_of(slot)
        for request_id, state in self._states.newest_first():
            if not state.shared:
                yield request_id, state

    def _cut(self, slot: _Slot, length: int) -> None:
        if length < len(slot.ids) or length == 0:
            length = self._context.truncate(slot.number, length)
        del slot.ids[length:]

    def _rows(self) -> list[Row]:
        answering = [slot for slot in self._slots if slot.pending_tokens == 1]
        reading = [slot for slot in self._slots if slot.pending_tokens > 1]
        room = self._context.shape.micro_batch_tokens - len(answering)
        room = min(room, self._rows_beside_answers if answering else self._rows_alone)
        rows = [row for slot in answering for row in _next_rows(slot, 1)]
        for position, slot in enumerate(reading):
            share = max(1, room // (len(reading) - position))
            piece = _next_rows(slot, min(share, room))
            room -= len(piece)
            rows += piece
        return rows

    def _advance(self, rows: list[Row], logits: dict[int, NDArray[np.float32]]) -> None:
        for row in rows:
            self._slots[row.slot].ids.append(row.token)
        for number, scores in logits.items():
            slot = self._slots[number]
            slot.used_at = self._steps
            try:
                self._answer(slot, scores)
            except KernelError as error:
                self._fail(slot, error)

    def _answer(self, slot: _Slot, scores: NDArray[np.float32]) -> None:
        generation = slot.running
        assert generation is not None, "only running slots have rows"
        tokens = generation.answer(scores, self._context.is_end)
        self._events.append(tokens)
        if tokens.finish_reason is not None:
            slot.running = None
            self.shared.drop(generation.request.request_id)

    def _fail(self, slot: _Slot, error: KernelError) -> None:
        if slot.running is not None:
            self._events.append(Ended(slot.running.request.stream, error.to_wire()))
            slot.running = None
        self._cut(slot, 0)

    def _fail_all(self, error: CoreError) -> None:
        """End all that runs: after a failed computation no slot's state is what we think."""
        for slot in self._slots:
            self._fail(slot, error)


def _rows_within(limit_ms: float, ms_per_row: float, most: int) -> int:
    """Return how many rows a step of so long has; one at least."""
    return max(1, min(most, int(limit_ms / ms_per_row))) if ms_per_row > 0 else most


def _next_rows(slot: _Slot, count: int) -> list[Row]:
    """Return the next rows of a slot; the last of all its tokens wants logits."""
    assert slot.running is not None, "only running slots have rows"
    ids, start = slot.running.ids, len(slot.ids)
    end = min(start + count, len(ids))
    return [
        Row(slot.number, position, ids[position], wants_logits=position == len(ids) - 1)
        for position in range(start, end)
    ]
