"""The two stages of the job, as Ray Data runs them.

    Listen      CPU actors: a work-list row is read, its audio opened, decoded, cut into clips
    Transcribe  engine actors: clips become a transcript, transcripts Parquet; audio and text end here, and a
                receipt a recording goes to the driver

A recording that fails becomes a failed row at the place where it fails and passes through what
follows. One that takes its process down with it is tried again by Ray, and given up by
``pipelines.attempts``.
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

from cluster.session import leave
from cluster.storage import Storage
from pipelines.attempts import MAX_ATTEMPTS, AloneOrTogether
from pipelines.output import Output
from pipelines.rows import RECEIPT, HeardRow, heard_rows, heard_table
from speech.engine import EngineConfig, EngineStarter
from speech.errors import AudioError, EngineDied, EngineError, RayscribeError, RequestError
from speech.listener import Listener
from speech.models import family_of
from speech.recording import Options, Recording
from speech.transcriber import Transcriber
from speech.transcript import Transcript
from speech.uris import public_uri

log = logging.getLogger("rayscribe")

# Samples that a Listener gathers before it passes them on. Small recordings cost less together; of long ones,
# the audio of a block should not be held twice.
HEARD_BYTES = 16 << 20


class Listen:
    """Work-list rows in, heard recordings out.

    Args:
        defaults: the run's options, where a row has none of its own.
        model: for what it can do, and how long its clips may be.
        storage: opens the audio.
        attempts: handle of the actor ``pipelines.attempts.Attempts``.
        timeout_s: a recording that takes longer takes the process with it, as no other way stops a
            decoder that loops in C.
    """

    def __init__(self, defaults: Options, model: str, storage: Storage, attempts: Any, timeout_s: float) -> None:
        self._defaults = defaults
        self._family = family_of(model)
        self._listener = Listener(clip_s=self._family.clip_s, open_audio=storage.open_audio)
        self._attempts = attempts
        self._node = ray.get_runtime_context().get_node_id()
        self._timeout_s = timeout_s
        self._dump = open(os.devnull, "w")  # noqa: SIM115 - faulthandler wants one that stays open

    def __call__(self, work: pa.Table) -> Iterator[pa.Table]:
        heard: list[HeardRow] = []
        for row in work.to_pylist():
            before = heard[-1].recording.id if heard else None
            heard.append(self._listen(json.loads(row["row"]), row["attempt"], before))
            if sum(each.nbytes for each in heard) >= HEARD_BYTES:
                yield self._passed_on(heard)
        if heard:
            yield self._passed_on(heard)

    def _passed_on(self, heard: list[HeardRow]) -> pa.Table:
        """What was gathered, as a table. The last is signed out before: it may be long until the next is begun."""
        self._attempts.end.remote("listen", [heard[-1].recording.id])
        table = heard_table(heard)
        heard.clear()
        return table

    def _listen(self, row: dict[str, Any], attempt: int, before: str | None) -> HeardRow:
        start = time.perf_counter()
        recording = Recording.malformed(row)
        heard, error = None, None
        may_try = ray.get(self._attempts.begin.remote("listen", recording.id, self._node, ended=before))
        faulthandler.dump_traceback_later(self._timeout_s, exit=True, file=self._dump)
        try:
            if not may_try:
                raise AudioError("poison", _given_up("listening to", recording, self._timeout_s))
            recording = Recording.from_row(row, self._defaults)
            self._family.check(recording.options)
            heard = self._listener.listen(recording)
        except (RequestError, AudioError) as refused:
            error = refused
        except Exception as unforeseen:  # a fault of ours must cost one row, not the run
            log.exception("listening to %s", public_uri(recording.audio))
            error = AudioError("internal", f"{type(unforeseen).__name__}: {unforeseen}")
        finally:
            faulthandler.cancel_dump_traceback_later()
        return HeardRow(recording, attempt, time.perf_counter() - start, heard, error)


class Transcribe:
    """Heard recordings in, receipts out. Holds the engine, on an event loop of its own.

    Ray calls it from several threads at once, a block each; all their clips meet in the one engine.
    The loop is ours because Ray's own is blocked whenever it waits for input, and the engine with it.

    A block's transcripts are in the output folder when its receipts leave. Written by a stage of its own they
    could pile up before it, and all of them would be transcribed again if the driver were lost.
    """

    def __init__(
        self, engine: EngineConfig, start: EngineStarter, attempts: Any, timeout_s: float, output: Output
    ) -> None:
        family = family_of(engine.model)
        self._output = output
        self._model = engine.model
        self._attempts = attempts
        self._node = ray.get_runtime_context().get_node_id()
        self._timeout_s = timeout_s
        self._turns = AloneOrTogether()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="engine-loop").start()
        self._transcriber = Transcriber(
            start(engine, family), family, engine.model, engine.concurrent_clips, clip_timeout_s=timeout_s
        )
        asyncio.run_coroutine_threadsafe(self._transcriber.warm_up(), self._loop).result()
        self._ready_at = datetime.now(UTC)

    def __call__(self, heard: pa.Table) -> pa.Table:
        transcripts = asyncio.run_coroutine_threadsafe(self._transcribe_block(heard), self._loop).result()
        rows = [transcript.to_row() for transcript in transcripts]
        self._output.commit(rows)
        told = {"engine_ready_at": self._ready_at}
        receipts = [row | told | {"code": row["error"] and row["error"]["code"]} for row in rows]
        return pa.Table.from_pylist(receipts, schema=RECEIPT)

    async def _transcribe_block(self, table: pa.Table) -> list[Transcript]:
        rows = heard_rows(table)
        transcripts = [self._failed(row, row.error) for row in rows if row.heard is None]
        rows = [row for row in rows if row.heard is not None]
        async with self._turns.together():
            ids = [row.recording.id for row in rows]
            suspects = await self._attempts.begin_together.remote("transcribe", ids, self._node)
            together = [row for row in rows if row.recording.id not in suspects]
            transcripts += await asyncio.gather(*(self._transcribe(row) for row in together))
            self._attempts.end.remote("transcribe", [row.recording.id for row in together])
        alone = [row for row in rows if row.recording.id in suspects]
        return transcripts + [await self._transcribe_alone(row) for row in alone]

    async def _transcribe_alone(self, row: HeardRow) -> Transcript:
        """Tries a suspect again, or gives it up."""
        async with self._turns.alone():
            if not await self._attempts.begin.remote("transcribe", row.recording.id, self._node):
                message = _given_up("transcribing", row.recording, self._timeout_s)
                return self._failed(row, EngineError("poison", message))
            transcript = await self._transcribe(row)
        self._attempts.end.remote("transcribe", [row.recording.id])
        return transcript

    async def _transcribe(self, row: HeardRow) -> Transcript:
        assert row.heard is not None
        try:
            transcript = await self._transcriber.transcribe(row.recording, row.heard)
            return transcript.with_try(row.attempt, row.listen_s)
        except EngineDied:
            # Leaving the process makes Ray start the actor elsewhere and try the block again; an
            # exception would be tried on this same dead engine, for ever (ray#59522).
            log.exception("the engine has died; leaving the process")
            leave()
        except RayscribeError as refused:
            return self._failed(row, refused)
        except Exception as unforeseen:
            log.exception("transcribing %s", public_uri(row.recording.audio))
            return self._failed(row, EngineError("internal", f"{type(unforeseen).__name__}: {unforeseen}"))

    def _failed(self, row: HeardRow, error: RayscribeError | None) -> Transcript:
        """The failed row of a recording, with what is known of it."""
        return Transcript(
            recording=row.recording,
            model=self._model,
            duration_s=row.heard.duration_s if row.heard else None,
            speech_s=row.heard.speech_s if row.heard else None,
            channels=row.heard.channels if row.heard else None,
            error=error,
            attempt=row.attempt,
            listen_s=row.listen_s,
        )


def _given_up(doing: str, recording: Recording, timeout_s: float) -> str:
    return (
        f"{doing} {public_uri(recording.audio)} has ended its process {MAX_ATTEMPTS} times (a crash, memory, "
        f"or more than {timeout_s:.0f} s): it is given up"
    )
