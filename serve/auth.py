"""Authentication: by API keys; without keys, only requests from this machine, and from no web page but our own.

Only hashes of the keys are kept in memory.
"""

import hashlib
import hmac
from collections.abc import Collection
from pathlib import Path

from starlette.exceptions import WebSocketException
from starlette.requests import HTTPConnection
from starlette.status import WS_1008_POLICY_VIOLATION

from serve.settings import is_loopback
from speech.errors import RequestError, UsageError

# A browser cannot set headers on a WebSocket: OpenAI's clients there send the key as a subprotocol.
KEY_SUBPROTOCOL = "openai-insecure-api-key."
HASHED = "sha256:"


class ApiKeys:
    """The keys in a file, one a line, in plain text or as ``sha256:HEX``; lines that begin with # are comments.

    The file is read again when its mtime has changed, so that a rotated secret takes effect at once.

    Raises:
        UsageError: ``bad_api_keys`` if the file cannot be read or has no key.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._mtime_ns: int | None = None
        self._hashes: list[bytes] = []
        self._refresh()

    def contains(self, key: str) -> bool:
        """Whether ``key`` is one of them. Compares all of them, each in constant time, so that timing leaks nothing."""
        self._refresh()
        presented = hashlib.sha256(key.encode()).digest()
        return sum(hmac.compare_digest(presented, known) for known in self._hashes) > 0

    def _refresh(self) -> None:
        try:
            mtime_ns = self._path.stat().st_mtime_ns
            if mtime_ns == self._mtime_ns:
                return
            lines = [line.strip() for line in self._path.read_text().splitlines()]
            hashes = [_hash(line) for line in lines if line and not line.startswith("#")]
        except (OSError, ValueError) as error:  # without the error's text, which may quote a key
            raise UsageError("bad_api_keys", f"cannot read keys from {self._path}: {type(error).__name__}") from error
        if not hashes:
            raise UsageError("bad_api_keys", f"{self._path} has no key")
        self._hashes, self._mtime_ns = hashes, mtime_ns


def _hash(line: str) -> bytes:
    if line.startswith(HASHED):
        digest = bytes.fromhex(line.removeprefix(HASHED))
        if len(digest) != hashlib.sha256().digest_size:
            raise ValueError("not a SHA-256")
        return digest
    return hashlib.sha256(line.encode()).digest()


class Authenticator:
    """Checks requests. Without ``keys`` it trusts processes on this machine, but not other sites' pages in a browser.

    A page of any site may send a request to localhost, or have its own host name resolve to localhost (DNS
    rebinding). So without keys the Host must be localhost, and an Origin must be our own or in ``cors_origins``.
    """

    def __init__(self, keys: ApiKeys | None, cors_origins: Collection[str] = ()) -> None:
        self._keys = keys
        self._cors_origins = cors_origins

    def check(self, connection: HTTPConnection) -> None:
        """A FastAPI dependency, for HTTP and WebSocket. Sets ``state.key_id`` where there are keys.

        Raises:
            RequestError: ``invalid_api_key`` or ``forbidden``.
            WebSocketException: the same, on a WebSocket.
        """
        try:
            if self._keys is None:
                _check_local(connection, self._cors_origins)
                return
            key = _key(connection)
            if not self._keys.contains(key):
                raise RequestError("invalid_api_key", "give a valid key as 'Authorization: Bearer KEY'")
            connection.state.key_id = key_id(key)
        except RequestError as error:
            if connection.scope["type"] == "websocket":
                raise WebSocketException(WS_1008_POLICY_VIOLATION, error.message) from error
            raise


def key_id(key: str) -> str:
    """Identifies a key without being one."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _key(connection: HTTPConnection) -> str:
    scheme, _, key = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    protocols = [name.strip() for name in connection.headers.get("sec-websocket-protocol", "").split(",")]
    return next(
        (name.removeprefix(KEY_SUBPROTOCOL) for name in protocols if name.startswith(KEY_SUBPROTOCOL)),
        "",
    )


def _check_local(connection: HTTPConnection, cors_origins: Collection[str]) -> None:
    client = connection.client
    host = connection.url.hostname or ""
    if client is None or not is_loopback(client.host) or not is_loopback(host):
        raise RequestError("forbidden", "without API keys this endpoint answers only requests to localhost")
    origin = connection.headers.get("origin")
    if origin is None or origin in cors_origins:
        return
    if origin.partition("://")[2] != connection.headers.get("host"):
        raise RequestError("forbidden", "without API keys this endpoint answers only its own page")
