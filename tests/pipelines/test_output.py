"""The output folder: whole files, each recording once, whatever happened before."""

from pathlib import Path

import pytest

from cluster.storage import Storage
from pipelines.output import Output
from speech.errors import AudioError, UsageError
from speech.recording import Recording
from speech.transcript import Transcript


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(str(tmp_path), Storage())


def ok(name: str, attempt: int = 1, text: str = "hello") -> dict[str, object]:
    return Transcript(Recording(id=name, audio="a.wav"), "model", text=text, attempt=attempt).to_row()


def failed(name: str, attempt: int = 1) -> dict[str, object]:
    error = AudioError("not_found", "gone")
    return Transcript(Recording(id=name, audio="a.wav"), "model", error=error, attempt=attempt).to_row()


def test_a_block_written_twice_lands_on_itself(output: Output, tmp_path: Path) -> None:
    output.commit([ok("a"), ok("b"), failed("c")])
    output.commit([ok("b"), ok("a"), failed("c")])
    assert len(list(tmp_path.rglob("*.parquet"))) == 2
    assert (output.count("ok"), output.count("failed")) == (2, 1)


def test_nothing_but_whole_files_is_ever_there(output: Output, tmp_path: Path) -> None:
    output.commit([ok("a")])
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".parquet"]


def test_what_was_transcribed_stands_before_what_failed(output: Output) -> None:
    output.commit([failed("a"), failed("b")])
    output.commit([ok("a", attempt=2)])
    assert output.settle() == {"ok": {"a": 2}, "failed": {"b": 1}}
    assert (output.count("ok"), output.count("failed")) == (1, 1)


def test_a_later_attempt_stands_before_an_earlier_one(output: Output) -> None:
    output.commit([failed("a"), failed("b")])
    output.commit([failed("a", attempt=2)])
    assert output.settle() == {"ok": {}, "failed": {"a": 2, "b": 1}}
    assert output.count("failed") == 2


def test_of_two_blocks_that_overlap_each_recording_stands_once(output: Output) -> None:
    output.commit([ok("a"), ok("b")])
    output.commit([ok("b"), ok("c")])
    assert output.settle()["ok"] == {"a": 1, "b": 1, "c": 1}
    assert output.count("ok") == 3
    assert output.settle()["ok"] == {"a": 1, "b": 1, "c": 1}


def test_a_folder_is_that_of_one_job(output: Output) -> None:
    output.claim({"language": "en"}, {"manifest": "m"}, allow_changes=False)
    output.claim({"language": "en"}, {"manifest": "other"}, allow_changes=False)
    with pytest.raises(UsageError, match="language was 'en' and is now 'de'"):
        output.claim({"language": "de"}, {"manifest": "m"}, allow_changes=False)
    output.claim({"language": "de"}, {"manifest": "m"}, allow_changes=True)
    assert output.job() == {"manifest": "m", "settings": {"language": "de"}}


def test_the_report_marks_the_end(output: Output) -> None:
    assert output.report() is None
    output.finish({"rtfx": 3})
    assert output.report() == {"rtfx": 3}
    output.reopen()
    assert output.report() is None
