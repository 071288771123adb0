"""The http engine against llama.cpp's server, and against one that translates Ollama's API for it, as Ollama does."""

import json
import pickle
import re
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from speech.engines import json_http
from speech.engines.base import URL_KEY_VARIABLE, ClipRequest, EngineConfig
from speech.errors import EngineDied, EngineError, UsageError
from speech.preflight import preflight
from speech.recording import Options
from testing.engines import RunningEngine

pytestmark = pytest.mark.engine

MODEL = "granite-speech:demo"


@pytest.fixture(scope="module")
def llama_server(gguf_folder: Path) -> Any:
    """llama.cpp's server in this process."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    [parameters.mmproj.path] = map(str, gguf_folder.glob("mmproj*"))
    [parameters.model.path] = map(str, gguf_folder.glob("granite*"))
    parameters.n_parallel, parameters.n_ctx = 4, 8192
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.warmup, parameters.verbosity = False, 0
    return xllamacpp.Server(parameters)


@pytest.fixture(scope="module")
def expected(gguf_folder: Path, sample_clips: list[ClipRequest]) -> list[str]:
    """The texts of the same files in the engine's own process."""
    running = RunningEngine(EngineConfig(model=str(gguf_folder), engine="llamacpp"))
    found = running.decode(*sample_clips[:6])
    running.stop()
    return [each.text for each in found]


@contextmanager
def serving(answer: Callable[[str, Any], tuple[int, Any]], key: str | None = None) -> Iterator[str]:
    """A server whose answers, status and JSON (or bytes), to a path and a body (or None) are ``answer``'s; its URL.

    With a ``key`` it answers 401 to requests without.
    """

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            asked = json.loads(self.rfile.read(length)) if length else None
            status, body = answer(self.path, asked)
            if key and self.headers.get("Authorization") != f"Bearer {key}":
                status, body = 401, {"error": {"message": "Invalid API Key"}}
            self.send_response(status)
            if status == 307:
                self.send_header("Location", body["Location"])
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        do_GET = do_POST = reply  # noqa: N815

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def fetch(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data)) as response:
        return json.load(response)


def ollama(llama_server: Any) -> Callable[[str, Any], tuple[int, Any]]:
    """Ollama's answers; it puts llama-server's media marker in place of ``[img-0]`` (llm/llama_server.go)."""
    marker = fetch(f"{llama_server.listening_address}/props")["media_marker"]

    def answer(path: str, body: Any) -> tuple[int, Any]:
        if path == "/api/version":
            return 200, {"version": "0.32.0"}
        if body["model"] != MODEL:
            return 404, {"error": f"model '{body['model']}' not found"}
        if path == "/api/show":
            return 200, {"capabilities": ["completion"]}
        assert path == "/api/generate"
        assert body["raw"]
        assert not body["stream"]
        assert body["prompt"].count("[img-0]") == len(body["images"]) == 1
        done = fetch(
            f"{llama_server.listening_address}/completion",
            {
                "prompt": {
                    "prompt_string": body["prompt"].replace("[img-0]", marker),
                    "multimodal_data": body["images"],
                },
                "temperature": body["options"]["temperature"],
                "n_predict": body["options"]["num_predict"],
                "cache_prompt": False,
            },
        )
        return 200, {
            "response": done["content"],
            "done": True,
            "done_reason": "length" if done["stop_type"] == "limit" else "stop",
            "prompt_eval_count": done["tokens_evaluated"],
            "eval_count": done["tokens_predicted"],
            "logprobs": [{"token": "x", "logprob": -0.25}, {"token": "y", "logprob": -0.75}],
        }

    return answer


def decode(url: str, *clips: ClipRequest, **settings: Any) -> Any:
    running = RunningEngine(EngineConfig(model=MODEL, engine="http", url=url, **settings))
    try:
        return running.decode(*clips)
    finally:
        running.stop()


def test_llama_server_writes_what_the_engine_in_process_does(
    llama_server: Any, expected: list[str], sample_clips: list[ClipRequest]
) -> None:
    found = decode(llama_server.listening_address, *sample_clips[:6])
    assert [each.text for each in found] == expected
    assert len(set(expected)) > 3
    for each in found:
        assert each.complete
        assert each.avg_logprob < 0
        assert each.usage.output_tokens == len(each.token_ids) > 0
        assert each.usage.prompt_tokens > 20


def test_ollama_writes_the_same(llama_server: Any, expected: list[str], sample_clips: list[ClipRequest]) -> None:
    with serving(ollama(llama_server)) as url:
        found = decode(url, *sample_clips[:6])
    assert [each.text for each in found] == expected
    for each in found:
        assert each.complete
        assert each.avg_logprob == -0.5
        assert each.usage.output_tokens > 0
        assert each.usage.prompt_tokens > 20


def test_what_a_server_refuses_fails_the_clip_alone(llama_server: Any, sample_clips: list[ClipRequest]) -> None:
    url = llama_server.listening_address
    too_long = Options(keywords=tuple(f"keyword number {number} which is too long to fit" for number in range(199)))
    with pytest.raises(EngineError, match=f"{url}.*exceeds the available context") as refused:
        decode(url, ClipRequest(sample_clips[0].samples, too_long, "too-long"))
    assert refused.value.code == "engine_refused"


def test_a_server_that_is_busy_is_asked_again(sample_clips: list[ClipRequest]) -> None:
    answers = [
        (503, {"error": {"message": "Loading model"}}),
        (429, b""),
        (200, {"response": "hello", "done_reason": "length"}),
    ]

    def answer(path: str, body: Any) -> tuple[int, Any]:
        return answers.pop(0) if path == "/api/generate" else (200, {"version": "1"})

    with serving(answer) as url:
        [found] = decode(url, sample_clips[0])
    assert (found.text, found.complete, found.avg_logprob) == ("hello", False, None)
    assert not answers


def test_a_server_that_has_gone_is_the_end_of_the_engine(
    sample_clips: list[ClipRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_http, "RETRY_FOR_S", 0.1)
    with serving(lambda path, body: (200, {"version": "1"})) as url:
        running = RunningEngine(EngineConfig(model=MODEL, engine="http", url=url))
    with pytest.raises(EngineDied, match=f"{re.escape(url)} does not answer"):
        running.decode(sample_clips[0])
    running.stop()


@pytest.mark.parametrize(
    ("answers", "code", "named"),
    [
        ({"/props": (200, {"modalities": {"audio": False}})}, "bad_model", "--mmproj"),
        ({"/props": (404, b"<html>")}, "bad_engine", "correct --url"),
        ({"/props": (200, b"<html>")}, "bad_engine", "something else than JSON"),
        (
            {"/props": (401, {"error": {"message": "Invalid API Key"}})},
            "forbidden",
            f"Invalid API Key.*{URL_KEY_VARIABLE}",
        ),
        (
            {"/api/version": (200, {"version": "1"}), "/api/show": (404, {"error": "model 'x' not found"})},
            "unknown_model",
            "model 'x' not found.*ollama pull",
        ),
    ],
)
def test_a_server_that_cannot_transcribe_is_refused_before_anything_starts(
    answers: dict[str, tuple[int, Any]], code: str, named: str
) -> None:
    with serving(lambda path, body: answers.get(path, (404, b""))) as url:
        with pytest.raises(UsageError, match=named) as refused:
            preflight(EngineConfig(model=MODEL, engine="http", url=url), loads_here=True)
        assert refused.value.code == code
        assert url in refused.value.message


def test_a_key_comes_from_the_environment(sample_clips: list[ClipRequest], monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(path: str, body: Any) -> tuple[int, Any]:
        return 200, {"version": "1"} if path != "/api/generate" else {"response": "hello", "done_reason": "stop"}

    with serving(answer, key="sesame") as url:
        for key, advice in (
            ("", f"give its API key in .* {URL_KEY_VARIABLE}"),
            ("other", f"correct .* {URL_KEY_VARIABLE}"),
        ):
            monkeypatch.setenv(URL_KEY_VARIABLE, key)
            with pytest.raises(UsageError, match=f"{url}.*401 Invalid API Key: {advice}") as refused:
                preflight(EngineConfig(model=MODEL, engine="http", url=url), loads_here=True)
            assert refused.value.code == "forbidden"
        monkeypatch.setenv(URL_KEY_VARIABLE, "sesame\n")
        config = EngineConfig(model=MODEL, engine="http", url=url)
        preflight(config, loads_here=True)
        monkeypatch.delenv(URL_KEY_VARIABLE)  # an actor on another machine gets the settings, and not the environment
        running = RunningEngine(pickle.loads(pickle.dumps(config.model_copy(update={"concurrent_clips": 2}))))
        [found] = running.decode(sample_clips[0])
        running.stop()
    assert found.text == "hello"
    assert "sesame" not in f"{config!r} {config.model_dump()}"


def test_a_key_that_is_refused_later_is_the_end_of_the_engine(
    sample_clips: list[ClipRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a million recordings each would fail alike."""
    with serving(lambda path, body: (403 if path == "/api/generate" else 200, {"version": "1"})) as url:
        running = RunningEngine(EngineConfig(model=MODEL, engine="http", url=url))
        with pytest.raises(EngineDied, match=URL_KEY_VARIABLE) as refused:
            running.decode(sample_clips[0])
        running.stop()
    assert refused.value.code == "forbidden"


def test_a_key_is_not_sent_where_a_server_redirects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL_KEY_VARIABLE, "sesame")
    with serving(lambda path, body: (200, {"modalities": {"audio": True}}), key="sesame") as target:

        def redirect(path: str, body: Any) -> tuple[int, Any]:
            return (307, {"Location": f"{target}/props"}) if path == "/props" else (404, b"")

        with serving(redirect) as url, pytest.raises(UsageError, match="401"):
            preflight(EngineConfig(model=MODEL, engine="http", url=url), loads_here=True)


def test_a_key_that_no_header_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("ses\name", "sésame"):
        monkeypatch.setenv(URL_KEY_VARIABLE, key)
        with pytest.raises(UsageError, match=URL_KEY_VARIABLE) as refused:
            preflight(EngineConfig(model=MODEL, engine="http", url="http://localhost:1"), loads_here=False)
        assert key not in refused.value.message


def test_an_answer_without_a_text_fails_the_clip(sample_clips: list[ClipRequest]) -> None:
    with serving(lambda path, body: (200, {"version": "1"})) as url, pytest.raises(EngineError, match="without a text"):
        decode(url, sample_clips[0])


def test_nobody_at_the_address_is_refused_before_anything_starts() -> None:
    with serving(lambda path, body: (200, {})) as url:
        pass
    with pytest.raises(UsageError, match=f"{url} does not answer.*start llama-server or Ollama") as refused:
        preflight(EngineConfig(model=MODEL, engine="http", url=url), loads_here=True)
    assert refused.value.code == "bad_engine"


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="--url"):
        preflight(EngineConfig(model=MODEL, engine="http"), loads_here=False)
    with pytest.raises(UsageError, match="--engine http"):
        preflight(EngineConfig(model="demo/model", url="http://localhost:8080"), loads_here=False)
    with pytest.raises(UsageError, match=r"llama3.*granite-speech"):
        preflight(EngineConfig(model="llama3", engine="http", url="http://localhost:8080"), loads_here=False)
    with serving(lambda path, body: (200, {"version": "1"})) as url, pytest.raises(UsageError, match="llama-server"):
        preflight(EngineConfig(model="granite-speech-4.1-2b", engine="http", url=url), loads_here=True)
