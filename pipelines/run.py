"""The main job: a manifest of recordings in, Parquet transcripts out, by Ray Data.

    manifest ──► work list ──► Listen ──► Transcribe ──► receipts ──► run.json
    (driver)     (blocks)      (CPU       (engine        (driver)
                                actors)    actors)
                                              │
                                              └──► Parquet

The graph streams: at no time is more of the manifest's audio in memory than the stages have in
hand. The driver sees no audio and no text, only a receipt a recording, from which it draws the
progress bar and counts the summary.

What the output folder already holds is left out of the work list, so that the same command
continues where it stopped, and a manifest that has grown costs only its new rows.
"""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from cluster.session import cluster_layout, connect_ray
from pipelines import manifest
from pipelines.job import Job
from pipelines.lease import Lease
from pipelines.output import Output
from pipelines.progress import Progress
from pipelines.rows import WORK
from pipelines.summary import Summary
from speech.engines.base import EngineStarter, start_engine
from speech.preflight import preflight
from speech.redaction import redact_uri
from storage.filesystem import Storage
from storage.retry import RETRY_FOR_S
from storage.uris import protocol_of

# Rows of the work list to a block that lies in the object store; only text, so many fit.
WORK_ROWS_PER_BLOCK = 10_000
# How long the output is waited for when its storage is out of order. Giving up costs the run; waiting, minutes.
COMMIT_RETRY_FOR_S = 600.0

Standing = dict[str, dict[str, int]]  # of ``Output.deduplicate``
AttemptOf = Callable[[str], int | None]  # from the id of a recording; None: it is not to be tried


def run(job: Job, start: EngineStarter = start_engine) -> Summary:
    """Transcribes what the manifest has and the output has not, showing the progress.

    Args:
        job: what to do.
        start: what starts an engine in its actor; another than ``start_engine`` where the job itself
            is to be tested or timed without a model.

    Raises:
        UsageError: the manifest, the model, an option or a place of storage is wrong, or another run
            holds the output; nothing was transcribed.
    """
    with _opened(job, start) as opened:
        return opened.transcribe(_undone)


def retry(job: Job, start: EngineStarter = start_engine) -> Summary:
    """Tries again what has failed in an output, and nothing else. Arguments and errors as of ``run``."""
    with _opened(job, start) as opened:
        return opened.transcribe(_failed)


def _undone(recorded: Standing) -> AttemptOf:
    return lambda name: None if any(name in names for names in recorded.values()) else 1


def _failed(recorded: Standing) -> AttemptOf:
    return {name: attempt + 1 for name, attempt in recorded["failed"].items()}.get


@contextlib.contextmanager
def _opened(job: Job, start: EngineStarter) -> Iterator["_Run"]:
    """Checks all that can be checked without work, then holds the output for this run alone."""
    storage = _storage(job)
    storage.check_readable(job.manifest)
    storage.check_writable(job.output)
    preflight(job.engine_config, job.options, loads_here=start is start_engine and not job.cluster.address)
    output = Output(job.output, _storage(job, COMMIT_RETRY_FOR_S))
    with Lease(job.output, storage) as lease:
        continues = output.job() is not None
        output.claim(job.text_settings(), {"manifest": redact_uri(job.manifest)}, job.allow_changes)
        yield _Run(job, start, storage, output, lease, continues)


def _storage(job: Job, retry_for_s: float = RETRY_FOR_S) -> Storage:
    """The job's storage. Rows may name the scheme of the manifest, too, since the user named that."""
    schemes = (*job.allow_scheme, protocol_of(job.manifest))
    return Storage(job.storage_options, retry_for_s, schemes, job.allow_private_hosts)


@dataclass(frozen=True)
class _Run:
    """One run that holds its output."""

    job: Job
    start: EngineStarter
    storage: Storage
    output: Output
    lease: Lease
    continues: bool  # an earlier run has begun on this output

    def transcribe(self, choose: Callable[[Standing], AttemptOf]) -> Summary:
        """Runs the recordings that are chosen by what stands in the output."""
        from pipelines.graph import receipts  # Ray Data's import takes a second, which a mistake need not wait for

        started_at = datetime.now(UTC)
        with Progress() as progress:
            if self.continues:
                progress.say("reading what is done")
            recorded = self.output.deduplicate()
            attempt_of = choose(recorded)
            remains_failed = sum(attempt_of(name) is None for name in recorded["failed"])
            summary = Summary(done_before=len(recorded["ok"]), failed_before=remains_failed)
            progress.say(f"joining Ray at {self.job.cluster.address}" if self.job.cluster.address else "starting Ray")
            connect_ray(self.job.cluster.address)
            progress.say("reading the manifest")
            recordings = manifest.read(self.job.manifest, self.storage)
            if recordings.skipped:
                progress.say(f"{len(recordings.skipped)} files skipped, whose suffixes are not of audio")
            summary.skipped_files = len(recordings.skipped)
            rows = _Counted(recordings)
            blocks, to_do = _put_work(_work(rows, attempt_of))
            del recorded, attempt_of  # the ids of all that is done, which may be a million
            self.output.update_job(recordings=rows.count)
            if not to_do and self.output.report():  # all is done; the report of the run that did it stands
                return summary
            self.output.clear_finished()
            if to_do:
                layout = cluster_layout(self.job.cluster)
                progress.start(to_do, waiting_for=f"{layout.engines} × {self.job.engine_config.model} to load")
                for some in receipts(self.job, self.start, self.storage, self.output, blocks, to_do, layout):
                    self.lease.check()
                    summary.add(some)
                    progress.update(summary)
            progress.say("tidying the output")
            if self.continues:
                self.output.deduplicate()
            self.output.compact()
        self.output.finish(_report(self.job, summary, started_at))
        return summary


class _Counted:
    """Iterates, and knows afterwards how many there were."""

    def __init__(self, rows: Iterable[tuple[str, dict[str, Any]]]) -> None:
        self._rows = rows
        self.count = 0

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for row in self._rows:
            self.count += 1
            yield row


def _work(rows: Iterable[tuple[str, dict[str, Any]]], attempt_of: AttemptOf) -> Iterator[dict[str, Any]]:
    """The work list: JSON and attempt of the manifest rows that are to be done."""
    for recording_id, row in rows:
        attempt = attempt_of(recording_id)
        if attempt is not None:
            yield {"row": json.dumps(row, default=str), "attempt": attempt}  # ASCII: Arrow refuses lone surrogates


def _put_work(rows: Iterator[dict[str, Any]]) -> tuple[list[Any], int]:
    """Puts the work list into Ray's object store, so that the driver holds none of it."""
    import ray

    blocks, count = [], 0
    while batch := list(itertools.islice(rows, WORK_ROWS_PER_BLOCK)):
        blocks.append(ray.put(pa.Table.from_pylist(batch, schema=WORK)))
        count += len(batch)
    return blocks, count


def _report(job: Job, summary: Summary, started_at: datetime) -> dict[str, Any]:
    """What run.json says. The storage options stay out of it: they hold secrets."""
    from importlib.metadata import version

    installed = {name: version(name) for name in ("rayscribe", "ray", "pyarrow", "transformers")}
    return {
        "config": job.model_dump(mode="json", exclude={"storage_options"}) | {"manifest": redact_uri(job.manifest)},
        "versions": installed,
        "started_at": started_at,
        "finished_at": datetime.now(UTC),
        **summary.as_dict(),
    }
