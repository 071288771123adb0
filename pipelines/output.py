"""The output folder: where a run's transcripts lie, how they get there, how they are read again.

    OUTPUT/transcripts/status=ok/*.parquet        one row a recording
    OUTPUT/transcripts/status=failed/*.parquet    the same schema, error filled
    OUTPUT/job.json                               what was asked for; written first
    OUTPUT/run.json                               what came of it; written last: its presence means finished

A file appears whole or not at all (``Storage.write_bytes``), and its name is made of the ids in it:
a block that is written twice, as after a lost worker, lands on itself. So what is in the folder is
what is done, and resuming is a listing.

The files are many and small (a million recordings are 31,000), so each is fetched whole, by one request,
and many at a time; asking for the parts that are wanted would be three requests, one after another.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import Storage, join
from speech.errors import UsageError
from speech.transcript import parquet_schema

STATUSES = ("ok", "failed")
# Files read at a time, which hides the latency of a store; and files held in memory until they are asked for.
READERS = 32
READ_AHEAD = 8 * READERS


def stored_schema() -> pa.Schema:
    """The schema of the files: the output schema without the column that is their folder."""
    schema = parquet_schema()
    return schema.remove(schema.get_field_index("status"))


class Output:
    """One run's output folder, on a disk or in a bucket."""

    def __init__(self, uri: str, storage: Storage) -> None:
        self.uri = uri.rstrip("/")
        self._storage = storage

    def claim(self, settings: dict[str, Any], asked: dict[str, Any], allow_changes: bool) -> None:
        """Makes the folder that of a job, or continues it if it is.

        Args:
            settings: what the text of a transcript depends on; a folder's transcripts all have the same.
            asked: the rest of what is worth knowing of the job.
            allow_changes: take other settings than those of the transcripts that are here.

        Raises:
            UsageError: ``changed_settings``, naming each.
        """
        before = self.job()
        if before and not allow_changes:
            changes = [
                f"{name} was {before['settings'].get(name)!r} and is now {value!r}"
                for name, value in settings.items()
                if before["settings"].get(name) != value
            ]
            if changes:
                raise UsageError(
                    "changed_settings",
                    f"{self.uri} holds transcripts made otherwise: {'; '.join(changes)}. "
                    "Choose another output, or mix them with --allow-changes",
                )
        self._write_json("job.json", asked | {"settings": settings})

    def note(self, **known: Any) -> None:
        """Adds to what ``claim`` wrote what has become known since."""
        self._write_json("job.json", (self.job() or {}) | known)

    def job(self) -> dict[str, Any] | None:
        """What ``claim`` wrote, or None where no run has begun."""
        return self._read_json("job.json")

    def begun(self) -> dict[str, Any]:
        """What ``claim`` wrote.

        Raises:
            UsageError: ``not_found``: no run has begun here.
        """
        job = self.job()
        if job is None:
            raise UsageError("not_found", f"{self.uri} is no output of rayscribe transcribe: it has no job.json")
        return job

    def commit(self, rows: list[dict[str, Any]]) -> None:
        """Writes rows of ``Transcript.to_row``, a file for each status among them."""
        for status in STATUSES:
            if chosen := [row for row in rows if row["status"] == status]:
                self._write(status, pa.Table.from_pylist(chosen, schema=stored_schema()))

    def batches(self, status: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """What is committed with a status, a batch at a time."""
        for _, table in self._tables(status, columns):
            yield from table.to_batches()

    def count(self, status: str) -> int:
        """How many recordings are committed with a status."""
        return sum(len(table) for _, table in self._tables(status, ["attempt"]))

    def settle(self) -> dict[str, dict[str, int]]:
        """Sees to it that each recording stands once, and tells which do.

        It may stand twice where a run was cut short: a retry commits its answers before the failures
        that they replace are dropped, and the workers of a driver that was killed may commit once
        more while the next run is at work. What was transcribed stands before what failed, and a
        later attempt before an earlier one.

        Returns:
            For each status, the attempt of every recording that stands with it.
        """
        standing: dict[str, dict[str, int]] = {status: {} for status in STATUSES}
        twice: set[str] = set()
        for status, _, ids, attempts in self._files():
            twice.update(name for name in ids if any(name in names for names in standing.values()))
            standing[status].update(zip(ids, attempts, strict=True))
        if twice:
            self._drop_lesser(twice)
            return self.settle()
        return standing

    def _drop_lesser(self, twice: set[str]) -> None:
        """Of the recordings named, drops all answers but the best of each."""
        best: dict[str, tuple[bool, int, str]] = {}
        for status, path, ids, attempts in self._files():
            for name, attempt in zip(ids, attempts, strict=True):
                if name in twice:
                    rank = (status == "ok", attempt, path)
                    best[name] = max(rank, best.get(name, rank))
        for status, path, ids, attempts in self._files():
            keep = [
                name not in twice or best[name] == (status == "ok", attempt, path)
                for name, attempt in zip(ids, attempts, strict=True)
            ]
            if not all(keep):
                self._keep_rows(status, path, keep)

    def _files(self) -> Iterator[tuple[str, str, list[str], list[int]]]:
        """Every file of the output: its status, its URI, and the ids and attempts in it."""
        for status in STATUSES:
            for uri, table in self._tables(status, ["recording_id", "attempt"]):
                yield status, uri, table["recording_id"].to_pylist(), table["attempt"].to_pylist()

    def _keep_rows(self, status: str, uri: str, keep: list[bool]) -> None:
        """Replaces a file by one of some of its rows; in between, the rows that stay stand twice."""
        if any(keep) and (table := self._read_table(uri)) is not None:
            self._write(status, table.filter(pa.array(keep)))
        self._storage.remove(uri)

    def finish(self, report: dict[str, Any]) -> None:
        """Marks the run as finished by writing its report, ``run.json``."""
        self._write_json("run.json", report)

    def reopen(self) -> None:
        """Takes the mark of an earlier run away: from here on the folder is unfinished."""
        self._storage.remove(join(self.uri, "run.json"))

    def report(self) -> dict[str, Any] | None:
        """The report of the run that has finished here, or None."""
        return self._read_json("run.json")

    def _write(self, status: str, table: pa.Table) -> None:
        ids = "\n".join(sorted(table["recording_id"].to_pylist()))
        name = hashlib.sha256(ids.encode()).hexdigest()[:24]
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        self._storage.write_bytes(join(self._folder(status), f"{name}.parquet"), buffer.getvalue())

    def _tables(self, status: str, columns: list[str] | None) -> Iterator[tuple[str, pa.Table]]:
        """The files with a status, in the order of their names, with what is in them."""
        uris = [uri for uri in self._storage.list(self._folder(status)) if uri.endswith(".parquet")]
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(uris), READ_AHEAD):
                some = uris[start : start + READ_AHEAD]
                for uri, table in zip(some, pool.map(lambda uri: self._read_table(uri, columns), some), strict=True):
                    if table is not None:
                        yield uri, table

    def _read_table(self, uri: str, columns: list[str] | None = None) -> pa.Table | None:
        """What is in a file; None if it has gone since it was listed."""
        data = self._storage.read_bytes(uri)
        return pq.ParquetFile(pa.BufferReader(data)).read(columns, use_threads=False) if data is not None else None

    def _folder(self, status: str) -> str:
        return join(self.uri, "transcripts", f"status={status}")

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
        self._storage.write_bytes(join(self.uri, name), text.encode())

    def _read_json(self, name: str) -> dict[str, Any] | None:
        text = self._storage.read_bytes(join(self.uri, name))
        content: dict[str, Any] | None = json.loads(text) if text is not None else None
        return content
