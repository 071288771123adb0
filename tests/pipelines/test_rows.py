"""What crosses between the stages comes out as it went in."""

import numpy as np
import pyarrow as pa

from pipelines.rows import HEARD, HeardRow, heard_rows, heard_table
from speech.errors import AudioError
from speech.listener import Clip, Heard
from speech.recording import Options, Recording

OPTIONS = Options(keywords=("Kuhn",))
RECORDING = Recording(id="a", audio="a.wav", speakers=("agent",), options=OPTIONS, metadata={"n": 1})


def heard(*lengths: int) -> Heard:
    rng = np.random.default_rng(0)
    clips = [
        Clip(channel, float(channel), channel + 0.5, rng.integers(-32768, 32767, length, dtype=np.int16))
        for channel, length in enumerate(lengths)
    ]
    return Heard(duration_s=12.5, speech_s=3.25, channels=len(lengths), clips=clips)


def test_recordings_and_their_audio_survive_the_way() -> None:
    rows = [HeardRow(RECORDING, 2, 0.5, heard(1000, 1, 777)), HeardRow(RECORDING, 1, 0.1, heard())]
    failed = HeardRow(RECORDING, 1, 0.5, error=AudioError("truncated", "cut"))
    last = HeardRow(RECORDING, 3, 0.2, heard(5))
    table = pa.concat_tables([heard_table([*rows, failed]), heard_table([last])])  # as Ray joins what a Listener yields
    assert table.schema == HEARD
    came = heard_rows(table)
    for row, back in zip([*rows, last], [*came[:2], came[3]], strict=True):
        assert (back.recording, back.attempt, back.listen_s, back.error) == (
            RECORDING,
            row.attempt,
            row.listen_s,
            None,
        )
        assert back.heard is not None
        assert row.heard is not None
        assert (back.heard.duration_s, back.heard.speech_s, back.heard.channels) == (12.5, 3.25, row.heard.channels)
        for clip, original in zip(back.heard.clips, row.heard.clips, strict=True):
            assert (clip.channel, clip.start_s, clip.end_s) == (original.channel, original.start_s, original.end_s)
            np.testing.assert_array_equal(clip.samples, original.samples)
    assert came[2].heard is None
    assert isinstance(came[2].error, AudioError)
    assert (came[2].error.code, came[2].error.message) == ("truncated", "cut")
