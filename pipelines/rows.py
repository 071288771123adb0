"""What travels between the stages of the job, as Arrow.

    WORK      driver → Listen        a manifest row, as JSON
    HEARD     Listen → Transcribe    a recording with all its audio, or its error
    RECEIPT   Transcribe → driver    what was committed, in a few numbers, and when the engine was ready

One row is one recording throughout.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from speech.errors import AudioError, EngineError, RayscribeError, RequestError
from speech.listener import Clip, Heard
from speech.recording import Recording
from speech.transcript import parquet_schema

WORK = pa.schema([("recording_id", pa.string()), ("row", pa.string()), ("attempt", pa.int32())])

_CLIP = pa.struct([("channel", pa.int32()), ("start_s", pa.float64()), ("end_s", pa.float64()), ("size", pa.int64())])
HEARD = pa.schema(
    [
        ("recording", pa.string()),  # Recording, as JSON
        ("attempt", pa.int32()),
        ("duration_s", pa.float64()),
        ("speech_s", pa.float64()),
        ("channels", pa.int32()),
        ("clips", pa.list_(_CLIP)),
        # int16 samples of all clips, end to end. One buffer a recording, which the engine's process
        # reads in place; large, as a block of long calls passes the 2 GiB that plain binary holds.
        ("samples", pa.large_binary()),
        ("listen_s", pa.float64()),
        ("error", parquet_schema().field("error").type),
    ]
)

RECEIPT = pa.schema(
    [
        ("recording_id", pa.string()),
        ("status", pa.string()),
        ("code", pa.string()),
        ("duration_s", pa.float64()),
        ("speech_s", pa.float64()),
        ("usage", parquet_schema().field("usage").type),
        ("finished_at", pa.timestamp("us", tz="UTC")),
        ("engine_ready_at", pa.timestamp("us", tz="UTC")),
    ]
)

_ERRORS = {kind.stage: kind for kind in (RequestError, AudioError, EngineError)}


@dataclass(frozen=True, slots=True)
class HeardRow:
    """One row of HEARD: ``heard``, or the ``error`` in its place."""

    recording: Recording
    attempt: int
    listen_s: float
    heard: Heard | None = None
    error: RayscribeError | None = None

    def to_table(self) -> pa.Table:
        clips = self.heard.clips if self.heard else []
        row = {
            "recording": self.recording.model_dump_json(),
            "attempt": self.attempt,
            "duration_s": self.heard and self.heard.duration_s,
            "speech_s": self.heard and self.heard.speech_s,
            "channels": self.heard and self.heard.channels,
            "clips": [
                {"channel": clip.channel, "start_s": clip.start_s, "end_s": clip.end_s, "size": len(clip.samples)}
                for clip in clips
            ],
            "listen_s": self.listen_s,
            "error": self.error and {"stage": self.error.stage, "code": self.error.code, "message": self.error.message},
        }
        samples = np.concatenate([clip.samples for clip in clips]) if clips else np.empty(0, np.int16)
        # Hours of audio: made from the buffer itself and not through Python bytes, so as to be held once.
        buffers = [None, pa.py_buffer(np.array([0, samples.nbytes], np.int64)), pa.py_buffer(samples)]
        cell = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, buffers)
        table = pa.Table.from_pylist([row], schema=HEARD)
        return table.set_column(HEARD.get_field_index("samples"), "samples", cell)

    @classmethod
    def from_table(cls, table: pa.Table, index: int) -> "HeardRow":
        small: dict[str, Any] = table.drop_columns("samples").slice(index, 1).to_pylist()[0]
        heard, error = None, None
        if small["error"]:
            error = _ERRORS[small["error"]["stage"]](small["error"]["code"], small["error"]["message"])
        else:
            samples = np.frombuffer(table["samples"][index].as_buffer(), dtype=np.int16)
            ends = np.cumsum([clip["size"] for clip in small["clips"]], dtype=np.int64)
            clips = [
                Clip(clip["channel"], clip["start_s"], clip["end_s"], samples[end - clip["size"] : end])
                for clip, end in zip(small["clips"], ends, strict=True)
            ]
            heard = Heard(small["duration_s"], small["speech_s"], small["channels"], clips)
        recording = Recording.model_validate_json(small["recording"])
        return cls(recording, small["attempt"], small["listen_s"], heard, error)
