"""What a core refuses, and what makes no sense together: a typed error that names the field."""

import json
from dataclasses import replace

import pytest

from aios_broker.contract.errors import ContextTooLong, InvalidSyscall, UnknownCore
from aios_broker.contract.errors import UnsupportedOption as Unsupported
from aios_broker.contract.llm import (
    PENALTIES,
    Image,
    JsonFormat,
    LlmChat,
    LlmEmbed,
    Message,
    RegexFormat,
    Tool,
)
from aios_workers.llm.chat.calls import HERMES
from aios_workers.llm.core import Capabilities, CoreInfo, GenerationRequest, Sampling
from aios_workers.llm.core import Constraint as Form
from aios_workers.llm.options import (
    check_core,
    check_images,
    check_length,
    check_options,
    limit_of,
)
from tests.caller import chat

ALL = frozenset(LlmChat.__struct_fields__)
PLAIN = Capabilities(keeps=frozenset({"temperature", "seed"}))
UNSEEDED = Capabilities(keeps=frozenset({"temperature"}))
ABLE = Capabilities(
    keeps=ALL,
    max_logprobs=8,
    constraints=True,
    embeddings=True,
    images=True,
    adapters=("poet",),
)
UNGRAMMATICAL = replace(ABLE, forms=frozenset({"json"}))  # it is held to no grammar
LOOSE = Capabilities(call_format=HERMES)  # it knows tools, and cannot be held to anything
F, G = Tool("f"), Tool("g")
JSON = JsonFormat()
DEEP = json.loads('{"a": ' * 150 + "1" + "}" * 150)
PICTURE = Image("image/png", "AA==")


def info(capabilities: Capabilities) -> CoreInfo:
    return CoreInfo("tiny", "0", 2, 100, capabilities, vocabulary_size=50)


def refusal(body: LlmChat | LlmEmbed, capabilities: Capabilities) -> InvalidSyscall | None:
    try:
        check_options(body, info(capabilities))
    except InvalidSyscall as error:
        return error
    return None


@pytest.mark.parametrize(
    ("capabilities", "options", "field"),
    [
        (PLAIN, {"frequency_penalty": 0.5}, "frequency_penalty"),
        (PLAIN, {"presence_penalty": 0.5}, "presence_penalty"),
        (PLAIN, {"repetition_penalty": 1.5}, "repetition_penalty"),
        (PLAIN, {"logit_bias": {3: 1.0}}, "logit_bias"),
        (UNSEEDED, {"seed": 3, "temperature": 0.5}, "seed"),
        (PLAIN, {"logprobs": 0}, "logprobs"),
        (PLAIN, {"beam_width": 1}, "beam_width"),
        (PLAIN, {"format": JSON}, "format"),
        (PLAIN, {"tools": (F,)}, "tools"),
        (PLAIN, {"lora": "poet"}, "lora"),
        (ABLE, {"logprobs": 9}, "logprobs"),
        (ABLE, {"beam_width": 5}, "beam_width"),
        (ABLE, {"lora": "painter"}, "lora"),
        (LOOSE, {"tools": (F,), "tool_choice": "required"}, "tool_choice"),
        (LOOSE, {"tools": (F,), "tool_choice": "f"}, "tool_choice"),
        (UNGRAMMATICAL, {"tools": (F,), "format": JSON}, "format"),
    ],
)
def test_what_a_core_cannot_do_is_refused(
    capabilities: Capabilities, options: dict[str, object], field: str
) -> None:
    error = refusal(chat("Hello", **options), capabilities)

    assert isinstance(error, Unsupported)
    assert error.field == f"body.{field}"
    assert "tiny" in error.message
    assert error.remedy


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"beam_width": 2, "temperature": 0.5}, "temperature"),
        ({"beam_width": 2, "top_p": 0.5}, "top_p"),
        ({"beam_width": 2, "top_k": 5}, "top_k"),
        ({"beam_width": 2, "seed": 1}, "seed"),
        ({"beam_width": 2, "frequency_penalty": 0.5}, "frequency_penalty"),
        ({"beam_width": 2, "presence_penalty": 0.5}, "presence_penalty"),
        ({"beam_width": 2, "repetition_penalty": 1.5}, "repetition_penalty"),
        ({"beam_width": 2, "logit_bias": {3: 1.0}}, "logit_bias"),
        ({"beam_width": 2, "stream": True}, "stream"),
        ({"beam_width": 2, "format": JSON}, "format"),
        ({"beam_width": 2, "tools": (F,)}, "tools"),
        ({"beam_width": 2, "n": 3}, "n"),
        ({"length_penalty": 2.0}, "length_penalty"),
        ({"tools": (F, G, F)}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "f"}, "tool_choice"),
        ({"tools": (F, G), "tool_choice": "h"}, "tool_choice"),
        ({"tools": (Tool("f", parameters={"type": "string"}),)}, "tools[0].parameters"),
        ({"tools": (Tool("f", parameters=DEEP),)}, "tools[0].parameters"),
        ({"format": JsonFormat(DEEP)}, "format.json_schema"),
        ({"tools": (F,), "format": RegexFormat("[0-9]")}, "format"),
        ({"tools": (F,), "stop": ("x",)}, "stop"),
        ({"format": JSON, "stop": ("x",)}, "stop"),
        ({"logit_bias": {50: 1.0}}, "logit_bias"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, object], field: str) -> None:
    error = refusal(chat("Hello", **options), ABLE)

    assert error is not None
    assert not isinstance(error, Unsupported)
    assert error.field == f"body.{field}"
    assert error.remedy


@pytest.mark.parametrize(
    ("capabilities", "options"),
    [
        (PLAIN, {}),
        (PLAIN, {"n": 3, "temperature": 0.5, "seed": 3, "stop": ("x",), "stream": True}),
        (PLAIN, {"tools": (F,), "tool_choice": "none", "stop": ("x",)}),
        (ABLE, {"frequency_penalty": 0.5, "logit_bias": {0: 1.0, 49: -100.0}, "logprobs": 8}),
        (ABLE, {"beam_width": 4, "n": 4, "logprobs": 2, "length_penalty": 2.0, "stop": ("x",)}),
        (ABLE, {"beam_width": 2, "tools": (F,), "tool_choice": "none"}),
        (ABLE, {"tools": (F, G), "tool_choice": "g", "n": 2, "stream": True}),
        (ABLE, {"tools": (F, G), "tool_choice": "none", "format": JSON}),
        (ABLE, {"tools": (F,), "format": JSON}),
        (UNGRAMMATICAL, {"tools": (F,), "tool_choice": "f", "format": JSON}),
        (replace(UNGRAMMATICAL, native_calls=True), {"tools": (F,), "format": JSON}),
        (ABLE, {"lora": "poet", "core": "tiny"}),
        (LOOSE, {"tools": (F,)}),
        (UNSEEDED, {"temperature": 0.5}),
        (UNSEEDED, {"seed": 3}),
    ],
)
def test_everything_else_is_taken(capabilities: Capabilities, options: dict[str, object]) -> None:
    assert refusal(chat("Hello", **options), capabilities) is None


def test_another_core_is_unknown_where_nobody_has_routed() -> None:
    for body in (chat("Hello", core="huge"), LlmEmbed(("Hello",), core="huge")):
        with pytest.raises(UnknownCore) as refused:
            check_core(body, info(ABLE))
        assert refused.value.field == "body.core"


def test_embeddings_are_refused_where_there_are_none() -> None:
    error = refusal(LlmEmbed(("Hello",)), PLAIN)

    assert isinstance(error, Unsupported)
    assert error.field == "body.core"
    assert refusal(LlmEmbed(("Hello",)), ABLE) is None


def test_images_need_a_core_that_sees_them() -> None:
    body = LlmChat((Message("user", "What is it?", images=(PICTURE,)),))

    error = refusal(body, PLAIN)
    assert isinstance(error, Unsupported)
    assert error.field == "body.messages"
    assert refusal(body, ABLE) is None
    compacting = refusal(LlmChat(body.messages, overflow="compact"), ABLE)
    assert compacting is not None
    assert compacting.field == "body.overflow"
    with pytest.raises(Unsupported):  # of a stored context
        check_images(body.messages, info(PLAIN))


def test_an_answer_that_may_be_shortened_has_as_many_tokens_as_there_is_room_for() -> None:
    body = LlmChat((Message("user", "x"),), max_tokens=40, overflow="shorten")
    assert limit_of(body, 50, info(PLAIN)) == 40
    assert limit_of(body, 61, info(PLAIN)) == 39
    assert limit_of(body, 99, info(PLAIN)) == 1
    with pytest.raises(ContextTooLong):
        limit_of(body, 100, info(PLAIN))
    with pytest.raises(ContextTooLong):
        limit_of(chat("x", max_tokens=40), 61, info(PLAIN))


def test_prompt_and_answer_have_to_fit_together() -> None:
    check_length(60, 40, info(PLAIN))

    with pytest.raises(ContextTooLong, match=r"61 tokens.*40.*holds 100"):
        check_length(61, 40, info(PLAIN))


def test_which_generations_may_be_cut() -> None:
    plain = GenerationRequest("0" * 32, (1,), 9, Sampling(temperature=0.5))
    penalised = replace(plain, sampling=Sampling(repetition_penalty=1.1))
    held = replace(plain, constraint=Form("regex", "a"))
    weak = Capabilities(lost_by_suspension=PENALTIES, constraints_preemptible=False)

    assert [weak.can_suspend(each) for each in (plain, penalised, held)] == [True, False, False]
    assert all(Capabilities().can_suspend(each) for each in (plain, penalised, held))
    assert not Capabilities(preemptible=False).can_suspend(plain)
