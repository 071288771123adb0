"""OpenTelemetry's variable that names the collector of traces, and the headers by which a vLLM span joins a trace.

Spans hold times and counts, no audio and no text.
"""

import os

TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


def traces_endpoint() -> str | None:
    """URL of the collector; None if traces are off."""
    return os.environ.get(TRACES_ENDPOINT) or None


def trace_headers() -> dict[str, str] | None:
    """The caller's trace context as W3C ``traceparent`` headers; None if traces are off."""
    if traces_endpoint() is None:
        return None
    from opentelemetry.propagate import inject

    headers: dict[str, str] = {}
    inject(headers)
    return headers
