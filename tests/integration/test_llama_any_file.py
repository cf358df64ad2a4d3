"""The embedded core on files that it has never seen: small models of several kinds."""

import ctypes
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from aios_broker.contract.cores import LlamaSettings
from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.llm import Message
from aios_workers.llm.core import GenerationRequest, Sampling
from aios_workers.llm.cores.llama.gguf_names import KNOWN_ARCHITECTURES, TENSOR_TYPES
from aios_workers.llm.cores.llama.library import Library
from aios_workers.llm.cores.llama.llama_context import Context, Row, open_context, probe
from aios_workers.llm.cores.llama.llama_core import LlamaCppConfig, LlamaCppCore, default_threads
from aios_workers.llm.cores.llama.protocol import ContextShape
from tests.exactness import check_cuts, generate
from tests.gguf_files import TinyModel, gguf_bytes, write_model

TEST_GGUF = "AIOS_TEST_GGUF"  # a file of the tester's own, to be held to the same


def core_of(path: Path, **settings: object) -> LlamaCppCore:
    described = structs.replace(LlamaSettings(gguf=str(path), threads=1), **settings)
    return LlamaCppCore(LlamaCppConfig.of("tiny", described, kv_dir=None, kv_max_bytes=0))


@asynccontextmanager
async def running(path: Path, **settings: object) -> AsyncIterator[LlamaCppCore]:
    core = core_of(path, **settings)
    try:
        await core.start()
        yield core
    finally:
        await core.close()


MODELS = {
    "llama in Q4_K": TinyModel(weights="Q4_K", embedding=1_024),
    "qwen2 in Q6_K": TinyModel("qwen2", weights="Q6_K", embedding=512),
    "qwen3 in Q8_0": TinyModel("qwen3", weights="Q8_0"),
    "llama in F16": TinyModel(weights="F16"),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", MODELS)
async def test_any_file_is_resumed_exactly(tmp_path: Path, name: str) -> None:
    """On two cores whose threads are not the same; F16 by reading one token at a time."""
    path = write_model(tmp_path / "tiny.gguf", MODELS[name])
    async with running(path) as one, running(path, threads=2) as other:
        assert one.info.capabilities.exact_resume
        assert one.info.fingerprint == other.info.fingerprint
        assert one.info.context_tokens == 2_048  # what the file has
        report = await check_cuts(one, other, cuts=12, seed=1)
    assert report.cuts, "nothing was cut"
    assert not report.mismatches, report.mismatches[0]


@pytest.mark.skipif(TEST_GGUF not in os.environ, reason=f"{TEST_GGUF} names no file")
@pytest.mark.timeout(600)
async def test_the_testers_file_is_resumed_exactly() -> None:
    path = Path(os.environ[TEST_GGUF])
    small = {"context_tokens": 1_024}
    async with running(path, **small) as one, running(path, threads=2, **small) as other:
        report = await check_cuts(one, other, cuts=8, seed=1)
    assert report.cuts, "nothing was cut"
    assert not report.mismatches, report.mismatches[0]


async def test_the_other_grade_says_that_it_is_not_exact(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny.gguf")
    async with running(path, grade="same-context") as core, running(path) as exact:
        assert not core.info.capabilities.exact_resume
        assert core.info.capabilities.preemptible
        # What one has begun does not go on on the other.
        assert core.info.fingerprint != exact.info.fingerprint
        ids = core.render([Message("user", "Hello")])
        answer = await generate(core, GenerationRequest("0" * 32, ids, 8, Sampling()))
        assert answer.finish_reason in ("stop", "length")


@pytest.mark.parametrize(
    ("model", "settings", "field", "why"),
    [
        (TinyModel(), {"gpu_layers": 4}, "gpu_layers", "has no GPU"),
        (TinyModel(), {"context_tokens": 4_096}, "context_tokens", "trained for 2048 tokens"),
        (
            TinyModel(context_tokens=1 << 30),
            {"context_tokens": 1 << 30, "slots": 16},
            "gguf",
            r"needs [\d.]+ GiB .* and [\d.]+ GiB are free",
        ),
        (TinyModel("gpt6"), {}, "gguf", "'gpt6'"),
        (TinyModel(layers=2, metadata={"llama.block_count": 9}), {}, "gguf", "tensor"),
        (TinyModel(tokenizer="of another world"), {}, "gguf", "of another world"),
    ],
)
async def test_what_cannot_run_is_refused(
    tmp_path: Path, model: TinyModel, settings: dict[str, object], field: str, why: str
) -> None:
    path = write_model(tmp_path / "tiny.gguf", model)
    core = core_of(path, **settings)
    with pytest.raises(InvalidConfig, match=why) as caught:
        await core.start()
    assert caught.value.field == field
    assert caught.value.remedy
    await core.close()


def test_threads_and_micro_batches_do_not_change_a_bit(tmp_path: Path) -> None:
    """Beyond 512 tokens, where llama.cpp has other kernels for keys and values of one type."""
    path = write_model(tmp_path / "tiny.gguf", TinyModel(weights="Q6_K", embedding=512))
    library = Library.load()
    model = library.load_model(path, vocab_only=False)
    ids = [(i * 7_919) % 250 for i in range(700)]
    found = []
    for threads, rows in ((1, 63), (2, 63), (2, 512)):
        context = Context(library, model, ContextShape(2, 1_024, threads, rows, rows))
        for last in (1, 40):  # the end is read row by row, or at once
            context.truncate(0, 0)
            pieces = [*range(0, len(ids) - 40, rows), *range(len(ids) - 40, len(ids), last)]
            for start, end in zip(pieces, [*pieces[1:], len(ids)], strict=True):
                batch = [Row(0, i, ids[i], i == len(ids) - 1) for i in range(start, end)]
                logits = context.compute(batch)
            found.append(logits[0].copy())
        context.free()
    library.c.llama_model_free(model)
    assert all(np.array_equal(each, found[0]) for each in found)


def test_numbers_that_are_multiplied_otherwise_in_batches_are_read_one_by_one(
    tmp_path: Path,
) -> None:
    path = write_model(tmp_path / "tiny.gguf", TinyModel(weights="F16"))
    library = Library.load()
    model = library.load_model(path, vocab_only=False)
    shape = ContextShape(2, 512)
    context, result = open_context(library, model, (shape, replace(shape, joint_rows=1)))
    assert context.shape.joint_rows == 1
    assert result.exact_resume
    context.free()
    with pytest.raises(InvalidConfig, match="cannot be resumed exactly") as caught:
        open_context(library, model, (shape,))
    assert caught.value.field == "grade"
    other = Context(library, model, replace(shape, grade="same-context", threads=2))
    assert not probe(other).exact_resume
    other.close()


def test_the_tables_are_those_of_the_library() -> None:
    c = Library.load().c
    c.ggml_type_size.restype, c.ggml_blck_size.restype = ctypes.c_size_t, ctypes.c_int64
    c.ggml_type_name.restype = ctypes.c_char_p
    for code, (name, block, block_bytes) in TENSOR_TYPES.items():
        assert c.ggml_type_name(code).decode().upper() == name
        assert (c.ggml_blck_size(code), c.ggml_type_size(code)) == (block, block_bytes)


@pytest.mark.parametrize("name", [*sorted(KNOWN_ARCHITECTURES), "gpt6"])
def test_the_architectures_are_those_of_the_library(
    tmp_path: Path, name: str, library: Library
) -> None:
    path = tmp_path / "head.gguf"
    path.write_bytes(gguf_bytes({"general.architecture": name}))
    with pytest.raises(InvalidConfig) as caught:
        library.load_model(path, vocab_only=True)
    unknown = "unknown model architecture" in caught.value.message
    assert unknown == (name == "gpt6")


@pytest.fixture(scope="module")
def library() -> Library:
    return Library.load()


def test_one_processor_is_left_to_the_others() -> None:
    assert 1 <= default_threads() <= max(1, (os.cpu_count() or 1) - 1)
