"""The README, run: its commands on the sample calls with the real engine, its Python, its tables."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pytest
import yaml

import rayscribe
from pipelines.job import Job
from speech.model_rules import ModelChoice
from speech.preflight import preflight_models
from speech.recording import Options
from speech.transcript import parquet_schema
from tests.readme import README, blocks

MANIFEST = [json.loads(line) for line in Path("demo/samples/manifest.jsonl").read_text().splitlines()]
BAD = {"corrupt-018": "unreadable", "empty-019": "empty"}


@pytest.fixture(scope="module")
def rows(shell: dict[str, subprocess.CompletedProcess[str]]) -> dict[str, dict[str, Any]]:
    """The output of the README's run, by recording."""
    table = pads.dataset("out/readme/transcripts", partitioning="hive").to_table()
    assert table.num_rows == len(MANIFEST)
    return {str(row["recording_id"]): row for row in table.to_pylist()}


def test_every_command_ends_as_it_says(shell: dict[str, subprocess.CompletedProcess[str]]) -> None:
    for line, done in shell.items():
        expected = 3 if "transcribe" in line else 0  # some samples are broken on purpose
        assert done.returncode == expected, f"{line}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
    transcribed = next(done for line, done in shell.items() if "transcribe" in line)
    assert "RTFx" in transcribed.stdout
    assert "out/readme/transcripts" in transcribed.stdout


def test_the_rules_for_several_models_are_read_as_they_say() -> None:
    [config] = blocks("yaml")
    rules = Job.from_settings({"manifest": "m", "output": "o"} | yaml.safe_load(config)).rules
    preflight_models(rules, Options(), loads_here=False)
    asked: list[dict[str, str]] = [{}, {"tier": "cheap"}, {"language": "sv"}, {"language": "auto"}]
    assert [rules[ModelChoice(rules, Options()).of(row)].model.rpartition("/")[2] for row in asked] == [
        "granite-4.0-1b-speech",
        "parakeet-tdt-0.6b-v3",
        "whisper-large-v3",
        "whisper-large-v3",
    ]


def test_every_python_block_runs(rows: dict[str, dict[str, Any]]) -> None:
    for block in blocks("python"):
        subprocess.run([sys.executable, "-c", block], check=True, capture_output=True)


def test_every_manifest_row_is_there_once_with_its_answer(rows: dict[str, dict[str, Any]]) -> None:
    assert sorted(rows) == sorted(row["id"] for row in MANIFEST)
    for name, row in rows.items():
        if name in BAD:
            assert row["status"] == "failed"
            assert row["error"]["code"] == BAD[name]
            assert row["error"]["stage"] == "listen"
            assert row["error"]["message"]
        else:
            assert row["status"] == "ok", row["error"]
            assert row["error"] is None
    for asked in MANIFEST:
        kept = json.loads(rows[asked["id"]]["metadata"])
        assert kept["queue"] == asked["queue"]


def test_a_stereo_call_has_its_two_speakers_in_the_order_of_time(rows: dict[str, dict[str, Any]]) -> None:
    segments = rows["billing-001"]["segments"]
    assert rows["billing-001"]["channels"] == 2
    assert {(segment["channel"], segment["speaker"]) for segment in segments} == {(0, "agent"), (1, "customer")}
    starts = [segment["start_s"] for segment in segments]
    assert starts == sorted(starts)
    turns = [segment["speaker"] for segment in segments]
    assert turns != sorted(turns)  # they take turns; one does not follow the other whole


def test_dual_mono_is_transcribed_once(rows: dict[str, dict[str, Any]]) -> None:
    assert rows["billing-009"]["channels"] == 1


def test_silence_is_no_failure(rows: dict[str, dict[str, Any]]) -> None:
    assert rows["silent-017"]["text"] == ""
    assert rows["silent-017"]["speech_s"] == 0
    assert rows["silent-017"]["flags"] == ["no_speech"]


def test_tokens_and_times_are_counted(rows: dict[str, dict[str, Any]]) -> None:
    call = rows["billing-001"]
    assert 0 < call["usage"]["audio_tokens"] < call["usage"]["prompt_tokens"]
    assert call["usage"]["output_tokens"] > 0
    assert 0 < call["speech_s"] < 2 * call["duration_s"]
    for segment in call["segments"]:
        assert 0 <= segment["start_s"] < segment["end_s"] <= call["duration_s"] + 0.01
        assert segment["avg_logprob"] <= 0


def test_the_table_of_columns_is_that_of_the_schema() -> None:
    table = README.split("| column | type | meaning |")[1].split("\n\n")[0]
    documented = re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines() if "|" in line))
    assert documented == [name for name in parquet_schema().names if name != "status"]


def test_the_exit_codes_are_those_of_the_command() -> None:
    documented = dict(re.findall(r"(\d) ([a-z ]+?)(?: ·|,)", README.split("### Exit codes")[1].split("\n## ")[0]))
    assert documented.keys() == {"0", "1", "2", "3"}
    assert (rayscribe.EXIT_OK, rayscribe.EXIT_FAILED, rayscribe.EXIT_USAGE, rayscribe.EXIT_SOME_FAILED) == (0, 1, 2, 3)
