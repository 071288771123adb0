"""The endpoint when it is overloaded, and when clients disconnect."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from serve.metrics import RequestMetrics
from serve.routes import http_app
from serve.service import TranscriptionService
from serve.settings import ServeSettings
from speech.engines.base import ClipRequest
from speech.engines.fake import FakeEngine
from tests.serve.direct import CALL, MODEL, DirectBackend


class StuckEngine(FakeEngine):
    """Decodes nothing until ``released`` is set; sets ``begun``, and counts cancelled clips."""

    def __init__(self) -> None:
        super().__init__(before=self._wait)
        self.begun = asyncio.Event()
        self.released = asyncio.Event()
        self.cancellations = 0

    async def _wait(self, clip: ClipRequest) -> None:
        self.begun.set()
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.cancellations += 1
            raise


@asynccontextmanager
async def endpoint(
    engine: FakeEngine, **settings: Any
) -> AsyncIterator[Callable[..., Coroutine[None, None, httpx.Response]]]:
    asked = ServeSettings.from_settings({"model": MODEL, **settings})
    service = TranscriptionService(asked, {asked.engine_config.model: DirectBackend(engine)}, RequestMetrics())
    app = http_app(asked, service)
    transport = httpx.ASGITransport(app, client=("127.0.0.1", 5000))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=30) as client:

        async def ask(key: str = "", audio: bytes = CALL, **fields: Any) -> httpx.Response:
            data = {"model": MODEL, **fields}
            headers = {"authorization": f"Bearer {key}"}
            files = {"file": ("call.wav", audio)}
            return await client.post("/v1/audio/transcriptions", data=data, files=files, headers=headers)

        yield ask


def test_an_overloaded_endpoint_sends_retry_after_and_finishes_requests_in_flight() -> None:
    async def scenario() -> None:
        engine = StuckEngine()
        async with endpoint(engine, max_requests=2) as ask:
            held = [asyncio.create_task(ask()) for _ in range(2)]
            await engine.begun.wait()
            refused = await ask()
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "overloaded"
            assert int(refused.headers["retry-after"]) > 0
            engine.released.set()
            assert [(await task).status_code for task in held] == [200, 200]
            assert (await ask()).status_code == 200

    asyncio.run(scenario())


def test_a_client_that_disconnects_frees_its_admission_and_cancels_its_clips() -> None:
    async def scenario(**fields: Any) -> None:
        engine = StuckEngine()
        async with endpoint(engine, max_requests=1) as ask:
            disconnected = asyncio.create_task(ask(**fields))
            await engine.begun.wait()
            disconnected.cancel()
            await asyncio.gather(disconnected, return_exceptions=True)
            assert engine.cancellations >= 4
            engine.released.set()
            assert (await ask(**fields)).status_code == 200

    asyncio.run(scenario())
    asyncio.run(scenario(stream="true"))


def test_a_refused_upload_frees_its_admission() -> None:
    async def scenario() -> None:
        engine = StuckEngine()
        engine.released.set()
        async with endpoint(engine, max_requests=1) as ask:
            assert (await ask(language="xx")).status_code == 400
            assert (await ask(stream="true")).status_code == 200
            assert (await ask()).status_code == 200

    asyncio.run(scenario())


def test_one_key_cannot_take_all_requests(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sk-one\nsk-two\n")

    async def scenario() -> None:
        engine = StuckEngine()
        async with endpoint(engine, max_requests=4, api_keys=str(tmp_path / "keys")) as ask:
            in_flight = [asyncio.create_task(ask("sk-one")) for _ in range(2)]
            await engine.begun.wait()
            refused = await ask("sk-one")
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "too_many_requests"
            assert int(refused.headers["retry-after"]) > 0
            in_flight += [asyncio.create_task(ask("sk-two")) for _ in range(2)]
            engine.released.set()
            assert [(await task).status_code for task in in_flight] == [200] * 4
            assert (await ask("sk-one")).status_code == 200

    asyncio.run(scenario())
