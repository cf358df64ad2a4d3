"""Embeddings on an SGLang server that was started for them, and on one that was not."""

import math
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aios_broker.contract.errors import (
    ContextTooLong,
    CoreError,
    InvalidConfig,
    InvalidSyscall,
    UnsupportedOption,
)
from aios_broker.contract.llm import LlmChat, LlmEmbed, Message
from aios_workers.llm.cores.sglang.sglang_core import SGLangCore
from aios_workers.llm.options import check_options
from tests.fake_sglang import FakeSGLang, running
from tests.sglang_scene import ask, core_on, started, steps_of
from tests.tiny_llama import START, byte_level_tokenizer, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("models") / "tiny")
    (folder / "chat_template.jinja").unlink()  # models for embeddings have none
    return folder


@pytest.fixture
async def fake(model: Path) -> AsyncIterator[FakeSGLang]:
    async with running(FakeSGLang(model)) as fake:
        fake.model_info["is_generation"] = False
        yield fake


@pytest.fixture
async def core(fake: FakeSGLang) -> AsyncIterator[SGLangCore]:
    async with core_on(fake) as core:
        yield core


async def test_each_text_gets_a_vector_of_length_1_in_its_place(
    core: SGLangCore, fake: FakeSGLang
) -> None:
    texts = [f"text {number}" for number in range(70)]
    made = await core.embed(texts)
    ids = [list(byte_level_tokenizer().encode(text).ids) for text in texts]
    assert fake.encoded == ids
    assert made.tokens == sum(map(len, ids))
    assert fake.paths.count("/encode") == 3
    for vector, each in zip(made.vectors, ids, strict=True):
        assert math.hypot(*vector) == pytest.approx(1.0)
        assert vector[1] / vector[0] == pytest.approx(sum(each) / len(each))


async def test_a_special_token_in_a_text_is_text(core: SGLangCore, fake: FakeSGLang) -> None:
    await core.embed([f"a{START}b\ud800"])
    assert 0 not in fake.encoded[0]
    assert len(fake.encoded[0]) == len(f"a{START}b?")


async def test_it_makes_embeddings_and_nothing_else(core: SGLangCore, fake: FakeSGLang) -> None:
    can = core.info.capabilities
    assert (can.embeddings, can.generates) == (True, False)
    check_options(LlmEmbed(("a",)), core.info)
    with pytest.raises(UnsupportedOption, match="makes embeddings alone") as caught:
        check_options(LlmChat((Message("user", "a"),)), core.info)
    assert caught.value.field == "body.core"
    with pytest.raises(UnsupportedOption, match="makes embeddings alone"):
        core.render([Message("user", "a")])
    with pytest.raises(UnsupportedOption, match="makes embeddings alone"):
        await steps_of(core, ask())
    assert fake.requests == []


async def test_a_text_that_cannot_be_embedded_is_named(core: SGLangCore, fake: FakeSGLang) -> None:
    with pytest.raises(InvalidSyscall) as empty:
        await core.embed(["a", ""])
    assert empty.value.field == "body.texts[1]"
    with pytest.raises(ContextTooLong, match=r"1001 tokens.* holds 1000") as long:
        await core.embed(["a", "b", "x" * 1_001])
    assert long.value.field == "body.texts[2]"
    assert fake.encoded == []


async def test_what_is_no_vector_is_a_core_error(core: SGLangCore, fake: FakeSGLang) -> None:
    for values in ([0.0, 0.0], []):
        fake.vector = lambda _, values=values: {  # type: ignore[misc]
            "embedding": values,
            "meta_info": {"prompt_tokens": 1},
        }
        with pytest.raises(CoreError, match="no direction"):
            await core.embed(["a"])
    fake.vector = lambda ids: {"embedding": [1.0] * len(ids), "meta_info": {"prompt_tokens": 1}}
    with pytest.raises(CoreError, match="different sizes"):
        await core.embed(["a", "bb"])
    fake.vector = lambda _: {"vector": [1.0]}
    with pytest.raises(CoreError):
        await core.embed(["a"])


async def test_the_bytes_of_a_text_where_the_model_has_no_tokenizer(fake: FakeSGLang) -> None:
    core = await started(fake, tokenizer="bytes")
    await core.embed(["ab"])
    assert fake.encoded == [[0, ord("a") + 3, ord("b") + 3]]
    await core.close()


async def test_ids_beyond_the_vocabulary_do_not_reach_the_server(
    fake: FakeSGLang, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "small")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"vocab_size": 512', '"vocab_size": 40'))
    core = await started(fake, tokenizer=str(folder))
    with pytest.raises(InvalidConfig, match="vocabulary of 40"):
        await core.embed(["zz"])
    assert fake.encoded == []
    await core.close()


async def test_a_server_for_embeddings_is_not_taken_for_one_that_generates(
    fake: FakeSGLang, tmp_path: Path
) -> None:
    folder = str(write_model(tmp_path / "tiny"))
    one = await started(fake)
    fake.model_info |= {"is_generation": True, "tokenizer_path": folder}
    other = await started(fake)
    assert one.info.fingerprint != other.info.fingerprint
    with pytest.raises(UnsupportedOption, match="--is-embedding") as caught:
        await other.embed(["a"])
    assert caught.value.field == "body.core"
    for core in (one, other):
        await core.close()
