"""Remote recordings as tests open them."""

from typing import Any, BinaryIO

from storage.filesystem import Storage

# Allowances of Storage for the tests' own web servers.
LOCAL_WEB: dict[str, Any] = {"allow_schemes": ["http"], "allow_private_hosts": True}


def open_remote(storage: Storage, uri: str) -> BinaryIO:
    """The copy that ``Storage.open_audio`` makes of a remote recording; of a local one it returns the path."""
    opened = storage.open_audio(uri)
    assert not isinstance(opened, str)
    return opened
