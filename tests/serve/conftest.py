"""Endpoints in processes of their own, as users run them."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

START_S = 240.0


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


def served(*command: str, settings: Callable[[str, object], list[str]]) -> Served:
    """Starts an endpoint and waits until it says that it listens."""
    port, metrics_port = free_port(), free_port()
    arguments = [*command, *settings("port", port), *settings("metrics_port", metrics_port)]
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
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


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path]]:
    """An endpoint on two engines that do what they are told, and the folder through which they are told."""
    folder = tmp_path_factory.mktemp("mortal")
    endpoint = served(
        *("-m", "tests.serve.mortal", str(folder), "model=demo/model", "engines=2", "max_requests=4", "drain_s=60"),
        settings=lambda name, value: [f"{name}={value}"],
    )
    yield endpoint, folder
    if endpoint.process.poll() is None:
        endpoint.stop()


@pytest.fixture(scope="package")
def demo() -> Iterator[Served]:
    """``rayscribe serve`` on the demo model: one for OpenAI's client and for the page."""
    endpoint = served(
        *("-m", "rayscribe", "serve", "--model", "demo/model", "--names", "whisper-1"),
        settings=lambda name, value: [f"--{name.replace('_', '-')}", str(value)],
    )
    yield endpoint
    endpoint.stop()
