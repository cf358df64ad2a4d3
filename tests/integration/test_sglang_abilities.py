"""Forms, calls, adapters and embeddings on real SGLang servers."""

import json
import math
import random
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from aios_broker.contract.errors import UnsupportedOption
from aios_broker.contract.llm import Tool
from aios_broker.contract.syscall import new_id
from aios_workers.llm.chat.calls import FORMATS
from aios_workers.llm.core import Constraint, GenerationRequest, Sampling
from aios_workers.llm.cores.sglang.sglang_core import SGLangCore
from aios_workers.llm.tools import CALL_BEGIN, Toolbox, constraint_of, read_calls
from tests.exactness import FORMS, Answer, generate
from tests.sglang_servers import own_server, started
from tests.tiny_llama import END_ID, byte_level_tokenizer, write_adapter, write_model

pytestmark = [
    pytest.mark.sglang,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),
]

PERSON, NAMES, SENTENCE, LIST = FORMS
PAIR = {
    "type": "object",
    "required": ["a", "b"],
    "additionalProperties": False,
    "properties": {"a": {"enum": [1, 2]}, "b": {"type": "boolean"}},
}
# Few of the words that a model of random weights writes are short: the strings have a limit.
NOTE = {
    "type": "object",
    "required": ["kind", "text"],
    "additionalProperties": False,
    "properties": {"kind": {"enum": ["fox", "ship"]}, "text": {"type": "string", "maxLength": 9}},
}
TOOLS = (Tool("note", "Takes a note.", NOTE), Tool("wait", "Waits."))
ASCII_IDS = byte_level_tokenizer().encode("".join(map(chr, range(0x21, 0x7F)))).ids
# What a random model writes hardly ever: text, then calls.
AT_ONCE = re.compile(r"^OPENING: .*$", re.MULTILINE)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny-llama", seed=7)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def core(model: Path) -> AsyncIterator[SGLangCore]:
    """A server with llguidance and an adapter."""
    adapter = write_adapter(model.parent / "polite", seed=3)
    lora = ("--enable-lora", "--lora-paths", f"polite={adapter}", "--lora-backend", "torch_native")
    async with started(own_server(model, *lora)) as core:
        yield core


def ask(seed: int, constraint: Constraint | None = None, **values: Any) -> GenerationRequest:  # noqa: ANN401
    rng = random.Random(seed)
    prompt = tuple(rng.randrange(2, 258) for _ in range(20))
    sampling = values.pop("sampling", Sampling(temperature=float(seed % 2)))
    return GenerationRequest(
        new_id(), prompt, values.pop("max_tokens", 140), sampling, constraint=constraint, **values
    )


async def answers_of(core: SGLangCore, constraint: Constraint, count: int = 4) -> list[str]:
    """Return answers of several prompts, greedy and drawn, that came to their end."""
    made = [await generate(core, ask(seed, constraint)) for seed in range(count)]
    return [core.decode(each.ids).decode() for each in made if each.finish_reason == "stop"]


def check_person(text: str) -> None:
    person = json.loads(text)
    assert list(person) == ["name", "age", "kind"]
    assert isinstance(person["name"], str)
    assert len(person["name"]) <= 30
    assert isinstance(person["age"], int)
    assert person["kind"] in ("fox", "ship")


# Forms.


async def test_answers_have_the_form_that_they_are_held_to(core: SGLangCore) -> None:
    assert core.info.capabilities.constraints
    people = await answers_of(core, PERSON)
    for text in people:
        check_person(text)
    sentences = await answers_of(core, SENTENCE)
    assert all(re.fullmatch(SENTENCE.source, text) for text in sentences)
    lists = await answers_of(core, LIST)
    item = "(?:[a-z]{1,6}|[0-9]{1,3})"
    assert all(re.fullmatch(rf"\({item}(,{item}){{2,6}}\)", text) for text in lists)
    assert min(map(len, (people, sentences, lists))) >= 1
    assert len(lists) == 4


async def test_json_is_written_as_on_the_other_cores(core: SGLangCore) -> None:
    texts = await answers_of(core, Constraint("json", json.dumps(PAIR)))
    assert texts
    assert all(text == json.dumps(json.loads(text)) for text in texts)


async def test_calls_are_held_to_the_schema_of_their_tool(core: SGLangCore) -> None:
    forced = Toolbox(TOOLS, forced=True)
    texts = await answers_of(core, constraint_of(forced))
    assert texts
    for text in texts:
        check_calls(text, forced)
    free = constraint_of(Toolbox(TOOLS, forced=False))
    for text in await answers_of(core, free, count=1):
        assert CALL_BEGIN not in text or check_calls(text, Toolbox(TOOLS, forced=False))


async def test_a_message_that_calls_is_held_to_its_calls(core: SGLangCore) -> None:
    free = Toolbox(TOOLS, forced=False)
    calls_only = constraint_of(free).source.replace("MESSAGE | ", "")
    calls_only = AT_ONCE.sub(f'OPENING: "{CALL_BEGIN}"', calls_only)
    calls_only = re.sub(r"^MESSAGE: .*\n", "", calls_only, flags=re.MULTILINE)
    texts = await answers_of(core, Constraint("grammar", calls_only))
    assert texts
    for text in texts:
        check_calls(text, free)


def check_calls(text: str, toolbox: Toolbox) -> bool:
    message, calls = read_calls(text, toolbox, syscall_id="ab" * 16, choice=0)
    assert message == ""
    assert calls
    for call in calls:
        arguments = json.loads(call.arguments)
        match call.name:
            case "note":
                assert arguments["kind"] in ("fox", "ship")
                assert len(arguments["text"]) <= 9
            case "pair":
                assert arguments["a"] in (1, 2)
                assert isinstance(arguments["b"], bool)
            case other:
                assert (other, arguments) == ("wait", {})
    return True


async def test_a_form_beside_other_generations_changes_none_of_them(core: SGLangCore) -> None:
    plain = ask(2, sampling=Sampling(logit_bias={END_ID: -100.0}), max_tokens=60)
    alone = await generate(core, plain)
    await answers_of(core, LIST, count=1)
    steps = core.generate(replace(plain, request_id=new_id()))
    ids = list((await anext(steps)).ids)
    formed = await answers_of(core, LIST, count=2)
    ids += [token async for step in steps for token in step.ids]
    assert formed
    assert tuple(ids) == alone.ids


async def test_xgrammar_holds_what_it_has_and_leaves_the_rest_well(model: Path) -> None:
    """What it does not hold (control characters in strings with a maxLength) our reading finds."""
    flags = ("--grammar-backend", "xgrammar", "--constrained-json-disable-any-whitespace")
    async with started(own_server(model, *flags)) as core:
        with pytest.raises(UnsupportedOption, match="Group modifier"):
            await generate(core, ask(1, Constraint("regex", "(?i)yes")))
        with pytest.raises(UnsupportedOption, match="Lark's notation"):
            await generate(core, ask(1, LIST))
        pairs = await answers_of(core, Constraint("json", json.dumps(PAIR)))
        sentences = await answers_of(core, SENTENCE)
        assert min(map(len, (pairs, sentences))) >= 1
        assert all(text == json.dumps(json.loads(text)) for text in pairs)
        assert all(re.fullmatch(SENTENCE.source, text) for text in sentences)
        forced = Toolbox((Tool("pair", "Takes two.", PAIR), Tool("wait", "Waits.")), forced=True)
        called = await answers_of(core, constraint_of(forced))
        assert called
        for text in called:
            check_calls(text, forced)
        free = constraint_of(replace(forced, forced=False))
        # Left alone a random model writes what is no UTF-8, and that has no form.
        ascii_only = Sampling(logit_bias=dict.fromkeys(ASCII_IDS, 40.0))
        message = await generate(core, ask(1, free, sampling=ascii_only, max_tokens=24))
        assert (len(message.ids), message.finish_reason) == (24, "length")
        for call_format in FORMATS:
            toolbox = replace(forced, forced=False, call_format=call_format)
            form = constraint_of(toolbox)
            spoken = await generate(core, ask(1, form, sampling=ascii_only, max_tokens=24))
            assert spoken.ids, call_format.name


# Adapters.


async def cut(core: SGLangCore, request: GenerationRequest, at: int) -> tuple[int, ...]:
    ids: list[int] = []
    async for step in core.generate(request):
        ids += step.ids
        if len(ids) == at:
            await core.abort(request.request_id, keep=True)
    return tuple(ids)


async def test_an_adapter_changes_the_answer_also_across_a_cut(core: SGLangCore) -> None:
    assert core.info.capabilities.adapters == ("polite",)
    endless = Sampling(logit_bias={END_ID: -100.0})
    request = ask(4, sampling=endless, max_tokens=400, lora="polite")
    with_adapter: Answer = await generate(core, request)
    without = await generate(core, replace(request, request_id=new_id(), lora=None))
    assert with_adapter.ids != without.ids
    ids = await cut(core, replace(request, request_id=new_id()), 20)
    assert 20 <= len(ids) < 400
    resumed = replace(request, request_id=new_id(), resume_ids=ids)
    steps = [step async for step in core.generate(resumed)]
    assert steps[0].cached_tokens == len(request.prompt_ids) + len(ids) - 1
    assert (*ids, *(token for step in steps for token in step.ids)) == with_adapter.ids
    with pytest.raises(UnsupportedOption, match="nobody"):
        await generate(core, ask(4, lora="nobody"))


# Embeddings.


async def test_embeddings_of_a_server_that_was_started_for_them(model: Path) -> None:
    async with started(own_server(model, "--is-embedding")) as core:
        texts = ["the queue is empty", "the worker waits", "the queue is empty", "東京 ñ 🚢"]
        made = await core.embed(texts)
        assert [len(vector) for vector in made.vectors] == [256] * 4
        assert all(math.hypot(*vector) == pytest.approx(1.0) for vector in made.vectors)
        one, other, again, _ = made.vectors
        assert sum(a * b for a, b in zip(one, again, strict=True)) == pytest.approx(1.0, abs=1e-4)
        assert sum(a * b for a, b in zip(one, other, strict=True)) < 0.99
        assert made.tokens == sum(len(text.encode()) for text in texts)
        assert len((await core.embed([f"text {n}" for n in range(40)])).vectors) == 40
        # Asked to generate, such a server would die.
        with pytest.raises(UnsupportedOption, match="makes embeddings alone"):
            await generate(core, ask(1))
        await core.health()
