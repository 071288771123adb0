"""Runs over manifests with rows that are wrong or must not be trusted."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipelines import manifest_parts, work_list
from pipelines.run import retry, run
from speech.errors import UsageError
from tests.pipelines.jobs import answers_in, job_of, manifest_of, start_scripted, transcribe


@pytest.fixture
def web(calls: Path) -> Iterator[str]:
    """A web server of the folder of calls, on a private address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(calls)))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def errors(answers: list[dict[str, Any]]) -> dict[str, str | None]:
    return {row["recording_id"]: row["error"] and row["error"]["code"] for row in answers}


def test_rows_that_are_not_utf8_fail_alone(calls: Path) -> None:
    manifest = manifest_of(
        calls,
        {"audio": "agent.flac", "id": "good"},
        {"audio": "agent.flac", "id": "caf\udce9"},
        {"audio": "caf\udce9.flac", "id": "name"},
        {"audio": "agent.flac", "id": "note", "note": {"a": ["\ud800"]}},
    )
    answers = transcribe(manifest, calls / "out")
    assert errors(answers) == {"good": None, r"caf\udce9": "bad_row", "name": "bad_row", "note": "bad_row"}


def test_a_folder_with_a_name_that_is_not_utf8_and_other_files(calls: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = calls / "folder"
    folder.mkdir()
    shutil.copy(calls / "agent.flac", folder / "good.flac")
    shutil.copy(calls / "agent.flac", folder / os.fsdecode(b"caf\xe9.flac"))
    (folder / "notes.txt").touch()
    answers = transcribe(str(folder), calls / "out")
    assert sorted(errors(answers).values(), key=str) == [None, "bad_row"]
    assert json.loads((calls / "out" / "run.json").read_text())["skipped_files"] == 1
    assert "1 files skipped" in capsys.readouterr().err


def test_a_large_manifest_is_read_by_tasks(
    calls: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(manifest_parts, "LARGE_BYTES", 1)
    monkeypatch.setattr(manifest_parts, "PART_BYTES", 300)
    by_tasks = []

    def read(*arguments: Any) -> Any:
        by_tasks.append(work_list.read_in_tasks(*arguments))
        return by_tasks[-1]

    monkeypatch.setattr("pipelines.run.read_in_tasks", read)
    rows = [{"audio": "agent.flac", "id": f"call-{number}", "duration": 1} for number in range(20)]
    rows.append({"audio": "missing.flac", "id": "missing"})
    run(job_of(manifest_of(calls, *rows[5:]), calls / "out"), start_scripted)
    rows[7]["audio"] = "customer.flac"
    job = job_of(manifest_of(calls, *rows), calls / "out")
    summary = run(job, start_scripted)
    assert (summary.ok, summary.done_before, summary.failed_before) == (5, 15, 1)
    assert "other audio for 1 ids that the output has ('call-7')" in capfd.readouterr().err
    summary = retry(job, start_scripted)
    assert (summary.ok, summary.failed, summary.done_before) == (0, {"not_found": 1}, 20)
    assert len(by_tasks) == 3
    assert None not in by_tasks
    answers = answers_in(calls / "out")
    assert errors(answers) == {row["id"]: "not_found" if row["id"] == "missing" else None for row in rows}
    # Errors name the line, as of a small one.
    with pytest.raises(UsageError, match=r"line 1 and .* line 22, the same row"):
        run(job_of(manifest_of(calls, *rows, rows[0]), calls / "out"), start_scripted)
    with open(manifest_of(calls, *rows), "a") as manifest:
        manifest.write("broken")
    with pytest.raises(UsageError, match="line 22 is not JSON"):
        run(job, start_scripted)


def test_presigned_links_are_stored_without_their_query(calls: Path, web: str) -> None:
    query = "?X-Amz-Credential=sesame&X-Amz-Signature=sesame"
    manifest_of(
        calls,
        {"audio": f"{web}/agent.flac{query}", "id": "good", "link": f"{web}/agent.flac{query}"},
        {"audio": f"{web}/none.flac{query}", "id": "missing"},
    )
    allowed = {"allow_scheme": "http", "allow_private_hosts": True}
    answers = transcribe(f"{web}/manifest.jsonl{query}", calls / "out", **allowed)
    assert errors(answers) == {"good": None, "missing": "not_found"}
    assert "sesame" not in str(answers)
    assert f"{web}/manifest.jsonl" in (calls / "out" / "job.json").read_text()
    for file in ("job.json", "run.json"):
        assert "sesame" not in (calls / "out" / file).read_text()


def test_rows_may_not_name_private_hosts_unless_allowed(calls: Path, web: str) -> None:
    manifest = manifest_of(calls, {"audio": f"{web}/agent.flac", "id": "web"}, {"audio": "agent.flac", "id": "file"})
    answers = transcribe(manifest, calls / "out", allow_scheme="http")
    assert errors(answers) == {"web": "forbidden", "file": None}
    answers = transcribe(manifest, calls / "other")
    assert errors(answers) == {"web": "forbidden", "file": None}
