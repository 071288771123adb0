"""The whole job on a real Ray, with an engine that needs no model: every row answered, once, as asked."""

import json
from pathlib import Path

import pyarrow.parquet as pq

from speech.transcript import parquet_schema
from tests.pipelines.echo import manifest_of, transcribe


def test_every_row_is_answered_once_and_bad_ones_fail_alone(calls: Path, tmp_path: Path) -> None:
    rows = [
        {"audio": "agent.flac", "id": "good", "queue": "billing", "priority": 3},
        {"audio": "customer.flac", "id": "named", "keywords": ["Kuhn"], "language": "de"},
        {"audio": "empty.wav", "id": "empty"},
        {"audio": "missing.wav", "id": "missing"},
        {"audio": "notes.wav", "id": "text"},
        {"audio": "agent.flac", "id": "tongue", "language": "xx"},
        {"audio": "agent.flac", "id": "blank-keyword", "keywords": "a,,b"},
        {"audio": "agent.flac", "id": "late", "offset": 100_000},
        {"audio": "agent.flac", "id": "backwards", "duration": -1},
        {"audio": "agent.flac", "id": "refused", "keywords": ["refuse me"]},
        {"audio": "agent.flac", "id": "fault", "keywords": ["break me"]},
    ]
    answers = {row["recording_id"]: row for row in transcribe(manifest_of(calls, *rows), tmp_path / "out")}
    assert len(answers) == len(rows)
    errors = {name: answer["error"] and answer["error"]["code"] for name, answer in answers.items()}
    assert errors == {
        "good": None,
        "named": None,
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


def test_the_output_has_the_documented_columns_and_a_report(calls: Path, tmp_path: Path) -> None:
    manifest = manifest_of(calls, {"audio": "agent.flac"}, {"audio": "missing.wav"})
    transcribe(manifest, tmp_path / "out", storage_options={"secret": "hush"})
    for status in ("ok", "failed"):
        [file] = (tmp_path / "out" / "transcripts" / f"status={status}").glob("*.parquet")
        assert pq.read_schema(file).names == [name for name in parquet_schema().names if name != "status"]
        assert pq.ParquetFile(file).metadata.row_group(0).column(0).compression == "ZSTD"
    text = (tmp_path / "out" / "run.json").read_text()
    report = json.loads(text)
    assert "hush" not in text
    assert report["recordings"] == {"ok": 1, "failed": 1, "done_before": 0, "failed_before": 0}
    assert report["failures"] == {"not_found": 1}
    assert report["versions"]["ray"]
    assert report["audio_s"] > 0


def test_a_manifest_that_has_grown_costs_only_its_new_rows(calls: Path, tmp_path: Path) -> None:
    first = [{"audio": "agent.flac", "id": "one"}, {"audio": "missing.wav", "id": "two"}]
    transcribe(manifest_of(calls, *first), tmp_path / "out")
    files = set((tmp_path / "out" / "transcripts").rglob("*.parquet"))
    answers = transcribe(manifest_of(calls, *first, {"audio": "customer.flac", "id": "three"}), tmp_path / "out")
    assert sorted(row["recording_id"] for row in answers) == ["one", "three", "two"]
    new = set((tmp_path / "out" / "transcripts").rglob("*.parquet")) - files
    assert [pq.read_table(file)["recording_id"].to_pylist() for file in new] == [["three"]]


def test_many_recordings_all_arrive(calls: Path, tmp_path: Path) -> None:
    rows = [{"audio": "agent.flac", "id": f"call-{number:03}", "duration": 2} for number in range(60)]
    answers = transcribe(manifest_of(calls, *rows), tmp_path / "out", listeners=2)
    assert sorted(str(row["recording_id"]) for row in answers) == [row["id"] for row in rows]
