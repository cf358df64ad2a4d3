"""Syscalls: what was sent is read back, and what is wrong is named."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios_broker.contract.errors import (
    InvalidSyscall,
    KernelError,
    UnknownModule,
    UnsupportedVersion,
)
from aios_broker.contract.llm import (
    ContextExpand,
    ContextGet,
    GrammarFormat,
    JsonFormat,
    LlmChat,
    LlmCount,
    LlmEmbed,
    Message,
    RegexFormat,
    Tool,
    ToolCall,
)
from aios_broker.contract.memory import MemoryAdd
from aios_broker.contract.names import MAX_TEXT_BYTES
from aios_broker.contract.syscall import (
    KINDS,
    MAX_LEVELS,
    MAX_VALUES,
    MODULES,
    Body,
    Syscall,
    ToolEcho,
    check_syscall,
    decode_syscall,
    encode_syscall,
    new_id,
)
from tests.chat_fields import NUMBERS, numbers

ID = "0123456789abcdef" * 2
names = st.from_regex(r"\A[A-Za-z0-9._:@/-]{1,128}\Z")
somebody = st.from_regex(r"\A[a-jl-np-z0-9_][a-z0-9._-]{0,60}([:@][A-Z0-9][A-Z0-9.-]{0,60})?\Z")
LETTERS = st.characters(codec="utf-8", exclude_characters="\x00")


def texts(**limits: int) -> st.SearchStrategy[str]:
    """Texts that a syscall can carry."""
    return st.text(LETTERS, **limits)


messages = st.builds(
    Message, role=st.sampled_from(["system", "user", "assistant", "tool"]), content=texts()
)
FIRST_NUMBERS = {
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "seed",
}
FIRST_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    **{name: numbers(name) for name in FIRST_NUMBERS},
    "messages": st.lists(messages, min_size=1, max_size=5).map(tuple),
    "core": st.none() | names,
    "stop": st.lists(texts(min_size=1, max_size=256), max_size=16).map(tuple),
    "stream": st.booleans(),
    "return_ids": st.booleans(),
}
chats = st.builds(LlmChat, **FIRST_FIELDS)
schemas = st.dictionaries(texts(), st.booleans() | texts() | st.integers(0, 9), max_size=3)
formats = (
    st.builds(JsonFormat, st.none() | schemas)
    | st.builds(RegexFormat, texts(min_size=1))
    | st.builds(GrammarFormat, texts(min_size=1))
)
functions = st.from_regex(r"\A[A-Za-z0-9_-]{1,64}\Z")
turns = messages | st.builds(
    Message,
    role=st.just("assistant"),
    content=texts(),
    tool_calls=st.lists(
        st.builds(ToolCall, texts(min_size=1, max_size=64), functions, texts()), max_size=2
    ).map(tuple),
)
LATER_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    **{name: numbers(name) for name in NUMBERS.keys() - FIRST_NUMBERS},
    "messages": st.lists(turns, min_size=1, max_size=3).map(tuple),
    "logit_bias": st.dictionaries(st.integers(0, 10**6), st.floats(-100, 100), max_size=3),
    "format": st.none() | formats,
    "lora": st.none() | names,
    "context": st.none() | names,
    "tools": st.lists(st.builds(Tool, functions, texts(), schemas), max_size=2).map(tuple),
    "tool_choice": st.sampled_from(["auto", "none", "required"]) | functions,
    "overflow": st.sampled_from(["refuse", "compact", "shorten"]),
}
later_chats = st.builds(LlmChat, **LATER_FIELDS)
others = (
    st.builds(ToolEcho, texts())
    | st.builds(ContextGet, context=names, core=st.none() | names)
    | st.builds(LlmEmbed, st.lists(texts(), min_size=1, max_size=3).map(tuple))
    | st.builds(LlmCount, st.lists(texts(), min_size=1, max_size=3).map(tuple))
    | st.builds(ContextExpand, st.lists(messages, min_size=1, max_size=3).map(tuple), context=names)
)
syscalls = st.builds(
    Syscall,
    id=st.from_regex(r"\A[0-9a-f]{32}\Z"),
    agent=somebody,
    body=chats | later_chats | others,
    program=names,
    tenant=somebody,
    token=texts(max_size=256),
    nice=st.integers(-20, 19),
    deadline_s=st.floats(0.0, 86_400.0, exclude_min=True),
    version=st.just(1),
)


def request(path: str = "", value: object = None) -> dict[str, Any]:
    """Return a valid chat as JSON has it, with the value at a dotted path set, or (...) taken."""
    whole: dict[str, Any] = {
        "id": ID,
        "agent": "ada",
        "body": {"type": "llm.chat", "messages": [{"role": "user", "content": "hi"}]},
    }
    at: Any = whole
    *steps, last = (int(part) if part.isdigit() else part for part in path.split("."))
    for step in steps:
        at = at[step]
    if value is ...:
        del at[last]
    elif path:
        at[last] = value
    return whole


def refusal(data: bytes | str) -> KernelError:
    with pytest.raises(KernelError) as caught:
        decode_syscall(data)
    return caught.value


@given(syscalls)
def test_what_was_sent_is_read_back(syscall: Syscall) -> None:
    assert decode_syscall(encode_syscall(syscall)) == syscall
    assert check_syscall(syscall) == syscall


def test_any_value_of_every_field_of_a_chat_is_tried() -> None:
    assert FIRST_FIELDS.keys() | LATER_FIELDS.keys() == set(LlmChat.__struct_fields__)


def test_the_reference_names_every_field_of_a_chat() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference.md").read_text()
    section = page.partition("### `llm.chat`")[2].partition("\n`format`:")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]

    assert sorted(re.findall("`([a-z_]+)`", "".join(rows))) == sorted(LlmChat.__struct_fields__)


@given(syscalls)
@settings(max_examples=50)
def test_the_queue_follows_from_the_body(syscall: Syscall) -> None:
    tag = json.loads(encode_syscall(syscall))["body"]["type"]

    assert syscall.kind == tag
    tree = tag.partition(".")[0]
    assert syscall.module == ("llm" if tree == "context" else tree)
    assert syscall.module in MODULES


def test_every_kind_is_a_body_of_the_union() -> None:
    expected = {
        "llm": "chat embed count",
        "context": "get set clear expand summarise",
        "memory": "alloc add get update remove list search context log history rollback undo clear"
        " ttl share unshare stat dump restore",
        "storage": "create read write append apply list stat move copy delete mkdir mount unmount"
        " search versions diff rollback share unshare open lock unlock operate",
        "access": "whoami register revoke_token groups group_create group_delete group_add"
        " group_remove grant revoke grants check approvals approve deny set_rule rules audit",
        "tool": "call list show",
        "exec": "open run interrupt reset close list changes commit discard",
    }
    assert (
        *(f"{family}.{one}" for family, names in expected.items() for one in names.split()),
        "tool.echo",
    ) == KINDS
    assert len(get_args(Body)) == len(KINDS)


# Like the operator's lines in the audit log, the kernel's, an option, a path, or ambiguous.
POSING_NAMES = (
    *("operator:root", "OPERATOR:root", "operator", "Operators", "kernel:root", "Kernel"),
    *("-rf", "--yes", "..", "/", "../../x", "@", "a//b", "a/../b", "a/", ":a", ".a", "a/-b", "a@"),
)


@pytest.mark.parametrize("field", ["agent", "tenant"])
@pytest.mark.parametrize("name", POSING_NAMES)
def test_what_poses_as_somebody_else_is_no_name(field: str, name: str) -> None:
    error = refusal(json.dumps(request(field, name)))
    assert (error.field, "`operator`" in str(error)) == (field, True)


def test_a_tenant_has_no_slash() -> None:
    assert refusal(json.dumps(request("tenant", "a/b"))).field == "tenant"


@pytest.mark.parametrize("name", ["ada", "team/ada", "a@b.c:x/y", "_x", "7", "the.operator"])
def test_what_poses_as_nobody_is_a_name(name: str) -> None:
    assert decode_syscall(json.dumps(request("agent", name))).agent == name


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("id", ..., "id"),
        ("id", "short", "id"),
        ("id", ID.upper(), "id"),
        ("id", 5, "id"),
        ("agent", ..., "agent"),
        ("agent", "", "agent"),
        ("agent", "a b", "agent"),
        ("agent", "x" * 129, "agent"),
        ("program", "\n", "program"),
        ("tenant", None, "tenant"),
        ("token", "x" * 257, "token"),
        ("nice", 20, "nice"),
        ("nice", -21, "nice"),
        ("nice", 1.5, "nice"),
        ("deadline_s", 0, "deadline_s"),
        ("deadline_s", 86_401, "deadline_s"),
        ("version", True, "version"),
        ("surprise", 1, "surprise"),
        ("body", ..., "body"),
        ("body", "hi", "body"),
        ("body.type", ..., "body.type"),
        ("body.type", 5, "body.type"),
        ("body.surprise", 1, "body.surprise"),
        ("body.messages", ..., "body.messages"),
        ("body.messages", [], "body.messages"),
        ("body.messages.0.role", "king", "body.messages[0].role"),
        ("body.messages.0.content", 5, "body.messages[0].content"),
        ("body.messages.0.content", ..., "body.messages[0].content"),
        ("body.messages.0.name", "x", "body.messages[0].name"),
        ("body.core", "no spaces", "body.core"),
        ("body.max_tokens", 0, "body.max_tokens"),
        ("body.max_tokens", 131_073, "body.max_tokens"),
        ("body.temperature", 2.1, "body.temperature"),
        ("body.temperature", "hot", "body.temperature"),
        ("body.top_p", 0, "body.top_p"),
        ("body.top_k", -1, "body.top_k"),
        ("body.seed", 2**63, "body.seed"),
        ("body.seed", 2**80, "body.seed"),
        ("body.stop", [""], "body.stop[0]"),
        ("body.stop", ["x"] * 17, "body.stop"),
        ("body.stream", 1, "body.stream"),
        ("body.repetition_penalty", 0, "body.repetition_penalty"),
    ],
)
def test_bad_input_is_named_with_a_remedy(path: str, value: object, field: str) -> None:
    error = refusal(json.dumps(request(path, value)))

    assert isinstance(error, InvalidSyscall)
    assert (error.code, error.field) == ("invalid-syscall", field)
    assert error.remedy
    assert error.syscall_id == (
        ID
        if not path.startswith("id") or value == ID
        else value
        if isinstance(value, str)
        else None
    )


@pytest.mark.parametrize("field", ["agent", "tenant", "program", "id", "body.core"])
def test_no_name_ends_with_a_new_line(field: str) -> None:
    """A pattern that ends in `$` would take it, and journal, ledger and quotas would not."""
    name = ID if field == "id" else "ada"
    assert refusal(json.dumps(request(field, f"{name}\n"))).field == field


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"5",
        b'"text"',
        b"\xff\xfe",
        b'{"id": "\xff"}',
        b"{}{}",
        b"[" * 100_000,
        b'{"body":' * 100_000,
        pytest.param(b'{"agent":"\\ud800"}', id="surrogate"),
    ],
)
def test_what_is_no_syscall_at_all_is_refused(data: bytes) -> None:
    error = refusal(data)

    assert isinstance(error, InvalidSyscall)
    assert error.field
    assert error.remedy


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | texts(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["id", "agent", "body", "type", "version", "messages"]) | texts(),
                inner,
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
@settings(max_examples=300)
def test_any_bytes_are_a_syscall_or_a_typed_error(data: bytes) -> None:
    try:
        assert isinstance(decode_syscall(data), Syscall)
    except (InvalidSyscall, UnsupportedVersion) as error:
        assert error.field  # noqa: PT017  either outcome is right
        assert error.remedy  # noqa: PT017


@pytest.mark.parametrize(
    ("kind", "words", "known"),
    [
        ("dance.waltz", "no module 'dance' is served", MODULES),
        ("", "no module '' is served", MODULES),
        ("memory.sing", "module 'memory' has no operation 'memory.sing'", ["memory.add"]),
        ("access.sing", "module 'access' has no operation 'access.sing'", ["access.grant"]),
        ("llm.sing", "module 'llm' has no operation 'llm.sing'", ["llm.chat", "llm.embed"]),
        ("context.sing", "module 'llm' has no operation 'context.sing'", ["context.get"]),
    ],
)
def test_an_unknown_kind_is_told_from_a_bad_field(
    kind: str, words: str, known: Sequence[str]
) -> None:
    error = refusal(json.dumps(request("body.type", kind)))

    assert isinstance(error, UnknownModule)
    assert (error.field, error.syscall_id) == ("body.type", ID)
    assert words in error.message
    assert all(one in (error.remedy or "") for one in known)


@pytest.mark.parametrize("version", [0, 2, 10**30, "1", None, [1]])
def test_another_version_is_told_whatever_else_is_different(version: object) -> None:
    other = {**request("version", version), "field_of_the_future": 1, "id": ID}
    error = refusal(json.dumps(other))

    assert isinstance(error, UnsupportedVersion)
    assert (error.field, error.syscall_id) == ("version", ID)
    assert repr(version) in error.message
    assert error.remedy


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


AROUND_METADATA = 3  # levels: the syscall, its body, the metadata


def test_a_syscall_may_be_nested_so_deep_on_every_python_and_no_deeper() -> None:
    deep, deeper = (
        Syscall(
            ID,
            "ada",
            MemoryAdd(
                "brackets in text do not count: " + "[" * 999,
                metadata={
                    "n": nested(MAX_LEVELS - AROUND_METADATA + more),
                    "flat": [[]] * 999,
                },
            ),
        )
        for more in (0, 1)
    )
    sent = encode_syscall(deep)
    assert decode_syscall(sent) == decode_syscall(sent.decode()) == deep
    with pytest.raises(InvalidSyscall, match="it is nested more than 128 levels") as caught:
        encode_syscall(deeper)
    assert (caught.value.field, caught.value.syscall_id) == ("body", ID)
    assert refusal(msgspec.json.encode(deeper)).message == caught.value.message


def test_a_syscall_may_have_so_many_values_and_no_more() -> None:
    def of(count: int) -> Syscall:
        return Syscall(ID, "ada", MemoryAdd("," * 2 * MAX_VALUES, metadata={"m": [1] * count}))

    around = encode_syscall(msgspec.structs.replace(of(1), body=MemoryAdd("", metadata={"m": [1]})))
    most = MAX_VALUES - sum(map(around.count, (b",", b"[", b"{"))) + 1
    assert decode_syscall(encode_syscall(of(most))) == of(most)
    with pytest.raises(InvalidSyscall, match="more than 100000 values") as caught:
        encode_syscall(of(most + 1))
    assert (caught.value.field, caught.value.syscall_id) == ("body", ID)
    assert refusal(msgspec.json.encode(of(most + 1))).message == caught.value.message


@pytest.mark.parametrize("levels", [200, 1_200, 5_000, 90_000])  # 990: 3.11's limit; 9,990: 3.13's
def test_what_is_nested_too_deeply_is_refused_alike_on_every_python(levels: int) -> None:
    around = {**request("agent", "ada"), "zzz": "DEEP"}
    deep = json.dumps(around).replace('"DEEP"', "[" * levels + "]" * levels)
    assert "nested more than" in refusal(deep).message


def chat(**options: Any) -> Syscall:  # noqa: ANN401  what a careless caller passes
    return Syscall(ID, "ada", LlmChat(**{"messages": (Message("user", "hi"),), **options}))


@pytest.mark.parametrize(
    ("syscall", "field"),
    [
        (chat(temperature=float("nan")), "body.temperature"),
        (chat(temperature=float("inf")), "body.temperature"),
        (chat(seed=2**80), "body.seed"),
        (chat(messages="hi"), "body.messages"),
        (chat(messages=(Message("user", object()),)), "body"),  # type: ignore[arg-type]
        (chat(messages=(Message("user", "\ud800"),)), "body"),
        (Syscall(ID, "ada", None), "body"),  # type: ignore[arg-type]
        (Syscall(ID, "two words", ToolEcho()), "agent"),
    ],
)
def test_one_built_wrongly_in_python_is_refused_as_well(syscall: Syscall, field: str) -> None:
    with pytest.raises(InvalidSyscall) as caught:
        check_syscall(syscall)

    assert caught.value.field == field
    assert caught.value.remedy
    assert caught.value.syscall_id == ID


def test_the_size_limit_is_of_the_encoded_syscall_and_says_both_numbers() -> None:
    overhead = len(encode_syscall(Syscall(ID, "ada", ToolEcho(""))))
    fits = Syscall(ID, "ada", ToolEcho("x" * (MAX_TEXT_BYTES - overhead)))
    assert len(encode_syscall(fits)) == MAX_TEXT_BYTES

    over = msgspec.structs.replace(fits, body=ToolEcho("x" * (MAX_TEXT_BYTES - overhead + 1)))
    with pytest.raises(InvalidSyscall, match=f"{MAX_TEXT_BYTES + 1} bytes.* {MAX_TEXT_BYTES}"):
        encode_syscall(over)


def test_fresh_ids_are_all_different() -> None:
    assert len({new_id() for _ in range(10_000)}) == 10_000
