"""A model that is not available is refused with one line, before anything starts."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import rayscribe
from speech.errors import UsageError
from speech.models.checkpoint import check_available

MODEL = "ibm-granite/granite-4.0-1b-speech"


@pytest.fixture
def hub_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Sets the address of the hub, with an empty cache."""
    from huggingface_hub import constants

    def set_endpoint(endpoint: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    return set_endpoint


@contextmanager
def hub(status: int, **headers: str) -> Iterator[str]:
    """A hub with the same answer to every request."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_run_without_hub_ends_with_one_line_that_names_the_remedy(
    hub_at: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hub_at("http://127.0.0.1:9")
    (tmp_path / "calls.jsonl").write_text('{"audio": "call.wav"}\n')
    output = tmp_path / "out"
    code = rayscribe.main(["transcribe", str(tmp_path / "calls.jsonl"), "--output", str(output), "--model", MODEL])
    assert code == rayscribe.EXIT_USAGE
    captured = capfd.readouterr()
    assert captured.err.count("\n") == 1
    for word in (MODEL, "http://127.0.0.1:9", "HTTPS_PROXY", "folder of a checkpoint"):
        assert word in captured.err
    assert list(output.iterdir()) == []  # nothing has started


def test_an_uncached_model_in_offline_mode_is_refused(
    hub_at: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    with hub(200) as endpoint:
        hub_at(endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(UsageError, match="HF_HUB_OFFLINE") as refused:
            check_available(MODEL)
    assert refused.value.code == "no_hub"


@pytest.mark.parametrize(
    ("status", "headers", "code", "message"),
    [
        (404, {"X_Error_Code": "RepoNotFound"}, "unknown_model", "has no such model"),
        (403, {"X_Error_Code": "GatedRepo"}, "forbidden", "accept its terms"),
        (500, {}, "no_hub", "answers 500"),
    ],
)
def test_the_hubs_refusals_have_codes_of_their_own(
    hub_at: Callable[[str], None], status: int, headers: dict[str, str], code: str, message: str
) -> None:
    with hub(status, **headers) as endpoint:
        hub_at(endpoint)
        with pytest.raises(UsageError, match=message) as refused:
            check_available(MODEL)
    assert refused.value.code == code


def test_an_available_model_passes(hub_at: Callable[[str], None], tmp_path: Path) -> None:
    with hub(200, ETag='"1"', X_Repo_Commit="1") as endpoint:
        hub_at(endpoint)
        check_available(MODEL)
    with pytest.raises(UsageError):
        check_available(MODEL)  # the hub is gone, and nothing was cached
    snapshot = tmp_path / "cache" / f"models--{MODEL.replace('/', '--')}"
    (snapshot / "refs").mkdir(parents=True)
    (snapshot / "refs" / "main").write_text("1")
    (snapshot / "snapshots" / "1").mkdir(parents=True)
    (snapshot / "snapshots" / "1" / "config.json").write_text("{}")
    check_available(MODEL)
    check_available(str(tmp_path))  # no hub is asked about a folder


def test_an_invalid_hub_id_is_refused_as_such(hub_at: Callable[[str], None]) -> None:
    hub_at("http://127.0.0.1:9")
    with pytest.raises(UsageError, match="no folder here and no hub id"):
        check_available("models/granite/speech")
