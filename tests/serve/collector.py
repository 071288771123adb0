"""An OpenTelemetry collector of traces: OTLP over HTTP."""

import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector:
    """Collects for the duration of the context."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        collected = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collected.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def env(self) -> dict[str, str]:
        """The environment of the processes that are traced."""
        return {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}/v1/traces",
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            "OTEL_BSP_SCHEDULE_DELAY": "200",  # milliseconds
        }

    def traces(self) -> list[set[str]]:
        """The names of the spans of each trace."""
        names = defaultdict[bytes, set[str]](set)
        for request in list(self.requests):
            for of_process in ExportTraceServiceRequest.FromString(request).resource_spans:
                for scope in of_process.scope_spans:
                    for span in scope.spans:
                        names[span.trace_id].add(span.name)
        return list(names.values())

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._server.shutdown()
        self._server.server_close()
