"""Send spans by OTLP over HTTP. The one file that imports OpenTelemetry: the extra `[otel]`.

What is not said here (headers, certificates, time-outs, compression, the resource) the standard
variables `OTEL_...` say.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import (
    SERVICE_NAME,
    SERVICE_VERSION,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from aios_broker.traces.spans import Span

TRACES_PATH = "/v1/traces"
BATCH_SPANS = 512  # of one request
SERVICE = "aios"
DISTRIBUTION = "aios-broker"
_NS_OF_MS = 1_000_000
_KINDS = {"internal": SpanKind.INTERNAL, "client": SpanKind.CLIENT}
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class Sender:
    """Sends spans to a collector; its methods block."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        release = version(DISTRIBUTION)
        self._scope = InstrumentationScope("aios", release)
        # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes before.
        ours = Resource.create({SERVICE_NAME: SERVICE, SERVICE_VERSION: release})
        self._resource = ours.merge(OTELResourceDetector().detect())

    @classmethod
    def to(cls, endpoint: str) -> Sender:
        """Return the sender to a collector, by its address without a path of its own."""
        return cls(OTLPSpanExporter(endpoint=endpoint.rstrip("/") + TRACES_PATH))

    def send(self, spans: Sequence[Span]) -> bool:
        """Send all; return whether all were taken."""
        for first in range(0, len(spans), BATCH_SPANS):
            batch = [self._readable(span) for span in spans[first : first + BATCH_SPANS]]
            if self._exporter.export(batch) is not SpanExportResult.SUCCESS:
                return False
        return True

    def close(self) -> None:
        """Let go of the connection."""
        self._exporter.shutdown()

    def _readable(self, span: Span) -> ReadableSpan:
        trace_id = int(span.trace_id, 16)
        parent = None
        if span.parent_id:
            parent = SpanContext(trace_id, int(span.parent_id, 16), is_remote=True)
        return ReadableSpan(
            name=span.name,
            context=SpanContext(trace_id, int(span.span_id, 16), False, _SAMPLED),
            parent=parent,
            resource=self._resource,
            attributes=dict(span.attributes),
            kind=_KINDS[span.kind],
            status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
            start_time=span.begin_ms * _NS_OF_MS,
            end_time=span.end_ms * _NS_OF_MS,
            instrumentation_scope=self._scope,
        )
