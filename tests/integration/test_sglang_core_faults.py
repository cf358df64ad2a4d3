"""The SGLang core against a server that breaks as told."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aios_broker.contract.errors import (
    CoreError,
)
from aios_workers.llm.cores.sglang.sglang_core import SGLangCore
from tests.exactness import generate as answer_of
from tests.fake_sglang import (
    Behaviour,
    FakeSGLang,
    answers,
    hangs,
    meta,
    running,
    says,
    sends,
)
from tests.sglang_scene import ONE, ask, core_on, expected_ids, steps_of
from tests.tiny_llama import END_ID, write_model
from tests.waiting import wait_until_async


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
async def fake(model: Path) -> AsyncIterator[FakeSGLang]:
    async with running(FakeSGLang(model)) as fake:
        yield fake


@pytest.fixture
async def core(fake: FakeSGLang) -> AsyncIterator[SGLangCore]:
    async with core_on(fake) as core:
        yield core


# What goes wrong.

REFUSED = {"error": {"message": "Input is too long", "code": 400}}
FAILURES = [
    (says(ONE, done=False), "connection to the SGLang server failed"),
    (says(ONE), "without a reason"),
    (says(), "without a reason"),
    (answers(500, b"boom"), "answered 500: boom"),
    (answers(503, b""), "answered 503"),
    (sends(b"data: {broken\n\n"), "not an event"),
    (sends(b"<html>hello</html>\n"), "not an event"),
    (sends(b'data: {"output_ids": "x"}\n\n'), "not an event"),
    (hangs(), "no step for 0.4 s"),
    (hangs(ONE), "no step for 0.2 s"),
    (says({**ONE, "meta_info": meta({"type": "abort", "message": "OOM"})}), "its own: OOM"),
    (says({**ONE, "meta_info": {**meta(None), "weight_version": "2"}}), "weights are now '2'"),
]


@pytest.mark.parametrize(("behaviour", "said"), FAILURES)
async def test_a_failure_is_a_core_error_and_the_next_attempt_goes_on(
    core: SGLangCore, fake: FakeSGLang, behaviour: Behaviour, said: str
) -> None:
    fake.script = [behaviour]
    with pytest.raises(CoreError, match=said):
        await answer_of(core, ask())
    await core.health()
    assert (await answer_of(core, ask())).ids == expected_ids(12)


async def test_a_refusal_is_told_and_does_not_count_against_the_server(
    core: SGLangCore, fake: FakeSGLang
) -> None:
    fake.script = [says(REFUSED), answers(422, b"what?"), answers(401, b"key")] * 2
    for said in ("too long", "422", "AIOS_SGLANG_API_KEY") * 2:
        with pytest.raises(CoreError) as caught:
            await answer_of(core, ask())
        assert said in str(caught.value)
    assert (await answer_of(core, ask())).finish_reason == "length"


async def test_a_server_that_keeps_failing_is_left_alone_until_a_probe_goes_well(
    core: SGLangCore, fake: FakeSGLang
) -> None:
    fake.script = [answers(500, b"")] * 3
    for _ in range(3):
        with pytest.raises(CoreError, match="500"):
            await answer_of(core, ask())
    fake.healthy = False
    asked = len(fake.requests)
    with pytest.raises(CoreError, match="is left alone") as caught:
        await answer_of(core, ask())
    assert caught.value.retry_after_s

    async def probed() -> bool:
        with pytest.raises(CoreError) as caught:
            await answer_of(core, ask())
        return "503" in str(caught.value)

    await wait_until_async(probed)  # half-open: the probe failed
    assert len(fake.requests) == asked
    fake.healthy = True

    async def answered() -> bool:
        try:
            return (await answer_of(core, ask())).ids == expected_ids(12)
        except CoreError:
            return False

    await wait_until_async(answered)


async def test_another_server_at_the_same_address_is_not_taken_for_the_first(
    core: SGLangCore, fake: FakeSGLang
) -> None:
    fake.script = [says(ONE, done=False)]
    with pytest.raises(CoreError):
        await answer_of(core, ask())
    fake.server_info["random_seed"] = 8
    with pytest.raises(CoreError, match="is another now"):
        await answer_of(core, ask())
    fake.server_info["random_seed"] = 7
    assert (await answer_of(core, ask())).ids == expected_ids(12)


async def test_an_end_token_is_not_among_the_ids(core: SGLangCore, fake: FakeSGLang) -> None:
    stop = meta({"type": "stop", "matched": END_ID})
    fake.script = [says(ONE, {"output_ids": [*expected_ids(1), END_ID], "meta_info": stop})]
    steps = await steps_of(core, ask())
    assert [(step.ids, step.finish_reason) for step in steps] == [
        (expected_ids(1), None),
        ((), "stop"),
    ]


async def test_health_says_what_is_wrong(core: SGLangCore, fake: FakeSGLang) -> None:
    fake.healthy = False
    with pytest.raises(CoreError, match="503"):
        await core.health()
