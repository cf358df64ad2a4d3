"""What an agent asks becomes a valid syscall, or an error that names what is wrong."""

from typing import Any, get_type_hints

import msgspec
import pytest

from aios_broker.contract.errors import InvalidSyscall, KernelError, UnknownModule
from aios_broker.contract.ids import Ids
from aios_broker.contract.llm import LlmChat, Message
from aios_broker.contract.names import Owner
from aios_broker.contract.syscall import Syscall, ToolEcho
from aios_sdk import requests
from aios_sdk.requests import (
    ChatOptions,
    Options,
    call_body,
    chat_body,
    check_options,
    echo_body,
    item_body,
)

ME = Options("writer")
IDS = Ids(b"secret", Owner("default", "writer"))


def build_syscall(options: Options, body: Any, index: int | None = None) -> Syscall:  # noqa: ANN401
    return requests.build_syscall(options, body, IDS, index=index)


def test_a_string_is_one_user_message() -> None:
    syscall = build_syscall(ME, chat_body("hi", max_tokens=3))
    assert syscall.body == LlmChat((Message("user", "hi"),), max_tokens=3)


def test_the_options_are_exactly_the_fields_of_a_chat() -> None:
    fields = {field.name for field in msgspec.structs.fields(LlmChat)}
    assert set(ChatOptions.__annotations__) == fields - {"messages"}


def test_plain_options_have_the_types_of_the_contract() -> None:
    """What an option may be is wider where the kernel makes one of several: lists, forms."""
    told, known = get_type_hints(ChatOptions), get_type_hints(LlmChat)
    wider = {"stop", "logit_bias", "format", "tools", "tool_choice"}
    plain = told.keys() - wider
    assert {name: told[name] for name in plain} == {name: known[name] for name in plain}


def test_the_defaults_are_those_of_the_contract() -> None:
    built = build_syscall(ME, chat_body("hi")).body
    assert built == LlmChat((Message("user", "hi"),))


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"max_tokens": 0}, "body.max_tokens"),
        ({"max_tokens": "many"}, "body.max_tokens"),
        ({"temperature": 9.0}, "body.temperature"),
        ({"temperature": float("nan")}, "body.temperature"),
        ({"core": "no spaces allowed"}, "body.core"),
        ({"stop": [""]}, "body.stop[0]"),
        ({"wings": 2}, "body.wings"),
    ],
)
def test_a_wrong_option_is_named(fields: dict[str, Any], names: str) -> None:
    with pytest.raises(InvalidSyscall) as caught:
        build_syscall(ME, chat_body("hi", **fields))
    assert caught.value.field == names


@pytest.mark.parametrize("messages", [[], 5, None, [{"role": "king", "content": "x"}], ["plain"]])
def test_wrong_messages_are_named(messages: list[Any]) -> None:
    with pytest.raises(InvalidSyscall) as caught:
        build_syscall(ME, chat_body(messages))
    assert (caught.value.field or "").startswith("body.messages")


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(InvalidSyscall, match="JSON"):
        build_syscall(ME, chat_body("hi", seed=object()))  # type: ignore[arg-type]


def test_wrong_arguments_of_a_verb_are_refused() -> None:
    with pytest.raises(InvalidSyscall, match="txt"):
        call_body("tool.echo", echo_body, txt="x")
    with pytest.raises(InvalidSyscall, match="messages"):
        call_body("llm.chat", chat_body)
    with pytest.raises(InvalidSyscall):
        item_body("llm.chat", chat_body, {"message": "typo"})


def test_too_large_a_syscall_is_refused_with_the_numbers() -> None:
    with pytest.raises(InvalidSyscall, match="the limit is 4194304"):
        build_syscall(
            ME, {"type": "llm.chat", "messages": [{"role": "user", "content": "x" * 3_000_000}] * 2}
        )


def test_an_unknown_body_is_refused() -> None:
    with pytest.raises(UnknownModule):
        build_syscall(ME, {"type": "memory.sing"})
    with pytest.raises(InvalidSyscall):
        build_syscall(ME, 5)


def test_a_body_of_the_contract_is_checked_too() -> None:
    assert build_syscall(ME, ToolEcho("x")).body == ToolEcho("x")
    with pytest.raises(InvalidSyscall):
        build_syscall(ME, LlmChat(()))


def test_the_core_of_the_options_is_for_calls_that_name_none() -> None:
    options = Options("writer", core="big")
    assert build_syscall(options, chat_body("x")).core == "big"
    assert build_syscall(options, chat_body("x", core="small")).core == "small"
    assert build_syscall(options, LlmChat((Message("user", "x"),))).core == "big"
    assert build_syscall(options, echo_body("x")).core == ""


def test_a_key_decides_the_id() -> None:
    keyed = Options("writer", key="k")
    assert build_syscall(keyed, echo_body("x")).id == IDS.from_key("k")
    assert build_syscall(keyed, echo_body("x")).id == build_syscall(keyed, chat_body("y")).id
    in_a_map = [build_syscall(keyed, echo_body("x"), index=at).id for at in range(3)]
    assert len({*in_a_map, build_syscall(keyed, echo_body("x")).id}) == 4
    assert build_syscall(ME, echo_body("x")).id != build_syscall(ME, echo_body("x")).id


@pytest.mark.parametrize(
    ("options", "deadline_s"),
    [
        (Options("a"), 600.0),
        (Options("a", timeout_s=5), 5.0),
        (Options("a", timeout_s=5, deadline_s=50), 50.0),
        (Options("a", timeout_s=1e6), 86_400.0),
    ],
)
def test_a_timeout_travels_as_a_deadline(options: Options, deadline_s: float) -> None:
    assert build_syscall(options, echo_body()).deadline_s == deadline_s


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (Options("a b"), "agent"),
        (Options("a", program=""), "program"),
        (Options("a", nice=20), "nice"),
        (Options("a", timeout_s=0), "timeout_s"),
        (Options("a", timeout_s=float("inf")), "timeout_s"),
        (Options("a", timeout_s="5"), "timeout_s"),  # type: ignore[arg-type]
        (Options("a", deadline_s=-1), "deadline_s"),
        (Options("a", deadline_s=1e6), "deadline_s"),
        (Options("a", key=""), "key"),
        (Options("a", key=7), "key"),  # type: ignore[arg-type]
        (Options("a", core="a b"), "body.core"),
    ],
)
def test_wrong_options_are_refused_when_they_are_set(options: Options, names: str) -> None:
    with pytest.raises(KernelError) as caught:
        check_options(options)
    assert caught.value.field == names
