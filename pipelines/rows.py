"""The Arrow schemas between the stages of the job.

    WORK      driver → Listen        a manifest row, as JSON, with its id and the number of its attempt; its language
                                     where a model has detected it
    LISTENED  Listen → Transcribe    a recording with all its samples, or its error
    RECEIPT   Transcribe → driver    what was committed and to which file, and when the engine was ready; or the model
                                     that is to transcribe a recording whose language has been detected

One row is one recording throughout.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from speech.audio.clips import Clip
from speech.errors import AudioError, EngineError, RayscribeError, RequestError, StorageError
from speech.listener import ListenResult
from speech.recording import Recording
from speech.transcript import parquet_schema

WORK = pa.schema(
    [
        ("recording_id", pa.string()),
        ("row", pa.string()),
        ("attempt", pa.int32()),
        ("language", pa.string()),  # null: as the row has it
        ("language_probability", pa.float64()),
    ]
)

_CLIP = pa.struct([("channel", pa.int32()), ("start_s", pa.float64()), ("end_s", pa.float64()), ("size", pa.int64())])
LISTENED = pa.schema(
    [
        ("recording", pa.string()),  # Recording, as JSON
        ("row", pa.string()),  # as in WORK, where another model may have to transcribe the recording
        ("attempt", pa.int32()),
        ("duration_s", pa.float64()),
        ("speech_s", pa.float64()),
        ("channels", pa.int32()),
        ("flags", pa.list_(pa.string())),  # of the audio
        ("clips", pa.list_(_CLIP)),
        # int16 samples of all clips, concatenated, which the engine's process reads in place; large_binary, as a
        # block of long calls may exceed the 2 GiB of binary.
        ("samples", pa.large_binary()),
        ("listen_s", pa.float64()),
        ("waiting_s", pa.float64()),  # of it, for the storage
        ("error", parquet_schema().field("error").type),
        ("storage_failed", pa.bool_()),
    ]
)

RECEIPT = pa.schema(
    [
        ("recording_id", pa.string()),
        ("model", pa.string()),
        ("file", pa.string()),  # as of Output.commit
        ("status", pa.string()),  # ok, failed or ROUTED
        ("code", pa.string()),
        ("storage_failed", pa.bool_()),  # credentials or the service failed, not the recording
        ("duration_s", pa.float64()),
        ("speech_s", pa.float64()),
        ("listen_s", pa.float64()),
        ("waiting_s", pa.float64()),
        ("usage", parquet_schema().field("usage").type),
        ("finished_at", pa.timestamp("us", tz="UTC")),
        ("engine_ready_at", pa.timestamp("us", tz="UTC")),
        ("route", pa.struct([("model", pa.int32()), *WORK])),  # the position of the model, and its row of work
    ]
)
ROUTED = "routed"  # nothing was committed

_ERRORS = {kind.stage: kind for kind in (RequestError, AudioError, EngineError)}


@dataclass(frozen=True, slots=True)
class Routed:
    """A recording that another model is to transcribe, now that its language is known."""

    recording: Recording
    model: int  # its position in the run's rules
    row: str
    attempt: int

    def as_receipt(self) -> dict[str, Any]:
        """Its part of a RECEIPT."""
        work = {
            "recording_id": self.recording.id,
            "row": self.row,
            "attempt": self.attempt,
            "language": self.recording.options.language,
            "language_probability": self.recording.language_probability,
        }
        return {"recording_id": self.recording.id, "status": ROUTED, "route": {"model": self.model, **work}}


@dataclass(frozen=True, slots=True)
class ListenedRow:
    """One row of LISTENED: either ``listened`` or ``error``."""

    recording: Recording
    attempt: int
    listen_s: float
    listened: ListenResult | None = None
    error: RayscribeError | None = None
    waiting_s: float = 0.0
    row: str | None = None

    @property
    def storage_failed(self) -> bool:
        return isinstance(self.error, StorageError)

    @property
    def clips(self) -> list[Clip]:
        return self.listened.clips if self.listened else []

    @property
    def nbytes(self) -> int:
        """Bytes of its samples."""
        return sum(clip.samples.nbytes for clip in self.clips)


def listened_table(rows: list[ListenedRow]) -> pa.Table:
    """The rows as a LISTENED table."""
    samples = [clip.samples for row in rows for clip in row.clips]
    joined = np.concatenate(samples) if samples else np.empty(0, np.int16)
    ends = np.cumsum([0, *(row.nbytes for row in rows)], dtype=np.int64)
    # Made from the buffer and not from Python bytes: hours of audio should be in memory once.
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(joined)]
    cells = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(rows), buffers)
    small = pa.Table.from_pylist([_small_cells(row) for row in rows], schema=LISTENED)
    return small.set_column(LISTENED.get_field_index("samples"), "samples", cells)


def _small_cells(row: ListenedRow) -> dict[str, Any]:
    """The cells of a row, without its samples."""
    return {
        "recording": row.recording.model_dump_json(),
        "row": row.row,
        "attempt": row.attempt,
        "duration_s": row.listened and row.listened.duration_s,
        "speech_s": row.listened and row.listened.speech_s,
        "channels": row.listened and row.listened.channels,
        "flags": row.listened and list(row.listened.flags),
        "clips": [
            {"channel": clip.channel, "start_s": clip.start_s, "end_s": clip.end_s, "size": len(clip.samples)}
            for clip in row.clips
        ],
        "listen_s": row.listen_s,
        "waiting_s": row.waiting_s,
        "error": row.error and row.error.as_struct(),
        "storage_failed": row.storage_failed,
    }


def listened_rows(table: pa.Table) -> list[ListenedRow]:
    """The rows of a LISTENED table. Their samples are views of the table's memory."""
    small = table.drop_columns("samples").to_pylist()
    return [_listened_row(cells, samples) for cells, samples in zip(small, table["samples"], strict=True)]


def _listened_row(cells: dict[str, Any], samples: pa.LargeBinaryScalar) -> ListenedRow:
    listened, error = None, None
    if cells["error"]:
        kind = StorageError if cells["storage_failed"] else _ERRORS[cells["error"]["stage"]]
        error = kind(cells["error"]["code"], cells["error"]["message"])
    else:
        audio = np.frombuffer(samples.as_buffer(), dtype=np.int16)
        ends = np.cumsum([clip["size"] for clip in cells["clips"]], dtype=np.int64)
        clips = [
            Clip(clip["channel"], clip["start_s"], clip["end_s"], audio[end - clip["size"] : end])
            for clip, end in zip(cells["clips"], ends, strict=True)
        ]
        flags = tuple(cells["flags"])
        listened = ListenResult(cells["duration_s"], cells["speech_s"], cells["channels"], clips, flags)
    recording = Recording.model_validate_json(cells["recording"])
    return ListenedRow(
        recording, cells["attempt"], cells["listen_s"], listened, error, cells["waiting_s"], cells["row"]
    )
