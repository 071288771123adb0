"""Who is let in: with keys, whoever has one; without, this machine alone and no web page but our own."""

from starlette.exceptions import WebSocketException
from starlette.requests import HTTPConnection
from starlette.status import WS_1008_POLICY_VIOLATION

from serve.keys import ApiKeys
from serve.settings import is_loopback
from speech.errors import RequestError

# A browser cannot set headers on a WebSocket: OpenAI's clients there send the key as a subprotocol.
KEY_SUBPROTOCOL = "openai-insecure-api-key."


class Access:
    """Admits requests. Without ``keys`` it trusts the machine it runs on, but not what a browser there was told.

    A page of any site may send a request to localhost, or name localhost its own host (DNS rebinding). So
    without keys the request must be addressed to localhost, and a page that sends it must come from us.
    """

    def __init__(self, keys: ApiKeys | None) -> None:
        self._keys = keys

    def check(self, connection: HTTPConnection) -> None:
        """A FastAPI dependency, for HTTP and WebSocket.

        Raises:
            RequestError: ``invalid_api_key`` or ``forbidden``.
            WebSocketException: the same, where an HTTP error can't be sent.
        """
        try:
            if self._keys is None:
                _check_local(connection)
            elif not self._keys.admit(_key(connection)):
                raise RequestError("invalid_api_key", "give a valid key as 'Authorization: Bearer KEY'")
        except RequestError as error:
            if connection.scope["type"] == "websocket":
                raise WebSocketException(WS_1008_POLICY_VIOLATION, error.message) from error
            raise


def _key(connection: HTTPConnection) -> str:
    scheme, _, key = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    protocols = [name.strip() for name in connection.headers.get("sec-websocket-protocol", "").split(",")]
    return next(
        (name.removeprefix(KEY_SUBPROTOCOL) for name in protocols if name.startswith(KEY_SUBPROTOCOL)),
        "",
    )


def _check_local(connection: HTTPConnection) -> None:
    client = connection.client
    host = connection.url.hostname or ""
    if client is None or not is_loopback(client.host) or not is_loopback(host):
        raise RequestError("forbidden", "without API keys this endpoint answers requests to localhost alone")
    origin = connection.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != connection.headers.get("host"):
        raise RequestError("forbidden", "without API keys this endpoint answers its own page alone")
