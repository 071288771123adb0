"""The commit log of an output: which Parquet files are valid, as in Delta Lake's and Iceberg's logs.

    OUTPUT/commits/00000007.json    version 7: the run that works on the output, and the names of the valid files

A version is created if it does not exist, so that of two writers who have read version 6 one writes version 7, and the
other fails. That is compare-and-set on every store that has "create if absent" (``Storage.create_bytes``: S3, GCS,
Azure, local disks); no ETag is needed.

A file is deleted only after a version without it was written, and names are never used again. So a delete that arrives
late, from a process that was suspended, cannot remove a valid file.
"""

import uuid
from typing import NamedTuple

from pipelines.numbered_files import NumberedFiles
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
        self._output = output
        self._files = NumberedFiles(join(output, "commits"), storage)

    def latest(self) -> Commit:
        """The last version; NOTHING if there is none."""
        latest = self._files.latest()
        if latest is None:
            return NOTHING
        version, content = latest
        return Commit(version, content["run"], frozenset(content["files"]))

    def append(self, base: Commit, run: str | None, files: set[str]) -> Commit:
        """Writes the version after ``base``.

        Raises:
            RayscribeError: ``output_taken``: another process has written that version.
        """
        commit = Commit(base.version + 1, run, frozenset(files))
        # The id makes the content unique, by which ``create`` recognises its own write after a lost response.
        content = {"id": uuid.uuid4().hex, "run": run, "files": sorted(files)}
        created = self._files.create(commit.version, content)
        # The version after an old ``base`` may have been removed, and can then be created once more.
        if not created or self._files.numbers()[-1] != commit.version:
            raise RayscribeError(
                "output_taken",
                f"another run has changed {self._output} since this one started: wait until it has ended, "
                "then the same command continues",
            )
        self._files.remove_below(base.version)  # the last but one stays, for those that have listed it
        return commit
