"""Remote recordings as tests open them."""

from typing import BinaryIO

from storage.filesystem import Storage


def open_remote(storage: Storage, uri: str) -> BinaryIO:
    """The copy that ``Storage.open_audio`` makes of a remote recording; of a local one it returns the path."""
    opened = storage.open_audio(uri)
    assert not isinstance(opened, str)
    return opened
