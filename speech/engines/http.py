"""The http engine: a client of a server that runs Granite Speech as GGUF, llama-server or Ollama.

Which of the two it is, the server itself says. llama-server has OpenAI's chat (``speech.engines.chat``). Ollama's chat
puts text before audio, so that it gets the whole prompt, raw, with ``[img-0]`` where it inserts the audio
(server/routes.go and llm/llama_server.go of ollama/ollama).
"""

import asyncio
from typing import Any, Protocol

from speech.engines.base import URL_KEY_VARIABLE, ClipRequest, DecodingResult, EngineConfig
from speech.engines.chat import CHAT_PATH, chat_request, chat_result, wav_base64
from speech.engines.json_http import ForbiddenError, JsonServer, RefusedError, UnavailableError
from speech.errors import EngineDied, EngineError, UsageError
from speech.models.checkpoint import family_of
from speech.models.families import GRANITE_4_0, Family, Granite
from speech.transcript import Usage

PROBE_TIMEOUT_S = 10.0
MARKER = "[img-0]"


class Dialect(Protocol):
    """How a kind of server is asked for the text of a clip."""

    path: str

    async def check(self, server: JsonServer, config: EngineConfig) -> None:
        """Raises UsageError unless the server can transcribe with the model; the errors of ``JsonServer.request``."""

    def request(self, family: Granite, model: str, clip: ClipRequest) -> dict[str, Any]: ...

    def result(self, answer: dict[str, Any]) -> DecodingResult:
        """Raises KeyError, TypeError or ValueError for what is no answer of such a server."""


class LlamaServer:
    """llama.cpp's own server."""

    path = CHAT_PATH

    async def check(self, server: JsonServer, config: EngineConfig) -> None:
        modalities = (await server.request("/props")).get("modalities")
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

    async def check(self, server: JsonServer, config: EngineConfig) -> None:
        try:
            await server.request("/api/show", {"model": config.model})
        except ForbiddenError:
            raise
        except RefusedError as error:
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
        self._family, self._config = family, config
        self._dialect = connect(config)
        self._server = _server(config)
        self._slots = asyncio.Semaphore(config.concurrent_clips)

    async def decode(self, clip: ClipRequest) -> DecodingResult:
        request = self._dialect.request(self._family, self._config.model, clip)
        try:
            async with self._slots:
                answer = await self._server.request_patiently(self._dialect.path, request)
            return self._dialect.result(answer)
        except UnavailableError as error:
            raise EngineDied("engine_died", f"{error}: start it, and repeat the command") from error
        except ForbiddenError as error:  # of every clip, and not of this one
            raise EngineDied("forbidden", f"{error}: {_key_advice(self._config)}") from error
        except RefusedError as error:
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
        """Nothing to free: each request has a connection of its own."""


def connect(config: EngineConfig) -> Dialect:
    """The dialect of the server at ``config.url``, which can transcribe with the model. Not from an event loop.

    Raises:
        UsageError: ``bad_engine`` if no server answers there, ``forbidden`` if it wants an API key or another,
            ``bad_model`` or ``unknown_model`` if it cannot transcribe, ``bad_option`` if the model's prompt is not
            known for it.
    """
    try:
        dialect = asyncio.run(_checked_dialect(config))
    except ForbiddenError as error:
        raise UsageError("forbidden", f"{error}: {_key_advice(config)}") from error
    except (UnavailableError, RefusedError) as error:
        raise UsageError("bad_engine", f"{error}: start llama-server or Ollama there, or correct --url") from error
    if isinstance(dialect, Ollama) and (family := family_of(config.model, "http")).name != GRANITE_4_0.name:
        raise UsageError(
            "bad_option",
            f"{family.name} cannot be asked through Ollama, which takes its prompt raw: the chat template is not known "
            "here. Serve it with llama-server",
        )
    return dialect


async def _checked_dialect(config: EngineConfig) -> Dialect:
    server = _server(config, PROBE_TIMEOUT_S)
    dialect: Dialect = Ollama() if await _is_ollama(server) else LlamaServer()
    await dialect.check(server, config)
    return dialect


async def _is_ollama(server: JsonServer) -> bool:
    try:
        return "version" in await server.request("/api/version")
    except RefusedError:
        return False


def _server(config: EngineConfig, timeout_s: float | None = None) -> JsonServer:
    assert config.url is not None  # speech.preflight
    return JsonServer(config.url, config.url_key, timeout_s)


def _key_advice(config: EngineConfig) -> str:
    if config.url_key:
        return f"correct the API key in the environment variable {URL_KEY_VARIABLE}"
    return f"give its API key in the environment variable {URL_KEY_VARIABLE}"
