"""The whole job on a real Ray, with an engine that needs no model: every row answered, once, as asked."""

import asyncio
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.run import run
from speech.engines import dtype
from speech.engines.base import ClipRequest, EngineConfig
from speech.engines.fake import FakeEngine
from speech.models.families import Family
from speech.transcriber import WARM_UP_ID
from speech.transcript import parquet_schema
from tests.pipelines.jobs import Finished, job_of, manifest_of, transcribe

ERRORS = {
    "empty": "empty",
    "missing": "not_found",
    "text": "unreadable",
    "tongue": "unsupported_language",
    "blank-keyword": "bad_keywords",
    "late": "bad_range",
    "backwards": "bad_row",
    "refused": "engine_refused",
    "fault": "internal",
}


def test_every_row_is_answered_once_and_bad_ones_fail_alone(finished: Finished) -> None:
    assert sorted(row["recording_id"] for row in finished.answers) == sorted(row["id"] for row in finished.rows)
    answers = {row["recording_id"]: row for row in finished.answers}
    errors = {name: answer["error"] and answer["error"]["code"] for name, answer in answers.items()}
    assert {name: code for name, code in errors.items() if code} == ERRORS
    for name, answer in answers.items():
        assert answer["status"] == ("failed" if errors[name] else "ok")
        assert answer["audio"].endswith((".flac", ".wav"))
    assert json.loads(answers["good"]["metadata"]) == {"queue": "billing", "priority": 3}
    assert answers["good"]["text"].startswith("en")
    assert answers["named"]["text"].startswith("de Kuhn")
    assert answers["named"]["usage"]["audio_tokens"] == 10 * len(answers["named"]["segments"])
    assert {answers[name]["error"]["stage"] for name in ("tongue", "missing", "refused")} == {
        "request",
        "listen",
        "transcribe",
    }
    assert answers["refused"]["duration_s"] > 0  # what was known before it failed is kept


def test_the_output_has_the_documented_columns_and_a_report(finished: Finished) -> None:
    for status in ("ok", "failed"):
        files = list((finished.output / "transcripts" / f"status={status}").glob("*.parquet"))
        assert files
        for file in files:
            assert pq.read_schema(file).names == [name for name in parquet_schema().names if name != "status"]
            assert pq.ParquetFile(file).metadata.row_group(0).column(0).compression == "ZSTD"
    text = (finished.output / "run.json").read_text()
    report = json.loads(text)
    assert "hush" not in text
    ok = len(finished.rows) - len(ERRORS)
    assert report["recordings"] == {"ok": ok, "failed": len(ERRORS), "done_before": 0, "failed_before": 0}
    assert report["failures"] == dict.fromkeys(ERRORS.values(), 1)
    assert report["versions"]["ray"]
    assert report["audio_s"] > 0


def test_a_manifest_that_has_grown_costs_only_its_new_rows(copied: Finished) -> None:
    files = set((copied.output / "transcripts").rglob("*.parquet"))
    manifest = manifest_of(copied.folder, *copied.rows, {"audio": "customer.flac", "id": "new"})
    answers = transcribe(manifest, copied.output)
    assert len(answers) == len(copied.rows) + 1
    assert {row["recording_id"] for row in answers} == {"new", *(row["id"] for row in copied.rows)}
    new = set((copied.output / "transcripts").rglob("*.parquet")) - files
    assert [pq.read_table(file)["recording_id"].to_pylist() for file in new] == [["new"]]


def test_bfloat16_on_a_cpu_without_it_is_warned_of(
    copied: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dtype, "cpu_info", lambda: "flags : avx2")
    manifest = manifest_of(copied.folder, {"audio": "agent.flac", "id": "new"})
    transcribe(manifest, copied.folder / "bfloat16", dtype="bfloat16")
    assert "leave out --dtype bfloat16" in capsys.readouterr().err


FULL = 200  # clips


async def wait_until_full(clip: ClipRequest) -> None:
    """No clip is answered before so many are in flight."""
    if clip.id == WARM_UP_ID:
        return
    in_flight.add(clip.id)
    async with asyncio.timeout(60):
        while len(in_flight) < FULL:
            await asyncio.sleep(0.05)


in_flight: set[str] = set()  # of the engine's process


def start_filling(config: EngineConfig, family: Family) -> FakeEngine:
    return FakeEngine(before=wait_until_full)


def test_short_recordings_fill_a_large_engine(calls: Path) -> None:
    rows: list[dict[str, object]] = [{"audio": "agent.flac", "id": f"{n}", "duration": 1} for n in range(600)]
    job = job_of(manifest_of(calls, *rows), calls / "out", listeners=2, concurrent_clips=256)
    assert run(job, start_filling).ok == len(rows)
