"""What a GGUF file says of itself, and what is wrong with one."""

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios_broker.contract.errors import InvalidConfig
from aios_workers.llm.cores.llama.gguf import read_gguf, weights_fingerprint
from aios_workers.llm.cores.llama.gguf_names import KNOWN_ARCHITECTURES, NO_TEXT_MODELS
from aios_workers.llm.cores.llama.memory import (
    LEAST_CONTEXT_TOKENS,
    check_memory,
    default_context_tokens,
    free_bytes,
    memory_need,
)
from tests.gguf_files import STRING, TYPE_CODES, TinyModel, gguf_bytes, text, write_model

GIB = 1 << 30


def test_what_a_file_says(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny.gguf", TinyModel("qwen2", weights="Q4_K"))
    info = read_gguf(path)
    assert (info.architecture, info.name, info.quantisation) == ("qwen2", "tiny qwen2", "Q4_K")
    assert (info.layers, info.heads, info.kv_heads) == (2, 4, (2, 2))
    assert (info.context_tokens, info.embedding_length, info.vocabulary_size) == (2_048, 256, 512)
    assert info.chat_template is not None
    assert info.parts == (path,)
    assert info.file_bytes == path.stat().st_size > info.tensor_bytes
    # Two layers of two heads of 64 numbers, keys and values, two bytes each.
    assert info.kv_bytes_per_token == 2 * 2 * 64 * 2 * 2


Spoil = Callable[[bytes], bytes]
_AT_COUNTS = 8  # magic and version stand before them
BAD_FILES: dict[str, tuple[Spoil, str]] = {
    "no GGUF": (lambda _: b"hello, I am a text", "not in the GGUF format"),
    "empty": (lambda _: b"", "not in the GGUF format"),
    "another version": (lambda data: data[:4] + struct.pack("<I", 1) + data[8:], "version 1"),
    "header cut short": (lambda data: data[:300], "header"),
    "tensors cut short": (lambda data: data[:-1000], "is cut short: it has"),
    "endless tensors": (
        lambda data: data[:_AT_COUNTS] + struct.pack("<Q", 2**63) + data[_AT_COUNTS + 8 :],
        "no room",
    ),
    "endless metadata": (
        lambda data: data[: _AT_COUNTS + 8] + struct.pack("<Q", 2**40) + data[_AT_COUNTS + 16 :],
        "no room",
    ),
    "an endless key": (
        lambda data: data[: _AT_COUNTS + 16] + struct.pack("<Q", 2**60) + data[_AT_COUNTS + 24 :],
        "a text of",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    spoil, why = BAD_FILES[name]
    path = write_model(tmp_path / "tiny.gguf")
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InvalidConfig, match=why) as caught:
        read_gguf(path)
    assert str(path) in caught.value.message
    assert caught.value.field == "gguf"
    assert caught.value.remedy


def test_a_tensor_that_claims_more_numbers_than_there_are(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    tensor = ("output.weight", (2**40, 2**20), TYPE_CODES["F16"], b"")
    path.write_bytes(gguf_bytes({"general.architecture": "llama"}, [tensor]))
    with pytest.raises(InvalidConfig, match="is cut short"):
        read_gguf(path)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (TinyModel("gpt6"), "'gpt6', which this build of llama.cpp does not know"),
        (TinyModel("nomic-bert"), "a model for embeddings"),
        (TinyModel("dream"), "a diffusion model"),
        (TinyModel(metadata={"llama.pooling_type": 3}), "a model for embeddings"),
        (TinyModel(metadata={"general.type": "adapter"}), "no model but: adapter"),
        (TinyModel(metadata={"general.architecture": None}), "does not name its architecture"),
    ],
)
def test_a_model_that_cannot_serve(tmp_path: Path, model: TinyModel, why: str) -> None:
    path = write_model(tmp_path / "tiny.gguf", model)
    with pytest.raises(InvalidConfig, match=why):
        read_gguf(path)


def test_a_vocabulary_without_weights(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(gguf_bytes({"general.architecture": "llama"}))
    with pytest.raises(InvalidConfig, match="a vocabulary and no weights"):
        read_gguf(path)


def test_a_folder_and_nothing(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.gguf"):
        with pytest.raises(InvalidConfig, match="cannot be read"):
            read_gguf(path)


def test_the_parts_of_a_split_model(tmp_path: Path) -> None:
    def part(number: int) -> Path:
        return tmp_path / f"model-{number:05}-of-00002.gguf"

    split = {"split.count": 2, "split.no": 0}
    write_model(part(1), TinyModel(metadata=split))
    with pytest.raises(InvalidConfig, match="lacks its part model-00002-of-00002"):
        read_gguf(part(1))
    data = bytes(1 << 10)
    tensor = ("blk.9.weight", (512,), TYPE_CODES["F16"], data)
    part(2).write_bytes(gguf_bytes({"split.count": 2, "split.no": 1}, [tensor]))
    info = read_gguf(part(1))
    assert info.parts == (part(1), part(2))
    assert info.file_bytes == sum(each.stat().st_size for each in info.parts)
    with pytest.raises(InvalidConfig, match="a later part of 2") as caught:
        read_gguf(part(2))
    assert str(part(1)) in (caught.value.remedy or "")
    renamed = part(1).rename(tmp_path / "renamed.gguf")
    with pytest.raises(InvalidConfig, match="not named so"):
        read_gguf(renamed)


def test_the_fingerprint_follows_every_tensor(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny.gguf")
    first = weights_fingerprint(read_gguf(path))
    assert weights_fingerprint(read_gguf(write_model(tmp_path / "again.gguf"))) == first
    other = write_model(tmp_path / "other.gguf", TinyModel(seed=2))
    assert weights_fingerprint(read_gguf(other)) != first
    data = bytearray(path.read_bytes())
    data[-ALIGNED_TAIL] ^= 1  # of the last tensor, a norm of few numbers
    path.write_bytes(data)
    assert weights_fingerprint(read_gguf(path)) != first


ALIGNED_TAIL = 40


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 2_000), piece=st.binary(min_size=1, max_size=12), cut=st.integers(0))
def test_no_header_brings_the_reader_down(
    tmp_path_factory: pytest.TempPathFactory, place: int, piece: bytes, cut: int
) -> None:
    """Whatever the bytes are, there is a description or a refusal."""
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    data = bytearray(HEADER)
    place %= len(data)
    data[place : place + len(piece)] = piece
    path.write_bytes(data[: len(data) - cut % 64])
    try:
        info = read_gguf(path)
    except InvalidConfig:
        return
    assert info.file_bytes == path.stat().st_size


HEADER = gguf_bytes(
    {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.attention.head_count": [4, 4],
        "llama.attention.head_count_kv": 2,
        "llama.embedding_length": 256,
        "tokenizer.ggml.tokens": ["a", "b", "c"],
        "tokenizer.ggml.scores": [0.0, 1.0],
        "general.name": "tiny",
    },
    [("output.weight", (8, 4), TYPE_CODES["F32"], bytes(128))],
)


def test_an_array_in_an_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nested.gguf"
    nested = text("key") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", STRING, 1) + text("x")
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + nested)
    with pytest.raises(InvalidConfig, match="no array of type 9"):
        read_gguf(path)


def test_no_text_models_are_known_architectures() -> None:
    assert NO_TEXT_MODELS.keys() <= KNOWN_ARCHITECTURES


def test_a_model_larger_than_memory_is_refused_with_both_numbers(tmp_path: Path) -> None:
    info = replace(read_gguf(write_model(tmp_path / "tiny.gguf")), tensor_bytes=9 * GIB)
    need = memory_need(info, slots=4, context_tokens=2_048, micro_batch_tokens=63)
    assert need.total_bytes > 9 * GIB
    check_memory(need, 10 * GIB, info, slots=4, tokens=2_048)
    with pytest.raises(InvalidConfig, match=r"needs 9\.2 GiB .* and 4\.0 GiB are free") as caught:
        check_memory(need, 4 * GIB, info, slots=4, tokens=2_048)
    assert str(info.path) in caught.value.message


def test_a_long_context_does_not_eat_the_machine(tmp_path: Path) -> None:
    tiny = read_gguf(write_model(tmp_path / "tiny.gguf"))
    large = replace(tiny, context_tokens=131_072, layers=32, kv_heads=(8,) * 32, key_length=128)
    assert default_context_tokens(large, slots=4, free_bytes=64 * GIB) == 8_192
    tokens = default_context_tokens(large, slots=4, free_bytes=2 * GIB)
    assert LEAST_CONTEXT_TOKENS <= tokens < 8_192
    need = memory_need(large, slots=4, context_tokens=tokens, micro_batch_tokens=63)
    assert need.kv_bytes <= GIB
    assert default_context_tokens(tiny, slots=4, free_bytes=2 * GIB) == 2_048  # all that it has


def test_there_is_some_free_memory() -> None:
    total = int(Path("/proc/meminfo").read_text(encoding="ascii").split()[1]) * 1024
    assert 0 < free_bytes() <= total
