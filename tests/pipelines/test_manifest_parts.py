"""Parts of a large manifest: together they have its rows, wherever it is cut."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from pipelines import manifest, manifest_parts
from pipelines.commits import NOTHING
from pipelines.manifest import id_hash
from pipelines.manifest_parts import parts_of
from pipelines.output import Contents
from pipelines.work_list import Recorded
from storage.filesystem import Storage

ROWS: list[dict[str, Any]] = [{"audio": f"/{n}.wav", "text": "ü" * (n % 7)} for n in range(50)]
ENDS = ["\n", "\r\n", "\n\n"]
LINES = "\ufeff" + "".join(json.dumps(row, ensure_ascii=False) + ENDS[n % 3] for n, row in enumerate(ROWS))


def in_parts(uri: Path | str) -> tuple[list[list[dict[str, Any]]], list[dict[str, Any]]]:
    """The rows of each task; and of the whole manifest."""
    read = manifest.read(str(uri), Storage())
    tasks = parts_of(read)
    return [[row for part in task for _, row in read.part(part)] for task in tasks], [row for _, row in read]


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_parts, "LARGE_BYTES", 1)
    monkeypatch.setattr(manifest_parts, "PART_BYTES", 100)


@pytest.mark.parametrize("part_bytes", [1, 2, 3, 30, 37, 100, 1000])
def test_json_lines_are_cut_at_any_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int) -> None:
    monkeypatch.setattr(manifest_parts, "PART_BYTES", part_bytes)
    (tmp_path / "m.jsonl").write_bytes(LINES.encode())
    tasks, whole = in_parts(tmp_path / "m.jsonl")
    assert len(tasks) >= len(LINES.encode()) / part_bytes
    assert [row for rows in tasks for row in rows] == whole == ROWS


def test_parquet_is_cut_at_row_groups(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "m.parquet", row_group_size=7)
    tasks, whole = in_parts(tmp_path / "m.parquet")
    assert len(tasks) == 8
    assert [row for rows in tasks for row in rows] == whole == ROWS


def test_files_that_have_no_parts_are_read_whole_and_small_ones_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "audio\n" + "".join(f"{row['audio']}\n" for row in ROWS)
    (tmp_path / "a.csv").write_text(text)
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(text.replace("/", "/b").encode()))
    (tmp_path / "c.jsonl").write_text('{"audio": "/c.wav"}\n')
    (tmp_path / "d.jsonl").write_text('{"audio": "d.wav"}\n')
    tasks, whole = in_parts(tmp_path)
    assert [len(rows) for rows in tasks] == [50, 50, 2]
    assert [row for rows in tasks for row in rows] == whole
    assert whole[-1] == {"audio": f"{tmp_path}/d.wav"}


def test_audio_and_small_manifests_are_not_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "1.wav").write_bytes(bytes(1000))
    assert parts_of(manifest.read(str(tmp_path), Storage())) == []
    monkeypatch.setattr(manifest_parts, "LARGE_BYTES", 1 << 20)
    (tmp_path / "m.jsonl").write_text(LINES)
    assert parts_of(manifest.read(f"{tmp_path}/m.jsonl", Storage())) == []


def test_what_is_recorded_is_found_by_id(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = {"ok": {f"ok-{n}": 1 + n % 3 for n in range(100)}, "failed": {"f-1": 1, "f-2": 2}}
    contents = Contents(attempts, set(), NOTHING, np.empty(0, np.int64))
    asked = ["ok-7", "new", "f-2", "ok-98", "f"]
    for hashing in (id_hash, lambda recording_id: len(recording_id)):  # many ids with equal hashes
        monkeypatch.setattr("pipelines.work_list.id_hash", hashing)
        found = Recorded.of(contents).contents(asked, np.array([hashing(each) for each in asked], np.int64))
        assert found.attempts == {"ok": {"ok-7": 2, "ok-98": 3}, "failed": {"f-2": 2}}
