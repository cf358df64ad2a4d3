"""What becomes of the ledger in a trace: a span per syscall, one per slice, one per program's run.

Pure. Names are those of OpenTelemetry's conventions for generative AI, where they have one; what is
the kernel's own begins with `aios.`. Ids are made of what the ledger has: a span that is sent twice
is the same one. Nothing that agents say or hear is in a span.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from msgspec import Struct

from aios_broker.contract.job import syscall_id_of
from aios_broker.contract.syscall import State
from aios_broker.contract.traces import SPAN_DIGITS, TraceContext, context_of, span_of
from aios_broker.ledger.lives import Life, Stay
from aios_broker.queues.records import JobMetadata

PROVIDER = "aios"
# The operation of a kind of syscall, where the conventions have one.
OPERATIONS: Mapping[str, str] = {
    "llm.chat": "chat",
    "llm.embed": "embeddings",
    "memory.add": "create_memory",
    "memory.search": "search_memory",
    "memory.context": "search_memory",
    "memory.update": "update_memory",
    "memory.remove": "delete_memory",
    "storage.search": "retrieval",
}
TOOL, EXECUTE_TOOL = "tool.", "execute_tool"
OF_MODELS = ("llm.chat", "llm.embed")  # their spans are named after the model

Value = str | int


class Span(Struct, frozen=True):
    """One span, as it is sent."""

    trace_id: str  # 32 hex digits
    span_id: str  # 16
    parent_id: str  # 16, or empty: it is the root of its trace
    name: str
    kind: Literal["internal", "client"]
    begin_ms: int
    end_ms: int
    attributes: Mapping[str, Value]
    error: str = ""  # the code of what it ended with


class ProgramRun(Struct):
    """The syscalls of a program from a quiet time to the next: one trace, and its root span."""

    tenant: str
    agent: str
    program: str
    trace_id: str
    begin_ms: int
    end_ms: int
    syscalls: int = 0
    failed: int = 0

    @classmethod
    def begun_by(cls, life: Life) -> ProgramRun:
        """Return the run that a syscall is the first one of to end."""
        of = life.metadata
        trace_id = _digest(16, of.tenant, of.agent, of.program, life.job_id, life.begins_ms)
        return cls(of.tenant, of.agent, of.program, trace_id, life.begins_ms, _end_ms(life))

    def add(self, life: Life) -> None:
        """Take in a syscall that has ended."""
        self.begin_ms = min(self.begin_ms, life.begins_ms)
        self.end_ms = max(self.end_ms, _end_ms(life))
        self.syscalls += 1
        self.failed += bool(life.error_code)

    @property
    def root(self) -> TraceContext:
        """The place of its syscalls: under its own span."""
        return TraceContext(self.trace_id, self.trace_id[:SPAN_DIGITS], is_sampled=True)

    @property
    def span(self) -> Span:
        """Its own span, once it is over."""
        attributes: dict[str, Value] = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.agent.name": self.agent,
            "gen_ai.conversation.id": self.program,
            "aios.program": self.program,
            "aios.tenant": self.tenant,
            "aios.syscalls": self.syscalls,
            "aios.syscalls.failed": self.failed,
        }
        trace_id, span_id, _ = self.root
        name, times = f"invoke_agent {self.agent}", (self.begin_ms, self.end_ms)
        return Span(trace_id, span_id, "", name, "internal", *times, attributes)


def place_of(life: Life) -> TraceContext | None:
    """Return where a syscall was said to belong; None: to the trace of its program."""
    return context_of(life.metadata.traceparent)


def spans_of(life: Life, place: TraceContext, number: int = 0) -> Iterator[Span]:
    """Yield the span of a syscall that has ended, then those of its slices.

    `number`: which life of its id this is, from 0.
    """
    span_id, ends_ms = _span_id(life, number), _end_ms(life)
    of = life.metadata
    yield Span(
        place.trace_id,
        span_id,
        span_of(of.asked_by) or place.span_id,
        _name(of, life.used.core),
        "client" if of.kind in OF_MODELS else "internal",
        life.begins_ms,
        _end_ms(life),
        _attributes(life),
        life.error_code,
    )
    waited_ms, waited_as = 0, list[State]()
    for order, stay in enumerate(life.stays):
        if not stay.is_slice:
            waited_ms += stay.lasts_ms(ends_ms)
            waited_as.append(stay.state)
            continue
        yield Span(
            place.trace_id,
            _digest(8, life.job_id, life.begins_ms, order),
            span_id,
            "slice",
            "internal",
            stay.begins_ms,
            stay.begins_ms + stay.lasts_ms(ends_ms),
            _slice_attributes(stay, waited_ms, waited_as),
        )
        waited_ms, waited_as = 0, []


def _end_ms(life: Life) -> int:
    return life.begins_ms if life.ends_ms is None else life.ends_ms


def _span_id(life: Life, number: int) -> str:
    """Return the id that what it asked for names as its parent; a later life has another one."""
    if number:
        return _digest(8, life.job_id, life.begins_ms)
    return span_of(syscall_id_of(life.job_id))


def _name(of: JobMetadata, core: str) -> str:
    operation = _operation(of.kind)
    if of.kind in OF_MODELS and core:
        return f"{operation} {core}"
    return f"{operation} {of.tool or of.kind}" if operation == EXECUTE_TOOL else of.kind


def _operation(kind: str) -> str:
    return EXECUTE_TOOL if kind.startswith(TOOL) else OPERATIONS.get(kind, "")


def _attributes(life: Life) -> dict[str, Value]:
    of, used, slices = life.metadata, life.used, life.slices
    found: dict[str, Value] = {
        "gen_ai.agent.name": of.agent,
        "gen_ai.conversation.id": of.program,
        "aios.program": of.program,
        "aios.tenant": of.tenant,
        "aios.syscall.id": life.job_id,
        "aios.syscall.kind": of.kind,
        "aios.module": life.module,
        "aios.state": life.state,
        "aios.slices": len(slices),
        "aios.suspensions": sum(stay.ended_by == "suspend" for stay in slices),
        "aios.attempts": max((stay.attempt for stay in slices), default=0),
        "aios.waited_ms": life.waited_ms(_end_ms(life)),
        "aios.ran_ms": used.ran_ms,
    }
    if operation := _operation(of.kind):
        found |= {"gen_ai.operation.name": operation, "gen_ai.provider.name": PROVIDER}
    if operation == EXECUTE_TOOL:
        found["gen_ai.tool.name"] = of.tool or of.kind
    if used.core:
        found["gen_ai.request.model"] = used.core
    if of.kind == "llm.chat":
        found["gen_ai.usage.output_tokens"] = used.tokens
    if used.currency:
        found |= {"aios.cost_nano": used.cost_nano, "aios.currency": used.currency}
    if of.asked_by:
        found["aios.syscall.asked_by"] = of.asked_by
    if life.error_code:
        found["error.type"] = life.error_code
    return found


def _slice_attributes(stay: Stay, waited_ms: int, waited_as: Sequence[State]) -> dict[str, Value]:
    found: dict[str, Value] = {
        "aios.worker": stay.worker,
        "aios.attempt": stay.attempt,
        "aios.slice.ended_by": stay.ended_by,
        "aios.slice.tokens": stay.tokens,
        "aios.ran_ms": stay.ran_ms,
        "aios.waited_ms": waited_ms,
        "aios.waited_as": " ".join(waited_as),
    }
    if stay.core:
        found["aios.core"] = stay.core
    return found


def _digest(size: int, *parts: str | int) -> str:
    material = "\x1f".join(map(str, parts)).encode(errors="surrogatepass")
    return hashlib.blake2b(material, digest_size=size).hexdigest()
