"""URIs as they may be shown. A presigned link is a credential, and must not reach a message or a table."""

from urllib.parse import urlsplit

_WEB = frozenset({"http", "https"})


def redact_uri(uri: str) -> str:
    """A URI without the password before its host and without a web address's query; a path as it is."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme.lower() in ("file", "local"):
        return uri
    host, slash, path = rest.partition("/")
    shown = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    return urlsplit(shown)._replace(query="", fragment="").geturl() if scheme.lower() in _WEB else shown
