"""All that is needed to go on with a suspended generation, on any core of the same model.

Layout: MAGIC (4 bytes), VERSION (1 byte), CRC-32 of what follows (4 bytes, big endian), then
zlib-compressed msgpack. Token ids are packed as little-endian int32: 1,000 tokens are about
2 kB compressed. Any byte that changes is noticed; nothing read from Redis is trusted.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from typing import Literal

import msgspec
from msgspec import Struct

from aios_broker.contract.errors import SnapshotCorrupt, SnapshotForeign

MAGIC = b"AIOS"
VERSION = 1
MAX_DECODED_BYTES = 64 * 1024 * 1024
_HEADER = struct.Struct(">4sBI")
_COMPRESSION_LEVEL = 1  # ids compress by half at any level; 1 costs a third of the time of 6


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


Snapshot = TokenSnapshot  # state and text snapshots join this union with the cores that need them


class _Packed(Struct, array_like=True):
    kind: Literal["token"]
    model: str
    prompt_ids: bytes
    output_ids: bytes
    seed: int
    emitted_characters: int


_decoder = msgspec.msgpack.Decoder(_Packed)


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Return the bytes that go to Redis."""
    packed = _Packed(
        "token",
        snapshot.model,
        _pack(snapshot.prompt_ids),
        _pack(snapshot.output_ids),
        snapshot.seed,
        snapshot.emitted_characters,
    )
    body = zlib.compress(msgspec.msgpack.encode(packed), _COMPRESSION_LEVEL)
    return _HEADER.pack(MAGIC, VERSION, zlib.crc32(body)) + body


def decode_snapshot(data: bytes, *, model: str) -> Snapshot:
    """Read a snapshot that a core of `model` is to go on with.

    Raises:
        SnapshotCorrupt: cut short, changed, or not a snapshot at all.
        SnapshotForeign: another snapshot version, or another model.
    """
    body = _checked_body(data)
    inflate = zlib.decompressobj()
    try:
        packed = _decoder.decode(inflate.decompress(body, MAX_DECODED_BYTES))
        prompt_ids, output_ids = _unpack(packed.prompt_ids), _unpack(packed.output_ids)
    except (zlib.error, msgspec.DecodeError, ValueError) as error:
        raise _corrupt(f"its content cannot be read: {error}") from error
    if packed.model != model:
        raise SnapshotForeign(
            f"the snapshot is of model {packed.model!r}, this core runs {model!r}",
            field="snapshot.model",
            remedy="resume it on a core of its own model",
        )
    return TokenSnapshot(
        packed.model, prompt_ids, output_ids, packed.seed, packed.emitted_characters
    )


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


def _pack(ids: tuple[int, ...]) -> bytes:
    return array("i", ids).tobytes()


def _unpack(data: bytes) -> tuple[int, ...]:
    ids = array("i")
    ids.frombytes(data)
    return tuple(ids)
