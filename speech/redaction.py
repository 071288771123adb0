"""Removes credentials from URIs: a presigned link is one, and must not reach a message or a table."""

import re
from urllib.parse import urlsplit

_HTTP_SCHEMES = frozenset({"http", "https"})
_AZURE_SCHEMES = frozenset({"az", "abfs", "abfss"})
# Query parameters of presigned links: AWS (v4 and v2), Google, CloudFront, Azure's shared access signatures.
_PRESIGNED = re.compile(
    r"""(https?://[^\s"'<>\\?]+)\?[^\s"'<>\\]*?\b(?:X-(?:Amz|Goog)-\w[\w-]*|AWSAccessKeyId|Signature|sig)=[^\s"'<>\\]*""",
    re.IGNORECASE,
)


def redact_uri(uri: str) -> str:
    """The URI without user and password, and for http(s) without query and fragment; a path unchanged.

    What stands before the @ of Azure's URIs is the container.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme.lower() in ("file", "local"):
        return uri
    host, slash, path = rest.partition("/")
    host = host if scheme.lower() in _AZURE_SCHEMES else host.rpartition("@")[2]
    redacted = f"{scheme}://{host}{slash}{path}"
    return urlsplit(redacted)._replace(query="", fragment="").geturl() if scheme.lower() in _HTTP_SCHEMES else redacted


def redact_presigned(text: str) -> str:
    """Text, or JSON, whose presigned links have lost their query; other links unchanged."""
    return _PRESIGNED.sub(r"\1", text)
