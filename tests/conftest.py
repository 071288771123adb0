"""What several rooms' tests need: an S3 of their own, and the README's run. No test ever reaches a real cloud."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
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
    RAY_AUTH_MODE="disabled",
)
for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
    os.environ.pop(name, None)


# Markers: what a test needs beyond a process of its own (pyproject.toml). A module that needs it whole says so in one
# line, ``pytestmark = pytest.mark.engine``; a fixture that starts something asks for the ``needs_`` fixture below, and
# so does every test that uses it, at whatever remove.


@pytest.fixture(scope="session")
def needs_engine() -> None: ...


@pytest.fixture(scope="session")
def needs_ray() -> None: ...


@pytest.fixture(scope="session")
def needs_s3() -> None: ...


@pytest.fixture(scope="session")
def needs_browser() -> None: ...


@pytest.fixture(scope="session")
def ray_here(needs_ray: None) -> Iterator[None]:
    """One Ray for all tests that run a graph or an application in this process.

    Of a second one in the same process, the results of Serve's handles never arrive (Ray 2.60).
    """
    import ray

    ray.init(address="local", num_cpus=6, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture.startswith("needs_"):
                item.add_marker(fixture.removeprefix("needs_"))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out modules that -m deselects whole: importing torch and vLLM to do so would take 20 s."""
    selected: str = config.option.markexpr
    if not selected or not re.fullmatch(r"test_.*\.py", collection_path.name):
        return None
    line = re.search(r"^pytestmark = .*$", collection_path.read_text(), re.MULTILINE)
    marks = dict.fromkeys(re.findall(r"pytest\.mark\.(\w+)", line[0] if line else ""), True)
    if not marks:
        return None
    names = dict.fromkeys(re.findall(r"\w+", selected), False)
    return None if eval(selected, {}, names | marks) else True


@pytest.fixture(autouse=True)
def unmarked_tests_start_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that imports an engine's libraries, starts Ray or an S3 server here and is not marked so."""

    def needs() -> set[str]:
        engine = {"torch", "transformers", "vllm"} & sys.modules.keys()
        ray = "ray" in sys.modules and sys.modules["ray"].is_initialized()
        s3 = "moto.server" in sys.modules
        return {name for name, needed in (("engine", engine), ("ray", ray), ("s3", s3)) if needed}

    before = needs()
    yield
    unmarked = needs() - before - {marker.name for marker in request.node.iter_markers()}
    assert not unmarked, f"mark this test: {', '.join(unmarked)}"


@dataclass(frozen=True)
class S3:
    """A real S3 protocol server on this machine, with one empty bucket."""

    endpoint: str
    bucket: str  # as a URI

    @property
    def options(self) -> dict[str, Any]:
        return {"key": "testing", "secret": "testing", "endpoint_url": self.endpoint}


@pytest.fixture(scope="session")
def s3_endpoint(needs_s3: None) -> Iterator[str]:
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
def shell(needs_engine: None, needs_ray: None) -> dict[str, subprocess.CompletedProcess[str]]:
    """Every command line of the README's bash blocks, run in order; what is transcribed lies in out/readme."""
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "COLUMNS": "120"}
    subprocess.run(["rm", "-rf", "out/readme"], check=True)
    return {
        line: subprocess.run(line, shell=True, capture_output=True, text=True, env=environment)
        for block in blocks("bash")
        for line in block.splitlines()
    }
