"""Random schemas on real vocabularies, cut at random: kept, or refused by their keyword."""

import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from aios_broker.contract.llm import JsonFormat
from aios_broker.contract.reply import ChatResult
from aios_workers.llm.constraint import verdict_of
from aios_workers.llm.core import Constraint, Core
from aios_workers.llm.cores.llama.llama_core import LlamaCppConfig, LlamaCppCore
from aios_workers.llm.validation import Validators
from tests.caller import chat
from tests.cut_handler import Cuts, run_cut
from tests.schema_strategies import KEYWORDS, Schema, drawn
from tests.sglang_servers import own_server, started
from tests.tiny_llama import write_model

MAX_TOKENS = 160
WORDS = ("no text satisfies it", "Unsatisfiable")


async def answer(cores: Sequence[Core], schema: Schema, number: int) -> tuple[ChatResult, int]:
    draws = random.Random(number)
    cuts = Cuts(draws, probability=0.4, quantum_tokens=(1, 16))
    body = chat(
        "Say something of it.",
        format=JsonFormat(schema),
        max_tokens=MAX_TOKENS,
        temperature=draws.choice((0.0, 1.0, 1.5)),
        # A server of SGLang draws by a seed in deterministic inference alone, and refuses it else.
        **({"seed": number} if "seed" in cores[0].info.capabilities.keeps else {}),
    )
    result = await run_cut(cores, body, cuts)
    assert isinstance(result, ChatResult)
    return result, cuts.made


async def check_forms(cores: Sequence[Core], count: int, seed: int) -> None:
    """Answer chats with random schemas; each that ends with `stop` has its form."""
    ends: Counter[str] = Counter()
    validators = Validators()
    for number, schema in enumerate(drawn(count, seed)):
        source = json.dumps(schema)
        refused = verdict_of(Constraint("json", source))
        if refused:
            assert any(each in refused for each in (*KEYWORDS, *WORDS)), (schema, refused)
            ends["refused"] += 1
            continue
        result, cuts = await answer(cores, schema, number)
        ends[result.finish_reason] += 1
        ends["cuts"] += cuts
        if result.finish_reason == "stop":
            assert validators.wrong(source, result.text) is None, (schema, result.text)
    assert ends["stop"] + ends["length"] + ends["refused"] == count
    assert ends["stop"] >= (ends["stop"] + ends["length"]) // 4  # of those that ran
    assert ends["refused"]
    if cores[0].info.capabilities.constraints_preemptible:
        assert ends["cuts"] >= count // 10
    else:  # a server of SGLang cannot go on in the middle of a form: it is never cut there
        assert ends["cuts"] == 0


@pytest.fixture
async def llamas() -> AsyncIterator[tuple[LlamaCppCore, LlamaCppCore]]:
    pair = (LlamaCppCore(LlamaCppConfig()), LlamaCppCore(LlamaCppConfig()))
    for core in pair:
        await core.start()
    yield pair
    for core in pair:
        await core.close()


@pytest.mark.timeout(300)
async def test_twelve_schemas_on_the_embedded_model(
    llamas: tuple[LlamaCppCore, LlamaCppCore],
) -> None:
    await check_forms(llamas, 12, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
async def test_300_schemas_on_the_embedded_model(
    llamas: tuple[LlamaCppCore, LlamaCppCore],
) -> None:
    await check_forms(llamas, 300, seed=2)


@pytest.mark.sglang
@pytest.mark.timeout(3_600)
async def test_300_schemas_on_a_server_of_sglang(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny-llama", seed=7)
    async with started(own_server(model)) as core:
        await check_forms((core,), 300, seed=3)
