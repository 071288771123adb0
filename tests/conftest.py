"""What several rooms' tests need: an S3 of their own, and the README's run. No test ever reaches a real cloud."""

import logging
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.readme import blocks

# Before any driver is imported, and inherited by every process that a test starts. Without a fixture's
# own endpoint, S3 leads to a port where nothing listens.
os.environ.update(
    AWS_ACCESS_KEY_ID="testing",
    AWS_SECRET_ACCESS_KEY="testing",
    AWS_DEFAULT_REGION="us-east-1",
    AWS_ENDPOINT_URL="http://127.0.0.1:9",
    AWS_EC2_METADATA_DISABLED="true",
    AWS_CONFIG_FILE=os.devnull,
    AWS_SHARED_CREDENTIALS_FILE=os.devnull,
)
for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
    os.environ.pop(name, None)


@dataclass(frozen=True)
class S3:
    """A real S3 protocol server on this machine, with one empty bucket."""

    endpoint: str
    bucket: str  # as a URI

    @property
    def options(self) -> dict[str, Any]:
        return {"key": "testing", "secret": "testing", "endpoint_url": self.endpoint}


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str, request: pytest.FixtureRequest) -> S3:
    """The server, with a bucket that no other test has seen."""
    from s3fs import S3FileSystem

    bucket = f"bucket-{abs(hash(request.node.nodeid)):x}"
    server = S3(s3_endpoint, f"s3://{bucket}")
    S3FileSystem(**server.options).mkdir(bucket)
    return server


@pytest.fixture(scope="session")
def shell() -> dict[str, subprocess.CompletedProcess[str]]:
    """Every command line of the README's bash blocks, run in order; what is transcribed lies in out/readme."""
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "COLUMNS": "120"}
    subprocess.run(["rm", "-rf", "out/readme"], check=True)
    return {
        line: subprocess.run(line, shell=True, capture_output=True, text=True, env=environment)
        for block in blocks("bash")
        for line in block.splitlines()
    }
