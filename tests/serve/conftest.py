"""Endpoints in processes of their own, as users run them."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.serve.collector import Collector

START_S = 240.0
PATIENCE_S = 60.0


def eventually(seen: Callable[[], object]) -> Any:
    """What ``seen`` gives, once it gives something."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if found := seen():
            return found
        time.sleep(0.1)
    raise AssertionError("it has not come about")


@dataclass(frozen=True)
class Served:
    """An endpoint that answers."""

    url: str
    metrics: str
    process: subprocess.Popen[str]

    def stop(self) -> tuple[int, str]:
        """Asks it to end; returns its exit code and what it has printed."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        printed, _ = self.process.communicate(timeout=120)
        return self.process.returncode, printed


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def served(*command: str, settings: Callable[[str, object], list[str]], env: Mapping[str, str] = {}) -> Served:
    """Starts an endpoint and waits until it says that it listens."""
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
    too_long = threading.Timer(START_S, process.kill)
    too_long.start()
    printed = ""
    while "listening at" not in printed:
        line = process.stdout.readline()
        assert line, f"the endpoint has ended:\n{printed}"
        printed += line
    too_long.cancel()
    [url] = re.findall(r"listening at (\S+);", printed)
    return Served(url, f"http://127.0.0.1:{metrics_port}/metrics", process)


def served_mortal(folder: Path, *settings: str) -> Served:
    """An endpoint on engines that do what they are told through a folder (``tests.serve.scripted``)."""
    return served(
        *("-m", "tests.serve.scripted", str(folder), "model=demo/model", *settings),
        settings=lambda name, value: [f"{name}={value}"],
    )


@pytest.fixture(scope="module")
def mortal(needs_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path]]:
    """Two engines that do what they are told, and the folder through which they are told."""
    folder = tmp_path_factory.mktemp("mortal")
    endpoint = served_mortal(folder, "engines=2", "max_requests=4", "max_upload_mib=2", "drain_s=60")
    yield endpoint, folder
    if endpoint.process.poll() is None:
        endpoint.stop()


@pytest.fixture(scope="package")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="package")
def demo(needs_engine: None, needs_ray: None, collector: Collector) -> Iterator[Served]:
    """``rayscribe serve`` on the demo model: one for OpenAI's client and for the page."""
    endpoint = served(
        *("-m", "rayscribe", "serve", "--model", "demo/model", "--names", "whisper-1"),
        settings=lambda name, value: [f"--{name.replace('_', '-')}", str(value)],
        env=collector.env,
    )
    yield endpoint
    endpoint.stop()
