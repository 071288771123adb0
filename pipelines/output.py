"""The output folder: the files of a run, and which of them are valid.

    OUTPUT/transcripts/status=ok/*.parquet        one row a recording
    OUTPUT/transcripts/status=failed/*.parquet    the same schema, error filled
    OUTPUT/commits/*.json                         the valid files (``pipelines.commits``)
    OUTPUT/job.json                               the settings of the job; written first
    OUTPUT/run.json                               the report; written last: its presence means finished

Workers only add files. A file appears whole or not at all (``Storage.write_bytes``), and its name is a hash of the run
and the ids in it, so that a block that is transcribed twice with the same result, as after a lost worker, overwrites
its own file. With another result it has files of other names, and the driver knows from the receipts which are valid.

Only the driver removes files, at the start and at the end of a run, and in this order: it writes what replaces them,
then the commit that leaves them out, then it removes them. Of two drivers at once, one fails at its commit, before it
has removed anything. Whatever the interleaving and wherever a process ends, each recording is in a valid file, or in
one that no commit has seen, which the next run reads. After the end of a run each recording is in one file.

While a run is at work its files are many and small, since what is not in one is lost with a machine: a million
recordings make 31,000, or more. Each is read whole, by one request, and many at a time; reading only the needed
columns would be three requests, one after another. At its end a run merges them (``finish``), for all later readers.
"""

import hashlib
import io
import itertools
import json
import uuid
from array import array
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.commits import Commit, CommitLog
from pipelines.manifest import id_hash
from speech.errors import RayscribeError, UsageError
from speech.recording import escape_surrogates
from speech.redaction import redact_uri
from speech.transcript import parquet_schema
from storage.filesystem import Storage
from storage.uris import absolute, join

STATUSES = ("ok", "failed")
# What an output has, by which its files are known from others in the same folder.
OWN_FILES = ("job.json", "run.json")
OWN_FOLDERS = ("transcripts/status=", "commits/", "lease/")
# Files read at a time, which hides the latency of a store. No more are in memory, however slowly they are taken.
READERS = 32
# A status with no more small files than FEW_FILES is not merged. Merged files are small enough to be read whole by
# all readers at once, and are merged from so few that these fit in memory, with the overhead of an Arrow table each.
FEW_FILES = 256
MERGED_BYTES = 8 << 20
SMALL_BYTES = MERGED_BYTES // 2
MERGED_FILES = 256


def stored_schema() -> pa.Schema:
    """The schema of the files: the output schema without the column that is their folder."""
    schema = parquet_schema()
    return schema.remove(schema.get_field_index("status"))


Attempts = dict[str, dict[str, int]]  # by status: recording id → attempt


class Contents(NamedTuple):
    """What an output has."""

    attempts: Attempts
    files: set[str]  # valid ones
    commit: Commit  # the last one
    audio: "np.ndarray[Any, np.dtype[np.int64]]"  # sorted hashes of id and audio of each row

    def has_other_audio(self, recording_id: str, row: Mapping[str, Any]) -> bool:
        """Whether a recording that the output has was made from another file than its manifest row names."""
        hashed = _audio_hash(recording_id, str(row.get("audio") or row.get("audio_filepath") or ""))
        index = np.searchsorted(self.audio, hashed)
        return bool(index == len(self.audio) or self.audio[index] != hashed)


class Output:
    """An output folder, on a disk or in a bucket, and one run on it. Picklable: workers commit to a copy."""

    def __init__(self, uri: str, storage: Storage) -> None:
        self.uri = absolute(uri).rstrip("/")  # workers of a cluster have other working directories
        self._storage = storage
        self._log = CommitLog(self.uri, storage)
        self._run = uuid.uuid4().hex

    def claim(self, settings: dict[str, Any], asked: dict[str, Any], allow_changes: bool) -> None:
        """Writes job.json, unless the folder has transcripts that were made with other settings.

        Args:
            settings: those that the text of a transcript depends on; all transcripts of a folder have the same.
            asked: further fields of job.json.
            allow_changes: accept other settings than those of the transcripts in the folder.

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
            if changes and self._sizes():
                raise UsageError(
                    "changed_settings",
                    f"{self.uri} has transcripts made with other settings: {'; '.join(changes)}. "
                    "Choose another output, or mix them with --allow-changes",
                )
        self._write_json("job.json", asked | {"settings": settings})

    def has(self, uri: str) -> bool:
        """Whether a file is the output's own: one may be in the folder that is its manifest."""
        folder, _, name = uri.partition(f"{self.uri}/")
        return not folder and (name in OWN_FILES or name.startswith(OWN_FOLDERS))

    def update_job(self, **known: Any) -> None:
        """Adds fields to job.json."""
        self._write_json("job.json", (self.job() or {}) | known)

    def job(self) -> dict[str, Any] | None:
        """job.json, or None if no run has started here."""
        return self._storage.read_json(join(self.uri, "job.json"))

    def require_job(self) -> dict[str, Any]:
        """job.json.

        Raises:
            UsageError: ``not_found``: no run has started here.
        """
        job = self.job()
        if job is None:
            raise UsageError("not_found", f"{self.uri} is no output of rayscribe transcribe: it has no job.json")
        return job

    def commit(self, rows: list[dict[str, Any]]) -> list[str]:
        """Writes rows of ``Transcript.to_row``, a file for each status among them.

        Returns:
            The name of each row's file.
        """
        names: dict[str, str] = {}
        for status in STATUSES:
            if chosen := [row for row in rows if row["status"] == status]:
                ids = sorted(row["recording_id"] for row in chosen)
                digest = hashlib.sha256(json.dumps([self._run, ids]).encode()).hexdigest()[:24]
                names[status] = f"status={status}/{digest}.parquet"
                self._write(names[status], pa.Table.from_pylist(chosen, schema=stored_schema()))
        return [names[row["status"]] for row in rows]

    def batches(self, status: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The committed rows of a status, a batch at a time: of valid files once the run has finished, else of all."""
        for _, table in self._read_tables(self._readable(status), columns):
            yield from table.to_batches()

    def _readable(self, status: str) -> list[str]:
        commit, names = self._log.latest(), self._sizes()
        valid = names.keys() & commit.files if self.report() is not None and commit.run is not None else names.keys()
        return sorted(name for name in valid if _status(name) == status)

    def deduplicate(self) -> Contents:
        """Reads which recordings the output has, and removes all but the best row of each.

        There may be several after a run that was interrupted: a retry writes its results before the failures that
        they replace are removed, and the workers of a killed driver may write results while the next run works.
        ok replaces failed, and a later attempt an earlier one.

        Raises:
            RayscribeError: ``output_taken``: another run has done so at the same time.
        """
        commit = self._log.latest()  # before the listing: a file that is removed in between is in an older commit
        names = set(self._sizes())
        attempts, files, audio = self._best_rows(names, commit.files)
        if files != names:
            commit = self._log.append(commit, commit.run, files)
            self._remove(names - files)
        return Contents(attempts, files, commit, audio)

    def begin(self, contents: Contents) -> Contents:
        """Marks the output as worked on by this run: no earlier run can change it from here on. Clears ``attempts``.

        Raises:
            RayscribeError: ``output_taken``.
        """
        commit = self._log.append(contents.commit, self._run, contents.files)
        self._storage.remove(join(self.uri, "run.json"))
        contents.attempts.clear()
        return contents._replace(commit=commit)

    def consolidate(self, contents: Contents, written: set[str], superseded: bool) -> None:
        """Leaves only valid files, and merges small ones if there are many.

        Args:
            contents: as of ``begin``.
            written: the files that the run's receipts name.
            superseded: whether a recording may have several valid rows: of an earlier attempt, or two receipts.

        Raises:
            RayscribeError: ``output_taken``; ``output_changed``: a valid file is gone.
        """
        sizes = self._sizes()
        files = contents.files | written
        if gone := files - sizes.keys():
            raise RayscribeError(
                "output_changed", f"{len(gone)} files of {self.uri}/transcripts were removed while the run was at work"
            )
        if superseded or files != sizes.keys():  # files of a worker that was replaced, or of another driver's
            files = self._best_rows(set(sizes), files)[1]
        files = self._merge_small(files, sizes)
        self._log.append(contents.commit, self._run, files)
        self._remove(sizes.keys() - files)

    def finish(self, report: dict[str, Any]) -> None:
        """Marks the run as finished by writing its report, ``run.json``."""
        self._write_json("run.json", report | {"run": self._run})

    def report(self) -> dict[str, Any] | None:
        """The report of the run that has finished here, or None: also if another run has begun since."""
        report, commit = self._storage.read_json(join(self.uri, "run.json")), self._log.latest()
        return report if report and (commit.run is None or report.get("run") == commit.run) else None

    def _best_rows(
        self, names: Collection[str], preferred: Collection[str]
    ) -> tuple[Attempts, set[str], "np.ndarray[Any, np.dtype[np.int64]]"]:
        """Finds the best row of each recording.

        Files with other rows are not removed, but written anew without them.

        Args:
            names: of all files.
            preferred: files whose rows are kept, of rows with equal status and attempt.

        Returns:
            By status, the attempt of each recording; the names of the files that hold each recording once; and the
            sorted hashes of id and audio of all rows.
        """
        attempts: Attempts = {status: {} for status in STATUSES}
        twice: set[str] = set()
        hashes = array("q")
        for name, table in self._read_tables(sorted(names), ["recording_id", "attempt", "audio"]):
            columns = (table[column].to_pylist() for column in ("recording_id", "attempt", "audio"))
            for recording_id, number, audio in zip(*columns, strict=True):
                hashes.append(_audio_hash(recording_id, audio))
                if any(recording_id in recorded for recorded in attempts.values()):
                    twice.add(recording_id)
                attempts[_status(name)][recording_id] = number
        sorted_hashes = np.sort(np.frombuffer(hashes, np.int64)) if hashes else np.empty(0, np.int64)
        if not twice:
            return attempts, set(names), sorted_hashes
        for recording_id, recorded in itertools.product(twice, attempts.values()):
            recorded.pop(recording_id, None)
        best, files = self._without_superseded(names, preferred, twice)
        for row in best:
            attempts[row.status][row.recording_id] = row.attempt
        return attempts, files, sorted_hashes

    def _without_superseded(
        self, names: Collection[str], preferred: Collection[str], twice: set[str]
    ) -> tuple[Collection["_Row"], set[str]]:
        """The best row of each recording in ``twice``, and the files without their other rows."""
        holders: dict[str, list[_Row]] = {}  # the rows of each file that has one of them
        for name, ids, numbers in self._read_ids(names):
            if not twice.isdisjoint(ids):
                holders[name] = [
                    _Row(recording_id, _status(name), number, name in preferred, len(ids), name, index)
                    for index, (recording_id, number) in enumerate(zip(ids, numbers, strict=True))
                ]
        best: dict[str, _Row] = {}
        for row in itertools.chain.from_iterable(holders.values()):
            if row.recording_id in twice:
                best[row.recording_id] = max(row, best.get(row.recording_id, row), key=_Row.rank)
        files = set(names)
        for name, rows in holders.items():
            keep = [row.recording_id not in twice or row == best[row.recording_id] for row in rows]
            if all(keep):
                continue
            files.discard(name)
            if any(keep) and (table := self._read_table(name)) is not None:
                files.add(self._write(_new_name(_status(name)), table.filter(pa.array(keep))))
        return best.values(), files

    def _merge_small(self, files: set[str], sizes: dict[str, int]) -> set[str]:
        """The files, with small ones merged if they are many."""
        merged = set(files)
        for status in STATUSES:
            small = {name: sizes.get(name, 0) for name in sorted(files) if _status(name) == status}
            small = {name: size for name, size in small.items() if size < SMALL_BYTES}
            for group in _groups(small) if len(small) > FEW_FILES else ():
                if tables := dict(self._read_tables(group)):  # else another driver has removed them
                    table = pa.concat_tables(tables.values(), promote_options="permissive")
                    merged = merged - tables.keys() | {self._write(_new_name(status), table)}
        return merged

    def _remove(self, names: Collection[str]) -> None:
        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(self._storage.remove, [self._file_uri(name) for name in names]))

    def _write(self, name: str, table: pa.Table) -> str:
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        self._storage.write_bytes(self._file_uri(name), buffer.getvalue())
        return name

    def _sizes(self) -> dict[str, int]:
        """Names of all Parquet files, in order, and how many bytes each has."""
        sizes = self._storage.sizes(join(self.uri, "transcripts"))
        files = {"/".join(uri.rsplit("/", 2)[-2:]): size for uri, size in sizes.items() if uri.endswith(".parquet")}
        return {name: size for name, size in files.items() if _status(name) in STATUSES}

    def _read_ids(self, names: Collection[str]) -> Iterator[tuple[str, list[str], list[int]]]:
        """The recording ids and attempts in each file."""
        for name, table in self._read_tables(sorted(names), ["recording_id", "attempt"]):
            yield name, table["recording_id"].to_pylist(), table["attempt"].to_pylist()

    def _read_tables(self, names: list[str], columns: list[str] | None = None) -> Iterator[tuple[str, pa.Table]]:
        """The contents of files, except of those that are gone."""
        with ThreadPoolExecutor(READERS) as pool:
            reading: deque[Future[pa.Table | None]] = deque()
            to_read = iter(names)
            for name in names:
                for ahead in itertools.islice(to_read, READERS - len(reading)):
                    reading.append(pool.submit(self._read_table, ahead, columns))
                if (table := reading.popleft().result()) is not None:
                    yield name, table

    def _read_table(self, name: str, columns: list[str] | None = None) -> pa.Table | None:
        """The content of a file; None if it is gone since it was listed.

        Raises:
            UsageError: ``damaged``.
        """
        data = self._storage.read_bytes(self._file_uri(name))
        try:
            return None if data is None else pq.ParquetFile(pa.BufferReader(data)).read(columns, use_threads=False)
        except (pa.ArrowException, OSError) as error:  # Arrow raises OSError for damaged pages
            raise UsageError(
                "damaged",
                f"{self._file_uri(name)} is damaged ({error}): without it, the same command transcribes its "
                "recordings again",
            ) from error

    def _file_uri(self, name: str) -> str:
        return join(self.uri, "transcripts", name)

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
        # A path may hold bytes that are not UTF-8, as lone surrogates (PEP 383), which JSON has escapes for.
        self._storage.write_bytes(join(self.uri, name), text.encode(errors="backslashreplace"))


class _Row(NamedTuple):
    """Where a recording's row is."""

    recording_id: str
    status: str
    attempt: int
    preferred: bool
    rows_in_file: int
    name: str
    position: int

    def rank(self) -> tuple[bool, int, bool, int, str, int]:
        """The highest is kept; of equal ones that in the largest file, so that few files are written anew."""
        return self.status == "ok", self.attempt, self.preferred, self.rows_in_file, self.name, self.position


def _audio_hash(recording_id: str, audio: str) -> int:
    """The hash of a recording's id and audio. A presigned link's query is not part of it."""
    return id_hash(f"{recording_id}\0{escape_surrogates(redact_uri(audio.strip()))}")


def _status(name: str) -> str:
    return name.partition("/")[0].removeprefix("status=")


def _new_name(status: str) -> str:
    return f"status={status}/{uuid.uuid4().hex[:24]}.parquet"


def _groups(sizes: dict[str, int]) -> Iterator[list[str]]:
    """Groups of files to merge, from names and sizes in bytes."""
    group: list[str] = []
    total = 0
    for name, size in sizes.items():
        if group and (total + size > MERGED_BYTES or len(group) == MERGED_FILES):
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    yield group
