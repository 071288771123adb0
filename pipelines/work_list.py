"""The work list: the rows of a manifest that a run is to transcribe, as WORK tables, and counts of the others.

The driver reads a small manifest itself. Parts of a large one are read by Ray tasks, which leave out what the output
holds; the driver receives counts and a hash of each id, and the tables stay where they were made.
"""

import json
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.commits import NOTHING
from pipelines.manifest import Manifest, Part, id_hash
from pipelines.output import STATUSES, Attempts, Contents
from pipelines.rows import WORK
from speech.errors import UsageError
from speech.model_rules import ModelChoice

# Rows of the work list in one block of the object store. They are only text.
WORK_ROWS_PER_BLOCK = 10_000
CHANGED_SHOWN = 5  # ids in a message
# Times that a task reads again where its worker was lost.
RETRIES = 3

AttemptOf = Callable[[str], int | None]  # recording id → number of its next attempt; None: not to be transcribed
Choose = Callable[[Attempts], AttemptOf]
Hashes = np.ndarray[Any, np.dtype[np.int64]]


def choose_new(recorded: Attempts) -> AttemptOf:
    """For ``rayscribe transcribe``: what the output does not hold."""
    return lambda recording_id: None if any(recording_id in ids for ids in recorded.values()) else 1


def choose_failed(recorded: Attempts) -> AttemptOf:
    """For ``rayscribe retry``: what has failed."""
    return {recording_id: attempt + 1 for recording_id, attempt in recorded["failed"].items()}.get


@dataclass
class Work:
    """The recordings to transcribe, and counts of what else the manifest names."""

    skipped_files: int = 0
    # By the position of the model in the job's rules: references to WORK tables in Ray's object store, and their rows.
    blocks: dict[int, list[Any]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[int] = field(default_factory=Counter)
    count: int = 0
    retried: int = 0  # of them, those that failed before
    recordings: int = 0  # rows of the manifest
    done_before: int = 0  # rows that the output has, transcribed
    failed_before: int = 0  # rows that the output has, failed, and that are not tried again
    changed: int = 0  # rows with other audio than in the output
    changed_shown: list[str] = field(default_factory=list)  # ids of some of them

    def add(self, other: "Work") -> None:
        """Adds the counts of a part."""
        self.counts.update(other.counts)
        for name in ("count", "retried", "recordings", "done_before", "failed_before", "changed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.changed_shown = (self.changed_shown + other.changed_shown)[:CHANGED_SHOWN]


def work_tables(
    rows: Iterable[tuple[str, dict[str, Any]]],
    contents: Contents,
    attempt_of: AttemptOf,
    choice: ModelChoice,
    work: Work,
) -> Iterator[tuple[int, pa.Table]]:
    """The rows to transcribe as WORK tables, each of one model; counts all rows into ``work``."""
    encode = json.JSONEncoder(default=str).encode  # json.dumps makes an encoder for each row
    batches: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for recording_id, row in rows:
        work.recordings += 1
        attempt = attempt_of(recording_id)
        if attempt is None:
            work.done_before += recording_id in contents.attempts["ok"]
            work.failed_before += recording_id in contents.attempts["failed"]
            if contents.has_other_audio(recording_id, row):
                work.changed += 1
                if len(work.changed_shown) < CHANGED_SHOWN:
                    work.changed_shown.append(recording_id)
            continue
        work.count += 1
        work.retried += attempt > 1
        model = choice.of(row)
        work.counts[model] += 1
        # ASCII: Arrow rejects lone surrogates.
        batches[model].append({"recording_id": recording_id, "row": encode(row), "attempt": attempt})
        if len(batches[model]) == WORK_ROWS_PER_BLOCK:
            yield model, pa.Table.from_pylist(batches.pop(model), schema=WORK)
    for model, batch in batches.items():
        yield model, pa.Table.from_pylist(batch, schema=WORK)


@dataclass(frozen=True)
class Recorded:
    """What an output has, as arrays that all processes of a node read in Ray's object store.

    Attributes:
        hashes: ``id_hash`` of each recording, sorted.
        ids, attempts, failed: of the recordings, in this order.
        audio: as of ``Contents``.
    """

    hashes: Hashes
    ids: pa.Array
    attempts: "np.ndarray[Any, np.dtype[np.int32]]"
    failed: "np.ndarray[Any, np.dtype[np.bool_]]"
    audio: Hashes

    @classmethod
    def of(cls, contents: Contents) -> "Recorded":
        ids = [each for status in STATUSES for each in contents.attempts[status]]
        attempts = [each for status in STATUSES for each in contents.attempts[status].values()]
        hashes = np.fromiter(map(id_hash, ids), np.int64, len(ids))
        order = np.argsort(hashes)
        return cls(
            hashes[order],
            pa.array(ids, pa.string()).take(pa.array(order)),
            np.asarray(attempts, np.int32)[order],
            order >= len(contents.attempts["ok"]),
            contents.audio,
        )

    def contents(self, ids: list[str], hashes: Hashes) -> Contents:
        """What the output has of some recordings."""
        attempts: Attempts = {status: {} for status in STATUSES}
        first, behind = np.searchsorted(self.hashes, hashes), np.searchsorted(self.hashes, hashes, "right")
        for recording_id, start, end in zip(ids, first.tolist(), behind.tolist(), strict=True):
            for at in range(start, end):  # several only where hashes are equal by chance
                if self.ids[at].as_py() == recording_id:
                    attempts["failed" if self.failed[at] else "ok"][recording_id] = int(self.attempts[at])
        return Contents(attempts, set(), NOTHING, self.audio)


class _Reading(NamedTuple):
    """What all tasks have in common."""

    manifest: Manifest
    recorded: Recorded
    choose: Choose
    choice: ModelChoice
    models: int


def read_in_tasks(
    manifest: Manifest, tasks: list[list[Part]], contents: Contents, choose: Choose, choice: ModelChoice, models: int
) -> Work | None:
    """The work list, read by a Ray task for each list of parts. Ray is connected.

    Returns:
        None where no node has a CPU yet; also if a part is not readable: read from its beginning, the manifest gives
        the error its line.

    Raises:
        UsageError: as of ``Manifest.check_ids``.
    """
    import ray

    if ray.cluster_resources().get("CPU", 0) < 1:
        return None
    common = _Reading(replace(manifest, files=[], skipped=[], listed={}), Recorded.of(contents), choose, choice, models)
    reading = ray.put(common)
    read = ray.remote(_read).options(num_returns=1 + models, max_retries=RETRIES)
    work, hashes = Work(len(manifest.skipped)), array("q")
    for counts, *tables in [read.remote(reading, parts) for parts in tasks]:
        try:
            part, part_hashes = ray.get(counts)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UsageError):
                return None
            raise
        work.add(part)
        hashes.frombytes(part_hashes.tobytes())
        for model in part.counts:
            work.blocks[model].append(tables[model])
    manifest.check_ids(np.frombuffer(hashes, np.int64))
    return work


def _read(reading: _Reading, parts: list[Part]) -> tuple[Any, ...]:
    """Counts, and the hashes of all ids; then a WORK table for each model."""
    rows = [row for part in parts for row in reading.manifest.part(part)]
    ids = [recording_id for recording_id, _ in rows]
    hashes = np.fromiter(map(id_hash, ids), np.int64, len(ids))
    contents = reading.recorded.contents(ids, hashes)
    work = Work()
    tables = {model: [WORK.empty_table()] for model in range(reading.models)}
    for model, table in work_tables(rows, contents, reading.choose(contents.attempts), reading.choice, work):
        tables[model].append(table)
    return (work, hashes), *(pa.concat_tables(each) for each in tables.values())
