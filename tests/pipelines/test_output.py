"""The output folder: whole files, each recording once, whatever happened before."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from pipelines.output import STATUSES, Output
from speech.errors import AudioError, UsageError
from speech.recording import Recording
from speech.transcript import Transcript
from storage.filesystem import Storage

FEW_FILES = 40  # are left as they are, here


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
    assert output.deduplicate() == {"ok": {"a": 2}, "failed": {"b": 1}}
    assert (output.count("ok"), output.count("failed")) == (1, 1)


def test_a_later_attempt_stands_before_an_earlier_one(output: Output) -> None:
    output.commit([failed("a"), failed("b")])
    output.commit([failed("a", attempt=2)])
    assert output.deduplicate() == {"ok": {}, "failed": {"a": 2, "b": 1}}
    assert output.count("failed") == 2


def test_of_two_blocks_that_overlap_each_recording_stands_once(output: Output) -> None:
    output.commit([ok("a"), ok("b")])
    output.commit([ok("b"), ok("c")])
    assert output.deduplicate()["ok"] == {"a": 1, "b": 1, "c": 1}
    assert output.count("ok") == 3
    assert output.deduplicate()["ok"] == {"a": 1, "b": 1, "c": 1}


def test_rows_that_stay_are_not_lost_under_the_name_of_a_file_that_goes(output: Output) -> None:
    output.commit([failed("a")])
    output.commit([failed("a", attempt=2), failed("b")])
    output.commit([failed("b", attempt=2), failed("c")])
    output.commit([failed("b")])
    assert output.deduplicate()["failed"] == {"a": 2, "b": 2, "c": 1}
    assert rows_in(output) == {("failed", "a", 2): 1, ("failed", "b", 2): 1, ("failed", "c", 1): 1}


# Merging


def rows_in(output: Output) -> Counter[tuple[str, str, int]]:
    """How often each answer stands."""
    return Counter(
        (status, row["recording_id"], row["attempt"])
        for status in STATUSES
        for batch in output.batches(status, ["recording_id", "attempt"])
        for row in batch.to_pylist()
    )


@pytest.fixture(scope="module")
def many_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More small files than are left as they are."""
    folder = tmp_path_factory.mktemp("many")
    output = Output(str(folder), Storage())
    for number in range(FEW_FILES + 1):
        output.commit([ok(f"{number}-a", text=f"text {number}"), ok(f"{number}-b"), failed(f"{number}-c")])
    return folder


@pytest.fixture
def many(
    output: Output, many_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Counter[tuple[str, str, int]]:
    """What is in an output of many small files."""
    monkeypatch.setattr("pipelines.output.FEW_FILES", FEW_FILES)
    shutil.copytree(many_files, tmp_path, dirs_exist_ok=True)
    return rows_in(output)


def test_many_small_files_become_few_and_nothing_else_changes(
    output: Output, many: Counter[tuple[str, str, int]], tmp_path: Path
) -> None:
    texts = texts_in(output)
    output.compact()
    assert len(list(tmp_path.rglob("*.parquet"))) == 2  # one a status
    assert rows_in(output) == many
    assert set(many.values()) == {1}
    assert texts_in(output) == texts
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    output.compact()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == written


def texts_in(output: Output) -> dict[str, str]:
    return {
        row["recording_id"]: row["text"]
        for batch in output.batches("ok", ["recording_id", "text"])
        for row in batch.to_pylist()
    }


def test_few_files_are_left_as_they_are(output: Output, tmp_path: Path) -> None:
    for number in range(3):
        output.commit([ok(str(number))])
    output.compact()
    assert len(list(tmp_path.rglob("*.parquet"))) == 3


def test_a_merge_cut_short_loses_nothing_and_is_settled(
    output: Output, many: Counter[tuple[str, str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removals = iter(range(FEW_FILES // 2))

    def remove(storage: Storage, uri: str) -> None:
        if next(removals, None) is None:
            raise KeyboardInterrupt
        Path(uri).unlink()

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "remove", remove)
        with pytest.raises(KeyboardInterrupt):
            output.compact()
    assert rows_in(output).keys() == many.keys()
    again = Output(str(tmp_path), Storage())
    assert again.deduplicate()["ok"].keys() == {name for status, name, _ in many if status == "ok"}
    assert rows_in(again) == many
    again.compact()
    assert rows_in(again) == many


def test_what_is_committed_again_after_a_merge_still_stands_once(
    output: Output, many: Counter[tuple[str, str, int]], tmp_path: Path
) -> None:
    output.compact()
    merged = set(tmp_path.rglob("*.parquet"))
    output.commit([ok("1-a"), ok("1-b"), failed("1-c")])  # by a worker whose driver is dead
    output.commit([ok("2-c", attempt=2)])  # by a retry
    recorded = output.deduplicate()
    assert len(recorded["ok"]) == 2 * (FEW_FILES + 1) + 1
    assert rows_in(output) == many - Counter([("failed", "2-c", 1)]) + Counter([("ok", "2-c", 2)])
    assert len(merged & set(tmp_path.rglob("*.parquet"))) == 1  # that of the failed has lost a row
    assert output.deduplicate() == recorded


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
    output.clear_finished()
    assert output.report() is None
