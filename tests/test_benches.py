"""Benches that need what a test machine lacks, at a size that it can run: that they work to their last line."""

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.s3, pytest.mark.long]


def last_line(*command: str) -> Any:
    ended = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout.splitlines()[-1])


def test_rtfx_of_a_gpu_at_a_small_size() -> None:
    small = ("--size", "small", "--clips", "12", "--calls", "1", "--rounds", "1", "--concurrent-clips", "8")
    figures = last_line("bench.gpu_rtfx", *small)
    assert figures["size"] == "small"
    assert figures["roofline_rtfx"] is None  # that of the full size
    assert all(figures["rtfx"][part] > 0 for part in ("log-mel", "prefill", "one after another", "end to end"))
    job = figures["job"]
    assert 0 < job["speech_s"] <= job["audio_s"]
    assert job["share_of_engine"] > 0


def test_peers_of_granite() -> None:
    rows = last_line("bench.peers.granite", "--recordings", "2", "--rounds", "1")["rows"]
    ours, card, ray_data = (row["rtfx"] for row in rows)
    assert min(ours, card, ray_data) > 0
    assert rows[0]["tokens"] == rows[1]["tokens"]
    assert rows[0]["wer"] == rows[1]["wer"]


def test_peers_of_whisper_write_as_many_tokens() -> None:
    result = last_line("bench.peers.whisper", "--random", "8", "--recordings", "2", "--rounds", "1")
    assert len({row["tokens"] for row in result["rows"]}) == 1
    assert len(result["rows"]) + len(result["skipped"]) == 6
    assert "random weights" in result["title"]


def test_peers_of_whisper_without_a_checkpoint_are_skipped() -> None:
    assert "--whisper DIR" in last_line("bench.peers.whisper")["skipped"]
