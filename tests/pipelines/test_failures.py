"""Nothing is lost: what goes wrong costs its own row, and a second try mends what can be mended."""

import os
import shutil
from pathlib import Path

import pytest

from cluster.storage import Storage
from pipelines.lease import Lease
from pipelines.status import status_of
from pipelines.transcribe import retry, run
from speech.errors import UsageError
from tests.pipelines.echo import answers_in, job_of, manifest_of, start_echo, transcribe


def test_poison_is_given_up_and_its_neighbours_are_transcribed(calls: Path, tmp_path: Path) -> None:
    os.mkfifo(calls / "endless.wav")  # opening it waits for ever, in C
    # Its company in the engine goes down with it, waits for it to be tried again, and is not taken for it.
    company = [
        {"audio": "agent.flac", "id": f"company-{number}", "keywords": ["take your time"]} for number in range(3)
    ]
    rows: list[dict[str, object]] = [
        {"audio": "customer.flac", "id": "kills", "keywords": ["kill me"]},
        *company,
        {"audio": "endless.wav", "id": "hangs"},
        *({"audio": "agent.flac", "id": f"good-{number}"} for number in range(3)),
    ]
    answers = transcribe(manifest_of(calls, *rows), tmp_path / "out", listen_timeout_s=3)
    errors = {row["recording_id"]: row["error"] and (row["error"]["stage"], row["error"]["code"]) for row in answers}
    assert len(answers) == len(rows)
    assert errors.pop("hangs") == ("listen", "poison")
    assert errors.pop("kills") == ("transcribe", "poison")
    assert set(errors.values()) == {None}


def test_retry_tries_only_what_failed_and_each_stands_once(calls: Path, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"audio": "agent.flac", "id": "good"},
        {"audio": "late.flac", "id": "came-late"},
        {"audio": "never.flac", "id": "never-came"},
    ]
    job = job_of(manifest_of(calls, *rows), tmp_path / "out")
    assert run(job, start_echo).failed.total() == 2
    good_file = next((tmp_path / "out/transcripts/status=ok").iterdir())
    written = good_file.stat().st_mtime_ns
    shutil.copy(calls / "agent.flac", calls / "late.flac")
    summary = retry(job, start_echo)
    assert (summary.ok, summary.failed.total(), summary.done_before) == (1, 1, 1)
    answers = {row["recording_id"]: row for row in answers_in(tmp_path / "out")}
    assert {name: (row["status"], row["attempt"]) for name, row in answers.items()} == {
        "good": ("ok", 1),
        "came-late": ("ok", 2),
        "never-came": ("failed", 2),
    }
    assert len(answers_in(tmp_path / "out")) == 3
    assert good_file.stat().st_mtime_ns == written


def test_status_tells_what_failed_and_why(calls: Path, tmp_path: Path) -> None:
    transcribe(manifest_of(calls, {"audio": "agent.flac"}, {"audio": "gone.wav", "id": "gone"}), tmp_path / "out")
    status = status_of(str(tmp_path / "out"), {})
    assert (status.recordings, status.ok, status.finished, status.holder) == (2, 1, True, None)
    assert [(row["recording_id"], row["error"]["code"]) for row in status.failures] == [("gone", "not_found")]
    with pytest.raises(UsageError, match=r"job\.json"):
        status_of(str(tmp_path), {})


def test_other_settings_on_the_same_output_are_refused_by_name(calls: Path, tmp_path: Path) -> None:
    manifest = manifest_of(calls, {"audio": "agent.flac", "id": "one"})
    transcribe(manifest, tmp_path / "out")
    with pytest.raises(UsageError, match="language was 'en' and is now 'de'") as refused:
        run(job_of(manifest, tmp_path / "out", language="de"), start_echo)
    assert refused.value.code == "changed_settings"
    manifest = manifest_of(calls, {"audio": "agent.flac", "id": "one"}, {"audio": "customer.flac", "id": "two"})
    answers = transcribe(manifest, tmp_path / "out", language="de", allow_changes=True)
    assert {row["recording_id"]: row["language"] for row in answers} == {"one": "en", "two": "de"}


def test_a_second_run_on_one_output_is_refused(calls: Path, tmp_path: Path) -> None:
    manifest = manifest_of(calls, {"audio": "agent.flac"})
    with Lease(str(tmp_path / "out"), Storage(), renew_s=0.2), pytest.raises(UsageError) as refused:
        run(job_of(manifest, tmp_path / "out"), start_echo)
    assert refused.value.code == "output_in_use"
    assert len(transcribe(manifest, tmp_path / "out")) == 1  # and once it is free, it runs
