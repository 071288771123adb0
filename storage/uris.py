"""URIs of audio, manifests and outputs as text: what kind of storage they name, and where they lead."""

import os
import posixpath
import re
from urllib.parse import unquote

LOCAL = frozenset({"file", "local"})
WEB = frozenset({"http", "https"})
S3 = frozenset({"s3", "s3a"})
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_GLOB = re.compile(r"[*?\[]")


def protocol_of(uri: str) -> str:
    """A URI's scheme, in lower case; ``file`` for a path."""
    scheme = SCHEME.match(uri)
    return scheme[1].lower() if scheme else "file"


def is_local(uri: str) -> bool:
    """Whether ``uri`` is a path on this machine (``file://`` too)."""
    return protocol_of(uri) in LOCAL


def is_glob(uri: str) -> bool:
    """Whether ``uri`` holds ``*``, ``?`` or ``[``. In a web address these are no patterns."""
    return protocol_of(uri) not in WEB and bool(_GLOB.search(uri))


def join(uri: str, *parts: str) -> str:
    """A URI below another: ``join("s3://b/out", "run.json")``."""
    return "/".join([uri.rstrip("/"), *parts])


def resolve(audio: str, folder: str) -> str:
    """Where a manifest's ``audio`` is: a relative path is relative to ``folder``, all else stands as it is.

    Local paths come out absolute, for a worker has another working directory.
    """
    if SCHEME.match(audio) or os.path.isabs(audio):
        return audio
    scheme = SCHEME.match(folder)
    if not scheme or is_local(folder):
        base = unquote(folder[scheme.end() :]) if scheme else os.path.abspath(folder)
        return posixpath.normpath(posixpath.join(base, audio))
    return scheme[0] + posixpath.normpath(posixpath.join(folder[scheme.end() :], audio))


def parent(uri: str) -> str:
    """The folder that a file is in, without a URL's query."""
    uri = uri.split("?")[0] if protocol_of(uri) in WEB else uri
    return uri.rpartition("/")[0] or ("/" if uri.startswith("/") else ".")


def uri_like(name: str, like: str) -> str:
    """The URI of what a filesystem calls ``name``, in the storage of another URI."""
    return name if is_local(like) else f"{protocol_of(like)}://{name}"
