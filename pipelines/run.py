"""The bulk job: a manifest of recordings in, Parquet transcripts out, by Ray Data.

    manifest ──► work list ──► Listen ──► Transcribe ──► receipts ──► run.json
    (driver)     (blocks)      (CPU       (engine        (driver)
                                actors)    actors)
                                              │
                                              └──► Parquet

The dataset streams: only the audio of the blocks in flight is in memory. The driver receives no audio and no text, only
one receipt a recording, from which it updates the progress bar and the summary.

Recordings that the output already has are left out of the work list, so that the same command continues an interrupted
run, and a manifest with new rows costs only those.
"""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from cluster.nodes import Layout
from cluster.session import await_nodes, connect_ray, follow_nodes
from pipelines import manifest
from pipelines.breaker import CircuitBreaker
from pipelines.job import Job
from pipelines.lease import Lease
from pipelines.manifest_parts import parts_of
from pipelines.model_runs import ModelRuns
from pipelines.output import Contents, Output
from pipelines.progress import Progress
from pipelines.receipts import Receipts
from pipelines.summary import Summary
from pipelines.work_list import (
    WORK_ROWS_PER_BLOCK,
    Choose,
    Work,
    choose_failed,
    choose_new,
    read_in_tasks,
    work_tables,
)
from speech.engines.base import EngineStarter, start_engine
from speech.engines.dtype import slow_dtype_warning
from speech.errors import RayscribeError, UsageError
from speech.model_rules import ModelChoice
from speech.preflight import preflight_models
from speech.redaction import redact_uri
from storage.filesystem import Storage
from storage.retry import RETRY_FOR_S
from storage.uris import absolute, protocol_of

# The share of ``listen_timeout_s`` for which opening a recording is retried, so that one whose storage does not respond
# fails because of that and not as poison.
RETRY_SHARE = 0.25
# How long a commit is retried while the output's storage fails. An error ends the run, so minutes are worth waiting.
COMMIT_RETRY_FOR_S = 600.0


def run(job: Job, start: EngineStarter = start_engine) -> Summary:
    """Transcribes the recordings of the manifest that the output does not have, showing the progress.

    Args:
        job: its settings.
        start: starts an engine in its actor; another than ``start_engine`` to test or time the job without a model.

    Raises:
        UsageError: the manifest, the model, an option or a storage location is wrong, or another run
            holds the output; nothing was transcribed.
        RayscribeError: the run failed; what is committed is kept.
    """
    return _run(job, start, choose_new)


def retry(job: Job, start: EngineStarter = start_engine) -> Summary:
    """Transcribes the recordings that failed before, and no others. Arguments and errors as of ``run``."""
    return _run(job, start, choose_failed)


def _run(job: Job, start: EngineStarter, choose: Choose) -> Summary:
    started_at = datetime.now(UTC)
    storage, output = _open(job, start)
    with Lease(job.output, storage) as lease:
        resumed = output.job() is not None
        output.claim(job.text_settings(), {"manifest": redact_uri(absolute(job.manifest))}, job.allow_changes)
        with Progress() as progress:
            if resumed:
                progress.say("reading what is done")
            contents = output.deduplicate()
            work = _select(job, storage, output, contents, choose, progress)
            summary = Summary(work.done_before, work.failed_before, work.skipped_files)
            if not work.count and output.report():  # the report of the run that did all of it stays
                return summary
            with _as_failed_run():
                lease.verify()
                contents = output.begin(contents)  # without the ids of all that is done, which may be a million
                received = _execute(job, start, storage, output, lease, work, summary, progress)
                progress.say("merging the output's files")
                lease.verify()
                output.consolidate(contents, received.files, superseded=work.retried > 0 or received.repeated)
                lease.verify()
                output.finish(_report(job, summary, started_at))
    return summary


def _open(job: Job, start: EngineStarter) -> tuple[Storage, Output]:
    """Checks all that can be checked before anything starts."""
    storage = _storage(job, min(RETRY_FOR_S, RETRY_SHARE * job.listen_timeout_s))
    storage.check_readable(job.manifest)
    storage.check_writable(job.output)
    preflight_models(job.rules, job.options, loads_here=start is start_engine and not job.cluster.address)
    return storage, Output(job.output, _storage(job, COMMIT_RETRY_FOR_S))


def _storage(job: Job, retry_for_s: float) -> Storage:
    """The job's storage. Rows may also name the scheme of the manifest, since the user named that."""
    schemes = (*job.allow_scheme, protocol_of(job.manifest))
    return Storage(job.storage_options, retry_for_s, schemes, job.allow_private_hosts)


def _select(job: Job, storage: Storage, output: Output, contents: Contents, choose: Choose, progress: Progress) -> Work:
    """Reads the manifest and puts the work list into Ray's object store.

    Ray is joined or started for the first block: a manifest that is wrong within it is refused without, and a run that
    has nothing to do needs none. A large manifest is read by Ray's tasks.
    """
    progress.say("reading the manifest")
    rows = manifest.read(job.manifest, storage, apart_from=output.has)
    if rows.skipped:
        progress.say(f"{len(rows.skipped)} files skipped, whose suffixes are not of audio")
    choice, attempt_of = ModelChoice(job.rules, job.options), choose(contents.attempts)
    work = None
    if tasks := parts_of(rows):
        _connect(job, progress)
        work = read_in_tasks(rows, tasks, contents, choose, choice, len(job.rules))
    if work is None:
        work = Work(len(rows.skipped))
        for model, table in work_tables(rows, contents, attempt_of, choice, work):
            if not work.blocks:
                _connect(job, progress)
            import ray

            work.blocks[model].append(ray.put(table))  # the driver holds none
    output.update_job(recordings=work.recordings)
    if work.changed:
        shown = ", ".join(map(repr, work.changed_shown)) + (" …" if work.changed > len(work.changed_shown) else "")
        progress.warn(
            f"the manifest now names other audio for {work.changed} ids that the output has ({shown}): these rows "
            "are not transcribed again. Give changed rows a new id, or choose another output"
        )
    to_retry = sum(attempt_of(recording_id) is not None for recording_id in contents.attempts["failed"])
    if to_retry > work.retried:
        progress.warn(
            f"{to_retry - work.retried} recordings that failed are not in {redact_uri(job.manifest)} and are not tried "
            "again: give their manifest with --manifest"
        )
    return work


def _connect(job: Job, progress: Progress) -> None:
    progress.say(f"joining Ray at {job.cluster.address}" if job.cluster.address else "starting Ray")
    connect_ray(job.cluster.address)


def _execute(
    job: Job,
    start: EngineStarter,
    storage: Storage,
    output: Output,
    lease: Lease,
    work: Work,
    summary: Summary,
    progress: Progress,
) -> Receipts:
    """Runs the models' datasets, and counts their receipts into ``summary``."""
    # Importing Ray Data takes a second; a usage error should be shown before.
    from pipelines.graph import ModelDataset
    from pipelines.limits import Limits
    from pipelines.next_pass import NextPass
    from pipelines.stages import Listen, Transcribe

    received = Receipts()
    if not work.count:
        return received
    layout = await_nodes(job.cluster, progress.say, lease.check)
    on_this_cpu = not (layout.gpus_per_engine or job.cluster.address)
    for warning in {slow_dtype_warning(rule.dtype) for rule in job.rules if on_this_cpu} - {""}:
        progress.warn(warning)
    models = " and ".join(job.rules[model].model for model in sorted(work.counts))
    progress.start(work.count, waiting_for=f"{layout.engines_now} × {models} to load")
    breaker = CircuitBreaker(job.max_failed_share)
    limits = Limits()
    datasets: dict[int, ModelDataset] = {}
    blocks, counts = work.blocks, work.counts

    def begin(model: int, part: Layout) -> ModelDataset:
        to_do = blocks[model], counts[model]
        datasets[model] = ModelDataset(job, model, start, storage, output, *to_do, part)
        return datasets[model]

    while counts:
        following = NextPass(WORK_ROWS_PER_BLOCK)
        runs = ModelRuns(counts, layout, begin)
        with contextlib.closing(runs.receipts()) as receipts, follow_nodes(job.cluster, layout, runs.resize):
            for model, batch in receipts:
                lease.check()
                committed = following.add(batch)
                if not len(committed):
                    continue
                limits.add(datasets[model].load(Listen), datasets[model].load(Transcribe), committed)
                received.add(committed)
                summary.add(committed)
                progress.update(summary, limits)
                breaker.add(committed)
        left = sum(
            following.add_left(model, blocks[model], received) for model in counts if datasets[model].lost_actors
        )
        if left:
            progress.warn(f"no node has room for the actors of nodes that are lost: {left} recordings go to others")
        blocks, counts = following.work_lists()
        if counts:
            layout = await_nodes(job.cluster, progress.say, lease.check)  # nodes have come and gone
    received.check_complete(work.count)
    return received


@contextlib.contextmanager
def _as_failed_run() -> Iterator[None]:
    """Storage errors within are not the command's fault any more: they are raised as RayscribeError."""
    try:
        yield
    except UsageError as error:
        raise RayscribeError(error.code, f"{error.message} (what is committed is kept)") from error


def _report(job: Job, summary: Summary, started_at: datetime) -> dict[str, Any]:
    """The content of run.json. The storage options are left out: they contain secrets."""
    from importlib.metadata import PackageNotFoundError, version

    installed = {}
    for name in ("rayscribe", "ray", "pyarrow", "transformers", "xllamacpp"):
        with contextlib.suppress(PackageNotFoundError):  # what another engine needs
            installed[name] = version(name)
    return {
        "config": job.model_dump(mode="json", exclude={"storage_options"}) | {"manifest": redact_uri(job.manifest)},
        "versions": installed,
        "started_at": started_at,
        "finished_at": datetime.now(UTC),
        **summary.as_dict(),
    }
