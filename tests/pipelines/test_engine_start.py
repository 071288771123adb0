"""An engine whose start hangs ends the run with an error that names the limit."""

import threading
from pathlib import Path

import pytest

from pipelines.run import run
from speech.engines.base import EngineConfig
from speech.engines.fake import FakeEngine
from speech.errors import RayscribeError
from speech.models.families import Family
from tests.pipelines.jobs import job_of, manifest_of


def hang(config: EngineConfig, family: Family) -> FakeEngine:
    threading.Event().wait()
    raise AssertionError("unreachable")


def test_a_start_that_hangs_ends_the_run(calls: Path, tmp_path: Path) -> None:
    job = job_of(manifest_of(calls, {"audio": "agent.flac"}), tmp_path / "out", engine_start_timeout_s=1)
    with pytest.raises(RayscribeError, match=r"in 1 s \(--engine-start-timeout-s\)") as failed:
        run(job, hang)
    assert failed.value.code == "run_failed"
