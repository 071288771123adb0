"""The output folder: whole files, and each recording once after a run, whatever happened before."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import manifest
from pipelines.lease import Lease
from pipelines.output import READERS, STATUSES, Output
from speech.errors import AudioError, RayscribeError, UsageError
from speech.recording import Recording
from speech.transcript import Transcript
from storage.filesystem import Storage

FEW_FILES = 40  # are left as they are, here


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(str(tmp_path), Storage())


def attempts_in(output: Output) -> dict[str, dict[str, int]]:
    return output.deduplicate().attempts


def count(output: Output, status: str) -> int:
    return sum(len(batch) for batch in output.batches(status))


def finish(output: Output, written: set[str] | None = None) -> None:
    """A run that had nothing to do but what was written."""
    contents = output.begin(output.deduplicate())
    output.consolidate(contents, written or set(), superseded=False)


def ok(name: str, attempt: int = 1, text: str = "hello") -> dict[str, object]:
    return Transcript(Recording(id=name, audio="a.wav"), "model", text=text, attempt=attempt).to_row()


def failed(name: str, attempt: int = 1) -> dict[str, object]:
    error = AudioError("not_found", "gone")
    return Transcript(Recording(id=name, audio="a.wav"), "model", error=error, attempt=attempt).to_row()


def test_a_block_written_twice_with_one_result_overwrites_its_files(output: Output, tmp_path: Path) -> None:
    first = output.commit([ok("a"), ok("b"), failed("c")])
    assert output.commit([ok("b"), ok("a"), failed("c")]) == first
    assert len(list(tmp_path.rglob("*.parquet"))) == 2
    assert (count(output, "ok"), count(output, "failed")) == (2, 1)


def test_a_block_retried_with_another_result_stands_once_after_a_fresh_run(output: Output) -> None:
    contents = output.begin(output.deduplicate())
    output.commit([ok("a"), ok("b"), ok("c")])  # by a worker that was lost before its receipts arrived
    written = set(output.commit([ok("a"), failed("b"), ok("c")]))
    written |= set(output.commit([ok("d")]))
    output.consolidate(contents, written, superseded=False)
    assert Counter(name for _, name, _ in rows_in(output).elements()) == Counter("abcd")


def test_a_recording_with_two_receipts_stands_once(output: Output) -> None:
    contents = output.begin(output.deduplicate())
    written = set(output.commit([ok("a"), ok("b")])) | set(output.commit([ok("b"), ok("c")]))
    output.consolidate(contents, written, superseded=True)
    assert Counter(name for _, name, _ in rows_in(output).elements()) == Counter("abc")


def test_few_files_are_held_for_a_reader_that_is_slow(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4 * READERS):
        output.commit([ok(str(number))])
    read: list[str] = []
    read_bytes = Storage.read_bytes

    def noted(storage: Storage, uri: str) -> bytes | None:
        read.append(uri)
        return read_bytes(storage, uri)

    monkeypatch.setattr(Storage, "read_bytes", noted)
    batches = output.batches("ok")
    assert len(next(batches)) == 1
    assert len([uri for uri in read if uri.endswith(".parquet")]) <= READERS
    assert sum(map(len, batches)) == 4 * READERS - 1


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"PAR1" * 9])
def test_a_damaged_file_is_named(damage: Callable[[bytes], bytes], output: Output, tmp_path: Path) -> None:
    [name] = output.commit([ok("a")])
    file = tmp_path / "transcripts" / name
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UsageError, match=name) as caught:
        output.deduplicate()
    assert caught.value.code == "damaged"


def test_tables_of_others_beside_the_transcripts_are_left_alone(output: Output, tmp_path: Path) -> None:
    output.commit([ok("a")])
    theirs = [tmp_path / "transcripts" / "mine.parquet", tmp_path / "transcripts" / "mine" / "part.parquet"]
    for path in theirs:
        path.parent.mkdir(exist_ok=True)
        path.write_text("theirs")
    finish(output)
    assert attempts_in(output) == {"ok": {"a": 1}, "failed": {}}
    assert all(path.exists() for path in theirs)


def test_a_worker_with_another_working_directory_writes_into_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("driver", "worker"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "driver")
    output = Output("out", Storage())
    monkeypatch.chdir(tmp_path / "worker")
    [name] = output.commit([ok("a")])
    assert [*tmp_path.rglob("*.parquet")] == [tmp_path / "driver" / "out" / "transcripts" / name]


@pytest.mark.parametrize("below", ["", "out"])
def test_an_output_within_the_folder_of_manifests_is_no_part_of_it(
    below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.jsonl").write_text('{"id": "1", "audio": "a.wav"}')
    monkeypatch.chdir(tmp_path)
    output = Output(below or ".", Storage())
    output.claim({}, {"manifest": "."}, allow_changes=False)
    with Lease(output.uri, Storage()):
        output.commit([ok("1")])
        finish(output)
        output.finish({})
        read = manifest.read(str(tmp_path), Storage(), apart_from=output.has)
        assert [recording_id for recording_id, _ in read] == ["1"]


def test_ids_with_a_newline_do_not_overwrite_another_file(output: Output) -> None:
    output.commit([ok("a\nb"), ok("c")])
    output.commit([ok("a"), ok("b\nc")])
    assert attempts_in(output)["ok"].keys() == {"a\nb", "c", "a", "b\nc"}


def test_a_valid_file_that_is_gone_is_an_error(output: Output, tmp_path: Path) -> None:
    contents = output.begin(output.deduplicate())
    [name] = output.commit([ok("a")])
    (tmp_path / "transcripts" / name).unlink()
    with pytest.raises(RayscribeError) as changed:
        output.consolidate(contents, {name}, superseded=False)
    assert changed.value.code == "output_changed"


def test_a_run_that_another_has_replaced_removes_nothing_and_does_not_finish(tmp_path: Path) -> None:
    replaced, current = Output(str(tmp_path), Storage()), Output(str(tmp_path), Storage())
    contents = replaced.begin(replaced.deduplicate())
    written = set(replaced.commit([failed("a"), ok("b")]))
    others = current.begin(current.deduplicate())
    current.consolidate(others, set(current.commit([ok("a")])), superseded=False)
    current.finish({"rtfx": 1})
    files = set(tmp_path.rglob("*.parquet"))
    with pytest.raises(RayscribeError) as taken:
        replaced.consolidate(contents, written, superseded=False)
    assert taken.value.code == "output_taken"
    assert set(tmp_path.rglob("*.parquet")) == files
    assert attempts_in(current) == {"ok": {"a": 1, "b": 1}, "failed": {}}
    replaced.finish({"rtfx": 2})  # it was suspended between its last check and this
    assert current.report() is None


def test_a_cleaner_with_an_old_listing_removes_nothing(tmp_path: Path) -> None:
    driver = Output(str(tmp_path), Storage())
    contents = driver.begin(driver.deduplicate())
    Output(str(tmp_path), Storage()).commit([ok("a"), ok("b")])  # by a worker of an earlier run; the cleaner keeps this
    written = set(driver.commit([ok("a")]))  # and the driver this

    class DriverIsFaster(Storage):
        def create_bytes(self, uri: str, data: bytes) -> bool:
            driver.consolidate(contents, written, superseded=False)
            return super().create_bytes(uri, data)

    with pytest.raises(RayscribeError) as taken:
        Output(str(tmp_path), DriverIsFaster()).deduplicate()
    assert taken.value.code == "output_taken"
    assert attempts_in(driver) == {"ok": {"a": 1, "b": 1}, "failed": {}}
    assert Counter(name for _, name, _ in rows_in(driver).elements()) == Counter("ab")


def test_audio_that_changed_under_an_id_is_noticed(output: Output) -> None:
    output.commit([ok("a"), ok("b")])
    contents = output.deduplicate()
    assert not contents.has_other_audio("a", {"audio": "a.wav"})
    assert contents.has_other_audio("b", {"audio": "b.wav"})


def test_nothing_but_whole_files_is_ever_there(output: Output, tmp_path: Path) -> None:
    output.commit([ok("a")])
    assert [path.suffix for path in (tmp_path / "transcripts").rglob("*") if path.is_file()] == [".parquet"]


def test_a_transcript_replaces_a_failure(output: Output) -> None:
    output.commit([failed("a"), failed("b")])
    output.commit([ok("a", attempt=2)])
    assert attempts_in(output) == {"ok": {"a": 2}, "failed": {"b": 1}}
    assert (count(output, "ok"), count(output, "failed")) == (1, 1)


def test_a_later_attempt_replaces_an_earlier_one(output: Output) -> None:
    output.commit([failed("a"), failed("b")])
    output.commit([failed("a", attempt=2)])
    assert attempts_in(output) == {"ok": {}, "failed": {"a": 2, "b": 1}}
    assert count(output, "failed") == 2


def test_of_two_blocks_that_overlap_each_recording_stands_once(output: Output) -> None:
    output.commit([ok("a"), ok("b")])
    output.commit([ok("b"), ok("c")])
    assert attempts_in(output)["ok"] == {"a": 1, "b": 1, "c": 1}
    assert count(output, "ok") == 3
    assert attempts_in(output)["ok"] == {"a": 1, "b": 1, "c": 1}


def test_rows_of_a_file_that_is_removed_are_kept(output: Output) -> None:
    output.commit([failed("a")])
    output.commit([failed("a", attempt=2), failed("b")])
    output.commit([failed("b", attempt=2), failed("c")])
    output.commit([failed("b")])
    assert attempts_in(output)["failed"] == {"a": 2, "b": 2, "c": 1}
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
    finish(output)
    assert len(list(tmp_path.rglob("*.parquet"))) == 2  # one a status
    assert rows_in(output) == many
    assert set(many.values()) == {1}
    assert texts_in(output) == texts
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    finish(output)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == written


def texts_in(output: Output) -> dict[str, str]:
    return {
        row["recording_id"]: row["text"]
        for batch in output.batches("ok", ["recording_id", "text"])
        for row in batch.to_pylist()
    }


def test_few_files_are_not_merged(output: Output, tmp_path: Path) -> None:
    for number in range(3):
        output.commit([ok(str(number))])
    finish(output)
    assert len(list(tmp_path.rglob("*.parquet"))) == 3


def test_a_merge_that_is_interrupted_loses_nothing_and_is_completed(
    output: Output, many: Counter[tuple[str, str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removals = iter(range(FEW_FILES // 2))

    def remove(storage: Storage, uri: str) -> None:
        if next(removals, None) is None:
            raise KeyboardInterrupt
        Path(uri).unlink(missing_ok=True)

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "remove", remove)
        with pytest.raises(KeyboardInterrupt):
            finish(output)
    assert rows_in(output).keys() == many.keys()
    again = Output(str(tmp_path), Storage())
    assert attempts_in(again)["ok"].keys() == {name for status, name, _ in many if status == "ok"}
    assert rows_in(again) == many
    finish(again)
    assert rows_in(again) == many


def test_rows_committed_again_after_a_merge_are_kept_once(
    output: Output, many: Counter[tuple[str, str, int]], tmp_path: Path
) -> None:
    finish(output)
    merged = set(tmp_path.rglob("*.parquet"))
    output.commit([ok("1-a"), ok("1-b"), failed("1-c")])  # by a worker whose driver is dead
    output.commit([ok("2-c", attempt=2)])  # by a retry
    recorded = attempts_in(output)
    assert len(recorded["ok"]) == 2 * (FEW_FILES + 1) + 1
    assert rows_in(output) == many - Counter([("failed", "2-c", 1)]) + Counter([("ok", "2-c", 2)])
    assert len(merged & set(tmp_path.rglob("*.parquet"))) == 1  # that of the failed has lost a row
    assert attempts_in(output) == recorded


def test_a_folder_is_that_of_one_job(output: Output) -> None:
    output.claim({"language": "en"}, {"manifest": "m"}, allow_changes=False)
    output.claim({"language": "en"}, {"manifest": "other"}, allow_changes=False)
    output.commit([ok("a")])
    with pytest.raises(UsageError, match="language was 'en' and is now 'de'"):
        output.claim({"language": "de"}, {"manifest": "m"}, allow_changes=False)
    output.claim({"language": "de"}, {"manifest": "m"}, allow_changes=True)
    assert output.job() == {"manifest": "m", "settings": {"language": "de"}}


def test_the_report_marks_the_end(output: Output, tmp_path: Path) -> None:
    assert output.report() is None
    output.begin(output.deduplicate())
    output.finish({"rtfx": 3})
    report = output.report()
    assert report is not None
    assert report["rtfx"] == 3
    later = Output(str(tmp_path), Storage())
    later.begin(later.deduplicate())
    assert output.report() is None
