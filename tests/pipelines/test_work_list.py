"""What a run leaves out, and what it counts: none of these runs has anything to transcribe, and so needs no Ray."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.output import Output
from pipelines.run import retry, run
from pipelines.summary import Summary
from speech.errors import AudioError, UsageError
from speech.recording import Recording
from speech.transcript import Transcript
from storage.filesystem import Storage
from tests.pipelines.jobs import job_of, manifest_of, start_scripted


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.run.connect_ray", lambda address: pytest.fail("Ray is not needed"))


def output_with(folder: Path, ok: str = "", failed: str = "") -> Path:
    """An output with a transcript for each letter of ``ok`` and a failure for each of ``failed``."""
    error = AudioError("not_found", "gone")
    rows = [Transcript(Recording(id=name, audio=f"{folder}/a.wav"), "model", text="hello").to_row() for name in ok]
    rows += [Transcript(Recording(id=name, audio=f"{folder}/a.wav"), "model", error=error).to_row() for name in failed]
    Output(f"{folder}/out", Storage()).commit(rows)
    return folder / "out"


def rows_of(ids: str) -> list[dict[str, object]]:
    return [{"audio": "a.wav", "id": name} for name in ids]


def run_over(folder: Path, ids: str) -> Summary:
    return run(job_of(manifest_of(folder, *rows_of(ids)), folder / "out"), start_scripted)


def test_a_wrong_manifest_is_refused_before_ray_starts_and_blocks_no_other_job(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, *rows_of("aba"))
    for language in ("en", "de"):
        with pytest.raises(UsageError) as refused:
            run(job_of(manifest, tmp_path / "out", language=language), start_scripted)
        assert refused.value.code == "duplicate_id"


def test_a_run_with_nothing_to_do_ends_with_a_report(tmp_path: Path) -> None:
    output = output_with(tmp_path, ok="ab")  # of a run that was stopped at its end
    assert run_over(tmp_path, "ab").finished == 0
    report: dict[str, Any] = json.loads((output / "run.json").read_text())
    assert report["recordings"] == {"ok": 0, "failed": 0, "done_before": 2, "failed_before": 0}


def test_failures_count_if_the_manifest_names_them(tmp_path: Path) -> None:
    output_with(tmp_path, ok="abc", failed="xy")
    summary = run_over(tmp_path, "ab")
    assert (summary.done_before, summary.failed_before, summary.any_failed) == (2, 0, False)
    summary = run_over(tmp_path, "abx")
    assert (summary.done_before, summary.failed_before, summary.any_failed) == (2, 1, True)


def test_retry_tells_of_failures_that_its_manifest_does_not_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = output_with(tmp_path, ok="a", failed="xy")
    manifest = manifest_of(tmp_path, *rows_of("ab"))
    summary = retry(job_of(manifest, output), start_scripted)
    assert (summary.done_before, summary.failed_before, summary.any_failed) == (1, 0, False)
    assert f"2 recordings that failed are not in {manifest} and are not tried again" in capsys.readouterr().err
    run_over(tmp_path, "axy")
    assert "not in" not in capsys.readouterr().err
