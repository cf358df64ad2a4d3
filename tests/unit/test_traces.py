"""From the ledger to spans: whose trace a syscall is part of, and what its spans say."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.ids import Ids
from aios_broker.contract.job import conflict_of
from aios_broker.contract.names import Owner
from aios_broker.contract.syscall import (
    Syscall,
    ToolEcho,
    decode_syscall,
    encode_syscall,
    new_id,
)
from aios_broker.contract.tools import ToolRun
from aios_broker.contract.traces import TraceContext, context_of, traceparent_of
from aios_broker.contract.transitions import TABLE
from aios_broker.ledger import lives
from aios_broker.ledger.history import HistoryEvent
from aios_broker.ledger.journal import Position, Transition
from aios_broker.ledger.journal import metadata_of as metadata_told
from aios_broker.ledger.lives import Life
from aios_broker.queues.records import JobMetadata, metadata_of
from aios_broker.traces.spans import ProgramRun, place_of, spans_of
from aios_sdk.requests import Options, build_syscall

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
JOB = "0af7651916cd43dd8448eb211c80319c"
METADATA = JobMetadata("ada", "llm.chat", "report", "acme")
IDS = Ids(b"secret", Owner("default", "writer"))


def change(ms: int, event: str, detail: str = "", *, who: str = "", attempt: int = 0) -> Transition:
    at = Position(ms)
    return Transition(at, 0, "llm", event, JOB, attempt or None, who, detail, at.at)


def submission(ms: int = 1_000, metadata: JobMetadata = METADATA) -> Transition:
    return change(ms, "submit", msgspec.json.encode(metadata).decode())


def lives_of(changes: Sequence[Transition]) -> list[Life]:
    return lives.lives_of(HistoryEvent(each, metadata_told(each) or METADATA) for each in changes)


SUSPENDED_ONCE: Sequence[Transition] = (
    submission(),
    change(1_200, "claim", who="w1", attempt=1),
    change(1_700, "suspend", "40,480,small,900,USD"),
    change(2_500, "claim", who="w2", attempt=2),
    change(2_900, "finish", "64,870,small,1500,USD"),
)


@pytest.mark.parametrize(
    ("header", "carried"),
    [
        (PARENT, PARENT),
        (f"  {PARENT}\t", PARENT),
        (PARENT.replace("-01", "-00"), PARENT.replace("-01", "-00")),
        (f"cc-{TRACE}-{SPAN}-01-what-a-newer-one-adds", PARENT),
        (f"ff-{TRACE}-{SPAN}-01", ""),
        (f"00-{TRACE}-{SPAN}-01-more", ""),
        (f"00-{'0' * 32}-{SPAN}-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (PARENT.upper(), ""),
        ("", ""),
        ("no trace", ""),
        (f"00-{TRACE}-{SPAN}-01\x00", ""),
    ],
)
def test_a_header_is_taken_as_it_should_be_or_passed_over(header: str, carried: str) -> None:
    assert traceparent_of(header) == carried


@given(st.text(max_size=80))
def test_whatever_stands_in_the_header_a_syscall_can_carry_what_is_taken(header: str) -> None:
    carried = traceparent_of(header)
    syscall = Syscall(new_id(), "ada", ToolEcho(), traceparent=carried)
    assert decode_syscall(encode_syscall(syscall)).traceparent == carried


def test_a_syscall_carries_no_other_text() -> None:
    with pytest.raises(InvalidSyscall) as caught:
        decode_syscall(encode_syscall(Syscall(new_id(), "ada", ToolEcho(), traceparent="x")))
    assert caught.value.field == "traceparent"


def test_a_syscall_without_a_trace_is_written_as_before() -> None:
    syscall = Syscall(new_id(), "ada", ToolEcho())
    assert b"traceparent" not in encode_syscall(syscall)
    assert b"traceparent" not in msgspec.json.encode(metadata_of(syscall))


def test_what_is_kept_beside_a_call_says_of_which_tool_it_is() -> None:
    call = Syscall(new_id(), "ada", ToolRun("team/add"))
    assert metadata_of(call).tool == "team/add"
    assert b'tool"' not in msgspec.json.encode(metadata_of(Syscall(new_id(), "ada", ToolEcho())))


def test_what_is_sent_again_in_another_trace_is_the_same_syscall() -> None:
    first = Syscall(JOB, "ada", ToolEcho("x"), traceparent=PARENT)
    assert conflict_of(first, msgspec.structs.replace(first, traceparent="")) is None


def test_what_a_syscall_asks_for_is_under_its_span() -> None:
    asker, child = "a" * 32, msgspec.structs.replace(METADATA, asked_by="a" * 32)
    [life] = lives_of((submission(metadata=child), change(1_500, "cancel", "cancelled")))
    [span] = spans_of(life, ProgramRun.begun_by(life).root)
    assert span.parent_id == asker[:16]
    assert span.attributes["aios.syscall.asked_by"] == asker


def test_the_sdk_takes_the_span_that_is_open_and_only_that() -> None:
    me = Options("writer")
    assert build_syscall(me, ToolEcho(), IDS).traceparent == ""
    span = NonRecordingSpan(
        SpanContext(int(TRACE, 16), int(SPAN, 16), is_remote=False, trace_flags=TraceFlags(1))
    )
    with trace.use_span(span):
        assert build_syscall(me, ToolEcho(), IDS).traceparent == PARENT
        elsewhere = Options("writer", traceparent="")
        assert build_syscall(elsewhere, ToolEcho(), IDS).traceparent == ""
    assert build_syscall(me, ToolEcho(), IDS).traceparent == ""


def test_an_id_that_comes_again_has_two_lives() -> None:
    again = (submission(5_000), change(5_100, "cancel", "cancelled"))
    first, second = lives_of((*SUSPENDED_ONCE, *again))
    root = ProgramRun.begun_by(first).root
    one, other = (
        next(iter(spans_of(life, root, number))) for number, life in enumerate((first, second))
    )
    assert one.span_id == JOB[:16] != other.span_id


@given(
    st.lists(
        st.tuples(st.integers(0, 300), st.sampled_from([*TABLE, "unheard-of"]), st.integers(0, 9)),
        max_size=30,
    )
)
def test_whatever_the_journal_says_a_syscall_has_a_span_and_each_slice_one(
    steps: list[tuple[int, str, int]],
) -> None:
    ms, changes = 1_000, []
    for wait_ms, event, tokens in steps:
        ms += wait_ms
        detail = msgspec.json.encode(METADATA).decode() if event in ("submit", "adopt") else ""
        changes.append(change(ms, event, detail or f"{tokens},{wait_ms}", who="w", attempt=1))
    found = [
        (life, list(spans_of(life, TraceContext(TRACE, SPAN, is_sampled=True), number)))
        for number, life in enumerate(lives_of(changes))
        if life.ends_ms is not None
    ]
    for life, (first, *slices) in found:
        assert len(slices) == len(life.slices)
        waited_ms = sum(int(each.attributes["aios.waited_ms"]) for each in slices)
        ran_ms = sum(each.end_ms - each.begin_ms for each in slices)
        assert all(first.begin_ms <= each.begin_ms <= each.end_ms for each in slices)
        assert waited_ms + ran_ms <= first.end_ms - first.begin_ms
        if life.is_whole:  # else what it did before is not known
            all_ms = ran_ms + int(first.attributes["aios.waited_ms"])
            assert all_ms == first.end_ms - first.begin_ms
    ids = [span.span_id for _, told in found for span in told]
    assert len(set(ids)) == len(ids)


def spans(life: Life) -> tuple[dict[str, str | int], list[dict[str, str | int]]]:
    first, *slices = spans_of(life, ProgramRun.begun_by(life).root)
    return dict(first.attributes), [dict(each.attributes) for each in slices]


def test_a_chat_is_named_as_the_conventions_have_it() -> None:
    [life] = lives_of(SUSPENDED_ONCE)
    run = ProgramRun.begun_by(life)
    run.add(life)
    first, *slices = spans_of(life, run.root)
    assert (first.name, first.kind, first.parent_id) == ("chat small", "client", run.root.span_id)
    assert (first.begin_ms, first.end_ms, first.error) == (1_000, 2_900, "")
    told, of_slices = spans(life)
    for name, value in (
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "aios"),
        ("gen_ai.request.model", "small"),
        ("gen_ai.usage.output_tokens", 64),
        ("gen_ai.agent.name", "ada"),
        ("gen_ai.conversation.id", "report"),
        ("aios.tenant", "acme"),
        ("aios.syscall.id", JOB),
        ("aios.slices", 2),
        ("aios.suspensions", 1),
        ("aios.waited_ms", 1_000),
        ("aios.ran_ms", 870),
        ("aios.cost_nano", 1_500),
    ):
        assert told[name] == value, name
    assert [each.parent_id for each in slices] == [first.span_id] * 2
    assert [each["aios.waited_as"] for each in of_slices] == ["queued", "suspended"]
    assert sum(int(each["aios.ran_ms"]) for each in of_slices) == told["aios.ran_ms"]
    root = run.span
    assert (root.name, root.parent_id, root.span_id) == ("invoke_agent ada", "", first.parent_id)
    assert (root.begin_ms, root.end_ms, root.attributes["aios.syscalls"]) == (1_000, 2_900, 1)


@pytest.mark.parametrize(
    ("kind", "tool", "name", "operation"),
    [
        ("tool.echo", "", "execute_tool tool.echo", "execute_tool"),
        ("tool.call", "team/add", "execute_tool team/add", "execute_tool"),
        ("memory.search", "", "memory.search", "search_memory"),
        ("storage.write", "", "storage.write", None),
    ],
)
def test_other_kinds_have_their_own_names(
    kind: str, tool: str, name: str, operation: str | None
) -> None:
    metadata = msgspec.structs.replace(METADATA, kind=kind, tool=tool)
    [life] = lives_of((submission(metadata=metadata), change(1_500, "fail", "deadline-exceeded")))
    [span] = spans_of(life, ProgramRun.begun_by(life).root)
    assert (span.name, span.kind, span.error) == (name, "internal", "deadline-exceeded")
    assert span.attributes.get("gen_ai.operation.name") == operation
    is_tool = operation == "execute_tool"
    assert span.attributes.get("gen_ai.tool.name") == ((tool or kind) if is_tool else None)
    assert span.attributes["error.type"] == "deadline-exceeded"


def test_a_syscall_of_another_trace_is_under_the_span_that_asked() -> None:
    metadata = msgspec.structs.replace(METADATA, traceparent=PARENT)
    [life] = lives_of((submission(metadata=metadata), change(1_500, "cancel", "cancelled")))
    place = place_of(life)
    assert place == context_of(PARENT)
    assert place is not None
    [span] = spans_of(life, place)
    assert (span.trace_id, span.parent_id) == (TRACE, SPAN)
