"""Traces: the spans of Ray Serve, sent to the OpenTelemetry collector that vLLM's go to as well.

Told by OpenTelemetry's own environment variables alone: with ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`` each request's
way through Endpoint, Listener, Transcriber and vLLM is one trace. It begins here: Serve's proxy (2.60) hands no
``traceparent`` of a client on. ``OTEL_EXPORTER_OTLP_TRACES_PROTOCOL`` is ``grpc`` unless it says ``http/protobuf``,
as in vLLM.
"""

import os

from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from ray.serve.schema import TracingConfig

ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"


def tracing_config() -> TracingConfig | None:
    """For ``serve.start``; None where no collector is named."""
    if not os.environ.get(ENDPOINT):
        return None
    # A trace for every request, of which there are few a second; who has many sets Serve's variable.
    ratio = float(os.environ.get("RAY_SERVE_TRACING_SAMPLING_RATIO", 1.0))
    return TracingConfig(enabled=True, exporter_import_path=f"{__name__}:span_processors", sampling_ratio=ratio)


def span_processors() -> list[SpanProcessor]:
    """Called by Serve in each of its processes."""
    return [BatchSpanProcessor(_exporter())]


def _exporter() -> SpanExporter:
    if os.environ.get(PROTOCOL, "grpc") == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc(insecure=True)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    return Http()
