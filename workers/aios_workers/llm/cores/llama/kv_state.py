"""The KV state of a suspended generation: in the core's memory, and as a file.

Layout of a file: magic (6 bytes), version (2), the writer's key (32), how many tokens (4), how many
bytes of state (8), a CRC-32 of all that stands before and behind it (4); then the token ids
(little-endian int32, 4 bytes each) and the state as llama.cpp exported it. The ids stand there
themselves and not as a hash: a reader compares them one by one. A file is written once and never
changed.
"""

import os
import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

MAGIC = b"AIOSKV"
VERSION = 1
_FIELDS = struct.Struct(">6sH32sIQ")
_CHECKSUM = struct.Struct(">I")
HEAD_BYTES = _FIELDS.size + _CHECKSUM.size
_IDS = np.dtype("<i4")


@dataclass(frozen=True, slots=True)
class KvState:
    """The KV state of some tokens, as the library exported it."""

    ids: tuple[int, ...]  # the tokens that it covers, from the start of the prompt
    data: bytes
    shared: bool = False  # it is on its way to the state store, too


class StateCache:
    """The least recently kept states go first when the budget is full."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._states: OrderedDict[str, KvState] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def keep(self, request_id: str, state: KvState) -> bool:
        """Keep a state in place of an older one; False if it is larger than the budget."""
        self.drop(request_id)
        if len(state.data) > self.budget_bytes:
            return False
        while self.used_bytes + len(state.data) > self.budget_bytes:
            _, oldest = self._states.popitem(last=False)
            self.used_bytes -= len(oldest.data)
        self._states[request_id] = state
        self.used_bytes += len(state.data)
        return True

    def take(self, request_id: str) -> KvState | None:
        """Remove and return the state of a request."""
        state = self._states.pop(request_id, None)
        if state is not None:
            self.used_bytes -= len(state.data)
        return state

    def drop(self, request_id: str) -> None:
        """Forget the state of a request, if there is one."""
        self.take(request_id)

    def newest_first(self) -> Iterator[tuple[str, KvState]]:
        """Yield what is kept, by request id."""
        yield from reversed(self._states.items())


def shared_prefix_tokens(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many first tokens are the same."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


class StateRefused(Exception):
    """A file that is not to be used; its message says why."""


@dataclass(frozen=True, slots=True)
class StateHead:
    """What a file says before its state: not to be trusted before `read_data` has been through."""

    ids: tuple[int, ...]
    data_bytes: int
    checksum: int  # as the file has it
    checksum_so_far: int  # of fields and ids


def head_of(state: KvState, key: bytes) -> bytes:
    """Return all that stands before the state in its file."""
    fields = _FIELDS.pack(MAGIC, VERSION, key, len(state.ids), len(state.data))
    ids = np.array(state.ids, _IDS).tobytes()
    checksum = zlib.crc32(state.data, zlib.crc32(ids, zlib.crc32(fields)))
    return fields + _CHECKSUM.pack(checksum) + ids


def file_bytes(state: KvState) -> int:
    """Return how long the file of a state is."""
    return HEAD_BYTES + _IDS.itemsize * len(state.ids) + len(state.data)


def read_head(file: BinaryIO, key: bytes) -> StateHead:
    """Read what a file covers.

    Raises:
        StateRefused: it is cut short, no state, of another version, or of another writer.
    """
    size_bytes = os.fstat(file.fileno()).st_size
    head = file.read(HEAD_BYTES)
    if len(head) < HEAD_BYTES:
        raise StateRefused(f"it has {len(head)} bytes")
    magic, version, writer, tokens, data_bytes = _FIELDS.unpack_from(head)
    if magic != MAGIC:
        raise StateRefused("it does not begin as a KV state does")
    if version != VERSION:
        raise StateRefused(f"it is of version {version}, not {VERSION}")
    if writer != key:
        raise StateRefused("it is of another model, build or setting")
    expected_bytes = HEAD_BYTES + _IDS.itemsize * tokens + data_bytes
    if size_bytes != expected_bytes:
        raise StateRefused(f"it has {size_bytes} bytes where {expected_bytes} must be")
    packed = file.read(_IDS.itemsize * tokens)
    (checksum,) = _CHECKSUM.unpack_from(head, _FIELDS.size)
    so_far = zlib.crc32(packed, zlib.crc32(head[: _FIELDS.size]))
    return StateHead(tuple(np.frombuffer(packed, _IDS).tolist()), data_bytes, checksum, so_far)


def read_data(file: BinaryIO, head: StateHead) -> KvState:
    """Read the state behind a head, and check both.

    Raises:
        StateRefused: not the bytes that were written.
    """
    data = file.read(head.data_bytes)
    if zlib.crc32(data, head.checksum_so_far) != head.checksum:
        raise StateRefused("its checksum does not match")
    return KvState(head.ids, data, shared=True)
