"""An engine whose start hangs or fails ends the run with one line; the terminal shows none of Ray's own messages."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipelines.run import run
from speech.engines.base import EngineConfig
from speech.engines.fake import FakeEngine
from speech.errors import RayscribeError
from speech.models.families import Family
from tests.pipelines.jobs import job_of, make_calls, manifest_of


def hang(config: EngineConfig, family: Family) -> FakeEngine:
    threading.Event().wait()
    raise AssertionError("unreachable")


def test_a_start_that_hangs_ends_the_run(calls: Path, tmp_path: Path) -> None:
    job = job_of(manifest_of(calls, {"audio": "agent.flac"}), tmp_path / "out", engine_start_timeout_s=1)
    with pytest.raises(RayscribeError, match=r"in 1 s \(--engine-start-timeout-s\)") as failed:
        run(job, hang)
    assert failed.value.code == "run_failed"


# The command line with other engines; rayscribe.main looks ``run`` up when it is called.
WITH_ENGINE = """
import functools, sys, rayscribe, pipelines.run as job
from tests.pipelines.jobs import start_scripted

def refuse(config, family):
    raise ImportError("no engine here")

job.run = functools.partial(job.run, start=refuse if sys.argv[1] == "refuse" else start_scripted)
sys.exit(rayscribe.main(sys.argv[2:]))
"""


def transcribe_with(engine: str, manifest: str, output: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITH_ENGINE, engine, "transcribe", manifest, "--output", str(output)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.ray
def test_an_engine_that_does_not_start_is_told_in_one_line(tmp_path: Path) -> None:
    make_calls(tmp_path)
    ended = transcribe_with("refuse", manifest_of(tmp_path, {"audio": "agent.flac"}), tmp_path / "out")
    assert (ended.returncode, ended.stdout) == (1, "")
    *progress, error = ended.stderr.splitlines()
    assert error.startswith("rayscribe: the run failed: ")
    assert "no engine here" in error
    assert [line.split()[0] for line in progress] == ["reading", "starting", "1"]


@pytest.mark.ray
def test_a_worker_that_dies_leaves_no_message_of_ray(tmp_path: Path) -> None:
    make_calls(tmp_path)
    manifest = manifest_of(tmp_path, {"audio": "agent.flac", "keywords": ["kill me"]})
    ended = transcribe_with("scripted", manifest, tmp_path / "out")
    assert ended.returncode == 3
    assert "failed: poison" in ended.stdout
    assert "(raylet)" not in ended.stdout
    assert [line.split()[0] for line in ended.stderr.splitlines()] == ["reading", "starting", "1", "1", "merging"]
