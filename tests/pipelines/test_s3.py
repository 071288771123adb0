"""The whole job on object storage: manifest, audio and output in a bucket, on a good network and a bad one."""

import contextlib
import io
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import rayscribe
from pipelines.job import Job
from pipelines.output import STATUSES, Output
from pipelines.run import run
from pipelines.status import read_status
from pipelines.summary import Summary
from storage.filesystem import Storage
from testing.fault_proxy import FAULTS, faults_before
from tests.conftest import S3
from tests.pipelines.jobs import DATA, start_scripted

SECRET = "sesame-0123456789"  # moto takes any
CALLS = "s3://backfill/calls/manifest.jsonl"
CLEAN = "s3://backfill/clean"


@pytest.fixture(scope="module")
def bucket(s3_endpoint: str) -> S3:
    """A bucket of calls and their manifest; one is missing, one is no audio."""
    server = S3(s3_endpoint, "s3://backfill")
    storage = Storage(server.options)
    storage.filesystem(server.bucket)[0].mkdir("backfill")
    for name in ("agent", "customer"):
        storage.write_bytes(f"{server.bucket}/calls/{name}.flac", (DATA / f"{name}.flac").read_bytes())
    storage.write_bytes(f"{server.bucket}/calls/notes.wav", b"not audio at all\n" * 100)
    rows: list[dict[str, object]] = [
        {
            "audio": f"{('agent', 'customer')[number % 2]}.flac",
            "id": f"call-{number:02}",
            "keywords": [f"name {number}"],
        }
        for number in range(24)
    ]
    rows += [{"audio": "gone.flac", "id": "gone"}, {"audio": "notes.wav", "id": "notes"}]
    storage.write_bytes(CALLS, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return server


@dataclass(frozen=True)
class Clean:
    """A run on a good network."""

    output: str
    summary: Summary
    said: str  # on stdout, on stderr and to the log


@pytest.fixture(scope="module")
def clean(bucket: S3, ray_here: None) -> Iterator[Clean]:
    said = io.StringIO()
    log = logging.StreamHandler(said)
    logging.getLogger().addHandler(log)
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        summary = run(_job(CLEAN, bucket.options | {"secret": SECRET}), start_scripted)
    yield Clean(CLEAN, summary, said.getvalue())
    logging.getLogger().removeHandler(log)


def _job(output: str, options: dict[str, Any]) -> Job:
    return Job.from_settings({"manifest": CALLS, "output": output, "storage_options": options, "listeners": 2})


def _answers(output: str, s3: S3) -> list[tuple[str, str, str]]:
    """Every row: id, status, text."""
    rows = [
        (row["recording_id"], status, row["text"])
        for status in STATUSES
        for batch in Output(output, Storage(s3.options)).batches(status, ["recording_id", "text"])
        for row in batch.to_pylist()
    ]
    return sorted(rows)


def _versions(output: str, s3: S3) -> dict[str, str]:
    filesystem, path = Storage(s3.options).filesystem(output)
    found = filesystem.find(path, detail=True).items()
    return {name: info["LastModified"] for name, info in found if "/lease/" not in name}


def test_a_second_run_does_nothing_and_no_secret_is_written(
    clean: Clean, bucket: S3, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert (clean.summary.ok, dict(clean.summary.failed)) == (24, {"not_found": 1, "unreadable": 1})
    answers = _answers(clean.output, bucket)
    assert [name for name, _, _ in answers] == [*(f"call-{number:02}" for number in range(24)), "gone", "notes"]

    before = _versions(clean.output, bucket)
    again = run(_job(clean.output, bucket.options | {"secret": SECRET}), start_scripted)
    assert (again.finished, again.done_before, again.failed_before) == (0, 24, 2)
    after = _versions(clean.output, bucket)
    transcripts = {name for name in before if name.endswith(".parquet")}
    assert {name: after[name] for name in transcripts} == {name: before[name] for name in transcripts}
    assert after.keys() == before.keys()
    assert read_status(clean.output, bucket.options).finished

    storage = Storage(bucket.options)
    written = [storage.read_bytes(uri) or b"" for uri in storage.list(clean.output)]
    said = (clean.said, repr(_all_rows(clean.output, bucket)), caplog.text, *capfd.readouterr())
    written += [each.encode() for each in said]
    written += _ray_logs()
    assert len(written) > 10
    assert "reading the manifest" in clean.said
    assert not [each for each in written if SECRET.encode() in each]


def _all_rows(output: str, s3: S3) -> list[dict[str, Any]]:
    out = Output(output, Storage(s3.options))
    return [row for status in STATUSES for batch in out.batches(status) for row in batch.to_pylist()]


def _ray_logs() -> list[bytes]:
    """What Ray has written so far. It is at work, and a file may go while it is looked at."""
    import ray

    logs = []
    for path in Path(ray._private.worker._global_node.get_logs_dir_path()).rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            logs += [path.read_bytes()] if path.is_file() else []
    return logs


def test_a_bad_network_changes_nothing(clean: Clean, bucket: S3) -> None:
    output = f"{bucket.bucket}/faulty"
    with faults_before(bucket.endpoint, share=0.1, seed=7, stall_s=5.0) as proxy:
        options = bucket.options | {"endpoint_url": proxy.endpoint, "config_kwargs": {"read_timeout": 1.0}}
        summary = run(_job(output, options), start_scripted)
        assert summary.finished == 26
        assert set(proxy.injected) == set(FAULTS)
        assert proxy.injected.total() > 0.03 * proxy.passed
        assert run(_job(output, options), start_scripted).finished == 0
    assert _answers(output, bucket) == _answers(clean.output, bucket)
    storage = Storage(bucket.options)
    assert len(storage.list(output)) == len(storage.list(clean.output))


# What is wrong with a place is said in one line, before any work.


def _refused(capsys: pytest.CaptureFixture[str], manifest: str, output: str, options: dict[str, Any]) -> str:
    start = time.monotonic()
    arguments = ["transcribe", manifest, "--output", output, "--storage-options", json.dumps(options)]
    assert rayscribe.main(arguments) == rayscribe.EXIT_USAGE
    assert time.monotonic() - start < 30  # and mostly at once
    captured = capsys.readouterr()
    assert captured.err.startswith("rayscribe: ")
    assert captured.err.count("\n") == 1
    assert options["secret"] not in captured.err
    return captured.err


def test_buckets_that_do_not_exist(bucket: S3, s3: S3, capsys: pytest.CaptureFixture[str]) -> None:
    options = s3.options | {"secret": SECRET}
    assert "no bucket s3://nowhere" in _refused(capsys, CALLS, "s3://nowhere/out", options)
    assert "no bucket s3://nowhere" in _refused(capsys, "s3://nowhere/m.jsonl", f"{s3.bucket}/out", options)
    assert "calls/none.jsonl does not exist" in _refused(
        capsys, f"{s3.bucket}/calls/none.jsonl", f"{s3.bucket}/out", options
    )
    assert Storage(s3.options).list(f"{s3.bucket}/out") == []


def test_wrong_credentials_and_a_dead_endpoint(bucket: S3, s3: S3, capsys: pytest.CaptureFixture[str]) -> None:
    with faults_before(s3.endpoint, share=1.0, kinds=["forbidden"]) as proxy:
        options = s3.options | {"secret": SECRET, "endpoint_url": proxy.endpoint}
        assert "check the credentials" in _refused(capsys, CALLS, f"{s3.bucket}/out", options)
    options["endpoint_url"] = "http://127.0.0.1:9"
    assert "Could not connect" in _refused(capsys, CALLS, f"{s3.bucket}/out", options)


def test_an_output_that_may_be_read_but_not_written(s3: S3, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text('{"audio": "a.flac"}\n')
    with faults_before(s3.endpoint, share=1.0, kinds=["forbidden"]) as proxy:
        options = s3.options | {"secret": SECRET, "endpoint_url": proxy.endpoint}
        assert f"{s3.bucket}/out is forbidden" in _refused(capsys, str(manifest), f"{s3.bucket}/out", options)
