"""Export of transcripts to files."""

import json
import threading
from pathlib import Path

import pytest

import rayscribe
from pipelines.output import Output
from speech.errors import AudioError
from speech.recording import Recording
from speech.transcript import Segment, Transcript
from storage.filesystem import Storage


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    written = Output(str(folder), Storage({}))
    written.claim({}, {"manifest": "m.jsonl"}, allow_changes=False)
    good = [
        Transcript(
            Recording(id=name, audio="a.wav"),
            "model",
            "guten tag",
            (Segment(0, None, 0.0, 1.5, "guten tag"),),
            duration_s=2.0,
            speech_s=1.5,
            channels=1,
        )
        for name in ("one", "calls/two.wav")
    ]
    bad = Transcript(Recording(id="three", audio="b.wav"), "model", error=AudioError("empty", "nothing in it"))
    written.commit([transcript.to_row() for transcript in (*good, bad)])
    return folder


@pytest.mark.parametrize(
    ("format", "suffix", "begins"),
    [
        ("text", "txt", "guten tag\n"),
        ("srt", "srt", "1\n00:00:00,000"),
        ("vtt", "vtt", "WEBVTT\n"),
        ("json", "json", "{"),
    ],
)
def test_one_file_per_transcript(output: Path, tmp_path: Path, format: str, suffix: str, begins: str) -> None:
    to = tmp_path / "files"
    assert rayscribe.main(["export", str(output), "--format", format, "--to", str(to)]) == 0
    files = {file.name: file.read_text() for file in to.iterdir()}
    assert set(files) == {f"one.{suffix}", f"calls%2Ftwo.wav.{suffix}"}
    assert all(text.startswith(begins) for text in files.values())


def test_an_id_is_no_path_out_of_the_folder(output: Path, tmp_path: Path) -> None:
    transcript = Transcript(Recording(id="../../evil", audio="a.wav"), "model", "guten tag")
    Output(str(output), Storage({})).commit([transcript.to_row()])
    to = tmp_path / "deep" / "er"
    assert rayscribe.main(["export", str(output), "--format", "text", "--to", to.as_uri()]) == 0
    assert {path.parent for path in tmp_path.rglob("*.txt")} == {to}
    assert (to / "..%2F..%2Fevil.txt").exists()


def test_a_file_does_not_wait_for_the_one_before(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million PUTs one after the other would take a day."""
    write_bytes, both = Storage.write_bytes, threading.Barrier(2, timeout=10)

    def write_both(storage: Storage, uri: str, data: bytes) -> None:
        if uri.endswith(".txt"):
            both.wait()
        write_bytes(storage, uri, data)

    monkeypatch.setattr(Storage, "write_bytes", write_both)
    assert rayscribe.main(["export", str(output), "--format", "text", "--to", str(tmp_path / "files")]) == 0
    assert len(list(tmp_path.glob("files/*.txt"))) == 2


def test_verbose_json_keeps_times(output: Path, tmp_path: Path) -> None:
    assert rayscribe.main(["export", str(output), "--format", "verbose_json", "--to", str(tmp_path / "files")]) == 0
    [segment] = json.loads((tmp_path / "files" / "one.json").read_text())["segments"]
    assert (segment["start"], segment["end"], segment["text"]) == (0.0, 1.5, "guten tag")


def test_an_id_too_long_for_a_file_name_is_shortened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["first", "x" * 300, "x" * 300 + "y", "é" * 60, "last"]
    written = Output(str(tmp_path / "out"), Storage({}))
    written.claim({}, {"manifest": "m.jsonl"}, allow_changes=False)
    written.commit([Transcript(Recording(id=name, audio="a.wav"), "model", name).to_row() for name in names])
    to = tmp_path / "files"
    assert rayscribe.main(["export", str(tmp_path / "out"), "--format", "text", "--to", str(to)]) == 0
    assert sorted(file.read_text().strip() for file in to.iterdir()) == sorted(names)
    assert {"first.txt", "last.txt"} < {file.name for file in to.iterdir()}
    shown = capsys.readouterr().out
    assert "5 transcripts" in shown
    assert "3 ids are too long" in shown


def test_a_folder_without_a_run_is_a_usage_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert rayscribe.main(["export", str(tmp_path), "--format", "srt", "--to", str(tmp_path / "files")]) == 2
    assert "job.json" in capsys.readouterr().err
