"""Forms on the SGLang core: what its server is asked, and what of its answers is handed out."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aios_broker.contract.errors import CoreError, InvalidSyscall, UnsupportedOption
from aios_broker.contract.llm import Tool
from aios_workers.llm.chat.calls import (
    DEEPSEEK,
    DEEPSEEK_31,
    FORMATS,
    CallFormat,
    ReadCall,
    parted,
)
from aios_workers.llm.constraint import narrowed_constraint
from aios_workers.llm.core import Constraint, Sampling, Step
from aios_workers.llm.cores.sglang.sglang_core import SGLangCore
from aios_workers.llm.schemas import narrowed
from aios_workers.llm.tools import Toolbox, constraint_of
from tests.fake_sglang import FakeSGLang, answers, rambles, running, says, writes
from tests.sglang_scene import ask, core_on, expected_ids, steps_of
from tests.tiny_llama import END_ID, byte_level_tokenizer, write_model
from tests.waiting import wait_until_async

WORD = Constraint("regex", "yes|no")
PAIR = Constraint(
    "json",
    json.dumps(
        {
            "type": "object",
            "properties": {"a": {"enum": [1, 2]}, "b": {"type": "boolean"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        }
    ),
)
SUM = Constraint("grammar", 'start: /[0-9]{1,3}/ "+" /[0-9]{1,3}/')
NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
CALLS = constraint_of(Toolbox((Tool("add", "Adds one.", NUMBER),), forced=False))
CALL = '<tool_call>{"name": "add", "arguments": {"n": 1}}</tool_call>'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
async def fake(model: Path) -> AsyncIterator[FakeSGLang]:
    async with running(FakeSGLang(model)) as fake:
        fake.server_info["grammar_backend"] = "llguidance"
        yield fake


@pytest.fixture
async def core(fake: FakeSGLang) -> AsyncIterator[SGLangCore]:
    async with core_on(fake) as core:
        yield core


@pytest.fixture
async def on_xgrammar(fake: FakeSGLang) -> AsyncIterator[SGLangCore]:
    fake.server_info["grammar_backend"] = "xgrammar"
    async with core_on(fake) as core:
        yield core


def ids_of(text: str) -> list[int]:
    return list(byte_level_tokenizer().encode(text).ids)


def asked_by(fake: FakeSGLang) -> dict[str, Any]:
    """Return what the latest request asks for beside what all say."""
    forms = ("json_schema", "regex", "ebnf", "structural_tag")
    params: dict[str, Any] = fake.requests[-1]["sampling_params"]
    return {name: params[name] for name in forms if name in params}


async def written(core: SGLangCore, fake: FakeSGLang, text: str, form: Constraint) -> list[Step]:
    """Return the steps of an answer for which the server writes a text and then ends."""
    fake.script = [writes(ids_of(text), END_ID)]
    return await steps_of(core, ask(max_tokens=300, constraint=form))


# What the server is asked.


async def test_llguidance_is_asked_for_what_we_would_compile(
    core: SGLangCore, fake: FakeSGLang
) -> None:
    await written(core, fake, "yes", WORD)
    assert asked_by(fake) == {"regex": "yes|no"}
    await written(core, fake, "1+1", SUM)
    assert asked_by(fake) == {"ebnf": SUM.source}
    await written(core, fake, "hi", CALLS)
    assert asked_by(fake) == {"ebnf": narrowed_constraint(CALLS).source}
    await written(core, fake, '{"a": 1, "b": true}', PAIR)
    asked = json.loads(asked_by(fake)["json_schema"])
    guidance = asked.pop("x-guidance")
    told = narrowed(json.loads(PAIR.source))
    assert isinstance(told, dict)
    assert guidance == {
        "whitespace_flexible": False,
        "item_separator": ", ",
        "key_separator": ": ",
        **told.pop("x-guidance"),
    }
    assert asked == told


async def test_a_schema_cannot_ask_that_its_keywords_are_passed_over(
    core: SGLangCore, fake: FakeSGLang
) -> None:
    own = {**json.loads(PAIR.source), "x-guidance": {"lenient": True, "item_separator": ","}}
    await written(core, fake, '{"a": 1,"b": true}', Constraint("json", json.dumps(own)))
    guidance = json.loads(asked_by(fake)["json_schema"])["x-guidance"]
    assert (guidance["lenient"], guidance["item_separator"]) == (False, ",")


async def test_a_grammar_that_the_server_would_take_for_another_notation_is_marked(
    core: SGLangCore, fake: FakeSGLang
) -> None:
    form = Constraint("grammar", 'n: "1"\nstart[capture]: n')
    await written(core, fake, "1", form)
    assert asked_by(fake) == {"ebnf": f"%llguidance {{}}\n{form.source}"}


async def test_xgrammar_is_asked_for_calls_in_its_own_notation(
    on_xgrammar: SGLangCore, fake: FakeSGLang
) -> None:
    await written(on_xgrammar, fake, f"So: {CALL}", CALLS)
    asked = json.loads(asked_by(fake)["structural_tag"])["format"]
    assert (asked["triggers"], asked["stop_after_first"]) == (["<tool_call>"], True)
    assert asked["tags"][0]["content"]["json_schema"]["properties"]["name"] == {"const": "add"}
    await written(on_xgrammar, fake, '{"a": 1, "b": true}', PAIR)
    assert asked_by(fake) == {"json_schema": PAIR.source}


SPOKEN = {
    "hermes": CALL,
    "llama3": '{"name": "add", "parameters": {"n": 1}}',
    "mistral": '[TOOL_CALLS][{"name": "add", "arguments": {"n": 1}}]',
    "mistral-named": '[TOOL_CALLS]add[ARGS]{"n": 1}',
    "granite": '<|tool_call|>[{"name": "add", "arguments": {"n": 1}}]',
    "deepseek": f"{DEEPSEEK.begin}{DEEPSEEK.call_begin}add{DEEPSEEK.after_name}"
    f'{{"n": 1}}{DEEPSEEK.call_end}{DEEPSEEK.end}',
    "deepseek-3.1": f"{DEEPSEEK_31.begin}{DEEPSEEK_31.call_begin}add{DEEPSEEK_31.after_name}"
    f'{{"n": 1}}{DEEPSEEK_31.call_end}{DEEPSEEK_31.end}',
    "gemma": "<start_function_call>call:add{n:1}<end_function_call>",
    "gemma-4": "<|tool_call>call:add{n:1}<tool_call|>",
}


@pytest.mark.parametrize("call_format", FORMATS, ids=lambda each: each.name)
async def test_calls_of_every_family_are_held_on_xgrammar(
    on_xgrammar: SGLangCore, fake: FakeSGLang, call_format: CallFormat
) -> None:
    toolbox = Toolbox((Tool("add", "Adds one.", NUMBER),), forced=False, call_format=call_format)
    form = constraint_of(toolbox)
    spoken = SPOKEN[call_format.name]
    for text in ("Seven.", spoken, spoken if not call_format.marker else f"So: {spoken}"):
        steps = await written(on_xgrammar, fake, text, form)
        assert steps[-1].finish_reason == "stop"
        said = on_xgrammar.decode([token for step in steps for token in step.ids]).decode()
        calls = [] if text == "Seven." else [ReadCall("add", '{"n": 1}')]
        assert parted(said, call_format)[1] == calls
    asked = json.loads(asked_by(fake)["structural_tag"])["format"]
    tags = asked.get("tags", [])
    assert [spoken.startswith(tag["begin"]) and spoken.endswith(tag["end"]) for tag in tags] == (
        [True] if call_format.marker else []
    )
    with pytest.raises(CoreError, match=r"leaves its form|ends before"):
        await written(on_xgrammar, fake, spoken.replace("add", "sub").replace("1", "one"), form)


async def test_xgrammar_may_put_blanks_into_json(on_xgrammar: SGLangCore, fake: FakeSGLang) -> None:
    for text in ('{"a":1,"b":true}', '{ "a" : 1,\n"b": false }'):
        assert (await written(on_xgrammar, fake, text, PAIR))[-1].finish_reason == "stop"
    loose = CALL.replace(": ", ":").replace("1}", "1 }")
    assert (await written(on_xgrammar, fake, loose, CALLS))[-1].finish_reason == "stop"
    with pytest.raises(CoreError, match="leaves its form"):
        await written(on_xgrammar, fake, '{"a": 3, "b": true}', PAIR)


# What comes back.


async def test_an_answer_ends_on_the_token_that_completes_its_form(
    core: SGLangCore, fake: FakeSGLang
) -> None:
    steps = await written(core, fake, "yes", WORD)
    assert [(step.ids, step.finish_reason) for step in steps] == [
        ((ids_of("y")[0],), None),
        ((ids_of("e")[0],), None),
        ((ids_of("s")[0],), "stop"),
    ]
    assert (await written(core, fake, "hi", CALLS))[-1] == Step((), "stop")  # more could follow
    assert fake.aborts == []
    assert fake.connections == 1


async def test_an_answer_that_is_complete_at_its_last_token_is_not_cut_off(
    core: SGLangCore, fake: FakeSGLang
) -> None:
    full = {"type": "length", "length": 2}
    ids = ids_of("no")
    fake.script = [
        says(
            {"output_ids": ids[:1], "meta_info": {"finish_reason": None}},
            {"output_ids": ids, "meta_info": {"finish_reason": full}},
        )
    ]
    assert (await steps_of(core, ask(max_tokens=2, constraint=WORD)))[-1].finish_reason == "stop"


async def test_what_leaves_its_form_is_a_core_error_and_is_not_handed_out(
    core: SGLangCore, fake: FakeSGLang
) -> None:
    fake.script = [writes(ids_of("yep"), END_ID)]
    steps = core.generate(ask(constraint=WORD))
    assert [(await anext(steps)).ids[0] for _ in range(2)] == ids_of("ye")
    with pytest.raises(CoreError, match="leaves its form") as caught:
        await anext(steps)
    assert "--grammar-backend llguidance" in (caught.value.remedy or "")
    await wait_until_async(lambda: fake.aborts == [fake.requests[0]["rid"]])
    assert (await written(core, fake, "no", WORD))[-1].finish_reason == "stop"


async def test_what_ends_before_its_form_does_is_a_core_error(
    core: SGLangCore, fake: FakeSGLang
) -> None:
    with pytest.raises(CoreError, match="ends before its form"):
        await written(core, fake, "ye", WORD)


async def test_a_server_that_goes_on_behind_the_end_is_stopped(
    core: SGLangCore, fake: FakeSGLang
) -> None:
    fake.script, fake.step_s = [rambles(ids_of("yes"))], 0.01
    steps = await steps_of(core, ask(max_tokens=100, constraint=WORD))
    assert [token for step in steps for token in step.ids] == ids_of("yes")
    assert steps[-1].finish_reason == "stop"
    assert fake.aborts == [fake.requests[0]["rid"]]


# What is refused.


async def test_a_form_is_never_cut(core: SGLangCore, fake: FakeSGLang) -> None:
    can = core.info.capabilities
    assert can.constraints
    assert can.can_suspend(ask())
    assert not can.can_suspend(ask(constraint=WORD))
    with pytest.raises(UnsupportedOption, match="form across a cut"):
        await steps_of(core, ask(constraint=WORD, resume_ids=expected_ids(1)))
    with pytest.raises(UnsupportedOption, match="after penalties, bias and forms"):
        await steps_of(core, ask(constraint=WORD, logprobs=1))
    assert fake.requests == []


@pytest.mark.parametrize(
    "change",
    [
        {"grammar_backend": "none"},
        {"grammar_backend": "outlines"},
        {"skip_tokenizer_init": True},
    ],
)
async def test_without_a_grammar_backend_that_we_know_forms_are_refused(
    fake: FakeSGLang, change: dict[str, Any]
) -> None:
    fake.server_info |= change
    async with core_on(fake) as core:
        assert not core.info.capabilities.constraints
        with pytest.raises(UnsupportedOption, match="holds no forms") as caught:
            await steps_of(core, ask(constraint=WORD))
        assert caught.value.field == "body.format.pattern"
        assert "--grammar-backend llguidance" in (caught.value.remedy or "")
    assert fake.requests == []


async def test_xgrammar_reads_no_grammars_in_larks_notation(
    on_xgrammar: SGLangCore, fake: FakeSGLang
) -> None:
    with pytest.raises(UnsupportedOption, match="Lark's notation") as caught:
        await steps_of(on_xgrammar, ask(constraint=SUM))
    assert caught.value.field == "body.format.grammar"
    assert fake.requests == []


async def test_a_form_that_could_end_the_server_does_not_reach_it(
    core: SGLangCore, fake: FakeSGLang
) -> None:
    rules = [f"r{n}: r{n + 1}" for n in range(15_000)]
    chain = "\n".join(("start: r0", *rules, 'r15000: "x"'))
    for form in (Constraint("grammar", chain), Constraint("regex", "(")):
        with pytest.raises(InvalidSyscall, match="cannot be kept"):
            await steps_of(core, ask(constraint=form))
    assert fake.requests == []


async def test_a_form_that_the_servers_own_library_refuses_is_told_as_that(
    on_xgrammar: SGLangCore, fake: FakeSGLang
) -> None:
    said = "Failed to compile regex grammar: Group modifier flag is not supported yet."
    refused = {"error": {"message": said, "code": 400}}
    fake.script = [answers(400, json.dumps(refused).encode()), says(refused)]
    for _ in range(2):
        with pytest.raises(UnsupportedOption, match="Group modifier") as caught:
            await steps_of(on_xgrammar, ask(constraint=Constraint("regex", "(?i)yes")))
        assert caught.value.field == "body.format.pattern"
    fake.script = [answers(400, b"no")]
    with pytest.raises(CoreError):
        await steps_of(on_xgrammar, ask(sampling=Sampling(temperature=0.5), constraint=WORD))
