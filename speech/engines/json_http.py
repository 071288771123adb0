"""JSON over HTTP: requests to the server of a model.

It is reached directly: no proxy is between users and their own server. A request that is cancelled closes its
connection.
"""

import io
import json
from typing import Any

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

# A server that is loading, full or restarting is asked again for so long.
RETRY_FOR_S = 60.0
CONNECT_TIMEOUT_S = 10.0
# Loading, full, or a proxy whose server is restarting.
BUSY = frozenset({429, 502, 503, 504})
FORBIDDEN = frozenset({401, 403})


class UnavailableError(Exception):
    """The server does not answer, or not now."""


class RefusedError(Exception):
    """The server's answer is an error, or no JSON."""


class ForbiddenError(RefusedError):
    """The server wants an API key, or another."""


class JsonServer:
    """A server.

    Args:
        url: its address, without a path.
        api_key: sent as a bearer token; None: it wants none.
        timeout_s: of a whole request; None: the caller sets a limit.
    """

    def __init__(self, url: str, api_key: str | None = None, timeout_s: float | None = None) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_s = timeout_s

    async def request_patiently(self, path: str, body: dict[str, Any]) -> Any:
        """As ``request``, again for ``RETRY_FOR_S`` while the server is not available."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(UnavailableError),
            stop=stop_after_delay(RETRY_FOR_S),
            wait=wait_random_exponential(max=10),
            reraise=True,
        ):
            with attempt:
                return await self.request(path, body)
        raise AssertionError  # the last attempt returns or raises

    async def request(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer to a GET, or with a body to a POST.

        Raises:
            UnavailableError: nobody answers, or the server is busy.
            ForbiddenError, RefusedError: it answers with an error, or not in JSON.
        """
        from aiohttp import ClientError, ClientSession, ClientTimeout, InvalidURL  # a tenth of a second

        timeout = ClientTimeout(total=self._timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        headers = self._headers | {"Content-Type": "application/json"}
        method, data = "GET", None
        if body is not None:  # of a megabyte: aiohttp sends a file piece by piece
            method, data = "POST", io.BytesIO(json.dumps(body).encode())
        try:
            async with (
                ClientSession(timeout=timeout) as session,
                session.request(method, self.url + path, data=data, headers=headers) as response,
            ):
                status, answer = response.status, await response.read()
        except InvalidURL as error:
            raise RefusedError(f"{self.url} is no address of a server") from error
        except (ClientError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise UnavailableError(f"the server at {self.url} does not answer ({reason})") from error
        if status >= 400:
            kind = UnavailableError if status in BUSY else ForbiddenError if status in FORBIDDEN else RefusedError
            raise kind(f"the server at {self.url} answers {path} with {status} {_message(answer)}".rstrip())
        try:
            return json.loads(answer)
        except ValueError as error:
            raise RefusedError(f"the server at {self.url} answers {path} with something else than JSON") from error


def _message(body: bytes) -> str:
    """The message in the body of an error: OpenAI's ``error.message``, Ollama's ``error``."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
