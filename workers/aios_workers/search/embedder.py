"""The embedding model of the state modules, as the settings name it."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from aios_broker.contract.errors import CoreError, InvalidConfig, KernelError, UnsupportedOption
from aios_broker.contract.llm import LlmEmbed
from aios_broker.contract.names import SearchMode
from aios_broker.contract.reply import EmbedResult
from aios_broker.contract.syscall import Syscall, new_id
from aios_broker.fair_queueing import HolderTurns
from aios_broker.places import Holder
from aios_broker.postgres.database import SERVICE_TIMEOUT_S
from aios_broker.postgres.store import Store
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Connection
from aios_workers.config import WorkerConfig
from aios_workers.model_files import MINILM, MINILM_TOKENIZER
from aios_workers.modules.services import Embedder, KernelCalls
from aios_workers.runtime.kernel_calls import SubmittedCalls

logger = logging.getLogger(__name__)

BATCH_TEXTS = 32
# Of a batch, what is longer goes alone: a processor takes no less for two windows at once than one
# after the other (50 ms a full one, 60 to 80 in batches), and a query waits for one batch at most.
BATCH_CHARACTERS = 512
WINDOW_CHARACTERS = 1_024  # about as many as the model takes of a text at a time
TOKEN_CHARACTERS = 4
PER_CALLER = 32  # texts of one caller at a time: a bulk load does not keep a query waiting
TEXT_COST = 64  # characters: what the shortest text costs
KERNEL = Holder("", "kernel")  # in whose name the index is made

Vectors = NDArray[np.float32]

CORE_TEXTS = 64  # of one llm.embed
AGENT, TENANT = "embeddings", "kernel"  # in whose name a core is asked
MAX_ASK_S = 120.0


class Model(Protocol):
    """A model that is called from one thread at a time; it blocks."""

    def split(self, text: str) -> Sequence[Sequence[int]]:
        """Return the tokens of a text, in windows that the model takes at a time: one or more."""
        ...

    def run(self, windows: Sequence[Sequence[int]]) -> Vectors:
        """Return one vector per window; a text's is their mean, weighted by tokens."""
        ...


@dataclass(slots=True, eq=False)
class _Wanted:
    text: str
    holder: Holder
    vector: asyncio.Future[NDArray[np.float32]]
    windows: Sequence[Sequence[int]] = ()  # none: it was not split yet
    seen: int = 0  # windows
    total: NDArray[np.float32] | float = 0.0

    @property
    def cost(self) -> float:
        """What its next window costs, in characters."""
        if self.windows:
            return float(TEXT_COST + TOKEN_CHARACTERS * len(self.windows[self.seen]))
        return float(TEXT_COST + min(len(self.text), WINDOW_CHARACTERS))

    def take(self, vector: NDArray[np.float32]) -> None:
        """Enter the next window's vector."""
        self.total = self.total + vector * len(self.windows[self.seen])
        self.seen += 1


class BatchedEmbedder:
    """An `Embedder` over a blocking model that takes the texts of many callers in batches.

    An async context manager, for one event loop.
    The model is loaded in the background when the context is entered; the first texts wait for it.
    A batch has the next window of each of its texts, and begins with the text of whose turn it is:
    of the tenants and of their agents each has as much of the model as the others, counted in
    characters. So a short query waits for the batch that is being made and hardly for more, however
    long are the texts of others.
    """

    def __init__(self, model: str, dimension: int, load: Callable[[], Model]) -> None:
        self.model = model
        self.dimension = dimension
        self._load = load
        self._waiting: list[_Wanted] = []  # in the order of their coming
        self._turns = HolderTurns()
        self._has_come = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embedder")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._serve(), name="embedder")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._thread.shutdown(wait=False, cancel_futures=True)
        for wanted in self._waiting:
            _fail(wanted, CoreError("the embedding model was closed"))

    async def embed(self, texts: Sequence[str], holder: Holder) -> Vectors:
        """Return an array of shape (len(texts), dimension), each row of length 1.

        Raises:
            CoreError: The model failed.
            InvalidConfig: It cannot be loaded.
        """
        rows: list[NDArray[np.float32]] = []
        for first in range(0, len(texts), PER_CALLER):
            rows += await self._embed_part(texts[first : first + PER_CALLER], holder)
        return np.array(rows, dtype=np.float32).reshape(len(rows), self.dimension)

    async def _embed_part(self, texts: Sequence[str], holder: Holder) -> list[NDArray[np.float32]]:
        loop = asyncio.get_running_loop()
        wanted = [_Wanted(text, holder, loop.create_future()) for text in texts]
        self._waiting += wanted
        self._has_come.set()
        try:
            return await asyncio.gather(*(one.vector for one in wanted))
        finally:
            for one in wanted:  # where the caller left, the model is spared them
                one.vector.cancel()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        loading = loop.run_in_executor(self._thread, self._load)
        loading.add_done_callback(_note_failure)
        while True:
            batch = self._take()
            if not batch:
                self._has_come.clear()
                await self._has_come.wait()
                continue
            try:
                model = await asyncio.shield(loading)
                await loop.run_in_executor(self._thread, _advance, model, batch)
            except Exception as error:  # noqa: BLE001  the border: each caller hears it
                for wanted in batch:
                    _fail(wanted, error)
                continue
            except asyncio.CancelledError:
                for wanted in batch:
                    _fail(wanted, CoreError("the embedding model was closed"))
                raise
            self._give(batch)

    def _give(self, batch: Sequence[_Wanted]) -> None:
        """Answer those that are whole; the others wait for their next turn before all that came."""
        for wanted in batch:
            if wanted.seen == len(wanted.windows) and not wanted.vector.done():
                wanted.vector.set_result(unit_rows(np.atleast_2d(wanted.total))[0])
        self._waiting[:0] = [wanted for wanted in batch if not wanted.vector.done()]

    def _take(self) -> list[_Wanted]:
        """Return the next batch: the text whose turn it is, and those nearest to it in cost."""
        live = self._waiting = [wanted for wanted in self._waiting if not wanted.vector.done()]
        if not live:
            return []
        oldest: dict[Holder, _Wanted] = {}  # of each holder
        for wanted in live:
            oldest.setdefault(wanted.holder, wanted)
        costs = {holder: wanted.cost for holder, wanted in oldest.items()}
        first = oldest[self._turns.next(costs)]
        chosen, characters = [first], first.cost
        others = (wanted for wanted in live if wanted is not first)
        for wanted in sorted(others, key=lambda wanted: abs(wanted.cost - first.cost)):
            characters += wanted.cost
            if characters > BATCH_CHARACTERS or len(chosen) == BATCH_TEXTS:
                break
            chosen.append(wanted)
        self._turns.serve(first.holder, first.cost)
        for wanted in chosen[1:]:
            self._turns.charge(wanted.holder, wanted.cost)
        self._waiting = [wanted for wanted in live if wanted not in chosen]
        return chosen


def _advance(model: Model, batch: Sequence[_Wanted]) -> None:
    """Let the model see the next window of each text."""
    for wanted in batch:
        if not wanted.windows:
            wanted.windows = model.split(wanted.text)
    vectors = model.run([wanted.windows[wanted.seen] for wanted in batch])
    for wanted, vector in zip(batch, vectors, strict=True):
        wanted.take(vector)


def _fail(wanted: _Wanted, error: Exception) -> None:
    if not wanted.vector.done():
        if not isinstance(error, KernelError):
            text = f"the embedding model failed: {type(error).__name__}: {error}"
            error = CoreError(text, remedy="see the worker's log")
        wanted.vector.set_exception(error)


def _note_failure(loading: asyncio.Future[Model]) -> None:
    """Say at once that no text will ever be embedded; callers hear it as well."""
    if not loading.cancelled() and (error := loading.exception()) is not None:
        logger.error("the embedding model cannot be loaded: %s", error)


def unit_rows(rows: Vectors) -> Vectors:
    """Return each row at length 1."""
    unit: Vectors = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


class NoEmbedder:
    """AIOS_EMBEDDING_MODEL=none: there are no vectors, search is by keywords."""

    model = "none"
    dimension = 0

    async def embed(self, texts: Sequence[str], holder: Holder) -> NDArray[np.float32]:
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

    async def embed(self, texts: Sequence[str], holder: Holder) -> NDArray[np.float32]:
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
        return unit_rows(found)

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


async def open_stores(
    config: WorkerConfig,
    name: str,
    stack: AsyncExitStack,
    *,
    limit_s: float = SERVICE_TIMEOUT_S,
    audit_key: bytes | None = None,
) -> tuple[Store, Functions, KernelCalls, Embedder]:
    """Open the database, Redis, and the embedder, which may call the kernel; closed with the stack.

    `limit_s`: of a transaction. `audit_key`: None where no line of the audit log is written.

    Raises:
        InvalidConfig: There is no database, or the embedding model is not installed.
    """
    if config.database_url is None:
        raise InvalidConfig(
            "memory, storage and access keep what they have in Postgres",
            field="AIOS_DATABASE_URL",
            remedy="set it to the address of a Postgres with pgvector",
        )
    store = Store(config.database_url, name=name, limit_s=limit_s, audit_key=audit_key)
    stack.push_async_callback(store.aclose)
    connection = Connection(config.redis_url, name=f"{name}.services")
    stack.push_async_callback(connection.aclose)
    functions = Functions(connection)
    calls = SubmittedCalls(functions, Keys(config.key_prefix), config.redis_url, name)
    await stack.enter_async_context(calls)
    embedder = await stack.enter_async_context(open_embedder(config, calls))
    return store, functions, calls, embedder


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
    embedder: Embedder, query: str, mode: SearchMode, holder: Holder
) -> NDArray[np.float32] | None:
    """Return the vector of a holder's query; None: it is searched by keywords alone.

    Of a long one its beginning, about what the model takes at a time: its words count all the same.

    Hybrid search goes on without an embedding model; semantic search is refused.

    Raises:
        UnsupportedOption: Semantic search, and there is no embedding model.
    """
    if mode == "keyword" or (mode == "hybrid" and embedder.dimension == 0):
        return None
    [vector] = await embedder.embed([query[:WINDOW_CHARACTERS]], holder)
    return np.asarray(vector, dtype=np.float32)
