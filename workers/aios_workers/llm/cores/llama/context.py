"""A loaded model with one KV stream per slot."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aios_broker.contract.errors import CoreError, InvalidConfig
from aios_workers.llm.cores.llama.library import Batch, Library

# From 64 rows of one sequence up llama.cpp computes attention with another kernel, whose sums
# differ in the last bit: a prompt prefilled so is not resumed exactly (docs/decisions/0003).
MICRO_BATCH_TOKENS = 63
_FLASH_ATTENTION_ENABLED = 1
_TO_THE_END = -1


@dataclass(frozen=True, slots=True)
class Row:
    """One token to compute."""

    slot: int
    position: int
    token: int
    wants_logits: bool  # at most one row of a slot


@dataclass(frozen=True, slots=True)
class ContextShape:
    """How much there is of everything."""

    slots: int
    context_tokens: int  # of each slot
    threads: int = 1
    micro_batch_tokens: int = MICRO_BATCH_TOKENS


class Context:
    """Computes rows, and moves KV state in and out. For one thread.

    The slots' KV cells are apart (`kv_unified` is off), so that what a slot computes does not
    depend on its neighbours.
    """

    def __init__(self, library: Library, model: int, shape: ContextShape) -> None:
        self.shape = shape
        self._c = library.c
        self.model = model
        self._vocab = self._c.llama_model_get_vocab(model)
        self.vocab_size = int(self._c.llama_vocab_n_tokens(self._vocab))
        self._context = self._open(shape)
        self._memory = self._c.llama_get_memory(self._context)
        self._batch = RowBatch(shape.micro_batch_tokens)

    @classmethod
    def load(cls, library: Library, weights: Path, shape: ContextShape) -> Context:
        """Load the weights (about 0.3 s, 250 MB resident with 2 slots of 2,048 tokens)."""
        return cls(library, library.load_model(weights, vocab_only=False), shape)

    def _open(self, shape: ContextShape) -> int:
        trained_tokens = int(self._c.llama_model_n_ctx_train(self.model))
        if shape.context_tokens > trained_tokens:
            raise InvalidConfig(
                f"the model was trained for {trained_tokens} tokens of context",
                field="AIOS_LLM_CONTEXT_TOKENS",
                remedy=f"ask for at most {trained_tokens}, not {shape.context_tokens}",
            )
        params = self._c.llama_context_default_params()
        params.n_ctx = shape.context_tokens * shape.slots
        params.n_batch = params.n_ubatch = shape.micro_batch_tokens
        params.n_seq_max = params.n_outputs_max = shape.slots
        params.n_threads = params.n_threads_batch = shape.threads
        params.flash_attn_type = _FLASH_ATTENTION_ENABLED
        params.kv_unified = False
        context = self._c.llama_init_from_model(self.model, params)
        if not context or self._c.llama_n_ctx_seq(context) < shape.context_tokens:
            raise CoreError(
                f"llama.cpp could not make {shape.slots} slots of {shape.context_tokens} tokens",
                remedy="ask for fewer slots or a shorter context",
            )
        return int(context)

    def close(self) -> None:
        """Free model and context; nothing may be called afterwards."""
        if self._context:
            self._c.llama_free(self._context)
            self._c.llama_model_free(self.model)
            self._context = 0

    def is_end(self, token: int) -> bool:
        """Whether a token ends a generation."""
        return bool(self._c.llama_vocab_is_eog(self._vocab, token))

    def compute(self, rows: Sequence[Row]) -> dict[int, NDArray[np.float32]]:
        """Compute rows and return the logits of those that want them, by slot.

        The arrays are the library's memory: they hold until the next call. At most
        `micro_batch_tokens` rows; each slot's positions go on where its KV state ends.

        Raises:
            CoreError: llama.cpp refused; the slots' KV state is then undefined.
        """
        code = self._c.llama_decode(self._context, self._batch.fill(rows))
        if code != 0:
            raise CoreError(f"llama.cpp could not compute {len(rows)} rows: code {code}")
        return {row.slot: self._logits(i) for i, row in enumerate(rows) if row.wants_logits}

    def _logits(self, row_index: int) -> NDArray[np.float32]:
        pointer = self._c.llama_get_logits_ith(self._context, row_index)
        if not pointer:
            raise CoreError("llama.cpp has no logits for a row that wanted them")
        return np.ctypeslib.as_array(pointer, shape=(self.vocab_size,))

    def truncate(self, slot: int, length: int) -> None:
        """Forget the slot's KV state from position `length` on."""
        if not self._c.llama_memory_seq_rm(self._memory, slot, length, _TO_THE_END):
            raise CoreError(f"llama.cpp could not cut slot {slot} to {length} tokens")

    def export_state(self, slot: int) -> bytes:
        """Return the slot's KV state: about 23 kB a token, 2 ms for 512 tokens."""
        size = int(self._c.llama_state_seq_get_size(self._context, slot))
        data = bytearray(size)
        view = (ctypes.c_uint8 * size).from_buffer(data)
        written = int(self._c.llama_state_seq_get_data(self._context, view, size, slot))
        del view
        return bytes(memoryview(data)[:written])

    def import_state(self, slot: int, state: bytes) -> bool:
        """Replace the slot's KV state by an exported one; False leaves the slot empty."""
        self.truncate(slot, 0)
        view = ctypes.cast(ctypes.c_char_p(state), ctypes.POINTER(ctypes.c_uint8))
        if int(self._c.llama_state_seq_set_data(self._context, view, len(state), slot)):
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
