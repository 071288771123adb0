"""Fixtures that several modules share because they are slow: an engine with the demo checkpoint, and its clips."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from speech.engines.base import ClipRequest, EngineConfig
from speech.errors import RayscribeError
from speech.listener import Listener
from speech.recording import Options, Recording
from testing.engines import RunningEngine

SAMPLES = Path("demo/samples")


@pytest.fixture(scope="package")
def greedy(needs_engine: None) -> Iterator[RunningEngine]:
    """vLLM with the demo checkpoint, without speculation. Started once: it takes most of a minute."""
    engine = RunningEngine(EngineConfig(model="demo/model", kv_cache_gb=0.5, speculation="off"))
    yield engine
    engine.stop()


@pytest.fixture(scope="package")
def sample_clips() -> list[ClipRequest]:
    """All clips of the sample calls."""
    listener, clips = Listener(clip_s=30.0), []
    for path in sorted(SAMPLES.iterdir()):
        try:
            clips += listener.listen(Recording(id=path.stem, audio=str(path))).clips
        except RayscribeError:  # some are invalid on purpose, and one is the manifest
            continue
    return [ClipRequest(clip.samples, Options(), str(number)) for number, clip in enumerate(clips)]


@pytest.fixture(scope="package")
def gguf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint as GGUF files."""
    folder = tmp_path_factory.mktemp("gguf")
    subprocess.run([sys.executable, "-m", "demo.to_gguf", str(folder)], check=True)
    return folder
