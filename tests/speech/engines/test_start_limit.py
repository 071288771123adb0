"""The start of an engine ends: with the engine, with the starter's own error, or with an error after the limit."""

import subprocess
import sys
import threading

import pytest

from speech.engines.base import EngineConfig
from speech.engines.fake import FakeEngine, start_fake
from speech.engines.start_limit import start_within_limit
from speech.errors import EngineDied, UsageError
from speech.models.families import GRANITE_4_0, Family


def test_an_engine_that_starts_in_time_is_returned() -> None:
    assert isinstance(start_within_limit(start_fake, EngineConfig(), GRANITE_4_0), FakeEngine)


@pytest.mark.parametrize("error", [UsageError("bad_model", "no such checkpoint"), TimeoutError("the hub is slow")])
def test_the_starters_own_error_is_raised(error: Exception) -> None:
    def start(config: EngineConfig, family: Family) -> FakeEngine:
        raise error

    with pytest.raises(type(error)) as raised:
        start_within_limit(start, EngineConfig(), GRANITE_4_0)
    assert raised.value is error


def test_a_start_that_hangs_is_an_error_and_leaves_no_process() -> None:
    children: list[subprocess.Popen[bytes]] = []
    released = threading.Event()

    def start(config: EngineConfig, family: Family) -> FakeEngine:
        children.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        released.wait()
        return FakeEngine()

    config = EngineConfig(model="demo/model", engine_start_timeout_s=1)
    with pytest.raises(EngineDied, match=r"demo/model in 1 s \(--engine-start-timeout-s\)") as died:
        start_within_limit(start, config, GRANITE_4_0)
    released.set()
    assert died.value.code == "engine_start_timeout"
    assert children[0].wait(timeout=10) != 0
