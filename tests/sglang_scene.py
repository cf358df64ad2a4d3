"""What tests of the SGLang core share: a server that speaks as SGLang does, and a core on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aios_broker.contract.syscall import new_id
from aios_workers.llm.core import GenerationRequest, Sampling, Step
from aios_workers.llm.cores.base_core import FailureLimit
from aios_workers.llm.cores.sglang.settings import SGLangConfig
from aios_workers.llm.cores.sglang.sglang_core import SGLangCore
from tests.fake_sglang import FakeSGLang, meta, next_token

PROMPT = tuple(range(100, 130))
BREAKER = FailureLimit(failures=3, window_s=60.0, rest_s=0.5)


async def started(fake: FakeSGLang, **settings: Any) -> SGLangCore:  # noqa: ANN401
    values = {"slots": 3, "context_tokens": 1_000, "first_token_limit_s": 0.4, **settings}
    config = SGLangConfig(url=fake.url, stall_limit_s=0.2, health_limit_s=1.0, **values)
    core = SGLangCore(config, failures=BREAKER)
    try:
        await core.start()
    except BaseException:
        await core.close()
        raise
    return core


def ask(max_tokens: int = 12, **values: Any) -> GenerationRequest:  # noqa: ANN401
    return GenerationRequest(
        new_id(), PROMPT, max_tokens, values.pop("sampling", Sampling()), **values
    )


async def steps_of(core: SGLangCore, request: GenerationRequest) -> list[Step]:
    return [step async for step in core.generate(request)]


def expected_ids(count: int) -> tuple[int, ...]:
    ids = list(PROMPT)
    for _ in range(count):
        ids.append(next_token(ids))
    return tuple(ids[len(PROMPT) :])


ONE: dict[str, Any] = {"output_ids": [expected_ids(1)[0]], "meta_info": meta(None)}  # one event


@asynccontextmanager
async def core_on(fake: FakeSGLang) -> AsyncIterator[SGLangCore]:
    """Lend a started core."""
    core = await started(fake)
    try:
        yield core
    finally:
        await core.close()
