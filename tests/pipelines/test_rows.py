"""What crosses between the stages comes out as it went in."""

import numpy as np
import pyarrow as pa

from pipelines.rows import LISTENED, ListenedRow, listened_rows, listened_table
from speech.audio.clips import Clip
from speech.errors import AudioError
from speech.listener import ListenResult
from speech.recording import Options, Recording

OPTIONS = Options(keywords=("Kuhn",))
RECORDING = Recording(id="a", audio="a.wav", speakers=("agent",), options=OPTIONS, metadata={"n": 1})


def listened(*lengths: int) -> ListenResult:
    rng = np.random.default_rng(0)
    clips = [
        Clip(channel, float(channel), channel + 0.5, rng.integers(-32768, 32767, length, dtype=np.int16))
        for channel, length in enumerate(lengths)
    ]
    return ListenResult(duration_s=12.5, speech_s=3.25, channels=len(lengths), clips=clips, flags=("quiet",))


def test_recordings_and_their_audio_survive_the_way() -> None:
    rows = [ListenedRow(RECORDING, 2, 0.5, listened(1000, 1, 777)), ListenedRow(RECORDING, 1, 0.1, listened())]
    failed = ListenedRow(RECORDING, 1, 0.5, error=AudioError("truncated", "cut"))
    last = ListenedRow(RECORDING, 3, 0.2, listened(5))
    table = pa.concat_tables(
        [listened_table([*rows, failed]), listened_table([last])]
    )  # as Ray joins what a Listener yields
    assert table.schema == LISTENED
    came = listened_rows(table)
    for row, back in zip([*rows, last], [*came[:2], came[3]], strict=True):
        assert (back.recording, back.attempt, back.listen_s, back.error) == (
            RECORDING,
            row.attempt,
            row.listen_s,
            None,
        )
        assert back.listened is not None
        assert row.listened is not None
        assert back.listened.flags == row.listened.flags == ("quiet",)
        assert (back.listened.duration_s, back.listened.speech_s, back.listened.channels) == (
            12.5,
            3.25,
            row.listened.channels,
        )
        for clip, original in zip(back.listened.clips, row.listened.clips, strict=True):
            assert (clip.channel, clip.start_s, clip.end_s) == (original.channel, original.start_s, original.end_s)
            np.testing.assert_array_equal(clip.samples, original.samples)
    assert came[2].listened is None
    assert isinstance(came[2].error, AudioError)
    assert (came[2].error.code, came[2].error.message) == ("truncated", "cut")
