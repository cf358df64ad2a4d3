"""What an SGLang server says: its stream of events, as frozen structures and nothing else.

Fields that we do not use are skipped while decoding; SGLang adds some with every release.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

DATA = b"data:"
DONE = b"[DONE]"

# log-probability (null: minus infinity), token id, text (we decode ourselves)
LogprobEntry = tuple[float | None, int, Any]


class Finish(Struct, frozen=True):
    """Why a generation ended. `status_code` is set where an abort is a refusal."""

    type: str
    matched: int | str | list[int] | None = None  # the token or string that ended it
    message: str | None = None
    status_code: int | None = None


class Meta(Struct, frozen=True):
    """What is said beside the ids."""

    finish_reason: Finish | None = None
    cached_tokens: int = 0
    completion_tokens: int | None = None
    weight_version: str | None = None
    output_token_logprobs: list[LogprobEntry] | None = None
    output_top_logprobs: list[list[LogprobEntry] | None] | None = None


class Refusal(Struct, frozen=True):
    """Why the server would not do it."""

    message: str = ""
    code: int | str | None = None


class Event(Struct, frozen=True):
    """One event of a stream: the ids so far, or an error."""

    output_ids: list[int] = []
    meta_info: Meta = Meta()
    error: Refusal | str | None = None


class EmbeddingMeta(Struct, frozen=True):
    """What is said beside a vector."""

    prompt_tokens: int


class Embedding(Struct, frozen=True):
    """The vector of one text."""

    embedding: list[float]
    meta_info: EmbeddingMeta


_decoder = msgspec.json.Decoder(Event)
_embeddings_decoder = msgspec.json.Decoder(list[Embedding])


def decode_line(line: bytes) -> Event | None:
    """Read a line of a stream; None for the end mark, empty lines and comments.

    Raises:
        msgspec.DecodeError: It is not what SGLang says.
    """
    if not line.startswith(DATA):
        if line and not line.startswith(b":"):
            raise msgspec.DecodeError(f"{line[:80]!r} is no event")
        return None
    data = line[len(DATA) :].strip()
    return None if data == DONE else _decoder.decode(data)


def is_done(line: bytes) -> bool:
    """Whether a line says that the stream is complete."""
    return line.startswith(DATA) and line[len(DATA) :].strip() == DONE


def decode_embeddings(data: bytes) -> list[Embedding]:
    """Read the answer to a batch of texts.

    Raises:
        msgspec.DecodeError: It is not what SGLang says.
    """
    return _embeddings_decoder.decode(data)
