"""SuspensionEnd equals uninterrupted, id for id, on the embedded core."""

from collections.abc import AsyncIterator

import pytest

from aios_workers.llm.cores.llama.llama_core import LlamaCppConfig, LlamaCppCore
from tests.exactness import FORMS, check_cuts


@pytest.fixture
async def cores() -> AsyncIterator[tuple[LlamaCppCore, LlamaCppCore]]:
    pair = (LlamaCppCore(LlamaCppConfig()), LlamaCppCore(LlamaCppConfig()))
    for core in pair:
        await core.start()
    yield pair
    for core in pair:
        await core.close()


@pytest.mark.timeout(300)
async def test_twenty_cuts(cores: tuple[LlamaCppCore, LlamaCppCore]) -> None:
    report = await check_cuts(*cores, cuts=20, seed=1)
    report.assert_exact(cuts=20)
    assert report.cached_tokens, "no KV state was used again"


@pytest.mark.timeout(300)
async def test_cuts_under_constraints(cores: tuple[LlamaCppCore, LlamaCppCore]) -> None:
    report = await check_cuts(*cores, cuts=16, seed=3, forms=FORMS)
    report.assert_exact(cuts=16)
    assert report.constrained == report.cuts
    assert report.scored


@pytest.mark.slow
@pytest.mark.timeout(7_200)
async def test_a_thousand_cuts(cores: tuple[LlamaCppCore, LlamaCppCore]) -> None:
    report = await check_cuts(*cores, cuts=1_000, seed=2)
    report.assert_exact(cuts=1_000)
