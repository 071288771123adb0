"""A failure costs only its own row, a killed run continues, and a retry repeats only what failed."""

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster.ray_internals import ActorsLost, StageWatch
from pipelines.lease import Lease, read_lease
from pipelines.output import Output
from pipelines.poison import MAX_ATTEMPTS
from pipelines.run import retry, run
from pipelines.status import read_status
from speech.errors import RayscribeError, UsageError
from storage.filesystem import Storage
from testing.fault_proxy import faults_before
from tests.pipelines.jobs import Finished, answers_in, job_of, manifest_of, start_scripted, transcribe


def test_poison_fails_and_the_others_of_its_block_are_transcribed(calls: Path, tmp_path: Path) -> None:
    silent = socket.create_server(("127.0.0.1", 0))  # the kernel accepts connections, and nothing ever answers
    # Recordings in flight with it in the engine are lost with it, and must not count as poison: each suspect is
    # retried alone.
    company: list[dict[str, object]] = [
        {"audio": "agent.flac", "id": f"company-{number}", "keywords": ["take your time"]} for number in range(3)
    ]
    rows: list[dict[str, object]] = [
        {"audio": "customer.flac", "id": "kills", "keywords": ["kill me"]},
        *company,
        {"audio": f"http://127.0.0.1:{silent.getsockname()[1]}/endless.wav", "id": "hangs"},
        *(dict[str, object](audio="agent.flac", id=f"good-{number}") for number in range(3)),
    ]
    with silent:
        web = {"allow_scheme": "http", "allow_private_hosts": True}
        answers = transcribe(manifest_of(calls, *rows), tmp_path / "out", listen_timeout_s=3, **web)
    errors = {row["recording_id"]: row["error"] and (row["error"]["stage"], row["error"]["code"]) for row in answers}
    assert len(answers) == len(rows)
    assert errors.pop("hangs") == ("listen", "poison")
    assert errors.pop("kills") == ("transcribe", "poison")
    assert set(errors.values()) == {None}


def test_storage_that_does_not_respond_is_no_poison(calls: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    manifest = manifest_of(calls, {"audio": f"http://127.0.0.1:{port}/call.wav"})
    [answer] = transcribe(
        manifest, tmp_path / "out", listen_timeout_s=24, allow_scheme="http", allow_private_hosts=True
    )
    assert answer["error"]["code"] == "unreadable"


def test_poison_in_one_block_is_tried_twice_each(calls: Path, tmp_path: Path) -> None:
    ids = [f"call-{number:02}" for number in range(24)]  # three to a block
    poison = ids[:2]
    rows: list[dict[str, object]] = [
        {"audio": "agent.flac", "id": name, "duration": 2, "keywords": ["kill me"] if name in poison else []}
        for name in ids
    ]
    deaths = tmp_path / "deaths"
    output = tmp_path / "out"
    summary = run(job_of(manifest_of(calls, *rows), output), functools.partial(start_scripted, deaths=deaths))
    assert (summary.ok, summary.failed) == (len(ids) - 2, {"poison": 2})
    assert sorted(row["recording_id"] for row in answers_in(output) if row["error"]) == poison
    assert max(Counter(deaths.read_text().split()).values()) <= MAX_ATTEMPTS


def test_recordings_of_one_block_that_hang_are_tried_twice_each(calls: Path, tmp_path: Path) -> None:
    asked: list[str] = []
    over = threading.Event()

    class Silent(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            over.wait()

        def do_HEAD(self) -> None:
            self.do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    rows: list[dict[str, object]] = [
        {"audio": "agent.flac", "id": f"call-{number:02}", "duration": 2}
        for number in range(24)  # three to a block
    ]
    for number in (1, 2):
        rows[number] = {"audio": f"http://127.0.0.1:{server.server_port}/{number}.wav", "id": f"call-{number:02}"}
    web = {"allow_scheme": "http", "allow_private_hosts": True}
    try:
        answers = transcribe(manifest_of(calls, *rows), tmp_path / "out", listen_timeout_s=3, **web)
    finally:
        over.set()
        server.shutdown()
        server.server_close()
    codes = {row["recording_id"]: row["error"]["code"] for row in answers if row["error"]}
    assert (len(answers), codes) == (len(rows), {"call-01": "poison", "call-02": "poison"})
    assert Counter(asked) == {"/1.wav": MAX_ATTEMPTS, "/2.wav": MAX_ATTEMPTS}


# The command line with an engine that transcribes only the recordings below a limit, and keeps the others waiting:
# rayscribe.main looks ``run`` up when it is called.
LIMITED = """
import functools, pathlib, sys, rayscribe, pipelines.run as job
from speech.engines.fake import start_fake
from speech.transcriber import WARM_UP_ID
from tests.pipelines.jobs import wait_for_turn

limit = pathlib.Path(sys.argv[1])  # here, in the driver: a worker has other arguments

async def before(clip):
    if clip.id != WARM_UP_ID:
        await wait_for_turn(clip, limit)

job.run = functools.partial(job.run, start=functools.partial(start_fake, before=before))
sys.exit(rayscribe.main(sys.argv[2:]))
"""


def test_signals_stop_a_run_cleanly_and_the_next_continues(calls: Path) -> None:
    names = [f"call-{number:02}" for number in range(100)]
    rows: list[dict[str, object]] = [{"audio": "agent.flac", "id": name, "duration": 2} for name in names]
    manifest, output, limit = manifest_of(calls, *rows), calls / "out", calls / "limit"
    command = [sys.executable, "-c", LIMITED, str(limit), "transcribe", manifest, "--output", str(output)]
    command += ["--concurrent-clips", str(len(rows))]  # those that wait must not keep the others from the engine
    committed = 0
    for number, transcribed in ((signal.SIGINT, 40), (signal.SIGTERM, 80)):
        limit.write_text(str(transcribed))
        # Ctrl-C reaches all processes of a terminal, SIGTERM one.
        with subprocess.Popen(
            command, start_new_session=True, stderr=subprocess.PIPE, text=True, preexec_fn=_heed_sigint
        ) as driver:
            while driver.poll() is None and _committed(output) == committed:
                time.sleep(0.05)
            (os.killpg if number == signal.SIGINT else os.kill)(driver.pid, number)
            try:
                _, printed = driver.communicate(timeout=60)
            finally:
                driver.kill()  # if it has not stopped, leaving the block would wait for it
        assert driver.returncode == 128 + number, printed
        assert "the same command again continues" in printed
        assert "Traceback" not in printed
        assert committed < _committed(output) < len(rows)
        committed = _committed(output)
        assert read_lease(str(output), Storage()) is None
        assert not (output / "run.json").exists()
    answers = transcribe(manifest, output)
    assert sorted(row["recording_id"] for row in answers) == names
    assert json.loads((output / "run.json").read_text())["recordings"]["ok"] == len(rows) - committed


def _heed_sigint() -> None:
    """A shell's background jobs ignore SIGINT, and so would a driver started from one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _committed(output: Path) -> int:
    return len(answers_in(output)) if list(output.glob("transcripts/*/*.parquet")) else 0


def test_retry_tries_only_what_failed_and_each_stands_once(copied: Finished) -> None:
    failed = sorted(row["recording_id"] for row in copied.answers if row["status"] == "failed")
    done = {path: path.stat().st_mtime_ns for path in (copied.output / "transcripts" / "status=ok").iterdir()}
    shutil.copy(copied.folder / "agent.flac", copied.folder / "missing.wav")  # it has come late
    summary = retry(job_of(manifest_of(copied.folder, *copied.rows), copied.output), start_scripted)
    assert (summary.ok, summary.failed.total()) == (1, len(failed) - 1)
    assert summary.done_before == len(copied.rows) - len(failed)
    answers = answers_in(copied.output)
    assert sorted(row["recording_id"] for row in answers) == sorted(row["id"] for row in copied.rows)
    stand = {row["recording_id"]: (row["status"], row["attempt"]) for row in answers}
    assert stand["missing"] == ("ok", 2)
    assert {stand[name] for name in failed if name != "missing"} == {("failed", 2)}
    assert {stand[row["id"]] for row in copied.rows if row["id"] not in failed} == {("ok", 1)}
    assert {path: path.stat().st_mtime_ns for path in done} == done


def test_status_tells_what_failed_and_why(finished: Finished, tmp_path: Path) -> None:
    status = read_status(str(finished.output), {})
    failures = [(row["recording_id"], row["error"]["code"]) for row in status.failures]
    assert (status.recordings, status.finished, status.holder) == (len(finished.rows), True, None)
    assert status.ok == len(finished.rows) - len(failures)
    assert ("missing", "not_found") in failures
    assert sorted(failures) == sorted(
        (row["recording_id"], row["error"]["code"]) for row in finished.answers if row["error"]
    )
    with pytest.raises(UsageError, match=r"job\.json"):
        read_status(str(tmp_path), {})


def test_other_settings_on_the_same_output_are_refused_by_name(copied: Finished) -> None:
    manifest = manifest_of(copied.folder, *copied.rows, {"audio": "customer.flac", "id": "new"})
    with pytest.raises(UsageError, match="language was 'en' and is now 'de'") as refused:
        run(job_of(manifest, copied.output, language="de"), start_scripted)
    assert refused.value.code == "changed_settings"
    answers = transcribe(manifest, copied.output, language="de", allow_changes=True)
    languages = {row["recording_id"]: row["language"] for row in answers}
    assert (languages["good"], languages["new"]) == ("en", "de")


def test_a_second_run_on_one_output_is_refused(copied: Finished) -> None:
    manifest = manifest_of(copied.folder, *copied.rows)
    with Lease(str(copied.output), Storage(), renew_s=0.2), pytest.raises(UsageError) as refused:
        run(job_of(manifest, copied.output), start_scripted)
    assert refused.value.code == "output_in_use"
    assert run(job_of(manifest, copied.output), start_scripted).done_before  # and once it is free, it runs


def test_a_run_stops_when_storage_forbids_too_many_recordings(
    calls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.breaker.MIN_RECORDINGS", 10)
    rows: list[dict[str, object]] = [{"audio": f"s3://bucket/{number}.wav", "id": f"{number}"} for number in range(40)]
    manifest, output = manifest_of(calls, *rows), tmp_path / "out"
    with faults_before("http://127.0.0.1:9", share=1.0, kinds=["forbidden"]) as proxy:
        options = {"key": "k", "secret": "s", "endpoint_url": proxy.endpoint}
        with pytest.raises(RayscribeError, match="max-failed-share") as stopped:
            run(job_of(manifest, output, storage_options=options), start_scripted)
        assert stopped.value.code == "storage_failing"
        assert not isinstance(stopped.value, UsageError)  # exit code 1
        assert not (output / "run.json").exists()
        assert run(job_of(manifest, output, storage_options=options, max_failed_share=1.0), start_scripted).failed
    assert (output / "run.json").exists()


def test_a_store_that_fails_at_the_end_fails_the_run(copied: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = manifest_of(copied.folder, *copied.rows, {"audio": "customer.flac", "id": "new"})

    def fail(output: Output, report: dict[str, object]) -> None:
        raise UsageError("not_writable", "the disk is full")

    monkeypatch.setattr(Output, "finish", fail)
    with pytest.raises(RayscribeError, match="the disk is full") as failed:
        run(job_of(manifest, copied.output), start_scripted)
    assert not isinstance(failed.value, UsageError)  # exit code 1
    assert not (copied.output / "run.json").exists()


def test_audio_that_changed_under_its_id_is_reported(
    calls: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = [{"audio": "agent.flac", "id": name} for name in ("same", "changed")]
    transcribe(manifest_of(calls, *rows), tmp_path / "out")
    assert "other audio" not in capfd.readouterr().err
    rows[1]["audio"] = "customer.flac"
    assert not run(job_of(manifest_of(calls, *rows), tmp_path / "out"), start_scripted).finished
    assert "other audio for 1 ids that the output has ('changed')" in capfd.readouterr().err


def test_what_lost_actors_had_is_transcribed_in_another_pass(
    calls: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are lost when the first file is there, whose receipts may not have been received."""
    output, lost = calls / "out", list[bool]()

    def lose(watch: StageWatch, active: int) -> None:
        if not lost and list((output / "transcripts").rglob("*.parquet")):
            lost.append(True)
            raise ActorsLost("as asked")

    monkeypatch.setattr(StageWatch, "_check_lost", lose)
    rows: list[dict[str, object]] = [{"audio": "agent.flac", "id": f"call-{number}"} for number in range(40)]
    answers = transcribe(manifest_of(calls, *rows), output)
    assert lost
    assert "no node has room for the actors of nodes that are lost" in capsys.readouterr().err
    assert sorted(answer["recording_id"] for answer in answers) == sorted(str(row["id"]) for row in rows)
    assert {answer["status"] for answer in answers} == {"ok"}
