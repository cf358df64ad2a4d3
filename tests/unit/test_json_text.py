"""No text has a NUL, and no object a key twice: at the door, in every kind of syscall."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_broker.access.requests import body_from
from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.job import ENTRY, decode_job
from aios_broker.contract.json_text import (
    DuplicateKey,
    has_more_values,
    has_nul,
    is_nested_deeper,
    read_once_each,
    refuse_duplicate_keys,
)
from aios_broker.contract.memory import MemoryAdd
from aios_broker.contract.syscall import (
    MAX_VALUES,
    Syscall,
    ToolEcho,
    check_syscall,
    decode_syscall,
    encode_syscall,
    new_id,
    refuse_nul,
)
from aios_sdk.requests import Options, build_syscall
from tests.unit.test_sdk_requests import IDS

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('a\\"u0\x00\x01é')),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.sampled_from("a\\\x00u")), inner),
    max_leaves=8,
)
BODIES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"type": "tool.echo", "text": "a\x00b"}, "body.text"),
    ({"type": "memory.search", "query": "a\x00"}, "body.query"),
    ({"type": "memory.context", "query": "a\x00b"}, "body.query"),
    ({"type": "memory.add", "content": "x", "tags": ["good", "\x00"]}, "body.tags.1"),
    ({"type": "memory.add", "content": "x", "metadata": {"k": "\x00"}}, "body.metadata.k"),
    ({"type": "memory.add", "content": "x", "metadata": {"\x00": 1}}, "body.metadata"),
    ({"type": "storage.search", "query": "\x00"}, "body.query"),
    ({"type": "storage.write", "path": "a", "content": "\x00"}, "body.content"),
    ({"type": "storage.read", "path": "a\x00"}, "body.path"),
    ({"type": "llm.chat", "messages": [{"role": "user", "content": "\x00"}]}, "content"),
    ({"type": "access.deny", "approval": "x", "reason": "\x00"}, "body.reason"),
)


def has_nul_plainly(value: object) -> bool:
    if isinstance(value, dict):
        return any("\x00" in key or has_nul_plainly(part) for key, part in value.items())
    if isinstance(value, list):
        return any(map(has_nul_plainly, value))
    return isinstance(value, str) and "\x00" in value


@given(JSON)
def test_a_nul_is_seen_wherever_it_is_and_nowhere_else(value: object) -> None:
    assert has_nul(json.dumps(value)) == has_nul_plainly(value)
    assert has_nul(json.dumps(value, ensure_ascii=False).encode()) == has_nul_plainly(value)


@given(JSON)
def test_what_has_each_key_once_passes(value: object) -> None:
    refuse_duplicate_keys(json.dumps(value))


# Keys and texts with colons, and such as are written in two ways.
_KEYS = st.sampled_from(['"a"', '"\\u0061"', '"b:"', '"b\\u003A"', '"c\\\\"', '""'])
_LEAVES = st.sampled_from(["1", "null", '":"', '"\\u003a"', '"\\\\u003a"', '"\\":"', "-2.5e3"])
WRITTEN = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda parts: f"[{', '.join(parts)}]"),
        st.lists(st.tuples(_KEYS, inner), max_size=4).map(
            lambda pairs: "{" + ",".join(f"{key} : {value}" for key, value in pairs) + "}"
        ),
    ),
    max_leaves=12,
)


def says_twice(text: str) -> bool:
    found = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        found.append(len({key for key, _ in pairs}) < len(pairs))

    json.loads(text, object_pairs_hook=look)
    return any(found)


@given(WRITTEN)
def test_a_key_twice_is_seen_however_it_is_written(text: str) -> None:
    if says_twice(text):
        with pytest.raises(DuplicateKey):
            refuse_duplicate_keys(text)
    else:
        refuse_duplicate_keys(text)
        assert read_once_each(text.encode()) == json.loads(text)


@given(WRITTEN, st.integers(0, 20))
def test_levels_are_counted_outside_of_texts_alone(text: str, levels: int) -> None:
    text = f'["[[[[", "\\\\", "\\"[", {text}]'
    deepest, depth, rest = 0, 0, re.sub(r'"([^"\\]|\\.)*"', "", text)
    for each in rest:
        depth += (each in "[{") - (each in "]}")
        deepest = max(deepest, depth)
    assert is_nested_deeper(text, levels) == (deepest > levels)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"a": 1, "b": 2, "a": 1}', "a"),
        ('[{"x": {"y": [{"k": 1, "k": 2}]}}]', "k"),
        ('{"a": 1, "\\u0061": 2}', "a"),
        ('{"' + "k" * 1_000 + '": 1, "' + "k" * 1_000 + '": 2}', "k" * 128),
    ],
)
def test_a_key_twice_is_seen(text: str, key: str) -> None:
    with pytest.raises(DuplicateKey) as caught:
        refuse_duplicate_keys(text.encode())
    assert caught.value.key == key


@pytest.mark.parametrize("text", ["", "{", '{"a": ', "\xff"])
def test_what_is_no_json_is_for_others_to_refuse(text: str) -> None:
    refuse_duplicate_keys(text.encode("latin-1"))


@pytest.mark.parametrize(("body", "field"), BODIES)
def test_a_nul_is_an_invalid_syscall(body: dict[str, Any], field: str) -> None:
    fields = {"id": new_id(), "agent": "ann", "body": body}
    with pytest.raises(InvalidSyscall, match="NUL") as caught:
        decode_syscall(json.dumps(fields))
    assert str(caught.value.field).endswith(field)


def test_the_sdk_sends_no_nul() -> None:
    with pytest.raises(InvalidSyscall, match="NUL") as caught:
        build_syscall(Options("ann"), ToolEcho("a\x00"), IDS)
    assert caught.value.field == "body.text"
    syscall = Syscall(id=new_id(), agent="ann", body=ToolEcho("\x00"))
    for check in (encode_syscall, check_syscall):
        with pytest.raises(InvalidSyscall, match="NUL"):
            check(syscall)


def test_what_a_person_makes_of_a_syscall_has_no_nul() -> None:
    with pytest.raises(InvalidSyscall, match="NUL") as caught:
        body_from("storage.write", {"path": "a.txt", "content": "\x00"})
    assert caught.value.field == "content"


def test_backslashes_before_a_u_are_no_nul() -> None:
    for text in ("\\u0000", "\\\\u0000", "C:\\u0000\\"):
        syscall = Syscall(id=new_id(), agent="ann", body=ToolEcho(text))
        assert check_syscall(syscall) == syscall


@pytest.mark.parametrize(
    "request_",
    [
        '{"agent": "ann", "agent": "bob", "body": {"type": "tool.echo"}}',
        '{"agent": "ann", "body": {"type": "tool.echo", "text": "a", "text": "b"}}',
        '{"agent": "a", "body": {"type": "memory.add", "content": "", "metadata": {"k":1,"k":2}}}',
        '{"agent": "a", "body": {"type": "memory.list"}, "body": {"type": "tool.echo"}}',
    ],
)
def test_a_stock_producers_job_says_each_thing_once(request_: str) -> None:
    job_id = new_id()
    data = f'["{ENTRY}",null,[{request_}],{{}}]'.encode()
    with pytest.raises(InvalidSyscall, match="twice"):
        decode_job(data, job_id, trusted=False)


def test_a_stock_producers_job_that_says_each_thing_once_is_read() -> None:
    job_id = new_id()
    request = msgspec.json.encode({"agent": "ann", "body": {"type": "tool.echo", "text": "a"}})
    data = b'["%s",null,[%s],{}]' % (ENTRY.encode(), request)
    assert decode_job(data, job_id, trusted=False).body == ToolEcho("a")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_not_taken_for_nothing(number: float) -> None:
    """JSON has no word for it: written as `null` a grant of NaN seconds would last for ever."""
    for body, field in (
        (MemoryAdd("a", ttl_s=number), "body.ttl_s"),
        (MemoryAdd("a", metadata={"of": [1, number]}), "body.metadata.of.1"),
    ):
        for check in (encode_syscall, check_syscall):
            with pytest.raises(InvalidSyscall) as caught:
                check(Syscall(id=new_id(), agent="ann", body=body))
            assert caught.value.field == field
    kept = check_syscall(
        Syscall(id=new_id(), agent="ann", body=MemoryAdd("null", metadata={"a": None}))
    )
    assert isinstance(kept.body, MemoryAdd)
    assert kept.body.metadata == {"a": None}


@pytest.mark.timeout(10)
def test_the_depth_is_found_in_one_pass_whatever_the_quotes() -> None:
    for text in ('"' * 2_000_001, '"' + '\\"' * 1_000_000, '"' + "\\" * 2_000_001):
        assert is_nested_deeper("[" * 200 + text, 128)
        assert not is_nested_deeper("[" * 100 + text, 128)
    assert not is_nested_deeper('"' + "[" * 1_000, 128), "a string that is cut off"


def values_in(value: object) -> int:
    """Count lists, objects, and what stands between two of their members."""
    if not isinstance(value, dict | list):
        return 0
    parts = value.values() if isinstance(value, dict) else value
    return max(len(value), 1) + sum(map(values_in, parts))


@given(JSON, st.integers(0, 12))
def test_values_are_counted_wherever_they_are_and_nowhere_else(value: object, most: int) -> None:
    text = json.dumps({"commas, in [texts]": '\\",{', "value": value})
    wanted = values_in({"a": 1, "value": value}) > most
    assert has_more_values(text, most) == has_more_values(text.encode(), most) == wanted


BYTES = 4 * 1024 * 1024


def lines_run(ask: Callable[[], object]) -> int:
    """Return how many lines of ours run: a cost that neither machine nor load changes."""
    count = 0

    def follow(frame: FrameType, event: str, _argument: object) -> Callable[..., Any] | None:
        nonlocal count
        if "aios_broker" not in frame.f_code.co_filename:
            return None  # what a test's library does as garbage is collected
        count += event == "line"
        return follow

    before = sys.gettrace()
    sys.settrace(follow)
    try:
        ask()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(
    "part",
    [b"[],", b'"",', b'{"":0},', b'"\\\\",', b"1,", b'"', b"[", b'{"a":{"b":[]}},', b"\\", b","],
)
@pytest.mark.timeout(10)
def test_what_would_take_long_to_read_is_refused_at_once(part: bytes) -> None:
    """Whoever serves others reads it in its one loop: in a few passes in C, whatever it is."""
    data = b"[" + part * (BYTES // len(part)) + b"0]"
    assert lines_run(lambda: has_more_values(data, MAX_VALUES) or is_nested_deeper(data, 128)) < 100


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":{%s}}' % b",".join(b'"k%d":1' % number for number in range(90_000)),
        b"[%s]" % b",".join([b'{"a":1}'] * 49_000),
        b'["%s"]' % (b"\\u003a" * 600_000),
        b'["\\u0000",%s]' % b",".join([b'"a"'] * 99_000),
    ],
)
@pytest.mark.timeout(20)
def test_what_is_allowed_is_read_in_little_time(data: bytes) -> None:
    values: list[object] = []
    assert lines_run(lambda: values.append(read_once_each(data))) < 100

    def look() -> None:
        with contextlib.suppress(InvalidSyscall):
            refuse_nul(values[0])

    assert lines_run(look) < 10 * MAX_VALUES
