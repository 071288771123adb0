"""fsspec's driver of local disks, for listings in which nothing is missing.

Its own leaves out links, and folders that it cannot list: a disk that fails for a moment would look like an empty
folder, and a run would end without the recordings there.
"""

import os
import stat
from collections.abc import Iterator
from typing import Any

from fsspec.implementations.local import LocalFileSystem


class LocalFiles(LocalFileSystem):
    """Lists links as what they lead to. One that leads nowhere is a file, which cannot be opened."""

    def info(self, path: Any, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = super().info(path, **options)
        if found["islink"] and found["type"] == "other":
            found["type"] = _kind(found["name"])
        return found

    def walk(self, path: str, *arguments: Any, **options: Any) -> Iterator[Any]:
        """Calls itself for each folder.

        Raises:
            OSError: a folder that is there cannot be listed.
        """
        yield from super().walk(path, *arguments, **{**options, "on_error": _raise_unless_gone})


def _kind(link: str) -> str:
    """fsspec's type of what a link leads to; a folder that it is itself in, which has no end, is none."""
    try:
        mode = os.stat(link).st_mode
    except FileNotFoundError:
        return "file"
    if not stat.S_ISDIR(mode):
        return "file" if stat.S_ISREG(mode) else "other"
    folder, target = os.path.realpath(os.path.dirname(link)), os.path.realpath(link)
    return "other" if os.path.commonpath([folder, target]) == target else "directory"


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
