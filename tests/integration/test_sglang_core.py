"""The SGLang core against a server that speaks as SGLang does."""

import asyncio
import importlib.util
import json
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aios_broker.contract.errors import (
    ContextTooLong,
    CoreError,
    InvalidConfig,
    InvalidSyscall,
    UnsupportedOption,
)
from aios_broker.contract.llm import Image, Message
from aios_workers.llm.core import Constraint, Sampling, Step
from aios_workers.llm.cores.sglang.connection import EngineServer
from aios_workers.llm.cores.sglang.settings import SGLangConfig
from aios_workers.llm.cores.sglang.sglang_core import SGLangCore
from tests.exactness import generate as answer_of
from tests.fake_sglang import (
    Answer,
    FakeSGLang,
    generate,
    hangs,
    running,
    writes,
)
from tests.sglang_scene import ONE, PROMPT, ask, core_on, expected_ids, started, steps_of
from tests.tiny_llama import CONFIG, END_ID, write_model
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


# What it is.


async def test_says_what_the_server_is(core: SGLangCore, model: Path) -> None:
    info = core.info
    assert (info.model, info.slots, info.context_tokens) == ("tiny", 3, 1_000)
    assert info.vocabulary_size == CONFIG["vocab_size"]
    can = info.capabilities
    assert (can.preemptible, can.exact_resume, can.constraints, can.images) == (1, 0, 0, 0)
    assert not can.can_suspend(ask(sampling=Sampling(presence_penalty=1.0)))
    assert can.can_suspend(ask())


async def test_is_no_more_than_the_server_allows(fake: FakeSGLang) -> None:
    fake.server_info |= {
        "max_req_input_len": 99,
        "enable_deterministic_inference": True,
        "internal_states": [{"effective_max_running_requests_per_dp": 2}],
        "lora_paths": [{"lora_name": "polite", "lora_path": "/x"}],
    }
    core = await started(fake)
    assert (core.info.slots, core.info.context_tokens) == (2, 99)
    assert core.info.capabilities.exact_resume
    assert core.info.capabilities.adapters == ("polite",)
    await core.close()


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"random_seed": 8}, False),
        ({"random_seed": 8, "load_format": "auto"}, True),
        ({"version": "0.5.18"}, False),
        ({"attention_backend": "triton"}, False),
        ({"weight_version": "2"}, False),
        ({"port": 12, "max_total_tokens": 5, "api_key": "k"}, True),
    ],
)
async def test_the_fingerprint_follows_what_decides_results(
    fake: FakeSGLang, change: dict[str, Any], *, same: bool
) -> None:
    if change.get("load_format"):
        fake.server_info["load_format"] = "auto"
    one = await started(fake)
    fake.server_info |= change
    fake.model_info |= {key: value for key, value in change.items() if key in fake.model_info}
    other = await started(fake)
    assert (one.info.snapshot_model == other.info.snapshot_model) is same
    for core in (one, other):
        await core.close()


async def test_a_wrong_server_is_refused_at_the_start(fake: FakeSGLang, tmp_path: Path) -> None:
    with pytest.raises(CoreError, match="serves 'tiny', not 'llama-8b'"):
        await started(fake, model="llama-8b")
    fake.server_info["preferred_sampling_params"] = {"temperature": 0.5}
    with pytest.raises(InvalidConfig, match="sampling values of its own"):
        await started(fake)
    del fake.server_info["version"]
    with pytest.raises(CoreError, match="no SGLang server that we know"):
        await started(fake)


async def test_a_python_without_sglang_is_told_what_brings_it(tmp_path: Path) -> None:
    assert importlib.util.find_spec("sglang") is None  # of this environment
    config = SGLangConfig(model=str(tmp_path), log_path=tmp_path / "server.log")

    with pytest.raises(CoreError, match="No module named 'sglang'") as caught:
        await EngineServer.start(config, dict(os.environ))

    assert "[sglang-server]" in str(caught.value.remedy)


async def test_nobody_at_the_address_is_a_core_error() -> None:
    core = SGLangCore(SGLangConfig(url="http://127.0.0.1:9"))
    with pytest.raises(CoreError, match="cannot be reached"):
        await core.start()
    await core.close()
    with pytest.raises(InvalidConfig, match="is not the address"):
        SGLangConfig(url="localhost:1")
    with pytest.raises(InvalidConfig, match="needs a server or a model"):
        SGLangConfig()


async def test_the_key_is_sent_and_proxies_of_the_environment_are_not_asked(
    fake: FakeSGLang, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    core = await started(fake, api_key="secret")
    await answer_of(core, ask())
    assert all("authorization: bearer secret" in head.lower() for head in fake.headers)
    await core.close()


# Generating.


async def test_streams_new_ids_only(core: SGLangCore) -> None:
    steps = await steps_of(core, ask())
    assert [step.ids for step in steps] == [(token,) for token in expected_ids(12)]
    assert [step.finish_reason for step in steps] == [None] * 11 + ["length"]
    assert [step.cached_tokens for step in steps] == [len(PROMPT) - 1] + [0] * 11


async def test_resuming_asks_for_prompt_and_output_and_what_is_left(
    core: SGLangCore, fake: FakeSGLang
) -> None:
    request = ask(resume_ids=expected_ids(5))
    answer = await answer_of(core, request)
    assert answer.ids == expected_ids(12)
    asked = fake.requests[0]
    assert asked["input_ids"] == [*PROMPT, *expected_ids(5)]
    assert asked["sampling_params"]["max_new_tokens"] == 7
    assert await steps_of(core, replace(request, resume_ids=answer.ids)) == [Step((), "length")]


async def test_an_abort_takes_the_tokens_that_come_after_it(
    core: SGLangCore, fake: FakeSGLang
) -> None:
    fake.step_s = 0.01
    request = ask(max_tokens=200)
    ids: list[int] = []
    async for step in core.generate(request):
        ids += step.ids
        assert step.finish_reason is None
        if len(ids) == 5:
            await core.abort(request.request_id, keep=True)
    assert 5 < len(ids) < 200
    assert tuple(ids) == expected_ids(len(ids))


async def test_ids_on_the_server_are_of_one_length_and_used_once(
    core: SGLangCore, fake: FakeSGLang
) -> None:
    request = ask()
    await asyncio.gather(*(answer_of(core, request) for _ in range(3)))
    rids = {asked["rid"] for asked in fake.requests}
    assert {len(rid) for rid in rids} == {32}
    assert len(rids) == 3
    assert request.request_id not in rids


async def test_leaving_a_stream_ends_it_on_the_server(core: SGLangCore, fake: FakeSGLang) -> None:
    fake.step_s = 0.01
    stream = core.generate(ask(max_tokens=200))
    await anext(stream)
    await stream.aclose()
    await wait_until_async(lambda: fake.aborts == [fake.requests[0]["rid"]])


async def test_an_abort_before_the_server_knows_the_request_is_repeated(
    core: SGLangCore, fake: FakeSGLang
) -> None:
    known = asyncio.Event()

    async def late(server: FakeSGLang, body: dict[str, Any], answer: Answer) -> None:
        await known.wait()
        server.aborts.clear()  # it did not know the id yet
        await generate(server, body, answer)

    fake.script, fake.step_s = [late], 0.02
    request = ask(max_tokens=30)
    running_steps = asyncio.create_task(steps_of(core, request))
    await wait_until_async(lambda: bool(fake.requests))
    await core.abort(request.request_id, keep=True)
    known.set()
    steps = await running_steps
    assert steps[-1].finish_reason is None
    assert len(steps) < 30


async def test_more_than_the_slots_wait_and_may_be_aborted_there(
    core: SGLangCore, fake: FakeSGLang
) -> None:
    fake.step_s = 0.01
    requests = [ask(max_tokens=8) for _ in range(5)]
    tasks = [asyncio.create_task(steps_of(core, request)) for request in requests]
    await wait_until_async(lambda: len(fake.requests) == 3)
    await core.abort(requests[4].request_id, keep=True)
    assert await tasks[4] == []
    done = await asyncio.gather(*tasks[:4])
    assert [steps[-1].finish_reason for steps in done] == ["length"] * 4
    assert len(fake.requests) == 4


async def test_connections_are_used_again(core: SGLangCore, fake: FakeSGLang) -> None:
    for _ in range(6):
        await answer_of(core, ask(max_tokens=2))
    assert fake.connections == 1


async def test_closing_ends_streams_as_aborted_and_leaves_the_server_alone(
    core: SGLangCore, fake: FakeSGLang
) -> None:
    fake.step_s = 0.01
    task = asyncio.create_task(steps_of(core, ask(max_tokens=500)))
    await wait_until_async(lambda: bool(fake.requests))
    await core.close()
    await core.close()
    assert all(step.finish_reason is None for step in await task)
    with pytest.raises(CoreError, match="closed"):
        await answer_of(core, ask())


async def test_closing_ends_streams_of_a_server_that_hangs(
    core: SGLangCore, fake: FakeSGLang
) -> None:
    fake.script = [hangs(ONE)]
    stream = core.generate(ask())
    assert (await anext(stream)).ids == expected_ids(1)
    rest = asyncio.create_task(anext(stream, None))
    await core.close()
    assert await rest is None


async def test_sampling_is_said_in_full(core: SGLangCore, fake: FakeSGLang) -> None:
    sampling = Sampling(
        temperature=0.7, top_p=0.9, seed=5, frequency_penalty=0.5, logit_bias={7: -3.0}
    )
    await answer_of(core, ask(max_tokens=2, sampling=sampling))
    assert fake.requests[0]["sampling_params"] == {
        "max_new_tokens": 2,
        "min_new_tokens": 0,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": -1,
        "min_p": 0.0,
        "frequency_penalty": 0.5,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.0,
        "ignore_eos": False,
        "n": 1,
        "logit_bias": {"7": -3.0},
    }
    assert "return_logprob" not in fake.requests[0]


async def test_a_seed_is_sent_only_where_it_counts(fake: FakeSGLang) -> None:
    fake.server_info["enable_deterministic_inference"] = True
    core = await started(fake)
    await answer_of(core, ask(max_tokens=2, sampling=Sampling(temperature=1.0, seed=2**63 - 1)))
    await answer_of(core, ask(max_tokens=2))
    seeds = [asked["sampling_params"].get("sampling_seed") for asked in fake.requests]
    assert seeds == [2**63 - 1, None]
    await core.close()


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"max_tokens": 971}, ContextTooLong),
        ({"sampling": Sampling(logit_bias={512: 1.0})}, InvalidSyscall),
        ({"resume_ids": (512,)}, InvalidSyscall),
        ({"constraint": Constraint("regex", "a+")}, UnsupportedOption),
        ({"lora": "polite"}, UnsupportedOption),
        ({"images": (Image("image/png", ""),)}, UnsupportedOption),
        ({"logprobs": 33}, UnsupportedOption),
        ({"logprobs": 2, "sampling": Sampling(logit_bias={5: 1.0})}, UnsupportedOption),
        ({"logprobs": 2, "sampling": Sampling(presence_penalty=1.0)}, UnsupportedOption),
        ({"resume_ids": (5,), "sampling": Sampling(presence_penalty=1.0)}, UnsupportedOption),
    ],
)
async def test_what_does_not_hold_is_refused_before_anything_runs(
    core: SGLangCore, fake: FakeSGLang, values: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await steps_of(core, ask(**values))
    assert fake.requests == []


async def test_logprobs_after_temperature_are_no_logprobs(fake: FakeSGLang) -> None:
    fake.original_logprobs = False
    core = await started(fake)
    with pytest.raises(UnsupportedOption, match="SGLANG_RETURN_ORIGINAL_LOGPROB"):
        await steps_of(core, ask(logprobs=1, sampling=Sampling(temperature=0.5)))
    await core.close()


async def test_a_prompt_that_cannot_fit_is_not_even_read(core: SGLangCore) -> None:
    with pytest.raises(ContextTooLong, match=r"at least 4000000 tokens .* holds 1000 together"):
        core.render([Message("user", " " * 4_000_000)])


async def test_cores_on_one_server_share_its_memory(model: Path, core: SGLangCore) -> None:
    async with (
        running(FakeSGLang(model)) as another,
        core_on(another) as there,
        core_on(another) as there_too,
    ):
        assert there.info.memory.tokens == core.info.memory.tokens == 8192
        assert there.info.memory.name == there_too.info.memory.name
        assert there.info.memory.name != core.info.memory.name


async def test_contexts_of_an_owner_have_a_name_of_their_own(
    core: SGLangCore, fake: FakeSGLang
) -> None:
    for owner in ("acme", "globex", "acme", ""):
        await steps_of(core, ask(kv_owner=owner))
    keys = [each.get("extra_key") for each in fake.requests]
    assert keys[0] == keys[2] != keys[1]
    assert keys[3] is None
    assert not {"acme", "globex"} & {*keys}


async def test_a_turn_of_the_templates_ends_an_answer_whatever_the_configuration_says(
    fake: FakeSGLang, model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(model, tmp_path / "tuned")
    (folder / "config.json").write_text(json.dumps({**CONFIG, "eos_token_id": 7}))
    names = {"bos_token": "<|start|>", "eos_token": chr(7)}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    fake.model_info["tokenizer_path"] = str(folder)
    async with core_on(fake) as core:
        assert core.is_end(END_ID)
        assert core.is_end(7)
        fake.script = [writes([*expected_ids(3)], END_ID)]
        steps = await steps_of(core, ask())
    assert fake.requests[-1]["sampling_params"]["stop_token_ids"] == [END_ID]
    assert steps[-1].finish_reason == "stop"
    assert tuple(token for step in steps for token in step.ids) == expected_ids(3)
