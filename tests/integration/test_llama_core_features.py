"""What the embedded core does beyond plain text: scores, bias, forms, vectors."""

import json
import math
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest
import pytest_asyncio

from aios_broker.contract.errors import ContextTooLong, InvalidSyscall, UnsupportedOption
from aios_broker.contract.llm import Image, Message
from aios_broker.contract.syscall import new_id
from aios_workers.llm.core import Constraint, GenerationRequest, Sampling, Step
from aios_workers.llm.cores.llama.llama_core import LlamaCppConfig, LlamaCppCore

pytestmark = pytest.mark.asyncio(loop_scope="module")

FRANCE = (Message("user", "What is the capital of France? Answer in one sentence."),)
CITY = Constraint(
    "json",
    json.dumps(
        {
            "type": "object",
            "required": ["city", "people"],
            "additionalProperties": False,
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "people": {"type": "integer", "maximum": 99_999_999, "minimum": 0},
            },
        }
    ),
)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def core() -> AsyncIterator[LlamaCppCore]:
    core = LlamaCppCore(LlamaCppConfig(context_tokens=256))
    await core.start()
    yield core
    await core.close()


def request_of(core: LlamaCppCore, max_tokens: int = 32) -> GenerationRequest:
    return GenerationRequest(new_id(), core.render(FRANCE), max_tokens, Sampling())


async def steps_of(core: LlamaCppCore, request: GenerationRequest) -> list[Step]:
    return [step async for step in core.generate(request)]


async def test_each_token_has_its_score_and_the_end_has_one_too(core: LlamaCppCore) -> None:
    steps = await steps_of(core, replace(request_of(core), logprobs=32))
    ids = [token for step in steps for token in step.ids]
    entries = [entry for step in steps for entry in step.logprobs]
    assert [entry.id for entry in entries[:-1]] == ids
    assert core.is_end(entries[-1].id)
    assert steps[-1].finish_reason == "stop"
    assert core.decode(ids) == b"The capital of France is Paris."
    for entry in entries:  # greedy: the best one was taken
        assert (entry.top[0].id, entry.top[0].logprob) == (entry.id, entry.logprob)
        assert len(entry.top) == 32
        assert sum(math.exp(each.logprob) for each in entry.top) <= 1 + 1e-9


async def test_a_bias_does_not_change_the_scores(core: LlamaCppCore) -> None:
    request = replace(request_of(core, 1), logprobs=2)
    (plain,) = await steps_of(core, request)
    banned = Sampling(logit_bias={plain.ids[0]: -100.0})
    (biased,) = await steps_of(core, replace(request, request_id=new_id(), sampling=banned))
    assert biased.ids[0] != plain.ids[0]
    assert biased.logprobs[0].top == plain.logprobs[0].top


async def test_json_by_a_schema_ends_when_it_is_complete(core: LlamaCppCore) -> None:
    request = replace(request_of(core, 64), constraint=CITY)
    steps = await steps_of(core, request)
    ids = tuple(token for step in steps for token in step.ids)
    assert set(json.loads(core.decode(ids))) == {"city", "people"}
    assert (steps[-1].finish_reason, len(steps[-1].ids)) == ("stop", 1)
    again = replace(request, request_id=new_id(), resume_ids=ids)
    assert await steps_of(core, again) == [Step((), "stop")]


async def test_a_schema_that_cannot_be_kept_is_refused_and_the_core_lives(
    core: LlamaCppCore,
) -> None:
    pid = core.pid
    bad = Constraint("json", '{"type": "nonsense"}')
    with pytest.raises(InvalidSyscall, match="nonsense"):
        await steps_of(core, replace(request_of(core), constraint=bad))
    assert core.pid == pid
    await core.health()


async def test_what_it_does_not_have_is_refused(core: LlamaCppCore) -> None:
    request = request_of(core)
    for wrong in (
        replace(request, lora="other"),
        replace(request, images=(Image("image/png", ""),)),
        replace(request, logprobs=65),
    ):
        with pytest.raises(UnsupportedOption):
            await steps_of(core, wrong)
    assert core.info.vocabulary_size is not None
    no_token = Sampling(logit_bias={core.info.vocabulary_size: 1.0})
    with pytest.raises(InvalidSyscall, match="no token id"):
        await steps_of(core, replace(request, sampling=no_token))


async def test_texts_of_one_meaning_are_closer_than_others(core: LlamaCppCore) -> None:
    texts = ("The cat sits on the mat.", "A cat is sitting on a rug.", "Stock markets fell today.")
    made = await core.embed(texts)
    cat, rug, stocks = made.vectors
    assert all(math.isclose(math.hypot(*vector), 1.0) for vector in made.vectors)
    assert float(np.dot(cat, rug)) > float(np.dot(cat, stocks)) + 0.05
    assert made.tokens > len(texts)


async def test_a_text_has_the_same_vector_beside_an_answer(core: LlamaCppCore) -> None:
    text = "A long walk by the sea. " * 8
    alone = await core.embed((text,))
    stream = core.generate(request_of(core))
    first = await anext(stream)
    assert await core.embed((text,)) == alone
    rest = [step async for step in stream]
    ids = tuple(token for step in (first, *rest) for token in step.ids)
    assert core.decode(ids) == b"The capital of France is Paris."


async def test_texts_that_cannot_be_embedded_are_refused(core: LlamaCppCore) -> None:
    with pytest.raises(InvalidSyscall, match="empty"):
        await core.embed(("a", ""))
    with pytest.raises(ContextTooLong, match=r"30\d tokens.*256"):
        await core.embed(("word " * 300,))
    with pytest.raises(ContextTooLong, match=r"at least \d{4} tokens.*256") as refused:
        await core.embed(("a", "word " * 100_000))  # is not read
    assert refused.value.field == "body.texts[1]"
