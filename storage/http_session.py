"""The HTTP sessions of fsspec's driver: private hosts refused where asked, headers kept from other hosts."""

import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from storage.row_access import check_address

if TYPE_CHECKING:
    from aiohttp import ClientSession, TraceRequestRedirectParams

# Request headers without credentials, which a redirect to another host keeps.
_PLAIN_HEADERS = frozenset({"accept", "accept-encoding", "range", "user-agent"})


async def http_session(public_only: bool, **options: Any) -> "ClientSession":
    """An aiohttp session, as fsspec's ``get_client`` makes it.

    Args:
        public_only: connect to public addresses only; else PrivateHostError.
        options: of ClientSession.
    """
    from aiohttp import ClientSession, TCPConnector, TraceConfig

    trace = TraceConfig()
    trace.on_request_redirect.append(_drop_headers)
    connector = TCPConnector(socket_factory=_public_socket if public_only else None)
    return ClientSession(connector=connector, trace_configs=[trace], **options)


def _public_socket(address_info: tuple[Any, ...]) -> socket.socket:
    """A socket for one result of ``getaddrinfo``: of a name, of a redirect, of an address written as a number."""
    family, kind, protocol, _, address = address_info
    check_address(address[0])
    return socket.socket(family, kind, protocol)


async def _drop_headers(_: "ClientSession", __: SimpleNamespace, redirect: "TraceRequestRedirectParams") -> None:
    """Removes the user's headers from a request that is redirected to another origin. aiohttp removes Authorization."""
    from yarl import URL

    response = redirect.response
    target = response.url.join(URL(response.headers.get("Location", "")))
    if target.origin() != response.url.origin():
        for name in set(redirect.headers) - {name for name in redirect.headers if name.lower() in _PLAIN_HEADERS}:
            redirect.headers.popall(name)
