"""A loaded model's contexts: one KV stream per slot for answers, another for embeddings.

And a probe of the first: whether reading a text again is bit-equal to having written it.
"""

from __future__ import annotations

import ctypes
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aios_broker.contract.errors import CoreError, InvalidConfig
from aios_workers.llm.cores.llama.library import Batch, Library
from aios_workers.llm.cores.llama.protocol import (
    ContextShape,
    Embed,
    Embedded,
    Ended,
)

# Tokens of a text embedded between two steps of the engine: about 0.1 s of this model.
PIECE_TOKENS = 16
# How a text is written in the probe: a prompt, then single tokens and a few others' pieces.
PROBE_PIECES = (21, 1, 1, 1, 3, 1, 2, 4, 5, 1)
PROBE_TOKENS = sum(PROBE_PIECES)
_BF16 = 30  # its code among the library's types of numbers
_FLASH_ATTENTION_ENABLED = 1
_POOLING_NONE = 0
_TO_THE_END = -1


@dataclass(frozen=True, slots=True)
class Row:
    """One token to compute."""

    slot: int
    position: int
    token: int
    wants_logits: bool  # at most one row of a slot


class _LibraryContext:
    """A context of the library, opened with what differs from its defaults, and its batch."""

    def __init__(
        self, library: Library, model: int, batch_tokens: int, shape: ContextShape, **settings: int
    ) -> None:
        self._c = library.c
        params = self._c.llama_context_default_params()
        params.n_batch, params.n_ubatch = batch_tokens, min(batch_tokens, shape.joint_rows)
        params.n_threads = params.n_threads_batch = shape.threads
        for name, value in settings.items():
            setattr(params, name, value)
        self.handle = int(self._c.llama_init_from_model(model, params) or 0)  # 0: it has no room
        self._batch = RowBatch(batch_tokens)

    def decode(self, rows: Sequence[Row]) -> None:
        """Compute rows; what comes of them holds until the next call."""
        code = self._c.llama_decode(self.handle, self._batch.fill(rows))
        if code != 0:
            raise CoreError(f"llama.cpp could not compute {len(rows)} rows: code {code}")

    def truncate(self, slot: int, length: int) -> int:
        """Forget the slot's state from position `length` on; return how many tokens are left.

        Models with a recurrent state cannot go back to a position in the middle: they forget all.
        """
        memory = self._c.llama_get_memory(self.handle)
        for kept in (length, 0):
            if self._c.llama_memory_seq_rm(memory, slot, kept, _TO_THE_END):
                return kept
        raise CoreError(f"llama.cpp could not empty slot {slot}")

    def close(self) -> None:
        """Free it; nothing may be called afterwards."""
        if self.handle:
            self._c.llama_free(self.handle)
            self.handle = 0


def _floats(pointer: ctypes._Pointer[ctypes.c_float], size: int) -> NDArray[np.float32]:
    """Return the library's numbers of a row, which are its memory."""
    if not bool(pointer):
        raise CoreError("llama.cpp has no numbers for a row that wanted them")
    return np.ctypeslib.as_array(pointer, shape=(size,))


class Context(_LibraryContext):
    """Computes rows, and moves KV state in and out. For one thread.

    The slots' KV cells are apart (`kv_unified` is off), so that what a slot computes does not
    depend on its neighbours.
    """

    def __init__(self, library: Library, model: int, shape: ContextShape) -> None:
        trained_tokens = int(library.c.llama_model_n_ctx_train(model))
        if shape.context_tokens > trained_tokens:
            raise InvalidConfig(
                f"the model was trained for {trained_tokens} tokens of context",
                field="context_tokens",
                remedy=f"ask for at most {trained_tokens}, not {shape.context_tokens}",
            )
        # Beside keys of 16-bit floats: see `attends_alike`. The model's own range, fewer digits.
        settings = {"type_v": _BF16} if shape.grade == "exact" else {}
        super().__init__(
            library,
            model,
            shape.micro_batch_tokens,
            shape,
            n_ctx=shape.context_tokens * shape.slots,
            n_seq_max=shape.slots,
            n_outputs_max=shape.slots,
            flash_attn_type=_FLASH_ATTENTION_ENABLED,
            kv_unified=False,
            **settings,
        )
        if not self.handle or self._c.llama_n_ctx_seq(self.handle) < shape.context_tokens:
            raise CoreError(
                f"llama.cpp could not make {shape.slots} slots of {shape.context_tokens} tokens",
                remedy="ask for fewer slots or a shorter context",
            )
        self.shape = shape
        self.model = model
        self._vocab = self._c.llama_model_get_vocab(model)
        self.vocab_size = int(self._c.llama_vocab_n_tokens(self._vocab))

    @classmethod
    def load(cls, library: Library, weights: Path, shape: ContextShape) -> Context:
        """Load the weights (about 0.3 s, 250 MB resident with 2 slots of 2,048 tokens)."""
        return cls(library, library.load_model(weights, vocab_only=False), shape)

    def close(self) -> None:
        """Free model and context; nothing may be called afterwards."""
        if self.handle:
            self.free()
            self._c.llama_model_free(self.model)

    def free(self) -> None:
        """Free the context alone: the model is for another."""
        super().close()

    def is_end(self, token: int) -> bool:
        """Whether a token ends a generation."""
        return bool(self._c.llama_vocab_is_eog(self._vocab, token))

    def compute(self, rows: Sequence[Row]) -> dict[int, NDArray[np.float32]]:
        """Compute rows and return the logits of those that want them, by slot.

        The arrays are the library's memory: they hold until the next call. At most
        `micro_batch_tokens` rows; each slot's positions go on where its KV state ends.

        Where rows may not be one product each slot is computed by itself: llama.cpp joins a row of
        every sequence, whatever it is told of micro-batches.

        Raises:
            CoreError: llama.cpp refused; the slots' KV state is then undefined.
        """
        if len(rows) <= self.shape.joint_rows:
            self.decode(rows)
            return {row.slot: self._logits(i) for i, row in enumerate(rows) if row.wants_logits}
        found: dict[int, NDArray[np.float32]] = {}
        for slot in dict.fromkeys(row.slot for row in rows):
            own = [row for row in rows if row.slot == slot]
            self.decode(own)
            if own[-1].wants_logits:
                found[slot] = self._logits(len(own) - 1).copy()
        return found

    def _logits(self, row: int) -> NDArray[np.float32]:
        return _floats(self._c.llama_get_logits_ith(self.handle, row), self.vocab_size)

    def export_state(self, slot: int) -> bytes:
        """Return the slot's KV state: about 23 kB a token, 2 ms for 512 tokens."""
        size = int(self._c.llama_state_seq_get_size(self.handle, slot))
        data = bytearray(size)
        view = (ctypes.c_uint8 * size).from_buffer(data)
        written = int(self._c.llama_state_seq_get_data(self.handle, view, size, slot))
        del view
        return bytes(memoryview(data)[:written])

    def import_state(self, slot: int, state: bytes) -> bool:
        """Replace the slot's KV state by an exported one; False leaves the slot empty."""
        self.truncate(slot, 0)
        view = ctypes.cast(ctypes.c_char_p(state), ctypes.POINTER(ctypes.c_uint8))
        if int(self._c.llama_state_seq_set_data(self.handle, view, len(state), slot)):
            return True
        self.truncate(slot, 0)
        return False


class RowBatch:
    """The arrays that a `llama_batch` points to, allocated once."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._tokens = (ctypes.c_int32 * capacity)()
        self._positions = (ctypes.c_int32 * capacity)()
        self._slots = (ctypes.c_int32 * capacity)()
        self._slot_counts = (ctypes.c_int32 * capacity)(*([1] * capacity))
        self._wants_logits = (ctypes.c_int8 * capacity)()
        pointer = ctypes.POINTER(ctypes.c_int32)
        width = ctypes.sizeof(ctypes.c_int32)
        base = ctypes.addressof(self._slots)
        self._slot_pointers = (pointer * capacity)(
            *(ctypes.cast(base + i * width, pointer) for i in range(capacity))
        )

    def fill(self, rows: Sequence[Row]) -> Batch:
        """Return the batch of some rows; it holds until the next call."""
        if not 0 < len(rows) <= self._capacity:
            raise ValueError(f"{len(rows)} rows in a batch of {self._capacity}")
        for i, row in enumerate(rows):
            self._tokens[i] = row.token
            self._positions[i] = row.position
            self._slots[i] = row.slot
            self._wants_logits[i] = row.wants_logits
        return Batch(
            n_tokens=len(rows),
            token=self._tokens,
            embd=None,
            pos=self._positions,
            n_seq_id=self._slot_counts,
            seq_id=self._slot_pointers,
            logits=self._wants_logits,
        )


@dataclass(slots=True)
class _Reading:
    """A text of which a part has been computed."""

    request: Embed
    total: NDArray[np.float64]
    done: int = 0


class Embedder:
    """Embeds one text after the other, a piece at a time. For one thread.

    A vector is the mean of the last hidden states over the tokens of a text, at length 1. The chat
    model was not trained for this: texts of one topic come out closer than others, but a model
    made for embeddings tells them apart far better (docs/decisions/0006).

    Has a context of its own, made when the first text comes (about 50 MB for 2,048 tokens).
    """

    def __init__(self, library: Library, context: Context) -> None:
        self._library = library
        self._c = library.c
        self._model = context.model
        self._shape = context.shape
        self._size = int(self._c.llama_model_n_embd(self._model))
        self._context: _LibraryContext | None = None
        self._waiting: deque[_Reading] = deque()

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._waiting)

    def submit(self, request: Embed) -> None:
        """Let a text be embedded; its event comes from a `step`."""
        self._waiting.append(_Reading(request, np.zeros(self._size)))

    def abort(self, stream: int) -> None:
        """Forget a text."""
        self._waiting = deque(each for each in self._waiting if each.request.stream != stream)

    def step(self) -> tuple[Embedded | Ended, ...]:
        """Compute a piece of the first text."""
        if not self._waiting:
            return ()
        reading = self._waiting[0]
        stream, ids = reading.request.stream, reading.request.ids
        try:
            self._compute(reading)
        except CoreError as error:
            self._waiting.popleft()
            return (Ended(stream, error.to_wire()),)
        if reading.done < len(ids):
            return ()
        self._waiting.popleft()
        vector = reading.total / np.linalg.norm(reading.total)
        return (Embedded(stream, tuple(vector.tolist())),)

    def close(self) -> None:
        """Free the context; nothing may be called afterwards."""
        if self._context is not None:
            self._context.close()

    def _compute(self, reading: _Reading) -> None:
        context = self._context = self._context or self._open()
        start = reading.done
        context.truncate(0, start)  # another text may have been given up in the middle
        piece = reading.request.ids[start : start + PIECE_TOKENS]
        context.decode(
            [Row(0, start + i, token, wants_logits=True) for i, token in enumerate(piece)]
        )
        for row in range(len(piece)):
            hidden = self._c.llama_get_embeddings_ith(context.handle, row)
            reading.total += _floats(hidden, self._size)
        reading.done += len(piece)

    def _open(self) -> _LibraryContext:
        context = _LibraryContext(
            self._library,
            self._model,
            PIECE_TOKENS,
            self._shape,
            n_ctx=self._shape.context_tokens,
            n_outputs_max=PIECE_TOKENS,
            n_outputs_max_per_seq=PIECE_TOKENS,
            embeddings=True,
            pooling_type=_POOLING_NONE,
        )
        if not context.handle:
            raise CoreError("llama.cpp could not make a context for embeddings")
        return context


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What the probe found and what it cost."""

    exact_resume: bool
    cost_ms: float
    prefill_ms_per_token: float


def probe(context: Context) -> ProbeResult:
    """Find out whether reading a text again is bit-equal to having written it.

    Reading computes many rows at once, writing one: some types of weights are multiplied in
    another way then. Attention differs only over longer texts, by settings that are known
    (`ContextShape.attends_alike`), so that 40 tokens will do. They are written beside another slot.

    Leaves every slot empty. Costs 80 tokens.
    """
    began = time.monotonic()
    shape = context.shape
    ids = [(i * 7919) % context.vocab_size for i in range(1, PROBE_TOKENS + 1)]
    for slot in range(shape.slots):
        context.truncate(slot, 0)
    neighbour = shape.slots - 1 if shape.slots > 1 else None
    written = _compute(context, 0, ids, pieces=PROBE_PIECES, neighbour=neighbour)
    context.truncate(shape.slots - 1, 0)
    read_from = time.monotonic()
    read = _compute(context, shape.slots - 1, ids, pieces=[PROBE_TOKENS])
    now = time.monotonic()
    for slot in range(shape.slots):
        context.truncate(slot, 0)
    exact = shape.attends_alike and bool(np.array_equal(written, read))
    return ProbeResult(exact, (now - began) * 1_000, (now - read_from) * 1_000 / PROBE_TOKENS)


def open_context(
    library: Library, model: int, shapes: Sequence[ContextShape]
) -> tuple[Context, ProbeResult]:
    """Open a model's context in the first shape in which the model keeps the grade.

    Raises:
        InvalidConfig: there is none.
    """
    for shape in shapes:
        context = Context(library, model, shape)
        found = probe(context)
        if found.exact_resume or shape.grade != "exact":
            return context, found
        context.free()
    raise InvalidConfig(
        "this model is not computed the same way, bit for bit, when a text is read again: it "
        "cannot be resumed exactly",
        field="grade",
        remedy='set grade = "same-context"',
    )


def _compute(
    context: Context,
    slot: int,
    ids: Sequence[int],
    *,
    pieces: Sequence[int],
    neighbour: int | None = None,
) -> NDArray[np.float32]:
    """Return the last logits of `ids`, computed in pieces (and those in micro-batches).

    The neighbour, an empty slot, computes a row beside each.
    """
    context.truncate(slot, 0)
    logits: dict[int, NDArray[np.float32]] = {}
    position = steps = 0
    for piece in pieces:
        end = position + piece
        while position < end:
            stop = min(position + context.shape.micro_batch_tokens - 1, end)
            rows = [Row(slot, i, ids[i], i == len(ids) - 1) for i in range(position, stop)]
            if neighbour is not None:
                rows.append(Row(neighbour, steps, ids[steps], wants_logits=True))
            logits = context.compute(rows)
            position, steps = stop, steps + 1
    return logits[slot].copy()


def state_token_bytes(context: Context) -> int:
    """Return what each token takes of a KV state; slot 0 is empty before and after."""
    tokens = min(8, context.shape.micro_batch_tokens)
    context.compute([Row(0, position, 0, wants_logits=False) for position in range(tokens)])
    size = len(context.export_state(0))
    context.truncate(0, 0)
    return -(-size // tokens)
