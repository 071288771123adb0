"""Traces: the spans of Ray Serve, exported to the OpenTelemetry collector that vLLM's spans go to as well.

Configured by OpenTelemetry's own environment variables alone: with ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`` a request's
spans in Endpoint, Listener, Transcriber and vLLM are one trace. It begins here: Serve's proxy (2.60) does not forward
a client's ``traceparent``. ``OTEL_EXPORTER_OTLP_TRACES_PROTOCOL`` is ``grpc`` (the default, as in vLLM) or
``http/protobuf``.
"""

import os

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from ray.serve.schema import TracingConfig
from starlette.types import ASGIApp, Receive, Scope, Send

from speech.tracing import traces_endpoint

PROTOCOL = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"


def tracing_config() -> TracingConfig | None:
    """For ``serve.start``; None if traces are off."""
    if traces_endpoint() is None:
        return None
    # Every request is traced, at a few requests a second; at higher rates set Serve's own variable.
    ratio = float(os.environ.get("RAY_SERVE_TRACING_SAMPLING_RATIO", 1.0))
    return TracingConfig(enabled=True, exporter_import_path=f"{__name__}:span_processors", sampling_ratio=ratio)


class TracedRequests:
    """Starts the trace of each request that does not come through Serve's proxy.

    Serve's handles pass on OpenTelemetry's current context, so that its spans and vLLM's are this span's children.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Looked up for each request: the provider is set when Serve's replica starts. Named as Serve names such spans.
        tracer = trace.get_tracer(__name__)
        with tracer.start_as_current_span("replica_handle_request Endpoint __call__", kind=trace.SpanKind.SERVER):
            await self._app(scope, receive, send)


def span_processors() -> list[SpanProcessor]:
    """Called by Serve in each of its processes."""
    return [BatchSpanProcessor(_exporter())]


def _exporter() -> SpanExporter:
    if os.environ.get(PROTOCOL, "grpc") == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc(insecure=True)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    return Http()
