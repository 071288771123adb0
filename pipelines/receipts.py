"""What the driver knows of the recordings that a run has committed: their receipts."""

from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from speech.errors import RayscribeError


def id_hashes(ids: Iterable[str]) -> "array[int]":
    """Of this process: ids of recordings in 8 bytes each."""
    return array("q", map(hash, ids))


class Receipts:
    """The files that receipts name, and whether each recording has exactly one receipt."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self._hashes = array("q")

    def add(self, batch: pa.Table) -> None:
        self.files.update(batch["file"].to_pylist())
        self._hashes.extend(id_hashes(batch["recording_id"].to_pylist()))

    def lack(self, hashes: "array[int]") -> "np.ndarray[Any, np.dtype[np.bool_]]":
        """Which of the recordings of these ``id_hashes`` have no receipt."""
        return np.isin(hashes, self._hashes, invert=True)

    @property
    def repeated(self) -> bool:
        """Whether a recording has more than one: Ray has run its Listen task again and cut the block otherwise."""
        return len(np.unique(self._hashes)) < len(self._hashes)

    def check_complete(self, count: int) -> None:
        """Raises RayscribeError ``run_failed`` if some of ``count`` recordings have no receipt."""
        if missing := count - len(np.unique(self._hashes)):
            raise RayscribeError(
                "run_failed", f"{missing} recordings were lost within Ray: the same command again transcribes them"
            )
