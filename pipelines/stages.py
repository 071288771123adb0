"""The two stages of the job, as Ray Data runs them.

    Listen      CPU actors: WORK rows in; audio is opened, decoded and cut into clips
    Transcribe  engine actors: clips become transcripts, which are committed as Parquet; one receipt a recording goes
                to the driver

A recording that fails becomes a failed row in the stage where it fails, and passes through the next. One that ends
its process is retried by Ray, at most ``pipelines.poison.MAX_ATTEMPTS`` times.
"""

import asyncio
import faulthandler
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from aiorwlock import RWLock

from cluster.preemption import DrainWatch, notice_here
from cluster.session import fit_engine_here, kill_children_and_exit
from pipelines.in_flight import InFlight
from pipelines.output import Output
from pipelines.poison import MAX_ATTEMPTS
from pipelines.rows import RECEIPT, ListenedRow, Routed, listened_rows, listened_table
from speech.engines.base import EngineStarter
from speech.engines.start_limit import start_within_limit
from speech.errors import AudioError, EngineDied, EngineError, RayscribeError, RequestError
from speech.listener import Listener
from speech.model_rules import ModelRule, choose_model
from speech.recording import AUTO, Options, Recording
from speech.redaction import redact_uri
from speech.transcriber import Transcriber
from speech.transcript import Transcript
from storage.filesystem import Storage

log = logging.getLogger("rayscribe")


class Listen:
    """WORK rows in, LISTENED rows out.

    Args:
        defaults: the run's options, for those that a row does not set.
        rules: the run's models.
        model: position of the one that it listens for, which says how long a clip may be.
        storage: opens the audio.
        attempts: handle of the actor ``pipelines.poison.AttemptTracker``.
        timeout_s: a recording that takes longer ends the process, as nothing else stops a decoder that loops in C.
        table_bytes: of samples, at which a table is complete.
    """

    def __init__(
        self,
        defaults: Options,
        rules: tuple[ModelRule, ...],
        model: int,
        storage: Storage,
        attempts: Any,
        timeout_s: float,
        table_bytes: int,
    ) -> None:
        self._defaults = defaults
        self._rules = rules
        self._listener = Listener(clip_s=rules[model].family.clip_s, open_audio=storage.open_audio)
        self._in_flight = InFlight(attempts)
        self._timeout_s = timeout_s
        self._table_bytes = table_bytes
        self._dump = open(os.devnull, "w")  # noqa: SIM115 - must stay open for faulthandler
        self._watch = DrainWatch(notice_here())

    def __call__(self, work: pa.Table) -> Iterator[pa.Table]:
        with self._watch.call():
            yield from self._listen_all(work)

    def _listen_all(self, work: pa.Table) -> Iterator[pa.Table]:
        ids = work["recording_id"].to_pylist()
        if not ids:
            return
        poison = self._in_flight.begin_block(ids)
        pending: list[ListenedRow] = []
        for cells in work.to_pylist():
            pending.append(self._listen(cells, cells["recording_id"] in poison))
            if sum(each.nbytes for each in pending) >= self._table_bytes:
                yield self._flush(pending)
        self._in_flight.end_block(ids[0])
        if pending:
            yield self._flush(pending)

    def _flush(self, pending: list[ListenedRow]) -> pa.Table:
        """The pending rows as a table. No recording is in flight then: the next may begin much later."""
        self._in_flight.end()
        table = listened_table(pending)
        pending.clear()
        return table

    def _listen(self, work: dict[str, Any], poison: bool) -> ListenedRow:
        start, computed = time.perf_counter(), computing_s()
        recording_id = work["recording_id"]
        # The row's own id stays, if it has one: from_row rejects one that is not UTF-8.
        row = {"id": recording_id} | json.loads(work["row"])
        recording, listened, error = None, None, None
        self._in_flight.begin(recording_id)
        faulthandler.dump_traceback_later(self._timeout_s, exit=True, file=self._dump)
        try:
            if poison:
                raise AudioError("poison", _poison_message("listening to", recording_id, self._timeout_s))
            recording = Recording.from_row(row, self._defaults)
            if work["language"] is not None:
                recording = recording.in_language(work["language"], work["language_probability"])
            choose_model(self._rules, recording.options, row)  # refuses what no model has
            listened = self._listener.listen(recording)
        except (RequestError, AudioError) as refused:
            error = refused
        except Exception as unforeseen:  # a bug must fail one row, not the run
            log.exception("listening to %s", recording_id)
            error = AudioError("internal", f"{type(unforeseen).__name__}: {unforeseen}")
        finally:
            faulthandler.cancel_dump_traceback_later()
        recording = recording or Recording.malformed(row)
        listen_s = time.perf_counter() - start
        return ListenedRow(
            recording,
            work["attempt"],
            listen_s,
            listened,
            error,
            waiting_s=max(0.0, listen_s - (computing_s() - computed)),
            row=work["row"] if recording.options.language == AUTO else None,
        )


class Transcribe:
    """LISTENED rows in, RECEIPT rows out. Holds the engine, on an event loop of its own.

    Ray calls it from several threads at once, with a block each; the engine batches the clips of all.
    Ray's own event loop is not used: it blocks while it waits for input, and the engine would with it.

    A block's transcripts are committed before its receipts are returned. If another stage wrote them, they could queue
    before it, and all queued ones would be transcribed again if the driver were lost.
    """

    def __init__(
        self,
        rules: tuple[ModelRule, ...],
        model: int,
        engines_per_gpu: int,
        start: EngineStarter,
        attempts: Any,
        output: Output,
    ) -> None:
        engine, family = fit_engine_here(rules[model], engines_per_gpu, bulk=True), rules[model].family
        self._rules, self._position = rules, model
        self._output = output
        self._model = engine.model
        self._attempts = attempts
        self._node = ray.get_runtime_context().get_node_id()
        self._timeout_s = engine.clip_timeout_s
        self._lock = RWLock()  # shared: recordings in one batch; exclusive: a suspect alone. Writers have priority.
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="engine-loop").start()
        self._transcriber = Transcriber(
            start_within_limit(start, engine, family),
            family,
            engine.model,
            engine.concurrent_clips,
            clip_timeout_s=engine.clip_timeout_s,
        )
        asyncio.run_coroutine_threadsafe(self._transcriber.warm_up(), self._loop).result()
        self._ready_at = datetime.now(UTC)
        self._watch = DrainWatch(notice_here())  # not before: Ray does not restart an actor that ends as it starts

    def __call__(self, table: pa.Table) -> pa.Table:
        with self._watch.call():
            return self._transcribe_and_commit(table)

    def _transcribe_and_commit(self, table: pa.Table) -> pa.Table:
        listened = listened_rows(table)
        block = asyncio.run_coroutine_threadsafe(self._transcribe_block(listened), self._loop).result()
        rows = [each.to_row() for each in block if isinstance(each, Transcript)]
        files = self._output.commit(rows)
        committed = [
            row | {"file": file, "code": row["error"] and row["error"]["code"]}
            for row, file in zip(rows, files, strict=True)
        ]
        routed = [each.as_receipt() for each in block if isinstance(each, Routed)]
        listened_by_id = {row.recording.id: row for row in listened}
        receipts = [
            receipt
            | {
                "model": self._model,
                "storage_failed": listened_by_id[receipt["recording_id"]].storage_failed,
                "waiting_s": listened_by_id[receipt["recording_id"]].waiting_s,
                "engine_ready_at": self._ready_at,
            }
            for receipt in committed + routed
        ]
        return pa.Table.from_pylist(receipts, schema=RECEIPT)

    async def _transcribe_block(self, listened: list[ListenedRow]) -> list[Transcript | Routed]:
        transcripts: list[Transcript | Routed] = [
            self._failed(row, row.error) for row in listened if row.listened is None
        ]
        rows = [row for row in listened if row.listened is not None]
        async with self._lock.reader_lock:
            ids = [row.recording.id for row in rows]
            suspects = await self._attempts.start_batch.remote(ids, self._node)
            together = [row for row in rows if row.recording.id not in suspects]
            transcripts += await asyncio.gather(*(self._transcribe(row) for row in together))
            self._attempts.end.remote([row.recording.id for row in together])
        alone = [row for row in rows if row.recording.id in suspects]
        return transcripts + [await self._transcribe_alone(row) for row in alone]

    async def _transcribe_alone(self, row: ListenedRow) -> Transcript | Routed:
        """Retries a suspect, or fails it as poison."""
        async with self._lock.writer_lock:
            if not await self._attempts.begin.remote(row.recording.id, self._node):
                message = _poison_message("transcribing", row.recording.id, self._timeout_s)
                return self._failed(row, EngineError("poison", message))
            transcript = await self._transcribe(row)
        self._attempts.end.remote([row.recording.id])
        return transcript

    async def _transcribe(self, row: ListenedRow) -> Transcript | Routed:
        listened = row.listened
        assert listened is not None
        try:
            row = replace(row, recording=await self._transcriber.detect_language(row.recording, listened))
            if row.row is not None and row.recording.options.language != AUTO:  # detected here
                model = choose_model(self._rules, row.recording.options, json.loads(row.row))
                if model != self._position:
                    return Routed(row.recording, model, row.row, row.attempt)
            transcript = await self._transcriber.transcribe(row.recording, listened)
            return transcript.with_job_fields(row.attempt, row.listen_s)
        except EngineDied:
            # If the process exits, Ray restarts the actor and retries the block; after an exception it would
            # retry on this same dead engine, without end (ray#59522).
            log.exception("the engine has died; the process exits")
            kill_children_and_exit()
        except RayscribeError as refused:
            return self._failed(row, refused)
        except Exception as unforeseen:
            log.exception("transcribing %s", redact_uri(row.recording.audio))
            return self._failed(row, EngineError("internal", f"{type(unforeseen).__name__}: {unforeseen}"))

    def _failed(self, row: ListenedRow, error: RayscribeError | None) -> Transcript:
        """The failed row of a recording, with the fields that are known."""
        return Transcript(
            recording=row.recording,
            model=self._model,
            duration_s=row.listened.duration_s if row.listened else None,
            speech_s=row.listened.speech_s if row.listened else None,
            channels=row.listened.channels if row.listened else None,
            error=error,
            attempt=row.attempt,
            listen_s=row.listen_s,
        )


def computing_s() -> float:
    """Seconds that this thread has computed, or wanted to while others had the cores; all else is waiting.

    From Linux's schedstat; elsewhere without the second part.
    """
    try:
        running_ns, runnable_ns, _ = Path("/proc/thread-self/schedstat").read_text().split()
    except (OSError, ValueError):
        return time.thread_time()
    return (int(running_ns) + int(runnable_ns)) / 1e9


def _poison_message(doing: str, recording_id: str, timeout_s: float) -> str:
    return (
        f"{doing} {recording_id} has ended its process {MAX_ATTEMPTS} times (a crash, out of memory, "
        f"or longer than {timeout_s:.0f} s); it is not tried again"
    )
