"""The trace that a call is part of, where its program has OpenTelemetry."""

import sys


def current_traceparent() -> str:
    """Return where this task or thread is in a trace; empty: in none, or nobody traces here.

    A program that never loaded OpenTelemetry is in none: so this loads nothing.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ""
    from opentelemetry import trace  # noqa: PLC0415  not installed with the SDK

    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}"
