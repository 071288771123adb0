"""Removes credentials from URIs: a presigned link is one, and must not reach a message or a table."""

from urllib.parse import urlsplit

_HTTP_SCHEMES = frozenset({"http", "https"})


def redact_uri(uri: str) -> str:
    """The URI without user and password, and for http(s) without query and fragment; a path unchanged."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme.lower() in ("file", "local"):
        return uri
    host, slash, path = rest.partition("/")
    redacted = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    return urlsplit(redacted)._replace(query="", fragment="").geturl() if scheme.lower() in _HTTP_SCHEMES else redacted
