"""Reading manifests of every format, and the errors of invalid ones."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from pipelines import manifest
from speech.errors import RequestError, UsageError
from speech.recording import Options, Recording, row_id
from storage.filesystem import Storage
from tests.conftest import S3


def rows(uri: Path | str, storage: Storage | None = None) -> list[dict[str, Any]]:
    return [row for _, row in manifest.read(str(uri), storage or Storage())]


def error_message(uri: Path | str, code: str = "bad_manifest") -> str:
    """The message of the UsageError that reading raises."""
    with pytest.raises(UsageError) as caught:
        rows(uri)
    assert caught.value.code == code
    return caught.value.message


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# Formats


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".JSONL"])
def test_json_lines(tmp_path: Path, suffix: str) -> None:
    text = '\ufeff{"audio": "1.wav", "note": {"a": [1]}}\r\n\n{"audio": "/x/ü.wav", "text": "á"}'
    assert rows(write(tmp_path / f"m{suffix}", text)) == [
        {"audio": f"{tmp_path}/1.wav", "note": {"a": [1]}},
        {"audio": "/x/ü.wav", "text": "á"},
    ]


def test_gzip(tmp_path: Path) -> None:
    assert rows(write(tmp_path / "m.jsonl.gz", gzip.compress(b'{"audio": "/1.wav"}\n'))) == [{"audio": "/1.wav"}]
    assert rows(write(tmp_path / "m.csv.gz", gzip.compress(b"audio\n/1.wav\n"))) == [{"audio": "/1.wav"}]


def test_csv_cells_are_text_and_empty_cells_are_absent(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.csv",
        "\ufeffid, audio,offset,duration,keywords,speakers,text,branch\r\n"
        '7,1.wav,1.5,,"Kim, Acme","agent,customer","he said ""no"",\r\nthen left",north\r\n'
        "8,2.wav,,,,,,\r\n\r\n",
    )
    first, second = rows(path)
    assert second == {"id": "8", "audio": f"{tmp_path}/2.wav"}
    recording = Recording.from_row(first, Options())
    assert (recording.id, recording.offset, recording.duration) == ("7", 1.5, None)
    assert recording.options.keywords == ("Kim", "Acme")
    assert recording.speakers == ("agent", "customer")
    assert recording.text == 'he said "no",\r\nthen left'
    assert recording.metadata == {"branch": "north"}


def test_a_csv_cell_can_hold_a_long_reference(tmp_path: Path) -> None:
    text = "word " * 100_000
    assert rows(write(tmp_path / "m.csv", f"audio,text\n/1.wav,{text}\n"))[0]["text"] == text


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_blank_csv_rows_are_skipped(tmp_path: Path, suffix: str) -> None:
    text = "id,audio,text\n,,\n1,/1.wav,a\n,,\n , ,\n\n  \n2,/2.wav,b\n,,\n"
    path = write(tmp_path / f"m.{suffix}", text.replace(",", "\t" if suffix == "tsv" else ","))
    assert [row["id"] for row in rows(path)] == ["1", "2"]


def test_blank_rows_of_other_formats_are_skipped(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"audio": [None, "/1.wav", None]}), tmp_path / "m.parquet")
    assert rows(tmp_path / "m.parquet") == [{"audio": "/1.wav"}]
    assert rows(write(tmp_path / "m.jsonl", '{}\n{"audio": "/1.wav"}\n{}\n')) == [{"audio": "/1.wav"}]


def _rejected(uri: Path) -> list[str]:
    """The ids of the rows that are invalid."""
    rejected = []
    for recording_id, row in manifest.read(str(uri), Storage()):
        assert Recording.malformed(row).id == recording_id
        try:
            Recording.from_row(row, Options())
        except RequestError:
            rejected.append(recording_id)
    return rejected


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("m.jsonl", b'{"audio": "/\xe9.wav", "id": "2"}'),
        ("m.jsonl", b'{"audio": "/\\ud800.wav", "id": "2"}'),
        ("m.jsonl", b'{"audio": "/2.wav", "id": "2", "note": ["\\udfff"]}'),
        ("m.csv", b"/\xe9.wav,2"),
    ],
)
def test_a_cell_that_is_not_utf8_fails_its_row_only(tmp_path: Path, name: str, cell: bytes) -> None:
    before, after = b'{"audio": "/1.wav"}', b'{"audio": "/3.wav"}'
    if name == "m.csv":
        before, after = b"audio,id\n/1.wav,1", b"/3.wav,3"
    path = write(tmp_path / name, b"\n".join([before, cell, after]))
    assert _rejected(path) == ["2"]
    assert len(rows(path)) == 3


def test_an_id_that_is_not_utf8_fails_its_row_only(tmp_path: Path) -> None:
    path = write(tmp_path / "m.jsonl", '{"audio": "/1.wav"}\n{"audio": "/2.wav", "id": "a\\udce9"}\n')
    assert _rejected(path) == [r"a\udce9"]


def test_parquet_text_that_is_not_utf8_fails_its_row_only(tmp_path: Path) -> None:
    ids = pa.array(["1", "2"])
    ends = pa.py_buffer(np.array([0, 6, 12], np.int32))
    audio = pa.Array.from_buffers(pa.string(), 2, [None, ends, pa.py_buffer(b"/1.wav/\xe9.wav")])
    pa.parquet.write_table(pa.table({"id": ids, "audio": audio, "n": [1, None]}), tmp_path / "m.parquet")
    assert _rejected(tmp_path / "m.parquet") == ["2"]
    assert rows(tmp_path / "m.parquet")[1] == {"id": "2", "audio": "/\udce9.wav"}


def test_a_file_name_that_is_not_utf8_fails_its_row_only(tmp_path: Path) -> None:
    for name in (b"1.wav", b"caf\xe9.wav"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    assert len(_rejected(tmp_path)) == 1
    assert len(rows(tmp_path)) == 2


def test_tsv(tmp_path: Path) -> None:
    assert rows(write(tmp_path / "m.tsv", "audio\ttext\n/1.wav\ta, b\n")) == [{"audio": "/1.wav", "text": "a, b"}]


def test_parquet_in_more_than_one_batch(tmp_path: Path) -> None:
    table = pa.table(
        {
            "audio": [f"{n}.wav" for n in range(3000)],
            "offset": [None, float("nan")] + [1.0] * 2998,
            "keywords": [["a", "b"]] * 3000,
        }
    )
    pa.parquet.write_table(table, tmp_path / "m.parquet")
    read = rows(tmp_path / "m.parquet")
    assert len(read) == 3000
    assert read[0] == {"audio": f"{tmp_path}/0.wav", "keywords": ["a", "b"]}
    assert [Recording.from_row(row, Options()).offset for row in read[:3]] == [0.0, 0.0, 1.0]


def test_a_folder_of_parquet_parts(tmp_path: Path) -> None:
    for part in range(2):
        pa.parquet.write_table(pa.table({"audio": [f"{part}.wav"]}), tmp_path / f"part-{part}.parquet")
    write(tmp_path / "_SUCCESS", "")
    write(tmp_path / ".part-0.parquet.crc", "x")
    assert rows(tmp_path) == [{"audio": f"{tmp_path}/0.wav"}, {"audio": f"{tmp_path}/1.wav"}]


def test_a_folder_of_manifests_of_every_kind(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", '{"audio": "1.wav"}\n')
    write(tmp_path / "night-2" / "b.csv.gz", gzip.compress(b"audio\n2.wav\n"))
    pa.parquet.write_table(pa.table({"audio": ["/3.wav"]}), tmp_path / "night-2" / "c.parquet")
    read = [{"audio": f"{tmp_path}/1.wav"}, {"audio": f"{tmp_path}/2.wav"}, {"audio": "/3.wav"}]
    assert rows(tmp_path) == read
    assert rows(f"{tmp_path}/**/*.parquet") == read[2:]
    write(tmp_path / "a2.jsonl", '{"audio": "1.wav"}\n')
    assert "a2.jsonl line 1" in error_message(tmp_path, "duplicate_id")


def test_a_folder_of_audio_and_manifests_is_refused_and_a_glob_is_not(tmp_path: Path) -> None:
    for name in ("1.wav", "night/2.wav", "calls.csv"):
        write(tmp_path / name, "audio\n3.wav\n")
    message = error_message(tmp_path)
    assert "2 audio files and 1 manifests" in message
    assert "calls.csv" in message
    assert "glob" in message
    assert rows(f"{tmp_path}/*.csv") == [{"audio": f"{tmp_path}/3.wav"}]
    assert len(rows(f"{tmp_path}/**/*.wav")) == 2


def test_a_folder_of_audio(tmp_path: Path) -> None:
    for name in ("b.WAV", "deep/er/a.opus", "deep/.b.wav.swp", "._b.wav", "b.json", "notes.txt"):
        write(tmp_path / name, "{}")
    assert rows(tmp_path) == [{"audio": f"{tmp_path}/b.WAV"}, {"audio": f"{tmp_path}/deep/er/a.opus"}]
    assert manifest.read(str(tmp_path), Storage()).skipped == [f"{tmp_path}/b.json", f"{tmp_path}/notes.txt"]


def test_no_recording_of_a_folder_is_left_out(tmp_path: Path) -> None:
    """Links, also to folders and to nothing, and names that other programs hide."""
    calls, archive = tmp_path / "calls", tmp_path / "archive"
    write(archive / "2.wav", "x")
    write(calls / "_1.wav", "x")
    (calls / "3.wav").symlink_to(archive / "2.wav")
    (calls / "gone.wav").symlink_to(archive / "none.wav")  # its row fails as not_found
    (calls / "linked").symlink_to(archive)
    (calls / "round").symlink_to(calls)
    found = [f"{calls}/{name}" for name in ("3.wav", "_1.wav", "gone.wav", "linked/2.wav")]
    assert rows(calls) == [{"audio": name} for name in found]
    assert rows(f"{calls}/**/*.wav") == [{"audio": name} for name in found]


@pytest.mark.parametrize(
    "suffix",
    ".spx .ts .flv .wmv .m4v .mpga .dts .eac3 .g722 .g726 .ulaw .alaw .sln .gsm .vox .sln16 .mulaw .mts .3g2".split(),
)
def test_a_folder_of_less_common_formats(tmp_path: Path, suffix: str) -> None:
    call = write(tmp_path / f"call{suffix}", "x")
    assert rows(tmp_path) == [{"audio": str(call)}]


def test_one_audio_file_is_a_manifest_of_one(tmp_path: Path) -> None:
    assert rows(write(tmp_path / "a.mp3", "x")) == [{"audio": f"{tmp_path}/a.mp3"}]


def test_a_glob(tmp_path: Path) -> None:
    for name in ("x/1.wav", "y/2.wav", "y/3.txt", "z[1]/4.jsonl"):
        write(tmp_path / name, '{"audio": "4.wav"}')
    assert rows(f"{tmp_path}/*/*.wav") == [{"audio": f"{tmp_path}/x/1.wav"}, {"audio": f"{tmp_path}/y/2.wav"}]
    assert rows(f"{tmp_path}/z[1]/4.jsonl") == [{"audio": f"{tmp_path}/z[1]/4.wav"}]  # a name, not a pattern


def test_on_s3(s3: S3) -> None:
    storage = Storage(s3.options)
    storage.write_bytes(f"{s3.bucket}/m/m.jsonl", b'{"audio": "../calls/1.wav"}\n{"audio": "2.wav"}\n')
    storage.write_bytes(f"{s3.bucket}/calls/1.wav", b"x")
    storage.write_bytes(f"{s3.bucket}/calls/more/2.flac", b"x")
    with storage.open(f"{s3.bucket}/m/m.jsonl") as file:
        assert file.readline().endswith(b"\n")
    pq = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table({"audio": ["3.wav"]}), pq)
    storage.write_bytes(f"{s3.bucket}/pq/part.parquet", pq.getvalue().to_pybytes())
    calls = [{"audio": f"{s3.bucket}/calls/1.wav"}, {"audio": f"{s3.bucket}/calls/more/2.flac"}]
    assert rows(f"{s3.bucket}/m/m.jsonl", storage) == [calls[0], {"audio": f"{s3.bucket}/m/2.wav"}]
    assert rows(f"{s3.bucket}/calls/", storage) == calls
    assert rows(f"{s3.bucket}/calls/*.wav", storage) == calls[:1]
    assert rows(f"{s3.bucket}/pq", storage) == [{"audio": f"{s3.bucket}/pq/3.wav"}]


def test_a_prefix_is_listed_once(s3: S3) -> None:
    """Each list request gives a thousand files."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    uri, storage = f"{s3.bucket}/parts", Storage(s3.options)
    storage.write_bytes(f"{uri}/0.jsonl", b'{"audio": "/0.wav"}')
    server = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    for number in range(1, 2001):
        server.put_object(s3.bucket.removeprefix("s3://"), f"parts/{number}.jsonl", b"{}")
    filesystem, _ = storage.filesystem(uri)
    listed = list[Any]()
    filesystem.s3.meta.events.register("before-send.s3.ListObjectsV2", lambda **sent: listed.append(sent))
    storage.check_readable(uri)
    sizes = manifest.read(uri, storage).sizes()
    assert (len(sizes), sizes[f"{uri}/0.jsonl"], sizes[f"{uri}/1.jsonl"]) == (2001, 19, 2)
    assert len(listed) == 3 + 2  # before, it is asked twice whether it is a folder


def test_nemo_column_names(tmp_path: Path) -> None:
    asr = {"audio_filepath": "1.wav", "duration": 2.5, "text": "hello", "source_lang": "de", "target_lang": "de"}
    ast = {"audio_filepath": "/2.wav", "taskname": "ast", "source_lang": "en", "target_lang": "de", "pnc": "yes"}
    path = write(tmp_path / "nemo.json", "\n".join(json.dumps(row) for row in (asr | {"taskname": "asr"}, ast)))
    first, second = (Recording.from_row(row, Options()) for row in rows(path))
    assert (first.audio, first.duration, first.text) == (f"{tmp_path}/1.wav", 2.5, "hello")
    assert (first.options.language, first.options.task) == ("de", "transcribe")
    assert (second.options.language, second.options.task, second.options.target_language) == ("en", "translate", "de")
    assert second.metadata == {"pnc": "yes"}


def test_language_has_priority_over_source_lang(tmp_path: Path) -> None:
    path = write(tmp_path / "m.jsonl", '{"audio": "/1.wav", "language": "fr", "source_lang": "de"}')
    assert rows(path) == [{"audio": "/1.wav", "language": "fr", "source_lang": "de"}]


def test_invalid_rows_are_yielded(tmp_path: Path) -> None:
    """They fail alone later: one invalid row must not stop the others."""
    lines = ['{"id": "a"}', '{"audio": 7, "id": "b"}', '{"audio": "/1.wav", "language": "klingon"}', '{"audio": null}']
    assert len(rows(write(tmp_path / "m.jsonl", "\n".join(lines)))) == 4


def test_rows_stream(tmp_path: Path) -> None:
    path = write(tmp_path / "m.jsonl", '{"audio": "/1.wav"}\nbroken')
    assert next(iter(manifest.read(str(path), Storage()))) == (row_id({"audio": "/1.wav"}), {"audio": "/1.wav"})


# Errors


def test_a_missing_file_or_unknown_suffix_is_an_error_before_iteration(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        manifest.read(f"{tmp_path}/none.jsonl", Storage())  # not iterated
    assert caught.value.code == "not_found"
    unknown = error_message(write(tmp_path / "m.xlsx", "x"))
    assert "m.xlsx" in unknown
    assert ".jsonl" in unknown
    assert ".parquet" in unknown


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("m.jsonl", '{"audio": "/1.wav"}\n{"audio": ', "m.jsonl line 2 is not JSON"),
        ("m.jsonl", '[{"audio": "/1.wav"}]', "m.jsonl line 1 is not a JSON object"),
        ("m.jsonl", "{\n", "m.jsonl line 1 is not JSON"),
        ("m.jsonl", "[" * 100_000, "m.jsonl line 1 is not JSON"),
        ("m.jsonl", '{"x": ' + "[" * 101 + "]" * 101 + "}", "m.jsonl line 1 is nested more than 100 levels"),
        ("m.csv", "audio,text\n/1.wav,a\n/2.wav\n", "m.csv line 3 has 1 cells where the header has 2"),
        ("m.csv", "audio,text\n/1.wav,a,b\n", "m.csv line 2 has 3 cells"),
        ("m.csv", 'audio\n"/1.wav\n', "m.csv line 2 is not CSV"),
        ("m.csv", "id;audio\n1;/1.wav\n", "m.csv has no column 'audio'"),
        ("m.csv", b"audio,stra\xdfe\n/1.wav,a\n", "m.csv: the column names are not UTF-8"),
        ("m.parquet", "PAR1 and then text", "m.parquet is not readable as Parquet"),
    ],
)
def test_an_unreadable_line_is_named(tmp_path: Path, name: str, content: str | bytes, expected: str) -> None:
    assert expected in error_message(write(tmp_path / name, content))


@pytest.mark.parametrize(("name", "content"), [("m.jsonl", "\n \n"), ("m.csv", "audio,text\n"), ("m.csv", "")])
def test_empty(tmp_path: Path, name: str, content: str) -> None:
    assert f"{name} holds no rows" in error_message(write(tmp_path / name, content))


def test_a_folder_without_audio(tmp_path: Path) -> None:
    write(tmp_path / "notes.txt", "x")
    assert "none of the 1 files" in error_message(tmp_path)
    (tmp_path / "empty").mkdir()
    error_message(tmp_path / "empty", "not_found")
    error_message(f"{tmp_path}/*.wav", "not_found")


def test_parquet_without_audio(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"path": ["1.wav"]}), tmp_path / "m.parquet")
    assert "has no column 'audio' (nor 'audio_filepath') but 'path'" in error_message(tmp_path / "m.parquet")


def test_a_truncated_gzip_manifest(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b'{"audio": "/%d.wav"}\n' % n for n in range(1000)))
    assert "m.jsonl.gz cannot be read" in error_message(write(tmp_path / "m.jsonl.gz", whole[:-20]), "unreadable")


# Ids


def test_a_duplicate_id_is_named_with_its_lines(tmp_path: Path) -> None:
    lines = ['{"audio": "/1.wav", "id": "a"}', '{"audio": "/2.wav", "id": "b"}', '{"audio": "/3.wav", "id": "a"}']
    message = error_message(write(tmp_path / "m.jsonl", "\n".join(lines)), "duplicate_id")
    assert "'a'" in message
    assert "m.jsonl line 1 and " in message
    assert "m.jsonl line 3)" in message
    assert "'b'" not in message


def test_identical_duplicate_rows_are_marked(tmp_path: Path) -> None:
    assert "line 2, the same row" in error_message(
        write(tmp_path / "m.jsonl", '{"audio": "/1.wav"}\n' * 2), "duplicate_id"
    )


def test_many_duplicates_give_a_short_message(tmp_path: Path) -> None:
    message = error_message(write(tmp_path / "m.jsonl", '{"audio": "/1.wav"}\n' * 1000), "duplicate_id")
    assert "and 994 more" in message
    assert len(message) < 2000


def test_default_ids_differ_by_offset(tmp_path: Path) -> None:
    text = '{"audio": "/1.wav"}\n{"audio": "/1.wav", "offset": 30}\n{"audio": "/2.wav"}\n'
    assert len(rows(write(tmp_path / "m.jsonl", text))) == 3


def test_a_hash_collision_is_not_a_duplicate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "id_hash", lambda _: 7)
    assert len(rows(write(tmp_path / "m.jsonl", '{"audio": "/1.wav"}\n{"audio": "/2.wav"}\n'))) == 2


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    assert "'audio' more than once" in error_message(write(tmp_path / "m.csv", "audio,id, audio\n/1.wav,1,/2.wav\n"))
    table = pa.Table.from_arrays([pa.array(["/1.wav"]), pa.array(["a"]), pa.array(["b"])], names=["audio", "id", "id"])
    pa.parquet.write_table(table, tmp_path / "m.parquet")
    assert "'id' more than once" in error_message(tmp_path / "m.parquet")
    twice = '{"audio": "/1.wav"}\n{"id": "a", "audio": "/2.wav", "audio": "/3.wav"}\n'
    assert "m.jsonl line 2 is ambiguous: 'audio' is there" in error_message(write(tmp_path / "m.jsonl", twice))
    nested = '{"audio": "/1.wav", "customer": {"name": "Kim", "name": "Lee"}}'
    assert "line 1 is ambiguous: 'name' is there" in error_message(write(tmp_path / "m.jsonl", nested))
    unnamed = write(tmp_path / "n.csv", "audio,,\n/1.wav,,\n")  # empty columns of a spreadsheet
    assert rows(unnamed) == [{"audio": "/1.wav"}]
