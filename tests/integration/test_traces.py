"""The ledger is told in traces: every syscall and every slice once, as a collector takes them."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Received

from aios_broker.contract.errors import Unavailable
from aios_broker.contract.syscall import new_id
from aios_broker.ledger.fold import SyscallRow
from aios_broker.ledger.ledger import Ledger
from aios_broker.postgres.database import Database
from aios_broker.queues.keys import Keys
from aios_broker.queues.records import JobMetadata, Submission
from aios_broker.traces.follower import GIVE_UP_S, QUIET_S, Follower
from aios_broker.traces.otlp import Sender
from aios_broker.traces.spans import Span
from tests.queue_user import DATA, QueueUser, submitted

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@dataclass
class Collector:
    """What was sent, and whether it is taken."""

    spans: list[Span] = field(default_factory=list)
    takes: bool = True
    now_s: float = 0.0

    def send(self, spans: Sequence[Span]) -> bool:
        if self.takes:
            self.spans += spans
        return self.takes

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    @property
    def syscalls(self) -> list[Span]:
        return [span for span in self.spans if "aios.syscall.id" in span.attributes]


@pytest.fixture
def collector() -> Collector:
    return Collector()


def follower_of(url: str, collector: Collector) -> Follower:
    return Follower(url, Keys().prefix, collector.send, now_s=lambda: collector.now_s)


@pytest.fixture
async def follower(database_url: str, collector: Collector) -> AsyncIterator[Follower]:
    follower = follower_of(database_url, collector)
    await follower.step()  # it tells what happens from here on
    yield follower
    await follower.aclose()


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)


async def tell(user: QueueUser, ledger: Ledger, follower: Follower) -> None:
    await ledger.drain(user.redis)
    while await follower.step():
        pass


async def asked(user: QueueUser, traceparent: str) -> None:
    metadata = JobMetadata("ada", "llm.chat", traceparent=traceparent)
    await submitted(user.queue, [Submission(new_id(), DATA, metadata, "me")])


async def test_times_add_up_to_the_ledgers(
    user: QueueUser, ledger: Ledger, follower: Follower, collector: Collector
) -> None:
    await user.submit(0, 0, 0)
    for _ in range(2):
        for lease in await user.claim(3):
            await user.suspend(lease, tokens=8)
    leases = await user.claim(2)
    await user.finish(*leases, tokens=4)
    await tell(user, ledger, follower)

    rows: dict[str, SyscallRow] = {row.job_id: row for row in await ledger.recent()}
    ended = {job_id for job_id, row in rows.items() if row.ended_at is not None}
    told = {str(span.attributes["aios.syscall.id"]): span for span in collector.syscalls}
    assert told.keys() == ended
    assert len(ended) == 2
    for job_id, span in told.items():
        row = rows[job_id]
        assert row.ended_at is not None
        assert span.begin_ms == round(row.submitted_at.timestamp() * 1000)
        assert span.end_ms == round(row.ended_at.timestamp() * 1000)
        assert span.attributes["aios.ran_ms"] == row.ran_ms
        assert span.attributes["gen_ai.usage.output_tokens"] == row.tokens == 20
        slices = [each for each in collector.spans if each.parent_id == span.span_id]
        assert len(slices) == row.slices == 3
        assert sum(int(each.attributes["aios.ran_ms"]) for each in slices) == row.ran_ms
        assert sum(int(each.attributes["aios.slice.tokens"]) for each in slices) == row.tokens
        in_slices_ms = sum(each.end_ms - each.begin_ms for each in slices)
        waited_ms = int(span.attributes["aios.waited_ms"])
        assert in_slices_ms + waited_ms == span.end_ms - span.begin_ms


async def test_a_program_is_one_trace_until_it_is_quiet(
    user: QueueUser, ledger: Ledger, follower: Follower, collector: Collector
) -> None:
    await user.submit(0, 0)
    await user.finish(*await user.claim(1))
    await tell(user, ledger, follower)
    # Its other syscall lives: it is not over, however long that takes.
    collector.now_s += QUIET_S + 1
    assert not await follower.step()
    assert not collector.named("invoke_agent ada")
    await user.finish(*await user.claim(1))
    await tell(user, ledger, follower)
    collector.now_s += QUIET_S + 1
    await follower.step()

    [root] = collector.named("invoke_agent ada")
    assert {span.trace_id for span in collector.spans} == {root.trace_id}
    assert {span.parent_id for span in collector.syscalls} == {root.span_id}
    assert root.begin_ms == min(span.begin_ms for span in collector.syscalls)
    assert root.end_ms == max(span.end_ms for span in collector.syscalls)
    assert root.attributes["aios.syscalls"] == 2

    await user.submit(0)
    await user.finish(*await user.claim(1))
    await tell(user, ledger, follower)
    assert len({span.trace_id for span in collector.spans}) == 2


async def test_a_syscall_is_told_in_the_trace_that_it_came_with(
    user: QueueUser, ledger: Ledger, follower: Follower, collector: Collector
) -> None:
    await asked(user, f"00-{TRACE}-{SPAN}-01")
    await asked(user, f"00-{TRACE}-{SPAN}-00")  # whose trace nobody keeps
    await user.finish(*await user.claim(2))
    await tell(user, ledger, follower)
    collector.now_s += QUIET_S + 1
    await follower.step()
    [span] = collector.syscalls
    assert (span.trace_id, span.parent_id) == (TRACE, SPAN)
    assert len(collector.spans) == 2  # with its slice


async def test_what_the_collector_does_not_take_is_sent_again(
    user: QueueUser, ledger: Ledger, follower: Follower, collector: Collector, database_url: str
) -> None:
    await user.submit(0)
    await user.finish(*await user.claim(1))
    await ledger.drain(user.redis)
    collector.takes = False
    for _ in range(2):
        with pytest.raises(Unavailable):
            await follower.step()
    collector.takes = True
    # As after a crash: another process goes on where the database says.
    async with aclosing(follower_of(database_url, collector)) as another:
        await another.step()
        assert len(collector.syscalls) == 1
    async with aclosing(follower_of(database_url, collector)) as third:
        collector.now_s += QUIET_S + 1
        await third.step()
        assert not collector.named("invoke_agent ada")  # it has only begun to wait for its end
        collector.now_s += QUIET_S + 1
        await third.step()
    [root] = collector.named("invoke_agent ada")
    assert root.trace_id == collector.syscalls[0].trace_id


async def test_what_it_never_takes_holds_up_nothing_for_ever(
    user: QueueUser, ledger: Ledger, follower: Follower, collector: Collector
) -> None:
    await user.submit(0)
    await user.finish(*await user.claim(1))
    await ledger.drain(user.redis)
    collector.takes = False
    with pytest.raises(Unavailable):
        await follower.step()
    collector.now_s += GIVE_UP_S + 1
    await follower.step()
    assert follower.stats.left_out == 1
    collector.takes = True
    await user.submit(0)
    await user.finish(*await user.claim(1))
    await tell(user, ledger, follower)
    assert len(collector.syscalls) == 1


async def test_one_process_tells_and_the_others_stand_by(
    user: QueueUser, ledger: Ledger, follower: Follower, database: Database, collector: Collector
) -> None:
    await user.submit(0)
    await user.finish(*await user.claim(1))
    await ledger.drain(user.redis)
    async with database.transaction() as cursor:
        await cursor.execute("SELECT FROM trace_position FOR UPDATE")
        assert not await follower.step()
        assert not collector.spans
    await follower.step()
    assert len(collector.syscalls) == 1


async def test_it_begins_with_what_happens_from_then_on(
    user: QueueUser, ledger: Ledger, database_url: str, collector: Collector
) -> None:
    await user.submit(0)
    await user.finish(*await user.claim(1))
    await ledger.drain(user.redis)
    async with aclosing(follower_of(database_url, collector)) as follower:
        await follower.step()
        assert not collector.spans
        await user.submit(0)
        await user.finish(*await user.claim(1))
        await tell(user, ledger, follower)
    assert len(collector.syscalls) == 1


class Receiver(ThreadingHTTPServer):
    """A collector's door: OTLP over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Door)
        self.paths: list[str] = []
        self.requests: list[ExportTraceServiceRequest] = []

    @property
    def spans(self) -> list[Received]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class _Door(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.paths.append(self.path)
        self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def receiving() -> Iterator[tuple[str, Receiver]]:
    """Take what comes by OTLP for the length of a block."""
    with Receiver() as receiver:
        thread = threading.Thread(target=receiver.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{receiver.server_port}", receiver
        finally:
            receiver.shutdown()
            thread.join()


def test_spans_go_by_otlp() -> None:
    good = Span(TRACE, SPAN, "", "chat small", "client", 1_000, 2_500, {"aios.slices": 2, "x": "y"})
    bad = Span(TRACE, "a" * 16, SPAN, "slice", "internal", 1_200, 2_000, {}, "worker-lost")
    with receiving() as (url, receiver):
        sender = Sender.to(f"{url}/")
        assert sender.send([good, bad])
        sender.close()
        first, second = receiver.spans
        [resource] = receiver.requests[0].resource_spans
    assert receiver.paths == ["/v1/traces"]
    named = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert named["service.name"] == "aios"
    assert (first.trace_id.hex(), first.span_id.hex()) == (TRACE, SPAN)
    assert (first.parent_span_id, first.name, first.kind) == (b"", "chat small", 3)
    assert (first.start_time_unix_nano, first.end_time_unix_nano) == (10**9, 25 * 10**8)
    assert {each.key for each in first.attributes} == {"aios.slices", "x"}
    assert (second.parent_span_id.hex(), second.status.code) == (SPAN, 2)
    assert second.status.message == "worker-lost"


def test_a_collector_that_is_away_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with receiving() as (url, _):
        pass
    sender = Sender.to(url)
    span = Span(TRACE, SPAN, "", "slice", "internal", 1_000, 2_000, {})
    assert not sender.send([span])
    sender.close()
