"""What a worker and its core process say to each other.

Frames on the process's standard input and output: a length (4 bytes, big endian) and msgpack.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
from msgspec import Struct

from aios_broker.contract.cores import Grade
from aios_broker.contract.errors import ErrorBody
from aios_workers.llm.core import Constraint, FinishReason, Sampling, ScoredToken

MAX_FRAME_BYTES = 16 * 1024 * 1024
LENGTH = struct.Struct(">I")
# From 64 rows of one sequence up llama.cpp computes attention with another kernel, whose sums
# differ in the last bit: a prompt prefilled so is not resumed exactly (docs/decisions/0003).
MICRO_BATCH_TOKENS = 63


@dataclass(frozen=True, slots=True)
class ContextShape:
    """How much there is of everything."""

    slots: int
    context_tokens: int  # of each slot
    threads: int = 1
    micro_batch_tokens: int = MICRO_BATCH_TOKENS  # rows of a step
    joint_rows: int = MICRO_BATCH_TOKENS  # of those, how many are computed as one product
    # Exact: whatever else is in a step, and in what pieces a text is read, the bits are the same.
    # A probe looks whether they are; settings that are known to fail are not even tried.
    grade: Grade = "exact"
    # Values that are read from the keys' own numbers have their type: then nothing but one thread
    # and small micro-batches is exact.
    latent_attention: bool = False

    @property
    def attends_alike(self) -> bool:
        """Whether attention takes the same kernel for one row and for many, at any length.

        It does where keys and values are of two types, which the exact grade sees to: the kernels
        that differ (from 64 rows up; for one row of 512 tokens, in parts for each thread) want one.
        """
        if self.grade == "exact" and not self.latent_attention:
            return True
        return self.threads == 1 and self.micro_batch_tokens <= MICRO_BATCH_TOKENS


class Load(Struct, frozen=True):
    """What a process is started with: its argument, in JSON."""

    weights: str  # a path
    # In order: the first in which the model keeps the grade is taken. None does: it is refused.
    shapes: tuple[ContextShape, ...]
    state_budget_bytes: int
    gpu_layers: int = 0


class Generate(Struct, frozen=True, array_like=True, tag=True):
    """Start a stream."""

    stream: int  # numbers never come again in the life of a process
    request_id: str
    prompt_ids: tuple[int, ...]
    resume_ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    logprobs: int | None = None
    constraint: Constraint | None = None  # has been checked
    kv_owner: str = ""  # whose contexts it may begin with; empty: those of nobody in particular
    turn_ends: frozenset[int] = frozenset()  # that end it, beside those that the library knows of


class Abort(Struct, frozen=True, array_like=True, tag=True):
    """End a stream at the next token; the process answers with its `Ended`."""

    stream: int
    keep: bool


class Embed(Struct, frozen=True, array_like=True, tag=True):
    """Embed a text; its stream has one event, `Embedded`."""

    stream: int
    ids: tuple[int, ...]


class Ping(Struct, frozen=True, array_like=True, tag=True):
    """Ask for the same number back."""

    number: int


class ShareStates(Struct, frozen=True, array_like=True, tag=True):
    """Share KV states with the other cores of this host, through files. At most once."""

    folder: str
    fingerprint: str  # of weights and build
    max_bytes: int


class StateCounts(Struct, frozen=True, array_like=True, tag=True):
    """What the process has done with shared KV states since its start. Sent when it changes."""

    written: int = 0
    read: int = 0  # and used instead of reading tokens
    refused: int = 0  # damaged or foreign files; they were removed
    passed_over: int = 0  # not worth their file, or too many at once
    failed: int = 0  # no room, no disk, no rights
    used_bytes: int = 0  # of all cores' files, when the last one was written

    def __add__(self, other: StateCounts) -> StateCounts:
        """Return the sums of two processes, one after the other."""
        return StateCounts(
            self.written + other.written,
            self.read + other.read,
            self.refused + other.refused,
            self.passed_over + other.passed_over,
            self.failed + other.failed,
            other.used_bytes,
        )


class Ready(Struct, frozen=True, array_like=True, tag=True):
    """The model is loaded. The first frame of a process."""

    system_info: str
    shape: ContextShape  # that was taken
    exact_resume: bool
    probe_ms: float
    load_ms: float
    state_token_bytes: int = 0  # of a suspended context, each token


class Refused(Struct, frozen=True, array_like=True, tag=True):
    """The model cannot be loaded; the process ends."""

    error: ErrorBody


class Tokens(Struct, frozen=True, array_like=True, tag=True):
    """New output of a stream. `cached_tokens` is set on the first one."""

    stream: int
    ids: tuple[int, ...]
    finish_reason: FinishReason | None = None  # set: the stream is over
    cached_tokens: int = 0
    scores: tuple[ScoredToken, ...] = ()  # one more than ids if an end token was chosen


class Embedded(Struct, frozen=True, array_like=True, tag=True):
    """The vector of a text."""

    stream: int
    vector: tuple[float, ...]


class Ended(Struct, frozen=True, array_like=True, tag=True):
    """A stream is over without a finish reason: aborted, or failed for the reason given."""

    stream: int
    error: ErrorBody | None = None


class Progress(Struct, frozen=True, array_like=True, tag=True):
    """What one step of the engine brought; empty while prompts are being read."""

    events: tuple[Tokens | Embedded | Ended, ...]


class Pong(Struct, frozen=True, array_like=True, tag=True):
    """The answer to a `Ping`."""

    number: int


ToCore = Generate | Embed | Abort | Ping | ShareStates
FromCore = Ready | Refused | Progress | Pong | StateCounts

_encoder = msgspec.msgpack.Encoder()
_to_core: msgspec.msgpack.Decoder[ToCore] = msgspec.msgpack.Decoder(ToCore)
_from_core: msgspec.msgpack.Decoder[FromCore] = msgspec.msgpack.Decoder(FromCore)


def write_all(fd: int, data: bytes) -> None:
    """Write all of some bytes; blocks."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def encode_frame(message: ToCore | FromCore) -> bytes:
    """Return the bytes of one frame."""
    body = _encoder.encode(message)
    return LENGTH.pack(len(body)) + body


def decode_from_core(body: bytes) -> FromCore:
    """Read the body of a frame that a core process wrote."""
    return _from_core.decode(body)


class FrameBuffer:
    """Cuts what the worker wrote into messages."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[ToCore]:
        """Add bytes and yield the messages that are complete.

        Raises:
            ValueError: a length over the limit, or what is not a message.
        """
        self._data += data
        while len(self._data) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._data)
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {length} bytes")
            end = LENGTH.size + length
            if len(self._data) < end:
                return
            body = bytes(self._data[LENGTH.size : end])
            del self._data[:end]
            yield _to_core.decode(body)
