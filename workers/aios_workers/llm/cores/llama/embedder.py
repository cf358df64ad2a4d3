"""Embeddings: the mean of the last hidden states over the tokens of a text, at length 1.

The chat model was not trained for this: texts of one topic come out closer than others, but a
model made for embeddings tells them apart far better (docs/decisions/0006).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aios_broker.contract.errors import CoreError
from aios_workers.llm.cores.llama.context import Context, Row, RowBatch
from aios_workers.llm.cores.llama.library import Library
from aios_workers.llm.cores.llama.protocol import Embed, Embedded, Ended

# Tokens of a text computed between two steps of the engine: about 0.1 s of this model.
PIECE_TOKENS = 16
_POOLING_NONE = 0
_TO_THE_END = -1


@dataclass(slots=True)
class _Reading:
    """A text of which a part has been computed."""

    request: Embed
    total: NDArray[np.float64]
    done: int = 0


class Embedder:
    """Embeds one text after the other, a piece at a time. For one thread.

    Has a context of its own, made when the first text comes (about 50 MB for 2,048 tokens).
    """

    def __init__(self, library: Library, context: Context) -> None:
        self._c = library.c
        self._model = context.model
        self._shape = context.shape
        self._size = int(self._c.llama_model_n_embd(self._model))
        self._batch = RowBatch(PIECE_TOKENS)
        self._context = 0
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
        if self._context:
            self._c.llama_free(self._context)
            self._context = 0

    def _compute(self, reading: _Reading) -> None:
        if not self._context:
            self._context = self._open()
        memory = self._c.llama_get_memory(self._context)
        start = reading.done
        # Another text may have been given up in the middle.
        self._c.llama_memory_seq_rm(memory, 0, start, _TO_THE_END)
        piece = reading.request.ids[start : start + PIECE_TOKENS]
        rows = [Row(0, start + i, token, wants_logits=True) for i, token in enumerate(piece)]
        code = self._c.llama_decode(self._context, self._batch.fill(rows))
        if code != 0:
            raise CoreError(f"llama.cpp could not embed {len(rows)} tokens: code {code}")
        for index in range(len(rows)):
            reading.total += self._row(index)
        reading.done += len(rows)

    def _row(self, index: int) -> NDArray[np.float32]:
        pointer = self._c.llama_get_embeddings_ith(self._context, index)
        if not pointer:
            raise CoreError("llama.cpp has no hidden state for a token")
        return np.ctypeslib.as_array(pointer, shape=(self._size,))

    def _open(self) -> int:
        params = self._c.llama_context_default_params()
        params.n_ctx = self._shape.context_tokens
        params.n_batch = params.n_ubatch = PIECE_TOKENS
        params.n_outputs_max = params.n_outputs_max_per_seq = PIECE_TOKENS
        params.n_threads = params.n_threads_batch = self._shape.threads
        params.embeddings = True
        params.pooling_type = _POOLING_NONE
        context = self._c.llama_init_from_model(self._model, params)
        if not context:
            raise CoreError("llama.cpp could not make a context for embeddings")
        return int(context)
