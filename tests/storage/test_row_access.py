"""Which URIs rows may name, and which credentials their storage receives."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import fsspec
import pytest

from speech.errors import AudioError
from storage import row_access
from storage.filesystem import Storage
from storage.row_access import is_public
from tests.storage.remote import LOCAL_WEB, open_remote

BODY = b"0123456789" * 100


class _Server(ThreadingHTTPServer):
    """Serves BODY, or redirects to ``location``; records the headers of every request."""

    location: str | None = None

    def __init__(self, host: str) -> None:
        super().__init__((host, 0), _Handler)
        self.host = host
        self.requests: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.server_port}/call.wav"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.requests.append({name.lower(): value for name, value in self.headers.items()})
        self.send_response(302 if self.server.location else 200)
        if self.server.location:
            self.send_header("Location", self.server.location)
        body = b"" if self.server.location else BODY
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(host: str) -> Iterator[_Server]:
    server = _Server(host)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server() -> Iterator[_Server]:
    with serving("127.0.0.1") as started:
        yield started


def refusal(uri: str, **options: Any) -> str:
    """The message with which a row's URI is refused."""
    with pytest.raises(AudioError) as caught:
        Storage(**options).open_audio(uri)
    assert caught.value.code == "forbidden"
    return caught.value.message


# Schemes


@pytest.mark.parametrize("uri", ["http://host/a.wav", "ftp://host/a.wav", "memory://a.wav", "zip://a.wav", "hf://a"])
def test_a_row_may_not_name_other_schemes(uri: str) -> None:
    scheme = uri.partition("://")[0]
    assert f"--allow-scheme {scheme}" in refusal(uri)


def test_an_allowed_scheme(server: _Server) -> None:
    with open_remote(Storage(**LOCAL_WEB), server.url) as audio:
        assert audio.read() == BODY


def test_a_refused_link_is_shown_without_its_query() -> None:
    assert "sesame" not in refusal("http://host/a.wav?X-Amz-Signature=sesame")


# Hosts


@pytest.mark.parametrize(
    "address",
    [
        *("10.0.0.1", "172.16.0.1", "192.168.1.1", "127.0.0.1", "127.1.2.3", "169.254.169.254", "0.0.0.0"),
        *("100.64.0.1", "224.0.0.1", "::", "::1", "fc00::1", "fd00:ec2::254", "fe80::1%eth0", "ff02::1"),
        *("::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::"),
    ],
)
def test_private_addresses(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f000001", "[::ffff:127.0.0.1]"])
def test_a_row_may_not_name_a_private_host(server: _Server, host: str) -> None:
    uri = f"http://{host}:{server.server_port}/call.wav"
    assert "private address" in refusal(uri, allow_schemes=["http"])
    assert server.requests == []


def test_the_cloud_metadata_service_is_refused() -> None:
    assert "--allow-private-hosts" in refusal("http://169.254.169.254/latest/meta-data/", allow_schemes=["http"])


def test_a_redirect_to_a_private_host_is_refused(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.2 stands for a public host here."""
    monkeypatch.setattr(row_access, "is_public", lambda address: address == "127.0.0.2")
    with serving("127.0.0.2") as public:
        with open_remote(Storage(allow_schemes=["http"]), public.url) as audio:
            assert audio.read() == BODY
        public.location = server.url
        assert "private address" in refusal(public.url, allow_schemes=["http"])
        assert server.requests == []
        with open_remote(Storage(**LOCAL_WEB), public.url) as audio:
            assert audio.read() == BODY


def test_the_users_own_files_may_be_on_a_private_host(server: _Server) -> None:
    with Storage().open(server.url) as file:
        assert file.read() == BODY


# Credentials


class _Recorder(fsspec.AbstractFileSystem):
    """A driver that records its options."""

    protocol = "dbfs"
    options: dict[str, Any]

    def __init__(self, **options: Any) -> None:
        super().__init__()
        type(self).options = options


def test_options_without_protocol_go_to_object_stores_only() -> None:
    fsspec.register_implementation("dbfs", _Recorder, clobber=True)
    Storage({"key": "k", "secret": "sesame", "token": "sesame"}).filesystem("dbfs://host/a.wav")
    assert "sesame" not in str(_Recorder.options)
    Storage({"dbfs": {"token": "own"}, "s3": {"token": "sesame"}}).filesystem("dbfs://host/a.wav")
    assert _Recorder.options["token"] == "own"
    assert "sesame" not in str(_Recorder.options)


def test_options_of_a_host_go_to_that_host_only(server: _Server) -> None:
    with serving("127.0.0.1") as other:
        headers = {"headers": {"X-Key": "sesame"}}
        storage = Storage({f"http://127.0.0.1:{server.server_port}": headers}, **LOCAL_WEB)
        for each in (server, other):
            open_remote(storage, each.url).close()
        assert all(request["x-key"] == "sesame" for request in server.requests)
        assert server.requests
        assert other.requests
        assert not any("x-key" in request for request in other.requests)


def test_a_redirect_to_another_host_loses_the_users_headers(server: _Server) -> None:
    with serving("127.0.0.1") as other:
        headers = {"X-Key": "sesame", "Authorization": "sesame", "Cookie": "sesame"}
        storage = Storage({f"http://127.0.0.1:{server.server_port}": {"headers": headers}}, **LOCAL_WEB)
        server.location = other.url
        with open_remote(storage, server.url) as audio:
            assert audio.read() == BODY
        assert all(request["x-key"] == "sesame" for request in server.requests)
        assert other.requests
        assert "sesame" not in str(other.requests)


class _Azure(_Recorder):
    """As adlfs, takes the account from the URI."""

    protocol = "adl"

    @staticmethod
    def _get_kwargs_from_urls(uri: str) -> dict[str, Any]:
        return {"account_name": uri.partition("@")[2].partition(".")[0]}


def test_credentials_of_one_azure_account_do_not_go_to_another() -> None:
    fsspec.register_implementation("adl", _Azure, clobber=True)
    storage = Storage({"adl": {"account_name": "ours", "account_key": "sesame"}})
    storage.filesystem("adl://calls@ours.dfs.core.windows.net/a.wav")
    assert _Azure.options["account_key"] == "sesame"
    storage.filesystem("adl://calls@theirs.dfs.core.windows.net/a.wav")
    assert "account_key" not in _Azure.options
