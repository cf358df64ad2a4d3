"""One program, told whole: to Perfetto and to a collector, with the ledger's own figures.

Its chats are cut, one of its calls waits for a person, one fails, one is a tool's.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from aios_broker.config import KernelConfig
from aios_broker.contract.syscall import new_id
from aios_broker.ledger.fold import SyscallRow
from aios_broker.ledger.ledger import Ledger
from aios_broker.postgres.database import Database
from aios_cli.main import cli
from aios_local.supervisor.kernel import EmbeddedKernel
from aios_sdk import Agent, NotFound
from tests.integration.test_traces import Receiver, receiving
from tests.waiting import wait_until

NAME, PROGRAM, BELOW = "analyst", "report", "report/chapter"
ASKED = {
    "llm.chat": 3,
    "tool.echo": 1,
    "memory.get": 1,
    "storage.write": 1,
    "storage.delete": 1,
}
TOLD_IN_S = 30.0
EVENT_KEYS = {"ph", "name", "pid", "tid", "ts", "dur", "cat", "args"}
pytestmark = pytest.mark.timeout(120)
Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Told:
    """What the ledger has of the program, and what was told of it."""

    rows: dict[str, SyscallRow]  # by job
    events: list[Event]  # of the file for Perfetto
    file: Path
    spans: list[Span]  # of its syscalls and slices, as a collector takes them


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    folder = tmp_path_factory.mktemp("state")
    with ExitStack() as stack:
        endpoint, receiver = stack.enter_context(receiving())
        config = KernelConfig(
            state_dir=folder, llm_core="simulated", llm_slots=1, policy="rr", otel_endpoint=endpoint
        )
        settings = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "AIOS_SIMULATED_CORE_DECODE_TOKENS_PER_S": "200",
            "AIOS_SIMULATED_CORE_END_PROBABILITY": "0",
        }
        kernel = EmbeddedKernel(config, inherited=settings, temporary=True)
        stack.enter_context(kernel)
        url, database_url = kernel.redis_url, kernel.record.database_url
        assert url is not None
        assert database_url is not None
        environ = {
            "AIOS_REDIS_URL": url,
            "AIOS_DATABASE_URL": database_url,
            "AIOS_STATE_DIR": str(folder),
        }
        run_a_program(environ)
        rows = wait_until(lambda: ended_rows(database_url), timeout_s=TOLD_IN_S)
        spans = wait_until(lambda: spans_of(receiver, rows), timeout_s=TOLD_IN_S)
        file = folder / "run.json"
        aios(environ, "export", "trace", str(file), "--agent", NAME, "--program", PROGRAM)
        yield Told(rows, json.loads(file.read_text())["traceEvents"], file, spans)


def aios(environ: dict[str, str], *arguments: str) -> str:
    result = CliRunner().invoke(cli, list(arguments), env=environ)
    assert result.exit_code == 0, result.output
    return result.stdout


def run_a_program(environ: dict[str, str]) -> None:
    aios(environ, "policy", "rr", "--module", "llm", "--quantum-tokens", "40")
    with Agent(NAME, url=environ["AIOS_REDIS_URL"], program=PROGRAM) as me:
        chats = [me.llm.chat.start(f"Go on, {part}.", max_tokens=160) for part in ("one", "two")]
        chapter = me.with_options(program=BELOW)
        chats.append(chapter.llm.chat.start("And then?", max_tokens=120))
        chapter.tool.echo("x")
        with pytest.raises(NotFound):
            me.memory.get(new_id())
        me.storage.write("/old.md", "kept")
        removal = me.storage.delete.start("/old.md")
        [approval] = wait_until(lambda: json.loads(aios(environ, "approvals", "--json")))
        aios(environ, "approve", approval["id"], "--yes")
        removal.result()
        for chat in chats:
            chat.result()


def ended_rows(database_url: str) -> dict[str, SyscallRow]:
    """Return the program's rows of the ledger once all have ended; before, none."""

    async def read() -> list[SyscallRow]:
        async with aclosing(Database(database_url)) as database:
            return await Ledger(database).recent()

    rows = {row.job_id: row for row in asyncio.run(read()) if row.agent == NAME}
    is_all = len(rows) == sum(ASKED.values()) and all(row.ended_at for row in rows.values())
    return rows if is_all else {}


def spans_of(receiver: Receiver, rows: dict[str, SyscallRow]) -> list[Span]:
    """Return the spans of syscalls and their slices once those of all are there; before, none."""
    spans = list(receiver.spans)
    whole = {span.span_id for span in spans if attributes(span).get("aios.syscall.id") in rows}
    parts = [span for span in spans if span.parent_span_id in whole]
    is_all = len(whole) == len(rows) and len(parts) == sum(row.slices for row in rows.values())
    return [span for span in spans if span.span_id in whole] + parts if is_all else []


def attributes(span: Span) -> dict[str, str | int]:
    def value(one: KeyValue) -> str | int:
        return one.value.int_value if one.value.HasField("int_value") else one.value.string_value

    return {one.key: value(one) for one in span.attributes}


def ms(span: Span) -> int:
    return (span.end_time_unix_nano - span.start_time_unix_nano) // 10**6


def lasted_ms(row: SyscallRow) -> float:
    assert row.ended_at is not None
    return (row.ended_at - row.submitted_at) / timedelta(milliseconds=1)


def test_the_program_did_all_that_a_trace_may_hold(told: Told) -> None:
    rows = told.rows.values()
    assert Counter(row.kind for row in rows) == ASKED
    assert {row.program for row in rows} == {PROGRAM, BELOW}
    assert all(row.suspensions >= 1 for row in rows if row.kind == "llm.chat")
    assert {row.kind: row.error_code for row in rows if row.error_code} == {
        "memory.get": "not-found"
    }
    [removal] = [row for row in rows if row.kind == "storage.delete"]
    assert removal.slices == 2, "it ran, was parked, and ran again"


def test_the_file_has_every_syscall_and_slice_with_the_ledgers_figures(told: Told) -> None:
    spans: dict[str, dict[str, list[Event]]] = defaultdict(lambda: defaultdict(list))
    for event in told.events:
        if event["ph"] == "X":
            spans[event["args"]["syscall"]][event["cat"]].append(event)
    assert spans.keys() == told.rows.keys()
    states = set()
    for job_id, row in told.rows.items():
        mine = spans[job_id]
        [whole], stays = mine["syscall"], [*mine["wait"], *mine["slice"]]
        states |= {stay["args"]["state"] for stay in stays}
        assert whole["dur"] == sum(stay["dur"] for stay in stays) == lasted_ms(row) * 1000
        assert len(mine["slice"]) == len(mine["slot"]) == row.slices
        assert (whole["args"]["state"], whole["args"].get("error")) == (row.state, row.error_code)
        for name in ("ran_ms", "tokens", "cost_nano"):
            assert sum(stay["args"][name] for stay in stays) == getattr(row, name), name
    assert states == {"queued", "running", "suspended", "parked"}


def test_the_file_keeps_the_rules_of_its_format(told: Told) -> None:
    """As Chrome's trace-event format has them: phases, times, tracks and their names."""
    named = {"process_name": set[tuple[int, int]](), "thread_name": set[tuple[int, int]]()}
    tracks: dict[tuple[int, int], list[Event]] = defaultdict(list)
    for event in told.events:
        assert event.keys() <= EVENT_KEYS
        assert event["ph"] in ("X", "M")
        assert all(isinstance(event[number], int) for number in ("pid", "tid"))
        track = (event["pid"], event["tid"])
        if event["ph"] == "M":
            assert event["args"]["name"]
            named[event["name"]].add(track)
        else:
            assert event["name"]
            assert isinstance(event["ts"], int)
            assert event["dur"] >= 0
            tracks[track].append(event)
    assert named["thread_name"] >= tracks.keys()
    assert {pid for pid, _ in named["process_name"]} == {pid for pid, _ in tracks}
    for events in tracks.values():
        assert_nested(events)


def assert_nested(events: list[Event]) -> None:
    """Spans of one track lie within each other or apart: a viewer draws no others."""
    around: list[int] = []  # the ends of those that are open
    for event in sorted(events, key=lambda each: (each["ts"], -each["dur"])):
        ends = event["ts"] + event["dur"]
        while around and around[-1] <= event["ts"]:
            around.pop()
        assert not around or ends <= around[-1], event
        around.append(ends)


def test_a_collector_hears_every_syscall_and_slice_with_the_ledgers_figures(told: Told) -> None:
    found = [(span, attributes(span)) for span in told.spans]
    syscalls = {
        str(its["aios.syscall.id"]): (span, its) for span, its in found if "aios.syscall.id" in its
    }
    slices: dict[bytes, list[tuple[Span, dict[str, str | int]]]] = defaultdict(list)
    for span, its in found:
        if span.name == "slice":
            slices[span.parent_span_id].append((span, its))
    assert syscalls.keys() == told.rows.keys()
    traces: dict[str, set[bytes]] = defaultdict(set)
    for job_id, row in told.rows.items():
        span, its = syscalls[job_id]
        mine = slices[span.span_id]
        traces[row.program].add(span.trace_id)
        assert {each.trace_id for each, _ in mine} == {span.trace_id}
        assert span.start_time_unix_nano == nanoseconds(row.submitted_at)
        assert ms(span) == lasted_ms(row)
        assert ms(span) == sum(ms(each) for each, _ in mine) + int(its["aios.waited_ms"])
        assert (its["aios.slices"], its["aios.suspensions"]) == (len(mine), row.suspensions)
        assert len(mine) == row.slices
        assert its["aios.ran_ms"] == sum(int(one["aios.ran_ms"]) for _, one in mine) == row.ran_ms
        assert sum(int(one["aios.slice.tokens"]) for _, one in mine) == row.tokens
        assert (its["aios.state"], its.get("error.type")) == (row.state, row.error_code)
        assert its.get("aios.cost_nano", 0) == row.cost_nano
    assert {program: len(ids) for program, ids in traces.items()} == {PROGRAM: 1, BELOW: 1}


def nanoseconds(at: datetime) -> int:
    return round(at.timestamp() * 1000) * 10**6
