"""The commit log of an output: which Parquet files are valid, as in Delta Lake's and Iceberg's logs.

    OUTPUT/commits/00000007.json    version 7: the run that works on the output, and the names of the valid files

A version is created if it does not exist, so that of two writers who have read version 6 one writes version 7, and the
other fails. That is compare-and-set on every store that has "create if absent" (``Storage.create_bytes``: S3, GCS,
Azure, local disks); no ETag is needed.

A file is deleted only after a version without it was written, and names are never used again. So a delete that arrives
late, from a process that was suspended, cannot remove a valid file.
"""

import json
import uuid
from typing import Any, NamedTuple

from speech.errors import RayscribeError
from storage.filesystem import Storage
from storage.uris import join


class Commit(NamedTuple):
    """One version of the log."""

    version: int
    run: str | None  # the run that last started work on the output
    files: frozenset[str]  # below transcripts/, as status=ok/….parquet


NOTHING = Commit(0, None, frozenset())


class CommitLog:
    """The log of one output. Picklable."""

    def __init__(self, output: str, storage: Storage) -> None:
        self._output, self._storage = output, storage
        self._folder = join(output, "commits")

    def latest(self) -> Commit:
        """The last version; NOTHING if there is none."""
        while versions := self._versions():
            data = self._storage.read_bytes(self._uri(versions[-1]))
            if data is not None:  # else a newer one was written since it was listed, and this one removed
                content: dict[str, Any] = json.loads(data)
                return Commit(versions[-1], content["run"], frozenset(content["files"]))
        return NOTHING

    def append(self, base: Commit, run: str | None, files: set[str]) -> Commit:
        """Writes the version after ``base``.

        Raises:
            RayscribeError: ``output_taken``: another process has written that version.
        """
        commit = Commit(base.version + 1, run, frozenset(files))
        # The id makes the content unique, by which create_bytes recognises its own write after a lost response.
        content = {"id": uuid.uuid4().hex, "run": run, "files": sorted(files)}
        created = self._storage.create_bytes(self._uri(commit.version), json.dumps(content).encode())
        # The version after an old ``base`` may have been removed, and can then be created once more.
        if not created or self._versions()[-1] != commit.version:
            raise RayscribeError(
                "output_taken",
                f"another run has changed {self._output} since this one started: wait until it has ended, "
                "then the same command continues",
            )
        for version in self._versions():
            if version < base.version:  # the last but one stays, for those that have listed it
                self._storage.remove(self._uri(version))
        return commit

    def _versions(self) -> list[int]:
        names = (uri.rsplit("/", 1)[-1] for uri in self._storage.list(self._folder))
        return sorted(int(name.removesuffix(".json")) for name in names if name.endswith(".json"))

    def _uri(self, version: int) -> str:
        return join(self._folder, f"{version:08}.json")
