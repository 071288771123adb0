"""Endpoints in their own processes, as users run them."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from testing.ports import free_port
from tests.serve.collector import Collector

START_S = 240.0
MAX_WAIT_S = 60.0


def eventually(check: Callable[[], object]) -> Any:
    """The first true value that ``check`` returns."""
    until = time.monotonic() + MAX_WAIT_S
    while time.monotonic() < until:
        if found := check():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {MAX_WAIT_S:g} s")


@dataclass(frozen=True)
class Served:
    """A running endpoint."""

    url: str
    metrics: str
    process: subprocess.Popen[str]

    def stop(self) -> tuple[int, str]:
        """Sends SIGTERM; returns exit code and output."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=120)
        return self.process.returncode, output


def served(*command: str, settings: Callable[[str, object], list[str]], env: Mapping[str, str] = {}) -> Served:
    """Starts an endpoint and waits until it listens."""
    port, metrics_port = free_port(), free_port()
    arguments = [*command, *settings("port", port), *settings("metrics_port", metrics_port)]
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "RAY_AUTH_MODE": "disabled", **env},
    )
    assert process.stdout is not None
    deadline = threading.Timer(START_S, process.kill)
    deadline.start()
    output = ""
    while "listening at" not in output:
        line = process.stdout.readline()
        assert line, f"the endpoint has exited:\n{output}"
        output += line
    deadline.cancel()
    [url] = re.findall(r"listening at (\S+);", output)
    return Served(url, f"http://127.0.0.1:{metrics_port}/metrics", process)


def served_scripted(folder: Path, *settings: str) -> Served:
    """An endpoint on engines that are controlled through a folder (``tests.serve.scripted``)."""
    model = [] if any(setting.startswith("models=") for setting in settings) else ["model=demo/model"]
    return served(
        *("-m", "tests.serve.scripted", str(folder), *model, *settings),
        settings=lambda name, value: [f"{name}={value}"],
    )


@pytest.fixture(scope="module")
def scripted(needs_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path]]:
    """An endpoint on two engines, and the folder that controls them."""
    folder = tmp_path_factory.mktemp("scripted")
    endpoint = served_scripted(folder, "engines=2", "max_requests=4", "max_upload_mib=2", "drain_s=60")
    yield endpoint, folder
    if endpoint.process.poll() is None:
        endpoint.stop()


@pytest.fixture(scope="package")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="package")
def demo(needs_engine: None, needs_ray: None, collector: Collector) -> Iterator[Served]:
    """``rayscribe serve`` on the demo model, shared by the tests of OpenAI's client and of the page."""
    endpoint = served(
        *("-m", "rayscribe", "serve", "--model", "demo/model", "--names", "whisper-1"),
        settings=lambda name, value: [f"--{name.replace('_', '-')}", str(value)],
        env=collector.env,
    )
    yield endpoint
    endpoint.stop()
