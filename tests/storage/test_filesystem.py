"""Storage with local files, memory, an S3 server (moto) and a web server."""

import errno
import os
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech.audio.decoding import open_audio
from speech.errors import AudioError, StorageError, UsageError
from storage.filesystem import Storage
from storage.uris import is_glob, parent, resolve
from tests.conftest import S3
from tests.storage.remote import LOCAL_WEB, open_remote


class _Web(BaseHTTPRequestHandler):
    """Responds with the status in the path: /200/…, /403/…; 200 with ten thousand bytes."""

    body = b"0123456789" * 1000

    def do_HEAD(self) -> None:
        self._respond(with_body=False)

    def do_GET(self) -> None:
        self._respond(with_body=True)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._respond(with_body=False)

    def _respond(self, with_body: bool) -> None:
        status = int(self.path.split("/")[1])
        body = self.body if status == 200 else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Web)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def storage(s3: S3) -> Storage:
    return Storage(s3.options)


# Audio


def test_local_audio_is_returned_as_a_path(tmp_path: Path) -> None:
    name = tmp_path / "a call (100%).wav"
    assert Storage().open_audio(str(name)) == str(name)
    assert Storage().open_audio(name.as_uri()) == str(name)


def test_remote_audio_is_seekable(s3: S3, storage: Storage) -> None:
    content = bytes(range(256)) * 80_000  # more than one block, and more than stays in memory
    storage.write_bytes(f"{s3.bucket}/call.wav", content)
    with open_remote(storage, f"{s3.bucket}/call.wav") as file:
        assert file.read() == content
        file.seek(1000)
        assert file.read(4) == content[1000:1004]


@pytest.mark.parametrize("suffix", ["wav", "ogg", "mp3"])
def test_remote_audio_decodes_like_local_audio(s3: S3, storage: Storage, tmp_path: Path, suffix: str) -> None:
    name = tmp_path / f"call.{suffix}"
    soundfile.write(name, np.sin(np.arange(48_000) / 20).astype(np.float32), 16_000)
    storage.write_bytes(f"{s3.bucket}/{name.name}", name.read_bytes())
    with open_remote(storage, f"{s3.bucket}/{name.name}") as copy:
        listened = []
        for source in (copy, storage.open_audio(str(name))):
            with open_audio(source) as audio:
                listened.append(np.concatenate(list(audio.blocks(offset=1.0))))
    assert len(listened[0]) > 30_000
    np.testing.assert_array_equal(*listened)


def test_audio_from_a_web_server(web: str) -> None:
    with open_remote(Storage({"key": "for object stores only"}, **LOCAL_WEB), f"{web}/200/call.wav") as file:
        assert file.read() == _Web.body


@pytest.mark.parametrize(
    ("path", "code"), [("/404/a.wav", "not_found"), ("/403/a.wav", "forbidden"), ("/500/a.wav", "unreadable")]
)
def test_web_errors_have_codes_and_hide_the_query(web: str, path: str, code: str) -> None:
    with pytest.raises(AudioError) as caught:
        Storage(retry_for_s=0, **LOCAL_WEB).open_audio(f"{web}{path}?X-Amz-Signature=sesame")
    assert caught.value.code == code
    assert f"{web}{path}" in caught.value.message
    assert "sesame" not in caught.value.message
    assert caught.value.__cause__ is None  # the driver's error would log it


def test_an_unreachable_server_is_unreadable_not_missing() -> None:
    with pytest.raises(AudioError) as caught:
        Storage(retry_for_s=0, **LOCAL_WEB).open_audio("http://127.0.0.1:9/a.wav")
    assert caught.value.code == "unreadable"


def test_missing_audio_in_s3(s3: S3, storage: Storage) -> None:
    with pytest.raises(AudioError, match=f"{s3.bucket}/none.wav does not exist") as caught:
        storage.open_audio(f"{s3.bucket}/none.wav")
    assert caught.value.code == "not_found"


@pytest.mark.parametrize(
    ("uri", "expected"), [("gs://bucket/a.wav", "pip install gcsfs"), ("tape://1/a.wav", "tape://")]
)
def test_audio_in_unknown_storage_fails_as_a_row(uri: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(AudioError, match=expected) as caught:
        Storage(allow_schemes=["tape"]).open_audio(uri)
    assert caught.value.code == "unreadable"


def test_a_machine_whose_disk_is_full_is_a_fault_of_storage(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", fail)
    with pytest.raises(StorageError, match="No space left") as caught:
        Storage(**LOCAL_WEB).open_audio(f"{web}/200/call.wav")
    assert caught.value.code == "unreadable"


# Listings


def test_a_folder_that_cannot_be_listed_is_an_error_and_not_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "night").mkdir()
    scandir = os.scandir

    def failing(path: str) -> object:
        if str(path).endswith("night"):
            raise OSError(errno.EIO, "Input/output error")
        return scandir(path)

    monkeypatch.setattr("os.scandir", failing)
    with pytest.raises(UsageError, match="Input/output error") as caught:
        Storage().list(str(tmp_path))
    assert caught.value.code == "unreadable"
    assert Storage().list(str(tmp_path / "none")) == []


# Checks before the run


def test_checks_pass_for_existing_files_and_folders(s3: S3, storage: Storage, tmp_path: Path) -> None:
    storage.check_writable(f"{s3.bucket}/out")
    assert storage.list(s3.bucket) == []  # the probe was deleted
    storage.write_bytes(f"{s3.bucket}/in/m.jsonl", b"{}")
    storage.check_readable(f"{s3.bucket}/in/m.jsonl")
    storage.check_readable(f"{s3.bucket}/in")
    storage.check_readable(f"{s3.bucket}/in/*.jsonl")
    storage.check_writable(str(tmp_path / "new" / "out"))
    assert list((tmp_path / "new" / "out").iterdir()) == []


def test_a_missing_bucket_is_named(storage: Storage) -> None:
    for check in (storage.check_readable, storage.check_writable):
        with pytest.raises(UsageError, match="there is no bucket s3://no-such-bucket") as caught:
            check("s3://no-such-bucket/folder/file")
        assert caught.value.code == "not_found"


def test_a_missing_file_is_named(s3: S3, storage: Storage, tmp_path: Path) -> None:
    for uri in (f"{s3.bucket}/m.jsonl", str(tmp_path / "m.jsonl"), f"{s3.bucket}/*.jsonl"):
        with pytest.raises(UsageError, match=r"m\.jsonl|no file matches") as caught:
            storage.check_readable(uri)
        assert caught.value.code == "not_found"


def test_wrong_credentials_are_reported_without_their_values(web: str) -> None:
    storage = Storage({"key": "AKIASESAME", "secret": "sesame", "endpoint_url": f"{web}/403"})
    for check in (storage.check_readable, storage.check_writable):
        with pytest.raises(UsageError, match="check the credentials") as caught:
            check("s3://bucket/file")
        assert caught.value.code == "forbidden"
        assert "sesame" not in str(caught.value).lower()


def test_missing_credentials_are_forbidden(monkeypatch: pytest.MonkeyPatch, s3: S3) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UsageError) as caught:
        Storage({"endpoint_url": s3.endpoint}).check_writable(s3.bucket)
    assert caught.value.code == "forbidden"


def test_an_unwritable_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="cannot be written") as caught:
        Storage().check_writable(str(tmp_path / "file" / "out"))
    assert caught.value.code == "not_writable"
    assert ".rayscribe" not in caught.value.message
    with pytest.raises(UsageError, match="only read from"):
        Storage().check_writable("https://example.invalid/out")


# Options


def test_credentials_and_endpoint_from_the_environment(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    # Options that no other test uses, because a process caches its filesystems by options.
    storage = Storage({"default_block_size": 6 << 20})
    storage.write_bytes(f"{s3.bucket}/a", b"1")
    with storage.open(f"{s3.bucket}/a") as file:
        assert file.read() == b"1"


def test_options_by_protocol_are_used_for_that_protocol_only(s3: S3, web: str) -> None:
    storage = Storage({"s3": s3.options, "gs": {"token": "sesame"}}, **LOCAL_WEB)
    storage.write_bytes(f"{s3.bucket}/a", b"1")
    assert storage.exists(f"{s3.bucket}/a")
    with open_remote(storage, f"{web}/200/call.wav") as file:
        assert file.read(3) == b"012"


def test_options_are_pickled_but_not_in_repr(s3: S3) -> None:
    for options in ({"key": "K1", "secret": "sesame"}, {"s3": {"secret": "sesame"}}):
        storage = pickle.loads(pickle.dumps(Storage(options)))
        assert "sesame" not in f"{storage!r} {storage}"
    copy = pickle.loads(pickle.dumps(Storage(s3.options)))
    copy.write_bytes(f"{s3.bucket}/a", b"1")
    assert copy.list(s3.bucket) == [f"{s3.bucket}/a"]


def test_threads_and_copies_share_one_filesystem(s3: S3) -> None:
    found = [Storage(s3.options).filesystem(s3.bucket)[0]]
    thread = threading.Thread(target=lambda: found.append(Storage(s3.options).filesystem(s3.bucket)[0]))
    thread.start()
    thread.join()
    assert found[0] is found[1]


def test_invalid_options_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="plain JSON"):
        Storage({"key": object()})
    with pytest.raises(UsageError, match="max_concurrency") as caught:
        Storage({"max_concurrency": 0}).filesystem("s3://bucket")
    assert caught.value.code == "bad_storage_options"


# Files


@pytest.mark.parametrize("root", ["local", "memory://test-storage", "s3"])
def test_write_list_read(root: str, s3: S3, storage: Storage, tmp_path: Path) -> None:
    root = {"local": str(tmp_path), "s3": s3.bucket}.get(root, root)
    storage.write_bytes(f"{root}/x/2.txt", b"old")
    storage.write_bytes(f"{root}/x/2.txt", b"two")
    storage.write_bytes(f"{root}/x/deep/1.txt", b"one")
    both = [f"{root}/x/2.txt", f"{root}/x/deep/1.txt"]
    listed = storage.list(f"{root}/x")
    assert [uri.replace(":///", "://") for uri in listed] == both
    assert storage.sizes(f"{root}/x") == dict.fromkeys(listed, 3)
    assert storage.sizes(f"{root}/y") == {}
    assert len(storage.list(f"{root}/x/*")) == 1  # the file, not the folder
    assert len(storage.list(f"{root}/**/*.txt")) == 2
    with storage.open(listed[0]) as file:
        assert file.read() == b"two"
    assert storage.is_folder(f"{root}/x")
    assert not storage.exists(f"{root}/y")


def test_create_replace_and_remove_local_files(tmp_path: Path) -> None:
    create_replace_and_remove(Storage(), str(tmp_path))


def test_create_replace_and_remove_small_objects(s3: S3, storage: Storage) -> None:
    create_replace_and_remove(storage, s3.bucket)


def create_replace_and_remove(storage: Storage, folder: str) -> None:
    uri = f"{folder}/deep/lease.json"
    assert storage.read_bytes(uri) is None
    storage.remove(uri)  # no error for a missing file
    assert storage.create_bytes(uri, b"first")
    assert not storage.create_bytes(uri, b"second")
    assert storage.read_bytes(uri) == b"first"
    storage.write_bytes(uri, b"third")
    assert storage.read_bytes(uri) == b"third"
    storage.remove(uri)
    assert storage.read_bytes(uri) is None
    assert storage.create_bytes(uri, b"fourth")


@pytest.mark.parametrize("root", ["local", "s3"])
def test_one_of_many_concurrent_creators_succeeds(root: str, s3: S3, storage: Storage, tmp_path: Path) -> None:
    uri = {"local": str(tmp_path), "s3": s3.bucket}[root] + "/lease.json"
    names = [str(number).encode() for number in range(8)]
    with ThreadPoolExecutor(len(names)) as pool:
        created = list(pool.map(lambda name: storage.create_bytes(uri, name), names))
    assert created.count(True) == 1
    assert storage.read_bytes(uri) == names[created.index(True)]


def test_a_file_is_created_once_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    create_replace_and_remove(Storage(), str(tmp_path))


def test_a_full_disk_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.link", refuse)
    with pytest.raises(UsageError, match="No space left") as caught:
        Storage().create_bytes(str(tmp_path / "lease.json"), b"{}")
    assert caught.value.code == "not_writable"
    assert not list(tmp_path.iterdir())


def test_local_files_have_the_permissions_of_any_other(tmp_path: Path) -> None:
    """An output may be read, and continued, by others than who began it."""
    other = tmp_path / "other"
    other.touch()
    Storage().create_bytes(str(tmp_path / "created"), b"{}")
    Storage().write_bytes(str(tmp_path / "written"), b"{}")
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {other.stat().st_mode}


def test_json_that_is_damaged_is_an_error_with_a_code(tmp_path: Path) -> None:
    (tmp_path / "00000001.json").touch()
    with pytest.raises(UsageError, match=r"00000001\.json is damaged") as caught:
        Storage().read_json(str(tmp_path / "00000001.json"))
    assert caught.value.code == "damaged"
    assert Storage().read_json(str(tmp_path / "none.json")) is None


def test_listings_are_not_cached(s3: S3, storage: Storage) -> None:
    assert storage.list(s3.bucket) == []
    Storage(s3.options | {"default_block_size": 7 << 20}).write_bytes(f"{s3.bucket}/a", b"")  # another machine
    assert storage.list(s3.bucket) == [f"{s3.bucket}/a"]


def test_a_failed_local_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage()
    storage.write_bytes(str(tmp_path / "run.json"), b"old")

    def raise_no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", raise_no_space)
    with pytest.raises(UsageError, match="No space left"):
        storage.write_bytes(str(tmp_path / "run.json"), b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


# URIs


@pytest.mark.parametrize(
    ("audio", "folder", "resolved"),
    [
        ("a.wav", "/data", "/data/a.wav"),
        ("./x/../a.wav", "/data/m", "/data/m/a.wav"),
        ("../audio/a.wav", "s3://bucket/m", "s3://bucket/audio/a.wav"),
        ("a b#1.wav", "s3://bucket", "s3://bucket/a b#1.wav"),
        ("a.wav", "file:///data%20x", "/data x/a.wav"),
        ("/abs/a.wav", "s3://bucket/m", "/abs/a.wav"),
        ("https://host/a.wav?x=1", "/data", "https://host/a.wav?x=1"),
        ("gs://other/a.wav", "s3://bucket/m", "gs://other/a.wav"),
    ],
)
def test_resolve(audio: str, folder: str, resolved: str) -> None:
    assert resolve(audio, folder) == resolved


def test_resolve_returns_absolute_local_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("a.wav", parent("m.jsonl")) == str(tmp_path / "a.wav")


def test_globs() -> None:
    assert is_glob("s3://bucket/*.wav")
    assert is_glob("/data/call-[0-9].wav")
    assert not is_glob("https://host/a.wav?x=1")
