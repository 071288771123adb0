"""The endpoint when it is full, and when its clients leave."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx

from serve.metrics import RequestMetrics
from serve.routes import TranscriptionService, http_app
from serve.settings import ServeSettings
from speech.engines.base import ClipRequest
from speech.engines.fake import FakeEngine
from tests.serve.direct import CALL, MODEL, DirectBackend


class StuckEngine(FakeEngine):
    """Decodes nothing until it is released; tells that it has begun, and how many clips were cancelled."""

    def __init__(self) -> None:
        super().__init__(before=self._wait)
        self.begun = asyncio.Event()
        self.released = asyncio.Event()
        self.given_up = 0

    async def _wait(self, clip: ClipRequest) -> None:
        self.begun.set()
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise


@asynccontextmanager
async def endpoint(
    engine: StuckEngine, **settings: Any
) -> AsyncIterator[Callable[..., Coroutine[None, None, httpx.Response]]]:
    asked = ServeSettings(model=MODEL, **settings)
    service = TranscriptionService(asked, DirectBackend(engine), RequestMetrics())
    app = http_app(asked, service)
    transport = httpx.ASGITransport(app, client=("127.0.0.1", 5000))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=30) as client:

        async def ask(**fields: Any) -> httpx.Response:
            data = {"model": MODEL, **fields}
            return await client.post("/v1/audio/transcriptions", data=data, files={"file": ("call.wav", CALL)})

        yield ask


def test_a_full_endpoint_says_when_to_come_back_and_finishes_what_it_has() -> None:
    async def scene() -> None:
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

    asyncio.run(scene())


def test_a_client_that_leaves_frees_its_place_and_its_clips() -> None:
    async def scene(**fields: Any) -> None:
        engine = StuckEngine()
        async with endpoint(engine, max_requests=1) as ask:
            left = asyncio.create_task(ask(**fields))
            await engine.begun.wait()
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)
            assert engine.given_up >= 4
            engine.released.set()
            assert (await ask(**fields)).status_code == 200

    asyncio.run(scene())
    asyncio.run(scene(stream="true"))


def test_an_upload_that_is_refused_frees_its_place() -> None:
    async def scene() -> None:
        engine = StuckEngine()
        engine.released.set()
        async with endpoint(engine, max_requests=1) as ask:
            assert (await ask(language="xx")).status_code == 400
            assert (await ask(stream="true")).status_code == 200
            assert (await ask()).status_code == 200

    asyncio.run(scene())
