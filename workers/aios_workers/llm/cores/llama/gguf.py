"""What a GGUF file says of itself: read before anything is loaded, and without the library.

A file may come from anywhere. Nothing is allocated by what its header claims: every count and
length is held against the bytes that are left, and every tensor against the end of the file.

Layout: magic `GGUF`, version (u32), counts of tensors and of metadata (u64 each), the metadata
(key, type, value), the tensors (name, dimensions, type, offset), and, aligned, their data.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from aios_broker.contract.errors import InvalidConfig
from aios_workers.llm.cores.llama.gguf_names import (
    EMBEDS,
    FILE_TYPES,
    KNOWN_ARCHITECTURES,
    NO_TEXT_MODELS,
    TENSOR_TYPES,
)

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SAMPLE_BYTES = 4_096  # of each end and of the middle of a tensor, for the fingerprint
MAX_STRING_BYTES = 16 << 20
MAX_KEY_BYTES = 65_535
MAX_ELEMENTS = 1 << 22  # of an array: the largest vocabularies have 0.3 million tokens
MAX_NUMBERS = 4_096  # of an array that is kept: one per layer
MAX_METADATA = 1 << 16
MAX_TENSORS = 1 << 20
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_STRING, _ARRAY = 8, 9
_SCALARS = {
    code: struct.Struct(f"<{kind}")
    for code, kind in zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True)
}
_CHUNK_BYTES = 1 << 20
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")

Scalar = int | float | bool | str
Value = Scalar | tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where one tensor's numbers lie in its file."""

    name: str
    shape: tuple[int, ...]
    type: str  # of its numbers, such as Q4_K; `type 99` where we do not know it
    start: int  # bytes from the start of the file
    bytes: int | None  # None: of a type that we do not know

    @property
    def numbers(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class GgufInfo:
    """What the header says; numbers that it does not give are 0."""

    path: Path
    version: int
    architecture: str
    name: str
    quantisation: str  # as files are named by it, such as Q4_K_M
    context_tokens: int  # that it was trained for
    embedding_length: int
    layers: int
    heads: int
    kv_heads: tuple[int, ...]  # of each layer
    key_length: int  # of a head, in numbers
    value_length: int
    latent_attention: bool  # keys and values are read from one row of numbers
    vocabulary_size: int
    file_bytes: int  # of all parts
    tensor_bytes: int
    parameters: int
    parts: tuple[Path, ...]  # one, where the file is whole
    chat_template: str | None
    licence: str

    @property
    def kv_bytes_per_token(self) -> int:
        """Return what one token of a context takes, in 16-bit numbers.

        More than it takes where layers remember a window alone.
        """
        return 2 * sum(self.kv_heads) * (self.key_length + self.value_length)


def read_gguf(path: Path) -> GgufInfo:
    """Read the header of a file, and whether it holds all that it lists.

    About 0.1 s where the vocabulary has 150,000 tokens.

    Raises:
        InvalidConfig: it is no GGUF file, cut short, damaged, not the first of several parts, of
            an architecture that this llama.cpp does not know, or of a model that writes no text;
            `field` is `gguf`, the message names the file.
    """
    part = _read_part(path)
    return _describe(part, _parts(part))


def weights_fingerprint(info: GgufInfo) -> str:
    """Return a SHA-256 of the header and of samples of every tensor, in all parts.

    A model of 8 GB would take a minute to read. Whoever changes weights changes whole tensors:
    4 KiB of both ends and of the middle of each tell them apart in 10 to 100 ms. It does not find
    a damaged byte; for that there is the checksum of the download.
    """
    digest = hashlib.sha256()
    for path in info.parts:
        part = _read_part(path)
        digest.update(part.header_sha256.encode())
        with path.open("rb") as file:
            for tensor in part.tensors:
                for start, size in _samples(tensor):
                    file.seek(start)
                    digest.update(file.read(size))
    return digest.hexdigest()


def _samples(tensor: Tensor) -> Iterator[tuple[int, int]]:
    size = tensor.bytes if tensor.bytes is not None else SAMPLE_BYTES
    if size <= 3 * SAMPLE_BYTES:
        yield tensor.start, size
        return
    for offset in (0, (size - SAMPLE_BYTES) // 2, size - SAMPLE_BYTES):
        yield tensor.start + offset, SAMPLE_BYTES


@dataclass(frozen=True, slots=True)
class _Part:
    """One file as it is, the only one or not."""

    path: Path
    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    size_bytes: int
    header_sha256: str

    def text(self, key: str) -> str:
        """Return a text of the metadata; empty: there is none."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> int:
        """Return a whole number of the metadata; 0: there is none."""
        return _whole(self.metadata.get(key))


def _read_part(path: Path) -> _Part:
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            return _Header(path, file, size_bytes).read()
    except OSError as error:
        raise _refused(
            path, f"cannot be read: {error.strerror}", "check its path and its rights"
        ) from error


class _Header:
    """Reads one file from its start, and never past its end."""

    def __init__(self, path: Path, file: BinaryIO, size_bytes: int) -> None:
        self._path = path
        self._file = file
        self._left = self._size_bytes = size_bytes

    def read(self) -> _Part:
        """Read all of the header."""
        if self._left < len(MAGIC) or self._take(len(MAGIC)) != MAGIC:
            raise _refused(self._path, "is not in the GGUF format", "name a GGUF file")
        version = self._u32()
        if version not in VERSIONS:
            raise _refused(
                self._path,
                f"is of GGUF version {version}",
                f"convert it to version {VERSIONS[-1]}",
            )
        tensor_count = self._count(MAX_TENSORS, least_bytes=24)
        metadata_count = self._count(MAX_METADATA, least_bytes=13)
        metadata = {self._key(): self._value() for _ in range(metadata_count)}
        listed = [self._tensor() for _ in range(tensor_count)]
        tensors = self._placed(listed, metadata)
        header_bytes = self._size_bytes - self._left
        self._file.seek(0)
        sha256 = hashlib.sha256()
        for start in range(0, header_bytes, _CHUNK_BYTES):
            sha256.update(self._file.read(min(_CHUNK_BYTES, header_bytes - start)))
        return _Part(self._path, version, metadata, tensors, self._size_bytes, sha256.hexdigest())

    def _take(self, count: int) -> bytes:
        if count > self._left:
            raise self._cut_short()
        data = self._file.read(count)
        if len(data) != count:
            raise self._cut_short()
        self._left -= count
        return data

    def _cut_short(self) -> InvalidConfig:
        return _refused(
            self._path,
            f"ends within its header, after {self._size_bytes:,} bytes, or its header is damaged",
            "fetch it again",
        )

    def _damaged(self, why: str) -> InvalidConfig:
        return _refused(self._path, f"has a damaged header: {why}", "fetch it again")

    def _u32(self) -> int:
        return int(_U32.unpack(self._take(_U32.size))[0])

    def _u64(self) -> int:
        return int(_U64.unpack(self._take(_U64.size))[0])

    def _count(self, limit: int, *, least_bytes: int) -> int:
        """Read how many of something follow, each of which takes some bytes at least."""
        count = self._u64()
        if count > limit or count * least_bytes > self._left:
            raise self._damaged(f"it lists {count:,} entries where there is no room for them")
        return count

    def _key(self) -> str:
        return self._text(MAX_KEY_BYTES)

    def _text(self, limit: int = MAX_STRING_BYTES) -> str:
        length = self._u64()
        if length > min(limit, self._left):
            raise self._damaged(f"it has a text of {length:,} bytes")
        return self._take(length).decode("utf-8", "replace")

    def _value(self) -> Value:
        kind = self._u32()
        if kind == _ARRAY:
            return self._array()
        if kind == _STRING:
            return self._text()
        return self._scalar(kind)

    def _scalar(self, kind: int) -> Scalar:
        layout = _SCALARS.get(kind)
        if layout is None:
            raise self._damaged(f"there is no value of type {kind}")
        value: Scalar = layout.unpack(self._take(layout.size))[0]
        return value

    def _array(self) -> Value:
        """Read an array. Of long ones, and of texts, nothing is kept but how many there are."""
        kind = self._u32()
        if kind == _STRING:
            count = self._count(MAX_ELEMENTS, least_bytes=_U64.size)
            for _ in range(count):
                self._skip_text()
            return count
        layout = _SCALARS.get(kind)
        if layout is None:
            raise self._damaged(f"there is no array of type {kind}")
        count = self._count(MAX_ELEMENTS, least_bytes=layout.size)
        data = self._take(count * layout.size)
        if count > MAX_NUMBERS:
            return count
        return tuple(value for (value,) in layout.iter_unpack(data))

    def _skip_text(self) -> None:
        length = self._u64()
        if length > min(MAX_STRING_BYTES, self._left):
            raise self._damaged(f"it has a text of {length:,} bytes")
        self._take(length)

    def _tensor(self) -> Tensor:
        name = self._text(MAX_KEY_BYTES)
        dimensions = self._u32()
        if dimensions > MAX_DIMENSIONS:
            raise self._damaged(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self._u64() for _ in range(dimensions))
        code, offset = self._u32(), self._u64()
        type_name, block, block_bytes = TENSOR_TYPES.get(code, (f"type {code}", 1, None))
        size = None
        if block_bytes is not None:
            numbers = math.prod(shape)
            if numbers % block:
                raise self._damaged(f"tensor {name!r} has {numbers:,} numbers in blocks of {block}")
            size = numbers // block * block_bytes
        return Tensor(name, shape, type_name, offset, size)

    def _placed(
        self, listed: Sequence[Tensor], metadata: Mapping[str, Value]
    ) -> tuple[Tensor, ...]:
        """Return the tensors with their places in the file, all of which must be in it."""
        alignment = _whole(metadata.get("general.alignment", DEFAULT_ALIGNMENT))
        if not 1 <= alignment <= MAX_ALIGNMENT:
            raise self._damaged(f"its alignment is {alignment}")
        header_bytes = self._size_bytes - self._left
        data_start = (header_bytes + alignment - 1) // alignment * alignment
        placed = tuple(replace(each, start=data_start + each.start) for each in listed)
        end = max((each.start + (each.bytes or 0) for each in placed), default=0)
        if end > self._size_bytes:
            raise _refused(
                self._path,
                f"is cut short: it has {self._size_bytes:,} bytes where its tensors end at {end:,}",
                "fetch it again",
            )
        return placed


def _describe(part: _Part, parts: Sequence[_Part]) -> GgufInfo:
    architecture = part.text("general.architecture")
    if not architecture:
        raise _refused(part.path, "does not name its architecture", "convert the model again")
    _check_kind(part, architecture)
    layers = part.number(f"{architecture}.block_count")
    embedding_length = part.number(f"{architecture}.embedding_length")
    head_counts = part.metadata.get(f"{architecture}.attention.head_count")
    heads = max(_per_layer(head_counts, 1), default=0)
    kv_heads = part.metadata.get(f"{architecture}.attention.head_count_kv", heads)
    head_length = embedding_length // heads if heads else 0
    return GgufInfo(
        path=part.path,
        version=part.version,
        architecture=architecture,
        name=part.text("general.name") or part.path.stem,
        quantisation=_quantisation(part),
        context_tokens=part.number(f"{architecture}.context_length"),
        embedding_length=embedding_length,
        layers=layers,
        heads=heads,
        kv_heads=_per_layer(kv_heads, min(layers, MAX_NUMBERS)),
        key_length=part.number(f"{architecture}.attention.key_length") or head_length,
        value_length=part.number(f"{architecture}.attention.value_length") or head_length,
        latent_attention=f"{architecture}.attention.kv_lora_rank" in part.metadata,
        vocabulary_size=part.number("tokenizer.ggml.tokens"),
        file_bytes=sum(each.size_bytes for each in parts),
        tensor_bytes=sum(tensor.bytes or 0 for each in parts for tensor in each.tensors),
        parameters=sum(tensor.numbers for each in parts for tensor in each.tensors),
        parts=tuple(each.path for each in parts),
        chat_template=part.text("tokenizer.chat_template") or None,
        licence=part.text("general.license"),
    )


def _check_kind(part: _Part, architecture: str) -> None:
    """Refuse what is not a model that writes text, and models that llama.cpp does not know."""
    kind = part.text("general.type")
    if kind not in {"", "model"}:
        raise _refused(part.path, f"holds no model but: {kind}", "name the model's own file")
    if architecture not in KNOWN_ARCHITECTURES:
        raise _refused(
            part.path,
            f"is of the architecture {architecture!r}, which this build of llama.cpp does not know",
            "use a model of another architecture, or update the kernel",
        )
    why = NO_TEXT_MODELS.get(architecture)
    if part.number(f"{architecture}.pooling_type"):
        why = EMBEDS
    if why is not None:
        raise _refused(
            part.path, f"is {why}: it writes no text", "name a model that generates text"
        )
    if not part.tensors:
        raise _refused(part.path, "has a vocabulary and no weights", "name the model's own file")


def _parts(first: _Part) -> Sequence[_Part]:
    """Read the other parts of a model that is split over files."""
    count, path = first.number("split.count"), first.path
    if count <= 1:
        return (first,)
    found = _PART.search(path.name)
    if found is None or int(found[2]) != count:
        raise _refused(
            path,
            f"is one of {count} parts and is not named so",
            f"name it as it was: ...-00001-of-{count:05}.gguf",
        )
    stem = path.name[: found.start()]
    names = [path.with_name(f"{stem}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    if first.number("split.no") != 0 or path != names[0]:
        raise _refused(path, f"is a later part of {count}", f"name the first: {names[0]}")
    missing = [each.name for each in names if not each.is_file()]
    if missing:
        raise _refused(path, f"lacks its part {missing[0]}", "put all parts beside the first")
    return (first, *(_read_part(each) for each in names[1:]))


def _quantisation(part: _Part) -> str:
    """Return how files of its kind are named; else the type of most of its numbers."""
    file_type = part.metadata.get("general.file_type")
    if isinstance(file_type, int) and file_type in FILE_TYPES:
        return FILE_TYPES[file_type]
    weights: dict[str, int] = {}
    for tensor in part.tensors:
        weights[tensor.type] = weights.get(tensor.type, 0) + tensor.numbers
    return max(weights, key=lambda name: weights[name], default="")


def _per_layer(value: Value | None, layers: int) -> tuple[int, ...]:
    """Return a number for each layer, of one for all or of an array."""
    if isinstance(value, tuple):
        return tuple(_whole(each) for each in value)
    return (_whole(value),) * layers


def _whole(value: Value | None) -> int:
    return int(value) if isinstance(value, int) else 0


def _refused(path: Path, why: str, remedy: str) -> InvalidConfig:
    return InvalidConfig(f"the file {path} {why}", field="gguf", remedy=remedy)
