"""Every option of a chat on every core: it changes the answer, or it is refused. None is dropped.

Each is asked for through the queue, on a worker. Of SGLang, whose tokens here do not depend on
sampling, what the server heard counts as well.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import pytest

from aios_broker.contract.errors import UnknownCore, UnsupportedOption
from aios_broker.contract.llm import ContextSet, LlmChat, Message, RegexFormat, Tool
from aios_broker.contract.reply import ChatResult, Reply
from aios_workers.llm.core import CoreInfo
from aios_workers.llm.cores.base_core import FailureLimit
from aios_workers.llm.cores.llama.llama_core import LlamaCppConfig, LlamaCppCore
from aios_workers.llm.cores.sglang.settings import SGLangConfig
from aios_workers.llm.cores.sglang.sglang_core import SGLangCore
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore, SimulatedCoreConfig
from aios_workers.llm.options import check_options
from aios_workers.runtime.registry import llm_module
from tests.caller import Caller, running_worker
from tests.fake_sglang import Body, FakeSGLang, running
from tests.tiny_llama import write_model

pytestmark = pytest.mark.timeout(240)  # the embedded model answers some 45 times

SHORT = Message("user", "Tell me about rivers and trees.")
LONG = (Message("user", "rivers " * 250), Message("assistant", "I see."), SHORT)
ADD = Tool("add", "Adds.", {"type": "object", "properties": {}, "additionalProperties": False})
STORED = ContextSet((Message("user", "My name is Ada."),), context="notes")
NO_BREAKER = FailureLimit(failures=10_000, window_s=30.0, rest_s=5.0)


@dataclass(frozen=True)
class Case:
    """What shows that a field is kept: a value of it beside the options that let it be seen."""

    value: object
    beside: Mapping[str, object] = field(default_factory=dict)
    sampled: bool = False  # it acts on draws


CASES = {
    "messages": Case((Message("user", "Something else."),)),
    "core": Case("another"),
    "max_tokens": Case(3),
    "temperature": Case(2.0),
    "top_p": Case(0.01, sampled=True),
    "top_k": Case(1, sampled=True),
    "min_p": Case(1.0, sampled=True),
    "frequency_penalty": Case(2.0, {"max_tokens": 60}),
    "presence_penalty": Case(2.0, {"max_tokens": 60}),
    "repetition_penalty": Case(4.0, {"max_tokens": 60}),
    "logit_bias": Case({9: 100.0}),
    "seed": Case(8, sampled=True),
    "stop": Case(tuple("aeiou nrstldcAET")),
    "stream": Case(True),
    "return_ids": Case(True),
    "logprobs": Case(2),
    "n": Case(2, sampled=True),
    "beam_width": Case(2),
    "length_penalty": Case(3.0, {"beam_width": 2, "n": 2}),
    "format": Case(RegexFormat("[a-c]{3,5}")),
    "tools": Case((ADD,)),
    "tool_choice": Case("required", {"tools": (ADD,)}),
    "lora": Case("poet"),
    "overflow": Case("compact", {"messages": LONG}),
    "context": Case("notes"),
}


Seen = tuple[object, str, list[str]]  # answer or error, what was streamed, what a server heard


@dataclass(frozen=True)
class Scene:
    """A core with a worker on it."""

    caller: Caller
    info: CoreInfo
    heard: list[Body]  # by the server behind the core, if there is one

    async def seen(self, options: Mapping[str, object]) -> Seen:
        """Return all that a chat leads to, but for what no option decides."""
        first = len(self.heard)
        values = {"messages": (SHORT,), "max_tokens": 10, **options}
        try:
            [syscall_id] = await self.caller.submit(msgspec.convert(values, LlmChat))
        except UnknownCore as error:  # the queue knows the fleet's cores
            return (error.code, error.field), "", []
        reply = await self.caller.hear(syscall_id)
        chunks = self.caller.chunks.get(syscall_id, [])
        asked = sorted(str({**body, "rid": None}) for body in self.heard[first:])
        return _plain(reply), "".join(chunk.text for chunk in chunks), asked


def _plain(reply: Reply) -> object:
    if reply.error is not None:
        return reply.error.code, reply.error.field
    result = reply.result
    assert isinstance(result, ChatResult)
    usage = msgspec.structs.replace(result.usage, cached_tokens=0)
    text = msgspec.json.encode(msgspec.structs.replace(result, usage=usage)).decode()
    return re.sub("call_[0-9a-f]+", "call", text)  # ids of calls follow from the syscall's id


@asynccontextmanager
async def simulated(_: Path) -> AsyncIterator[tuple[SimulatedCore, list[Body]]]:
    config = SimulatedCoreConfig(
        slots=2, context_tokens=512, end_probability=0.0, adapters=("poet",)
    )
    yield SimulatedCore(config), []


@asynccontextmanager
async def llama(_: Path) -> AsyncIterator[tuple[LlamaCppCore, list[Body]]]:
    core = LlamaCppCore(LlamaCppConfig(context_tokens=256))
    await core.start()
    yield core, []


@asynccontextmanager
async def sglang(
    folder: Path, *, deterministic: bool = False
) -> AsyncIterator[tuple[SGLangCore, list[Body]]]:
    async with running(FakeSGLang(write_model(folder / "tiny"))) as fake:
        fake.server_info |= {
            "enable_deterministic_inference": deterministic,
            "grammar_backend": "llguidance",
            "lora_paths": [{"lora_name": "poet", "lora_path": "/x"}],
        }
        core = SGLangCore(SGLangConfig(url=fake.url, context_tokens=512), failures=NO_BREAKER)
        await core.start()
        yield core, fake.requests


@asynccontextmanager
async def deterministic_sglang(folder: Path) -> AsyncIterator[tuple[SGLangCore, list[Body]]]:
    async with sglang(folder, deterministic=True) as both:
        yield both


Cores = AbstractAsyncContextManager[tuple[SimulatedCore | LlamaCppCore | SGLangCore, list[Body]]]
REFUSED: dict[Callable[[Path], Cores], set[str]] = {
    simulated: {"core"},
    llama: {"core", "lora"},
    sglang: {"core", "seed"},
    deterministic_sglang: {"core"},
}


def test_no_field_is_left_out() -> None:
    assert set(CASES) == set(LlmChat.__struct_fields__)


@pytest.mark.parametrize("open_core", REFUSED)
async def test_each_option_changes_the_answer_or_is_refused(
    redis_url: str, tmp_path: Path, open_core: Callable[[Path], Cores]
) -> None:
    refused, dropped = set(), set()
    caller = Caller(redis_url)
    async with (
        open_core(tmp_path) as (core, heard),
        running_worker(caller.url, "llm", await llm_module(core)),
    ):
        scene = Scene(caller, core.info, heard)
        await caller.submit(STORED)
        answers: list[tuple[dict[str, object], Seen]] = []  # to what stands beside an option
        for name, case in CASES.items():
            beside = {**case.beside, **(_sampled(core.info) if case.sampled else {})}
            plain = next((seen for options, seen in answers if options == beside), None)
            if plain is None:
                plain = await scene.seen(beside)
                answers.append((beside, plain))
            asked = await scene.seen({**beside, name: case.value})
            if asked[0] in (("unsupported-option", f"body.{name}"), ("unknown-core", "body.core")):
                refused.add(name)
            elif asked == plain:
                dropped.add(name)
        for beside, plain in answers:  # so that what differs is the option's doing
            assert plain == await scene.seen(beside), f"answers to {beside} differ"
    await caller.aclose()

    assert dropped == set()
    assert refused == REFUSED[open_core]


def _sampled(info: CoreInfo) -> dict[str, object]:
    """Return draws that are the same each time."""
    warm: dict[str, object] = {"temperature": 1.5}
    return {**warm, "seed": 7} if "seed" in info.capabilities.keeps else warm


class LaterChat(LlmChat, frozen=True, kw_only=True, tag="llm.chat"):
    """A chat of a later contract."""

    mood: float = 0.0


@pytest.mark.parametrize("open_core", REFUSED)
async def test_a_field_that_nobody_has_declared_is_refused(
    tmp_path: Path, open_core: Callable[[Path], Cores]
) -> None:
    async with open_core(tmp_path) as (core, _):
        info = core.info
        check_options(LaterChat((SHORT,)), info)
        with pytest.raises(UnsupportedOption) as caught:
            check_options(LaterChat((SHORT,), mood=0.5), info)
        await core.close()

    assert caught.value.field == "body.mood"
    assert "name a core that keeps it" in (caught.value.remedy or "")
    declared = replace(info, capabilities=replace(info.capabilities, keeps=frozenset({"mood"})))
    check_options(LaterChat((SHORT,), mood=0.5), declared)
    assert info.capabilities.keeps <= set(LlmChat.__struct_fields__)
