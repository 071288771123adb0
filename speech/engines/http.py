"""The http engine: a client of a server that runs Granite Speech as GGUF, llama-server or Ollama.

Which of the two it is, the server itself says. llama-server has OpenAI's chat (``speech.engines.chat``). Ollama's chat
puts text before audio, so that it gets the whole prompt, raw, with ``[img-0]`` where it inserts the audio
(server/routes.go and llm/llama_server.go of ollama/ollama).
"""

import asyncio
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any, Protocol

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from speech.engines.base import ClipRequest, DecodingResult, EngineConfig
from speech.engines.chat import chat_request, chat_result, wav_base64
from speech.errors import EngineDied, EngineError, UsageError
from speech.models.checkpoint import family_of
from speech.models.families import GRANITE_4_0, Family, Granite
from speech.transcript import Usage

# A server that is loading, full or restarting is asked again for so long.
RETRY_FOR_S = 60.0
PROBE_TIMEOUT_S = 10.0
# Loading, full, or a proxy whose server is restarting.
BUSY = frozenset({429, 502, 503, 504})
MARKER = "[img-0]"


class _UnavailableError(Exception):
    """The server does not answer, or not now."""


class _RefusedError(Exception):
    """The server's answer is an error."""


class Dialect(Protocol):
    """How a kind of server is asked for the text of a clip."""

    path: str

    def check(self, server: "_Server", config: EngineConfig) -> None:
        """Raises UsageError unless the server can transcribe with the model."""

    def request(self, family: Granite, model: str, clip: ClipRequest) -> dict[str, Any]: ...

    def result(self, answer: dict[str, Any]) -> DecodingResult:
        """Raises KeyError, TypeError or ValueError for what is no answer of such a server."""


class LlamaServer:
    """llama.cpp's own server."""

    path = "/v1/chat/completions"

    def check(self, server: "_Server", config: EngineConfig) -> None:
        modalities = server.request("/props").get("modalities")
        if not (isinstance(modalities, dict) and modalities.get("audio")):
            raise UsageError(
                "bad_model",
                f"the server at {config.url} takes no audio: start llama-server with a Granite Speech and --mmproj",
            )

    def request(self, family: Granite, model: str, clip: ClipRequest) -> dict[str, Any]:
        return chat_request(family, clip) | {"model": model}

    def result(self, answer: dict[str, Any]) -> DecodingResult:
        return chat_result(answer)


class Ollama:
    """Ollama. The chat template is here, since it does not give a model's own."""

    path = "/api/generate"

    def check(self, server: "_Server", config: EngineConfig) -> None:
        try:
            server.request("/api/show", {"model": config.model})
        except _RefusedError as error:
            raise UsageError(
                "unknown_model",
                f"{error}: ollama pull {config.model}, or give --model a name that `ollama list` has",
            ) from error

    def request(self, family: Granite, model: str, clip: ClipRequest) -> dict[str, Any]:
        return {
            "model": model,
            "prompt": f"USER: {MARKER}{family.instruction(clip.options)}\n ASSISTANT:",
            "images": [wav_base64(clip)],
            "raw": True,
            "stream": False,
            "logprobs": True,
            "options": {"temperature": 0, "num_predict": family.max_tokens(clip.seconds)},
        }

    def result(self, answer: dict[str, Any]) -> DecodingResult:
        logprobs = [token["logprob"] for token in answer.get("logprobs") or []]
        return DecodingResult(
            text=answer["response"].strip(),
            token_ids=(),
            avg_logprob=sum(logprobs) / len(logprobs) if logprobs else None,
            complete=answer["done_reason"] == "stop",
            usage=Usage(prompt_tokens=answer.get("prompt_eval_count", 0), output_tokens=answer.get("eval_count", 0)),
        )


class HttpEngine:
    """Sends clips to a server, as many at a time as ``concurrent_clips``; the server decides how many it decodes."""

    def __init__(self, config: EngineConfig, family: Family) -> None:
        assert isinstance(family, Granite)  # speech.models.checkpoint refuses all others
        self._family, self._model = family, config.model
        self._dialect = connect(config)
        self._server = _Server(config, config.clip_timeout_s)
        self._threads = ThreadPoolExecutor(config.concurrent_clips, thread_name_prefix="http-engine")

    async def decode(self, clip: ClipRequest) -> DecodingResult:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._decode, clip)

    def _decode(self, clip: ClipRequest) -> DecodingResult:
        request = self._dialect.request(self._family, self._model, clip)
        answer: Any = None
        try:
            answer = self._server.request_patiently(self._dialect.path, request)
            return self._dialect.result(answer)
        except _UnavailableError as error:
            raise EngineDied("engine_died", f"{error}: start it, and repeat the command") from error
        except _RefusedError as error:
            raise EngineError("engine_refused", f"a clip of {clip.seconds:.1f} s was not decoded: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError(
                "engine_refused",
                f"the server at {self._server.url} answered {self._dialect.path} without a text: is it another kind "
                "of server than llama-server and Ollama?",
            ) from error

    async def check_health(self) -> None:
        """Always healthy: a server that has gone shows in the next clip."""

    def stop(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


def connect(config: EngineConfig) -> Dialect:
    """The dialect of the server at ``config.url``, which can transcribe with the model.

    Raises:
        UsageError: ``bad_engine`` if no server answers there, ``bad_model`` or ``unknown_model`` if it cannot
            transcribe, ``bad_option`` if the model's prompt is not known for it.
    """
    server = _Server(config, PROBE_TIMEOUT_S)
    try:
        dialect: Dialect = Ollama() if server.is_ollama() else LlamaServer()
        dialect.check(server, config)
    except (_UnavailableError, _RefusedError) as error:
        raise UsageError("bad_engine", f"{error}: start llama-server or Ollama there, or correct --url") from error
    if isinstance(dialect, Ollama) and (family := family_of(config.model, "http")).name != GRANITE_4_0.name:
        raise UsageError(
            "bad_option",
            f"{family.name} cannot be asked through Ollama, which takes its prompt raw: the chat template is not known "
            "here. Serve it with llama-server",
        )
    return dialect


class _Server:
    """A server's JSON over HTTP, reached directly: no proxy is between a user and their own server."""

    def __init__(self, config: EngineConfig, timeout_s: float) -> None:
        assert config.url is not None  # speech.preflight
        self.url = config.url.rstrip("/")
        self._timeout_s = timeout_s
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def is_ollama(self) -> bool:
        try:
            return "version" in self.request("/api/version")
        except _RefusedError:
            return False

    def request_patiently(self, path: str, body: dict[str, Any]) -> Any:
        """As ``request``, again for ``RETRY_FOR_S`` while the server is not available."""
        for attempt in Retrying(
            retry=retry_if_exception_type(_UnavailableError),
            stop=stop_after_delay(RETRY_FOR_S),
            wait=wait_random_exponential(max=10),
            reraise=True,
        ):
            with attempt:
                return self.request(path, body)
        raise AssertionError  # the last attempt returns or raises

    def request(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer to a GET, or with a body to a POST.

        Raises:
            _UnavailableError: nobody answers, or the server is busy.
            _RefusedError: it answers with an error, or not in JSON.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            reason = f"{error.code} {_message(error.read())}"
            if error.code in BUSY:
                raise _UnavailableError(f"the server at {self.url} is busy ({reason})") from error
            raise _RefusedError(f"the server at {self.url} answers {path} with {reason}") from error
        except ValueError as error:
            raise _RefusedError(f"the server at {self.url} answers {path} with something else than JSON") from error
        except (OSError, HTTPException) as error:
            why = error.reason if isinstance(error, urllib.error.URLError) else error
            raise _UnavailableError(f"the server at {self.url} does not answer ({why})") from error


def _message(body: bytes) -> str:
    """The message in the body of an error: OpenAI's ``error.message``, Ollama's ``error``."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
