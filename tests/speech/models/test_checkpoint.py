"""A model that cannot be had is refused in one line, before anything is started."""

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
    """Puts the hub elsewhere, with an empty cache before it."""
    from huggingface_hub import constants

    def put(endpoint: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    return put


@contextmanager
def hub(status: int, **headers: str) -> Iterator[str]:
    """A hub that answers every question alike."""

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


def test_a_run_without_hub_ends_with_one_line_that_names_the_fix(
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
    assert list(output.iterdir()) == []  # no work has begun


def test_a_hub_that_may_not_be_asked(hub_at: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with hub(200) as endpoint:
        hub_at(endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(UsageError, match="HF_HUB_OFFLINE") as refused:
            check_available(MODEL)
    assert refused.value.code == "no_hub"


@pytest.mark.parametrize(
    ("status", "says", "code", "named"),
    [
        (404, {"X_Error_Code": "RepoNotFound"}, "unknown_model", "has no such model"),
        (403, {"X_Error_Code": "GatedRepo"}, "forbidden", "accept its terms"),
        (500, {}, "no_hub", "answers 500"),
    ],
)
def test_what_the_hub_says_of_a_model(
    hub_at: Callable[[str], None], status: int, says: dict[str, str], code: str, named: str
) -> None:
    with hub(status, **says) as endpoint:
        hub_at(endpoint)
        with pytest.raises(UsageError, match=named) as refused:
            check_available(MODEL)
    assert refused.value.code == code


def test_a_model_that_can_be_had_passes(hub_at: Callable[[str], None], tmp_path: Path) -> None:
    with hub(200, ETag='"1"', X_Repo_Commit="1") as endpoint:
        hub_at(endpoint)
        check_available(MODEL)
    with pytest.raises(UsageError):
        check_available(MODEL)  # the hub has gone, and nothing was kept
    snapshot = tmp_path / "cache" / f"models--{MODEL.replace('/', '--')}"
    (snapshot / "refs").mkdir(parents=True)
    (snapshot / "refs" / "main").write_text("1")
    (snapshot / "snapshots" / "1").mkdir(parents=True)
    (snapshot / "snapshots" / "1" / "config.json").write_text("{}")
    check_available(MODEL)
    check_available(str(tmp_path))  # a folder is nothing to ask a hub about


def test_what_is_no_hub_id_is_said_so(hub_at: Callable[[str], None]) -> None:
    hub_at("http://127.0.0.1:9")
    with pytest.raises(UsageError, match="no folder here and no hub id"):
        check_available("models/granite/speech")
