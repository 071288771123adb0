"""The time limit of the endpoint's Listener replicas."""

import asyncio
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

from serve import app
from serve.app import ListenerReplica
from serve.settings import ServeSettings
from speech.errors import AudioError
from speech.recording import Recording
from tests.serve.direct import MODEL

RECORDING = Recording(id="one", audio="bomb.flac")
LIMIT_S = 0.3
# A decoder that never returns and holds the GIL, so that no code in Python can stop it.
STUCK = f"""
import asyncio, ctypes
import numpy as np
from serve.app import ListenerReplica
from serve.settings import ServeSettings
from speech.recording import Recording

replica = ListenerReplica(ServeSettings(model={MODEL!r}, listen_timeout_s={LIMIT_S}))
replica._listener.listen = lambda *arguments: ctypes.PyDLL(None).sleep(600)
print("started", flush=True)
asyncio.run(replica.listen(Recording(id="one", audio="bomb.flac"), np.zeros(1, np.uint8)))
"""


def replica_with(listen: Any, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> ListenerReplica:
    replica = ListenerReplica(ServeSettings.from_settings({"model": MODEL, **settings}))
    monkeypatch.setattr(replica._listener, "listen", listen)
    monkeypatch.setattr(app, "EXIT_DELAY_S", 0.1)
    return replica


def test_a_recording_that_decodes_too_long_is_refused_and_the_process_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    released, exited = threading.Event(), threading.Event()
    monkeypatch.setattr(app, "kill_children_and_exit", exited.set)
    replica = replica_with(lambda *arguments: released.wait(30), monkeypatch, listen_timeout_s=LIMIT_S)

    async def request() -> None:
        start = time.monotonic()
        answer = await replica.listen(RECORDING, np.zeros(1, np.uint8))
        assert time.monotonic() - start < LIMIT_S + 1
        released.set()
        assert isinstance(answer, AudioError)
        assert answer.code == "listen_timeout"
        while not exited.is_set():
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(request(), 10))


@pytest.mark.parametrize(("size", "refused"), [(100, True), (100_000, False)])
def test_a_small_file_has_less_time_than_a_large_one(monkeypatch: pytest.MonkeyPatch, size: int, refused: bool) -> None:
    monkeypatch.setattr(app, "kill_children_and_exit", lambda: None)
    monkeypatch.setattr(app, "MIN_LISTEN_S", 0.05)

    def listen(*arguments: Any) -> None:
        time.sleep(0.5)
        raise AudioError("unreadable", "decoded to the end")

    replica = replica_with(listen, monkeypatch)
    answer = asyncio.run(replica.listen(RECORDING, np.zeros(size, np.uint8)))
    assert isinstance(answer, AudioError)
    assert answer.code == ("listen_timeout" if refused else "unreadable")


@pytest.mark.slow
def test_a_decoder_that_holds_the_gil_ends_with_its_process() -> None:
    process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    start = time.monotonic()
    assert process.wait(timeout=30) == 1
    assert time.monotonic() - start < LIMIT_S + 2 * app.EXIT_DELAY_S + 5
