"""Parsing and joining of URIs: scheme, glob, relative paths. No access to storage."""

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
    """Whether ``uri`` holds ``*``, ``?`` or ``[``. In an HTTP URL these are not patterns."""
    return protocol_of(uri) not in WEB and bool(_GLOB.search(uri))


def join(uri: str, *parts: str) -> str:
    """A URI below another: ``join("s3://b/out", "run.json")``."""
    return "/".join([uri.rstrip("/"), *parts])


def absolute(folder: str) -> str:
    """A local folder as an absolute path, because workers have other working directories; any other unchanged."""
    scheme = SCHEME.match(folder)
    if not is_local(folder):
        return folder
    return unquote(folder[scheme.end() :]) if scheme else os.path.abspath(folder)


def resolve(audio: str, folder: str) -> str:
    """A manifest's ``audio`` as a URI: a relative path is joined to ``folder``, all else is returned unchanged.

    Local paths become absolute, because workers have other working directories.
    """
    if SCHEME.match(audio) or os.path.isabs(audio):
        return audio
    scheme = SCHEME.match(folder)
    if not scheme or is_local(folder):
        base = folder if os.path.isabs(folder) else absolute(folder)  # of a million rows the same
        return posixpath.normpath(posixpath.join(base, audio))
    return scheme[0] + posixpath.normpath(posixpath.join(folder[scheme.end() :], audio))


def parent(uri: str) -> str:
    """The folder of a file, without the query of an HTTP URL."""
    uri = uri.split("?")[0] if protocol_of(uri) in WEB else uri
    return uri.rpartition("/")[0] or ("/" if uri.startswith("/") else ".")


def uri_like(name: str, like: str) -> str:
    """The URI of ``name``, a path as a filesystem returns it, in the storage of the URI ``like``."""
    return name if is_local(like) else f"{protocol_of(like)}://{name}"
