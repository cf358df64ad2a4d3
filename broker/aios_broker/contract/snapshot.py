"""All that is needed to go on with a suspended generation, on any core of the same model.

Layout: MAGIC (4 bytes), version (1 byte), CRC-32 of what follows (4 bytes, big endian), then
zlib-compressed msgpack. Token ids and log-probabilities are packed as little-endian int32: 1,000
tokens are about 2 kB compressed. Any byte that changes is noticed; nothing read from Redis is
trusted.

Version 1 is one answer without log-probabilities, as the first release writes and reads it; it is
still written wherever it is enough, so that workers of both releases can share a queue. Version 2
adds several answers, log-probabilities and beam search.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from aios_broker.contract.errors import SnapshotCorrupt, SnapshotForeign

MAGIC = b"AIOS"
VERSION = 2  # the newest that is written
READABLE_VERSIONS = (1, 2)
MAX_DECODED_BYTES = 64 * 1024 * 1024
_HEADER = struct.Struct(">4sBI")
_COMPRESSION_LEVEL = 1  # ids compress by half at any level; 1 costs a third of the time of 6

EndReason = Literal["stop", "length"]


class TokenScore(Struct, frozen=True, array_like=True):
    """A token's log-probability and those of the most probable ones, in millionths of a nat.

    Whole numbers: sums do not depend on their order, and what is read back is what was written.
    """

    logprob: int
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[int, ...] = ()


class TokenSnapshot(Struct, frozen=True, tag="token"):
    """A generation as token ids: resumed by running the core over prompt + output.

    The sampler needs no state beside the seed: the noise of a token depends on the seed and on
    the token's absolute position alone.
    """

    model: str  # the core's model name and weights fingerprint
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    seed: int
    emitted_characters: int = 0  # of the answer, already streamed to the client


class AnswerState(Struct, frozen=True):
    """One answer so far. `scores` has one entry per id where log-probabilities were asked for."""

    output_ids: tuple[int, ...]
    scores: tuple[TokenScore, ...] = ()
    finish_reason: EndReason | None = None


class AnswersSnapshot(Struct, frozen=True, tag="answers"):
    """Several answers to one prompt, or one with its log-probabilities. Answer i: seed + i."""

    model: str
    prompt_ids: tuple[int, ...]
    answers: tuple[AnswerState, ...]
    seed: int
    emitted_characters: int = 0  # of the first answer


class BeamNode(Struct, frozen=True):
    """One token of the tree. `parent` is the place of the token before it, -1: the prompt."""

    parent: int
    id: int
    score: TokenScore


class BeamEnd(Struct, frozen=True, array_like=True):
    """A finished beam: its last token's place in the tree (-1: it is empty), and how it ended."""

    node: int
    finish_reason: EndReason
    end_logprob: int | None = None  # of the end token, where the model chose one


class BeamSnapshot(Struct, frozen=True, tag="beam"):
    """A beam search between two steps: the tree of all beams that live or are finished."""

    model: str
    prompt_ids: tuple[int, ...]
    nodes: tuple[BeamNode, ...]  # parents first
    live: tuple[int, ...]  # places of the live beams' last tokens, best first
    finished: tuple[BeamEnd, ...]
    generated_tokens: int  # by the core, for all beams, also those that were dropped


Snapshot = TokenSnapshot | AnswersSnapshot | BeamSnapshot


class _Packed(Struct, array_like=True):
    kind: Literal["token"]
    model: str
    prompt_ids: bytes
    output_ids: bytes
    seed: int
    emitted_characters: int


class _PackedScores(Struct, array_like=True):
    logprobs: bytes
    counts: bytes  # of alternatives, per token
    top_ids: bytes
    top_logprobs: bytes


class _PackedAnswer(Struct, array_like=True):
    output_ids: bytes
    scores: _PackedScores | None
    finish_reason: EndReason | None


class _PackedAnswers(Struct, array_like=True, tag="answers"):
    model: str
    prompt_ids: bytes
    answers: tuple[_PackedAnswer, ...]
    seed: int
    emitted_characters: int


class _PackedBeam(Struct, array_like=True, tag="beam"):
    model: str
    prompt_ids: bytes
    parents: bytes
    ids: bytes
    scores: _PackedScores
    live: bytes
    finished: tuple[BeamEnd, ...]
    generated_tokens: Annotated[int, Meta(ge=0)]


_first_decoder = msgspec.msgpack.Decoder(_Packed)
_second_decoder = msgspec.msgpack.Decoder(_PackedAnswers | _PackedBeam)


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Return the bytes that go to Redis, in the oldest version that can hold it."""
    match snapshot:
        case TokenSnapshot():
            version, packed = 1, msgspec.msgpack.encode(_pack_token(snapshot))
        case AnswersSnapshot():
            version, packed = 2, msgspec.msgpack.encode(_pack_answers(snapshot))
        case BeamSnapshot():
            version, packed = 2, msgspec.msgpack.encode(_pack_beam(snapshot))
    body = zlib.compress(packed, _COMPRESSION_LEVEL)
    return _HEADER.pack(MAGIC, version, zlib.crc32(body)) + body


def decode_snapshot(data: bytes, *, model: str) -> Snapshot:
    """Read a snapshot that a core of `model` is to go on with.

    Raises:
        SnapshotCorrupt: cut short, changed, or not a snapshot at all.
        SnapshotForeign: another snapshot version, or another model.
    """
    version, body = _checked_body(data)
    try:
        content = zlib.decompressobj().decompress(body, MAX_DECODED_BYTES)
        snapshot = _read_first(content) if version == 1 else _read_second(content)
    except (zlib.error, msgspec.DecodeError, ValueError) as error:
        raise _corrupt(f"its content cannot be read: {error}") from error
    if snapshot.model != model:
        raise SnapshotForeign(
            f"the snapshot is of model {snapshot.model!r}, this core runs {model!r}",
            field="snapshot.model",
            remedy="resume it on a core of its own model",
        )
    return snapshot


def _checked_body(data: bytes) -> tuple[int, bytes]:
    if len(data) <= _HEADER.size:
        raise _corrupt(f"it has {len(data)} bytes")
    magic, version, checksum = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise _corrupt("it does not begin as a snapshot does")
    if version not in READABLE_VERSIONS:
        raise SnapshotForeign(
            f"the snapshot is of version {version}, this kernel reads versions "
            f"{' and '.join(map(str, READABLE_VERSIONS))}",
            field="snapshot.version",
            remedy="let a worker of the release that wrote it finish it",
        )
    body = data[_HEADER.size :]
    if zlib.crc32(body) != checksum:
        raise _corrupt("its checksum does not match")
    return version, body


def _corrupt(why: str) -> SnapshotCorrupt:
    return SnapshotCorrupt(
        f"the snapshot cannot be used: {why}",
        field="snapshot",
        remedy="the generation starts again from its prompt; nothing is lost",
    )


# To and from the packed form. What does not fit together is a ValueError.


def _pack_token(snapshot: TokenSnapshot) -> _Packed:
    return _Packed(
        "token",
        snapshot.model,
        _pack(snapshot.prompt_ids),
        _pack(snapshot.output_ids),
        snapshot.seed,
        snapshot.emitted_characters,
    )


def _pack_answers(snapshot: AnswersSnapshot) -> _PackedAnswers:
    answers = tuple(
        _PackedAnswer(
            _pack(each.output_ids),
            _pack_scores(each.scores) if each.scores else None,
            each.finish_reason,
        )
        for each in snapshot.answers
    )
    return _PackedAnswers(
        snapshot.model,
        _pack(snapshot.prompt_ids),
        answers,
        snapshot.seed,
        snapshot.emitted_characters,
    )


def _pack_beam(snapshot: BeamSnapshot) -> _PackedBeam:
    nodes = snapshot.nodes
    return _PackedBeam(
        snapshot.model,
        _pack(snapshot.prompt_ids),
        _pack(each.parent for each in nodes),
        _pack(each.id for each in nodes),
        _pack_scores([each.score for each in nodes]),
        _pack(snapshot.live),
        snapshot.finished,
        snapshot.generated_tokens,
    )


def _read_first(content: bytes) -> TokenSnapshot:
    packed = _first_decoder.decode(content)
    return TokenSnapshot(
        packed.model,
        _unpack(packed.prompt_ids),
        _unpack(packed.output_ids),
        packed.seed,
        packed.emitted_characters,
    )


def _read_second(content: bytes) -> AnswersSnapshot | BeamSnapshot:
    packed = _second_decoder.decode(content)
    if isinstance(packed, _PackedBeam):
        return _read_beam(packed)
    return AnswersSnapshot(
        packed.model,
        _unpack(packed.prompt_ids),
        tuple(map(_read_answer, packed.answers)),
        packed.seed,
        packed.emitted_characters,
    )


def _read_answer(packed: _PackedAnswer) -> AnswerState:
    ids = _unpack(packed.output_ids)
    scores = _unpack_scores(packed.scores, len(ids)) if packed.scores is not None else ()
    return AnswerState(ids, scores, packed.finish_reason)


def _read_beam(packed: _PackedBeam) -> BeamSnapshot:
    parents, ids, live = _unpack(packed.parents), _unpack(packed.ids), _unpack(packed.live)
    scores = _unpack_scores(packed.scores, len(ids))
    if any(not -1 <= parent < place for place, parent in enumerate(parents)):
        raise ValueError("a token stands before its parent")
    ends = (*live, *(each.node for each in packed.finished))
    if any(not -1 <= place < len(ids) for place in ends):
        raise ValueError("a beam ends outside of the tree")
    nodes = tuple(map(BeamNode, *_same_length(parents, ids, scores)))
    return BeamSnapshot(
        packed.model,
        _unpack(packed.prompt_ids),
        nodes,
        live,
        packed.finished,
        packed.generated_tokens,
    )


def _pack_scores(scores: Sequence[TokenScore]) -> _PackedScores:
    return _PackedScores(
        _pack(each.logprob for each in scores),
        _pack(len(each.top_ids) for each in scores),
        _pack(token for each in scores for token in each.top_ids),
        _pack(logprob for each in scores for logprob in each.top_logprobs),
    )


def _unpack_scores(packed: _PackedScores, length: int) -> tuple[TokenScore, ...]:
    logprobs, counts = _unpack(packed.logprobs), _unpack(packed.counts)
    ids, top_logprobs = _unpack(packed.top_ids), _unpack(packed.top_logprobs)
    if not len(logprobs) == len(counts) == length or min(counts, default=0) < 0:
        raise ValueError("not one log-probability per token")
    if not len(ids) == len(top_logprobs) == sum(counts):
        raise ValueError("alternatives are missing")
    ends = list(accumulate(counts))
    return tuple(
        TokenScore(logprob, ids[end - count : end], top_logprobs[end - count : end])
        for logprob, count, end in zip(logprobs, counts, ends, strict=True)
    )


def _same_length(
    parents: tuple[int, ...], ids: tuple[int, ...], scores: tuple[TokenScore, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[TokenScore, ...]]:
    if not len(parents) == len(ids) == len(scores):
        raise ValueError("the tree's columns differ in length")
    return parents, ids, scores


def _pack(ids: Iterable[int]) -> bytes:
    return array("i", ids).tobytes()


def _unpack(data: bytes) -> tuple[int, ...]:
    ids = array("i")
    ids.frombytes(data)
    return tuple(ids)
