"""Texts to ids to vectors, on a server that was started with `--is-embedding`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Protocol

from tokenizers import Tokenizer

from aios_broker.contract.errors import InvalidConfig
from aios_workers.llm.core import CoreInfo, Embeddings, unit_vector
from aios_workers.llm.cores.sglang.client import EngineClient
from aios_workers.llm.cores.sglang.failure import EngineFailure
from aios_workers.llm.cores.sglang.model_folder import ModelFolder
from aios_workers.llm.cores.sglang.settings import BYTES
from aios_workers.llm.cores.sglang.tokenizer import ByteVocabulary, model_folder
from aios_workers.llm.cores.sglang.wire import Embedding
from aios_workers.llm.options import check_texts

BATCH_TEXTS = 32  # of one request: a failure repeats no more than these


class TextReader(Protocol):
    """Turns a text into the ids that an embedding model wants."""

    size: int  # ids are below it

    def ids(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text, with what the model expects around it."""
        ...


class FolderTextReader:
    """By the tokenizer of a model folder; it needs no chat template."""

    def __init__(self, folder: ModelFolder) -> None:
        self._tokenizer: Tokenizer = folder.tokenizer()
        self._tokenizer.encode_special_tokens = True  # what stands in a text is text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.size = folder.vocabulary_size() or self._tokenizer.get_vocab_size()

    def ids(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text between those that the tokenizer puts around each."""
        clean = text.encode("utf-8", "replace").decode("utf-8")
        return tuple(self._tokenizer.encode(clean).ids)


class ByteTextReader:
    """For models without a tokenizer."""

    def __init__(self, vocabulary: ByteVocabulary) -> None:
        self._vocabulary = vocabulary
        self.size = vocabulary.size

    def ids(self, text: str) -> tuple[int, ...]:
        """Return a start token and the bytes."""
        return self._vocabulary.ids(text)


def load_text_reader(setting: str | None, server_path: str | None) -> TextReader:
    """Return what the setting names, as `load_vocabulary` does.

    Raises:
        InvalidConfig: There is none.
    """
    if setting == BYTES:
        return ByteTextReader(ByteVocabulary.of(server_path))
    return FolderTextReader(model_folder(setting, server_path))


async def embed(
    client: EngineClient, reader: TextReader, texts: Sequence[str], info: CoreInfo, limit_s: float
) -> Embeddings:
    """Return one vector of length 1 per text.

    Raises:
        InvalidSyscall: A text is empty.
        ContextTooLong: A text does not fit.
        InvalidConfig: The tokenizer is not that of the server's model.
        EngineFailure: The server failed.
    """
    ids = []
    for place, text in enumerate(texts):
        ids.append(reader.ids(text))
        check_texts([text], [len(ids[-1])], info, first=place)
        _check_ids(ids[-1], reader.size)
        await asyncio.sleep(0)  # a long text takes its time: others have their turn
    vectors: list[tuple[float, ...]] = []
    tokens = 0
    for begin in range(0, len(ids), BATCH_TEXTS):
        found = await client.embed(ids[begin : begin + BATCH_TEXTS], limit_s)
        vectors += map(_vector, found)
        tokens += sum(each.meta_info.prompt_tokens for each in found)
    if len({len(vector) for vector in vectors}) > 1:
        raise EngineFailure("the SGLang server made vectors of different sizes")
    return Embeddings(tuple(vectors), tokens)


def _vector(found: Embedding) -> tuple[float, ...]:
    if not any(found.embedding) or not all(map(math.isfinite, found.embedding)):
        raise EngineFailure("the SGLang server made a vector that has no direction")
    return unit_vector(found.embedding)


def _check_ids(ids: Sequence[int], size: int) -> None:
    if not ids or max(ids) >= size:
        raise InvalidConfig(
            f"the tokenizer makes ids beyond the model's vocabulary of {size}",
            field="AIOS_SGLANG_TOKENIZER",
            remedy="name the folder of the model that is served",
        )
