"""The output folder: where a run's transcripts lie, how they get there, how they are read again.

    OUTPUT/transcripts/status=ok/*.parquet        one row a recording
    OUTPUT/transcripts/status=failed/*.parquet    the same schema, error filled
    OUTPUT/job.json                               what was asked for; written first
    OUTPUT/run.json                               what came of it; written last: its presence means finished

A file appears whole or not at all (``Storage.write_bytes``), and its name is made of the ids in it:
a block that is written twice, as after a lost worker, lands on itself. So what is in the folder is
what is done, and resuming is a listing.

While a run is at work its files are many and small, since what is not yet in one is lost with a machine: a
million recordings make 31,000, or more. Each is fetched whole, by one request, and many at a time; asking
for the parts that are wanted would be three requests, one after another. At its end a run merges them
(``compact``), for all who read them afterwards.
"""

import hashlib
import io
import itertools
import json
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from speech.errors import UsageError
from speech.transcript import parquet_schema
from storage.filesystem import Storage
from storage.uris import join

STATUSES = ("ok", "failed")
# Files read at a time, which hides the latency of a store; and files held in memory until they are asked for.
READERS = 32
READ_AHEAD = 8 * READERS
# A status that has no more small files than this is left as it is. Merged files are as large as can still
# be fetched whole by every reader at once, and are merged of so few files that these fit into memory, each
# with the overhead of an Arrow table, and are gone in a second.
FEW_FILES = 256
MERGED_BYTES = 8 << 20
SMALL_BYTES = MERGED_BYTES // 2
MERGED_FILES = 256


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

    def update_job(self, **known: Any) -> None:
        """Adds to what ``claim`` wrote what has become known since."""
        self._write_json("job.json", (self.job() or {}) | known)

    def job(self) -> dict[str, Any] | None:
        """What ``claim`` wrote, or None where no run has begun."""
        return self._read_json("job.json")

    def require_job(self) -> dict[str, Any]:
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

    def deduplicate(self) -> dict[str, dict[str, int]]:
        """Sees to it that each recording stands once, and tells which do.

        It may stand twice where a run was cut short: a retry commits its answers before the failures
        that they replace are dropped, and the workers of a driver that was killed may commit once
        more while the next run is at work. What was transcribed stands before what failed, and a
        later attempt before an earlier one.

        Returns:
            For each status, the attempt of every recording that stands with it.
        """
        recorded: dict[str, dict[str, int]] = {status: {} for status in STATUSES}
        twice: set[str] = set()
        for status, _, ids, attempts in self._files():
            for name, attempt in zip(ids, attempts, strict=True):
                if any(name in names for names in recorded.values()):
                    twice.add(name)
                recorded[status][name] = attempt
        if twice:
            for name, names in itertools.product(twice, recorded.values()):
                names.pop(name, None)
            for best in self._drop_superseded(twice):
                recorded[best.status][best.name] = best.attempt
        return recorded

    def _drop_superseded(self, twice: set[str]) -> Collection["_Place"]:
        """Of the recordings named, drops all answers but the best of each, and returns those."""
        holders: dict[str, list[_Place]] = {}  # the rows of each file that holds one of them
        for status, uri, ids, attempts in self._files():
            if not twice.isdisjoint(ids):
                rows = enumerate(zip(ids, attempts, strict=True))
                holders[uri] = [_Place(name, status, attempt, len(ids), uri, row) for row, (name, attempt) in rows]
        best: dict[str, _Place] = {}
        for place in (place for places in holders.values() for place in places if place.name in twice):
            best[place.name] = max(place, best.get(place.name, place), key=_Place.rank)
        written: set[str] = set()
        for uri, places in holders.items():
            keep = [place.name not in twice or place == best[place.name] for place in places]
            if all(keep):
                continue
            # The rows that stay are written before the file goes, and for a moment stand twice.
            if any(keep) and (table := self._read_table(uri)) is not None:
                written.add(self._write(places[0].status, table.filter(pa.array(keep))))
            if uri not in written:  # by chance, under the name of one that goes
                self._storage.remove(uri)
        return best.values()

    def _files(self) -> Iterator[tuple[str, str, list[str], list[int]]]:
        """Every file of the output: its status, its URI, and the ids and attempts in it."""
        for status in STATUSES:
            for uri, table in self._tables(status, ["recording_id", "attempt"]):
                yield status, uri, table["recording_id"].to_pylist(), table["attempt"].to_pylist()

    def compact(self) -> None:
        """Merges small files, if they are many. Each recording should stand once before (``deduplicate``).

        A merged file is written before those that are in it are removed. Whoever reads in the second
        between sees their rows twice; if the process ends in it, the next ``deduplicate`` removes them.
        """
        for status in STATUSES:
            sizes = self._storage.sizes(self._folder(status))
            small = {uri: size for uri, size in sizes.items() if uri.endswith(".parquet") and size < SMALL_BYTES}
            if len(small) > FEW_FILES:
                for group in _groups(small):
                    self._merge(status, group)

    def _merge(self, status: str, uris: list[str]) -> None:
        found = dict(self._read_tables(uris))
        merged = self._write(status, pa.concat_tables(found.values(), promote_options="permissive"))
        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(self._storage.remove, found.keys() - {merged}))

    def finish(self, report: dict[str, Any]) -> None:
        """Marks the run as finished by writing its report, ``run.json``."""
        self._write_json("run.json", report)

    def clear_finished(self) -> None:
        """Takes the mark of an earlier run away: from here on the folder is unfinished."""
        self._storage.remove(join(self.uri, "run.json"))

    def report(self) -> dict[str, Any] | None:
        """The report of the run that has finished here, or None."""
        return self._read_json("run.json")

    def _write(self, status: str, table: pa.Table) -> str:
        """Writes a file whole, under a name made of the ids in it; returns its URI."""
        ids = "\n".join(sorted(table["recording_id"].to_pylist()))
        name = hashlib.sha256(ids.encode()).hexdigest()[:24]
        uri = join(self._folder(status), f"{name}.parquet")
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        self._storage.write_bytes(uri, buffer.getvalue())
        return uri

    def _tables(self, status: str, columns: list[str] | None) -> Iterator[tuple[str, pa.Table]]:
        """The files with a status, in the order of their names, with what is in them."""
        return self._read_tables(
            [uri for uri in self._storage.list(self._folder(status)) if uri.endswith(".parquet")], columns
        )

    def _read_tables(self, uris: list[str], columns: list[str] | None = None) -> Iterator[tuple[str, pa.Table]]:
        """Files and what is in them, but for those that have gone."""
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
        # A path may hold bytes that are not UTF-8, as lone surrogates (PEP 383), which JSON has escapes for.
        self._storage.write_bytes(join(self.uri, name), text.encode(errors="backslashreplace"))

    def _read_json(self, name: str) -> dict[str, Any] | None:
        text = self._storage.read_bytes(join(self.uri, name))
        content: dict[str, Any] | None = json.loads(text) if text is not None else None
        return content


class _Place(NamedTuple):
    """Where an answer stands."""

    name: str
    status: str
    attempt: int
    rows: int  # in its file
    uri: str
    row: int

    def rank(self) -> tuple[bool, int, int, str, int]:
        """The best is kept: of equal answers the one in the largest file, so that few files are written anew."""
        return self.status == "ok", self.attempt, self.rows, self.uri, self.row


def _groups(sizes: dict[str, int]) -> Iterator[list[str]]:
    """Files to be merged, from all files and their sizes in bytes."""
    group: list[str] = []
    total = 0
    for uri, size in sizes.items():
        if group and (total + size > MERGED_BYTES or len(group) == MERGED_FILES):
            yield group
            group, total = [], 0
        group.append(uri)
        total += size
    yield group
