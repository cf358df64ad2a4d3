"""All that is needed to go on with a suspended generation, on any core of the same model.

Layout: MAGIC (4 bytes), version (1 byte), CRC-32 of what follows (4 bytes, big endian), then
zlib-compressed msgpack: 1,000 token ids are about 2 kB. Any byte that changes is noticed; nothing
read from Redis is trusted.
"""

import struct
import zlib
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from aios_broker.contract.errors import SnapshotCorrupt, SnapshotForeign

MAGIC = b"AIOS"
VERSION = 1  # raised with each change of what follows: a worker of another release refuses it
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


class AnswerState(Struct, frozen=True, array_like=True):
    """One answer so far. `scores` has one entry per id where log-probabilities were asked for."""

    output_ids: tuple[int, ...]
    scores: tuple[TokenScore, ...] = ()
    finish_reason: EndReason | None = None
    output_tokens: int | None = None  # where ids are characters of a text; None: as many as ids


class AnswersSnapshot(Struct, frozen=True, array_like=True, tag="answers"):
    """A prompt and its answers as token ids: resumed by running the core over both.

    The sampler of answer i needs no state beside seed + i: the noise of a token depends on the
    seed and on the token's absolute position alone.
    """

    model: str  # the core's model name and weights fingerprint
    prompt_ids: tuple[int, ...]
    answers: tuple[AnswerState, ...]
    seed: int
    emitted_characters: int = 0  # of the first answer, already streamed to the client
    emitted_reasoning: int = 0  # of what came before it


class BeamNode(Struct, frozen=True, array_like=True):
    """One token of the tree. `parent` is the place of the token before it, -1: the prompt."""

    parent: int
    id: int
    score: TokenScore


class BeamEnd(Struct, frozen=True, array_like=True):
    """A finished beam: its last token's place in the tree (-1: it is empty), and how it ended."""

    node: int
    finish_reason: EndReason
    end_logprob: int | None = None  # of the end token, where the model chose one


class BeamSnapshot(Struct, frozen=True, array_like=True, tag="beam"):
    """A beam search between two steps: the tree of all beams that live or are finished."""

    model: str
    prompt_ids: tuple[int, ...]
    nodes: tuple[BeamNode, ...]  # parents first
    live: tuple[int, ...]  # places of the live beams' last tokens, best first
    finished: tuple[BeamEnd, ...]
    generated_tokens: Annotated[
        int, Meta(ge=0)
    ]  # by the core, for all beams, also those that were dropped


Snapshot = AnswersSnapshot | BeamSnapshot


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Snapshot] = msgspec.msgpack.Decoder(Snapshot)


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Return the bytes that go to Redis."""
    body = zlib.compress(_encoder.encode(snapshot), _COMPRESSION_LEVEL)
    return _HEADER.pack(MAGIC, VERSION, zlib.crc32(body)) + body


def decode_snapshot(data: bytes, *, model: str) -> Snapshot:
    """Read a snapshot that a core of `model` is to go on with.

    Raises:
        SnapshotCorrupt: cut short, changed, or not a snapshot at all.
        SnapshotForeign: another snapshot version, or another model.
    """
    body = _checked_body(data)
    try:
        snapshot = _decoder.decode(zlib.decompressobj().decompress(body, MAX_DECODED_BYTES))
        _check(snapshot)
    except (zlib.error, msgspec.DecodeError, ValueError) as error:
        raise _corrupt(f"its content cannot be read: {error}") from error
    if snapshot.model != model:
        raise SnapshotForeign(
            f"the snapshot is of model {snapshot.model!r}, this core runs {model!r}",
            field="snapshot.model",
            remedy="resume it on a core of its own model",
        )
    return snapshot


def _checked_body(data: bytes) -> bytes:
    if len(data) <= _HEADER.size:
        raise _corrupt(f"it has {len(data)} bytes")
    magic, version, checksum = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise _corrupt("it does not begin as a snapshot does")
    if version != VERSION:
        raise SnapshotForeign(
            f"the snapshot is of version {version}, this kernel reads version {VERSION}",
            field="snapshot.version",
            remedy="let a worker of the release that wrote it finish it",
        )
    body = data[_HEADER.size :]
    if zlib.crc32(body) != checksum:
        raise _corrupt("its checksum does not match")
    return body


def _corrupt(why: str) -> SnapshotCorrupt:
    return SnapshotCorrupt(
        f"the snapshot cannot be used: {why}",
        field="snapshot",
        remedy="the generation starts again from its prompt; nothing is lost",
    )


def _check(snapshot: Snapshot) -> None:
    """Raise ValueError for what does not fit together."""
    match snapshot:
        case AnswersSnapshot(answers=answers):
            for answer in answers:
                if answer.scores and len(answer.scores) != len(answer.output_ids):
                    raise ValueError("not one log-probability per token")
                _check_scores(answer.scores)
        case BeamSnapshot(nodes=nodes):
            _check_scores(node.score for node in nodes)
            if any(not -1 <= node.parent < place for place, node in enumerate(nodes)):
                raise ValueError("a token stands before its parent")
            ends = (*snapshot.live, *(each.node for each in snapshot.finished))
            if any(not -1 <= place < len(nodes) for place in ends):
                raise ValueError("a beam ends outside of the tree")


def _check_scores(scores: Iterable[TokenScore]) -> None:
    if any(len(score.top_ids) != len(score.top_logprobs) for score in scores):
        raise ValueError("alternatives are missing")
