"""The endpoint's HTTP routes: OpenAI's audio API, and the page at /.

    POST /v1/audio/transcriptions    multipart form (``serve.form``) → text in one of five formats, or events
    POST /v1/audio/translations      the same; ``target_language`` is the language of the text (default: en)
    GET  /v1/models                  ``ModelList``; GET /v1/models/{id} one ``ModelEntry``
    GET  /v1/realtime?intent=transcription    WebSocket; its events are in ``serve.live_session``

With keys, every request has ``Authorization: Bearer KEY``. A browser cannot set that header on a WebSocket;
it names the subprotocols ``realtime`` and ``openai-insecure-api-key.KEY`` instead, as with OpenAI.
"""

import os
from pathlib import Path

from fastapi import APIRouter, Depends, FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from serve.auth import ApiKeys, Authenticator
from serve.form import form_schema
from serve.http_errors import INTERNAL, RETRY_AFTER_S, ErrorBody, http_status_of
from serve.responses import ModelEntry, ModelList
from serve.service import WARNING_HEADER, TranscriptionService
from serve.settings import ServeSettings
from speech.errors import RayscribeError, RequestError

PAGE = Path(__file__).parent / "playground"


def http_app(settings: ServeSettings, service: TranscriptionService) -> FastAPI:
    """The endpoint as an ASGI application.

    Raises:
        UsageError: the file of API keys cannot be read.
    """
    keys = ApiKeys(settings.api_keys) if settings.api_keys else None
    authenticator = Authenticator(keys, settings.cors_origins)
    router = APIRouter(prefix="/v1", dependencies=[Depends(authenticator.check)])
    form = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form_schema()}}}}

    @router.post("/audio/transcriptions", openapi_extra=form, response_class=Response)
    async def transcriptions(request: Request) -> Response:
        """Transcribes a recording."""
        return await service.answer(request, "transcribe")

    @router.post("/audio/translations", openapi_extra=form, response_class=Response)
    async def translations(request: Request) -> Response:
        """Translates the speech of a recording."""
        return await service.answer(request, "translate")

    @router.get("/models")
    @router.api_route("/models", methods=["GET", "HEAD"], include_in_schema=False)
    async def models() -> ModelList:
        """The model, once for each of its names."""
        return ModelList(data=list(service.models.values()))

    @router.get("/models/{name:path}")
    @router.api_route("/models/{name:path}", methods=["GET", "HEAD"], include_in_schema=False)
    async def model(name: str) -> ModelEntry:
        """One model."""
        return service.model(name)

    @router.websocket("/realtime")
    async def realtime(websocket: WebSocket) -> None:
        await service.live(websocket)

    # FastAPI's interactive documentation would load its scripts from another host.
    app = FastAPI(title="Rayscribe", docs_url=None, redoc_url=None)
    app.include_router(router)
    app.add_exception_handler(RayscribeError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(Exception, _answer_unexpected)
    app.add_middleware(_UnslashedPaths)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],  # OpenAI's client in a browser sends a dozen x-stainless-… headers
            expose_headers=["retry-after", WARNING_HEADER],
        )
    app.add_middleware(_SecurityHeaders)
    if PAGE.is_dir():
        # A route for each file: a mount at / would match every path and every method, before 404 and 405 are decided.
        page = StaticFiles(directory=PAGE, html=True)
        app.routes.extend(Route(f"/{name}", page, methods=["GET"]) for name in ("", *os.listdir(PAGE)))
    return app


class _UnslashedPaths:
    """Routes a path of the API with a trailing slash as without: some clients append one to their base URL's path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and scope["path"].startswith("/v1/"):
            scope = {**scope, "path": scope["path"].rstrip("/")}
        await self._app(scope, receive, send)


class _SecurityHeaders:
    """Adds headers that keep browsers from guessing content types and from showing the page in a frame."""

    HEADERS = (
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
        (b"content-security-policy", b"frame-ancestors 'none'"),
    )

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *self.HEADERS]}
            await send(message)

        await self._app(scope, receive, send_with_headers)


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RayscribeError)
    status = http_status_of(error)
    headers = {"retry-after": str(RETRY_AFTER_S)} if status in (429, 503) else {}
    return JSONResponse(ErrorBody.of(error).model_dump(), status, headers)


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    """No such path, or no such method on it."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    body = ErrorBody.of(RequestError(code, f"{request.method} {request.url.path}: {error.detail}"))
    return JSONResponse(body.model_dump(), error.status_code, error.headers)


async def _answer_unexpected(request: Request, error: Exception) -> Response:
    """An exception that is not ours. Starlette raises it again after the answer, and Serve logs it."""
    return JSONResponse(ErrorBody.of(INTERNAL).model_dump(), http_status_of(INTERNAL))
