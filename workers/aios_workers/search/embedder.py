"""The embedding model of the state modules, as the settings name it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios_broker.contract.errors import CoreError, InvalidConfig, UnsupportedOption
from aios_broker.contract.llm import LlmEmbed
from aios_broker.contract.names import SearchMode
from aios_broker.contract.reply import EmbedResult
from aios_broker.contract.syscall import Syscall, new_id
from aios_workers.config import WorkerConfig
from aios_workers.model_files import MINILM, MINILM_TOKENIZER
from aios_workers.modules.services import Embedder, KernelCalls
from aios_workers.search.batches import BatchedEmbedder

CORE_TEXTS = 64  # of one llm.embed
AGENT, TENANT = "embeddings", "kernel"  # in whose name a core is asked
MAX_ASK_S = 120.0


class NoEmbedder:
    """AIOS_EMBEDDING_MODEL=none: there are no vectors, search is by keywords."""

    model = "none"
    dimension = 0

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Refuse.

        Raises:
            UnsupportedOption: Always.
        """
        raise UnsupportedOption(
            "this kernel has no embedding model: it searches by keywords",
            field="body.mode",
            remedy="use mode `keyword`, or have AIOS_EMBEDDING_MODEL set to `minilm`",
        )


class CoreEmbedder:
    """Embeds by llm.embed on a core of the fleet, as an agent of the kernel's own."""

    def __init__(self, core: str, dimension: int, calls: KernelCalls) -> None:
        self.model = core
        self.dimension = dimension
        self._calls = calls

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return an array of shape (len(texts), dimension), each row of length 1.

        Raises:
            CoreError: The core failed.
            InvalidConfig: Its vectors are of another dimension than the settings say.
            UnknownCore: No worker serves it.
        """
        rows: list[Any] = []
        for first in range(0, len(texts), CORE_TEXTS):
            rows += await self._ask(texts[first : first + CORE_TEXTS])
        found = np.array(rows, dtype=np.float32).reshape(len(rows), self.dimension)
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        vectors: NDArray[np.float32] = found / np.maximum(lengths, 1e-12)
        return vectors

    async def _ask(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        # A core refuses the empty text; a blank one has a vector.
        body = LlmEmbed(texts=tuple(text or " " for text in texts), core=self.model)
        asked = Syscall(new_id(), AGENT, body, program=AGENT, tenant=TENANT, deadline_s=MAX_ASK_S)
        result = await self._calls.call(asked, body, "embed")
        if not isinstance(result, EmbedResult):
            raise CoreError(f"the core {self.model!r} did not answer with vectors")
        dimension = len(result.vectors[0])
        if dimension != self.dimension:
            raise InvalidConfig(
                f"the core {self.model!r} makes vectors of {dimension} numbers, not "
                f"{self.dimension}",
                field="AIOS_EMBEDDING_DIMENSION",
                remedy=f"set it to {dimension}, then run `aios reindex`",
            )
        return list(result.vectors)


@asynccontextmanager
async def open_embedder(config: WorkerConfig, calls: KernelCalls) -> AsyncIterator[Embedder]:
    """Yield the embedder that the settings name; it loads its model in the background.

    Raises:
        InvalidConfig: The model is not installed, or a core is named without its dimension.
    """
    if config.embedding_core is not None:
        if config.embedding_dimension is None:
            raise InvalidConfig(
                f"is not set, and AIOS_EMBEDDING_CORE is {config.embedding_core!r}",
                field="AIOS_EMBEDDING_DIMENSION",
                remedy="set it to the number of numbers in that core's vectors",
            )
        yield CoreEmbedder(config.embedding_core, config.embedding_dimension, calls)
    elif config.embedding_model == "none":
        yield NoEmbedder()
    else:
        async with _minilm() as embedder:
            yield embedder


def _minilm() -> BatchedEmbedder:
    if MINILM.find() is None or MINILM_TOKENIZER.find() is None:
        raise InvalidConfig(
            "the embedding model is not installed",
            field="AIOS_EMBEDDING_MODEL",
            remedy="run `aios setup`, or set it to `none`: search by keywords only",
        )
    from aios_workers.search import minilm  # noqa: PLC0415  loads onnxruntime

    return BatchedEmbedder(minilm.NAME, minilm.DIMENSION, minilm.MiniLm.load)


async def query_vector(
    embedder: Embedder, query: str, mode: SearchMode
) -> NDArray[np.float32] | None:
    """Return the vector of a query; None: it is searched by keywords alone.

    Hybrid search goes on without an embedding model; semantic search is refused.

    Raises:
        UnsupportedOption: Semantic search, and there is no embedding model.
    """
    if mode == "keyword" or (mode == "hybrid" and embedder.dimension == 0):
        return None
    [vector] = await embedder.embed([query])
    return np.asarray(vector, dtype=np.float32)
