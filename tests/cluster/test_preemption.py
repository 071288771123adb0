"""What a cloud's metadata service says of a spot machine's end."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster.preemption import aws_notice, google_notice, notice_here

ACTION = "/latest/meta-data/spot/instance-action"
PREEMPTED = "/computeMetadata/v1/instance/preempted"


class Service(BaseHTTPRequestHandler):
    """Answers as AWS's service does to a request with its token, and as Google's to one with its header."""

    answers: dict[str, str]

    def do_PUT(self) -> None:
        assert self.path == "/latest/api/token"
        assert self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer("the token")

    def do_GET(self) -> None:
        needed = {ACTION: ("X-aws-ec2-metadata-token", "the token"), PREEMPTED: ("Metadata-Flavor", "Google")}
        name, value = needed[self.path]
        self._answer(self.answers.get(self.path) if self.headers[name] == value else None)

    def _answer(self, text: str | None) -> None:
        self.send_response(404 if text is None else 200)
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def service() -> Iterator[str]:
    Service.answers = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_aws_tells_the_time_two_minutes_before(service: str) -> None:
    assert aws_notice(service) is None
    ends_at = datetime.now(UTC) + timedelta(seconds=110)
    Service.answers = {ACTION: json.dumps({"action": "terminate", "time": ends_at.strftime("%Y-%m-%dT%H:%M:%SZ")})}
    assert aws_notice(service) == pytest.approx(110, abs=3)


def test_google_tells_only_that_it_is_so(service: str) -> None:
    Service.answers = {PREEMPTED: "FALSE"}
    assert google_notice(service) is None
    Service.answers = {PREEMPTED: "TRUE"}
    assert google_notice(service) == 30


def test_a_service_that_does_not_answer_has_announced_nothing() -> None:
    assert aws_notice("http://127.0.0.1:9") is None
    assert google_notice("http://127.0.0.1:9") is None


def test_only_machines_of_these_clouds_are_asked(tmp_path: Path) -> None:
    assert notice_here(tmp_path) is None
    (tmp_path / "sys_vendor").write_text("Amazon EC2\n")
    assert notice_here(tmp_path) is aws_notice
    (tmp_path / "sys_vendor").write_text("Google\n")
    (tmp_path / "product_name").write_text("Google Compute Engine\n")
    assert notice_here(tmp_path) is google_notice
