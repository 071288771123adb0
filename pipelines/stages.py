"""The two stages of the job, as Ray Data runs them.

    Listen      CPU actors: a work-list row is read, its audio opened, decoded, cut into clips
    Transcribe  engine actors: clips become a transcript, transcripts Parquet; audio and text end here, and a
                receipt a recording goes to the driver

A recording that fails becomes a failed row at the place where it fails and passes through what
follows. One that takes its process down with it is tried again by Ray, and given up by
``pipelines.poison``.
"""

import asyncio
import faulthandler
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import ray

from cluster.session import kill_children_and_exit
from pipelines.output import Output
from pipelines.poison import MAX_ATTEMPTS, AloneOrTogether
from pipelines.rows import RECEIPT, ListenedRow, listened_rows, listened_table
from speech.engines.base import EngineConfig, EngineStarter
from speech.engines.start_limit import start_within_limit
from speech.errors import AudioError, EngineDied, EngineError, RayscribeError, RequestError
from speech.listener import Listener
from speech.models.checkpoint import family_of
from speech.preflight import check_request
from speech.recording import Options, Recording
from speech.redaction import redact_uri
from speech.transcriber import Transcriber
from speech.transcript import Transcript
from storage.filesystem import Storage

log = logging.getLogger("rayscribe")

# Samples that a Listener gathers before it passes them on. Small recordings cost less together; of long ones,
# the audio of a block should not be held twice.
LISTENED_BYTES = 16 << 20


class Listen:
    """Work-list rows in, heard recordings out.

    Args:
        defaults: the run's options, where a row has none of its own.
        engine: for what its model can do, and how long its clips may be.
        storage: opens the audio.
        attempts: handle of the actor ``pipelines.poison.AttemptTracker``.
        timeout_s: a recording that takes longer takes the process with it, as no other way stops a
            decoder that loops in C.
    """

    def __init__(
        self, defaults: Options, engine: EngineConfig, storage: Storage, attempts: Any, timeout_s: float
    ) -> None:
        self._defaults = defaults
        self._family = family_of(engine.model)
        self._speculation = engine.speculation
        self._listener = Listener(clip_s=self._family.clip_s, open_audio=storage.open_audio)
        self._attempts = attempts
        self._node = ray.get_runtime_context().get_node_id()
        self._timeout_s = timeout_s
        self._dump = open(os.devnull, "w")  # noqa: SIM115 - faulthandler wants one that stays open

    def __call__(self, work: pa.Table) -> Iterator[pa.Table]:
        listened: list[ListenedRow] = []
        for row in work.to_pylist():
            before = listened[-1].recording.id if listened else None
            listened.append(self._listen(json.loads(row["row"]), row["attempt"], before))
            if sum(each.nbytes for each in listened) >= LISTENED_BYTES:
                yield self._passed_on(listened)
        if listened:
            yield self._passed_on(listened)

    def _passed_on(self, listened: list[ListenedRow]) -> pa.Table:
        """What was gathered, as a table. The last is signed out before: it may be long until the next is begun."""
        self._attempts.end.remote("listen", [listened[-1].recording.id])
        table = listened_table(listened)
        listened.clear()
        return table

    def _listen(self, row: dict[str, Any], attempt: int, before: str | None) -> ListenedRow:
        start = time.perf_counter()
        recording = Recording.malformed(row)
        listened, error = None, None
        may_try = ray.get(self._attempts.begin.remote("listen", recording.id, self._node, ended=before))
        faulthandler.dump_traceback_later(self._timeout_s, exit=True, file=self._dump)
        try:
            if not may_try:
                raise AudioError("poison", _given_up("listening to", recording, self._timeout_s))
            recording = Recording.from_row(row, self._defaults)
            check_request(self._family, self._speculation, recording.options)
            listened = self._listener.listen(recording)
        except (RequestError, AudioError) as refused:
            error = refused
        except Exception as unforeseen:  # a fault of ours must cost one row, not the run
            log.exception("listening to %s", redact_uri(recording.audio))
            error = AudioError("internal", f"{type(unforeseen).__name__}: {unforeseen}")
        finally:
            faulthandler.cancel_dump_traceback_later()
        return ListenedRow(recording, attempt, time.perf_counter() - start, listened, error)


class Transcribe:
    """Heard recordings in, receipts out. Holds the engine, on an event loop of its own.

    Ray calls it from several threads at once, a block each; all their clips meet in the one engine.
    The loop is ours because Ray's own is blocked whenever it waits for input, and the engine with it.

    A block's transcripts are in the output folder when its receipts leave. Written by a stage of its own they
    could pile up before it, and all of them would be transcribed again if the driver were lost.
    """

    def __init__(self, engine: EngineConfig, start: EngineStarter, attempts: Any, output: Output) -> None:
        family = family_of(engine.model)
        self._output = output
        self._model = engine.model
        self._attempts = attempts
        self._node = ray.get_runtime_context().get_node_id()
        self._timeout_s = engine.clip_timeout_s
        self._turns = AloneOrTogether()
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

    def __call__(self, listened: pa.Table) -> pa.Table:
        transcripts = asyncio.run_coroutine_threadsafe(self._transcribe_block(listened), self._loop).result()
        rows = [transcript.to_row() for transcript in transcripts]
        self._output.commit(rows)
        told = {"engine_ready_at": self._ready_at}
        receipts = [row | told | {"code": row["error"] and row["error"]["code"]} for row in rows]
        return pa.Table.from_pylist(receipts, schema=RECEIPT)

    async def _transcribe_block(self, table: pa.Table) -> list[Transcript]:
        rows = listened_rows(table)
        transcripts = [self._failed(row, row.error) for row in rows if row.listened is None]
        rows = [row for row in rows if row.listened is not None]
        async with self._turns.together():
            ids = [row.recording.id for row in rows]
            suspects = await self._attempts.start_batch.remote("transcribe", ids, self._node)
            together = [row for row in rows if row.recording.id not in suspects]
            transcripts += await asyncio.gather(*(self._transcribe(row) for row in together))
            self._attempts.end.remote("transcribe", [row.recording.id for row in together])
        alone = [row for row in rows if row.recording.id in suspects]
        return transcripts + [await self._transcribe_alone(row) for row in alone]

    async def _transcribe_alone(self, row: ListenedRow) -> Transcript:
        """Tries a suspect again, or gives it up."""
        async with self._turns.alone():
            if not await self._attempts.begin.remote("transcribe", row.recording.id, self._node):
                message = _given_up("transcribing", row.recording, self._timeout_s)
                return self._failed(row, EngineError("poison", message))
            transcript = await self._transcribe(row)
        self._attempts.end.remote("transcribe", [row.recording.id])
        return transcript

    async def _transcribe(self, row: ListenedRow) -> Transcript:
        assert row.listened is not None
        try:
            transcript = await self._transcriber.transcribe(row.recording, row.listened)
            return transcript.with_job_fields(row.attempt, row.listen_s)
        except EngineDied:
            # Leaving the process makes Ray start the actor elsewhere and try the block again; an
            # exception would be tried on this same dead engine, for ever (ray#59522).
            log.exception("the engine has died; leaving the process")
            kill_children_and_exit()
        except RayscribeError as refused:
            return self._failed(row, refused)
        except Exception as unforeseen:
            log.exception("transcribing %s", redact_uri(row.recording.audio))
            return self._failed(row, EngineError("internal", f"{type(unforeseen).__name__}: {unforeseen}"))

    def _failed(self, row: ListenedRow, error: RayscribeError | None) -> Transcript:
        """The failed row of a recording, with what is known of it."""
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


def _given_up(doing: str, recording: Recording, timeout_s: float) -> str:
    return (
        f"{doing} {redact_uri(recording.audio)} has ended its process {MAX_ATTEMPTS} times (a crash, memory, "
        f"or more than {timeout_s:.0f} s): it is given up"
    )
