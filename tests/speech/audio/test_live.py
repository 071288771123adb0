"""Live audio is cut as its recording would be, whatever its encoding and the size of the pieces."""

import io

import numpy as np
import pytest
import soundfile

from speech.audio.clips import Clip
from speech.audio.live import Encoding, LiveFormat, LiveSegmenter
from speech.audio.silero import load_silero
from speech.listener import Listener
from speech.recording import Recording
from testing.synthetic_audio import at_rate, sentence, silence, sndfile

SPEECH = np.concatenate([silence(1), sentence("agent"), silence(1.5), sentence("customer"), silence(1.5)])
SUBTYPES = {"pcm16": "PCM_16", "ulaw": "ULAW", "alaw": "ALAW"}


def raw(encoding: Encoding, rate: int) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, at_rate(SPEECH, rate), rate, SUBTYPES[encoding], format="RAW")
    return out.getvalue()


def file_clips(encoding: Encoding, rate: int) -> list[Clip]:
    file = sndfile(SPEECH, "WAV", SUBTYPES[encoding], rate)
    return Listener(clip_s=30.0).listen(Recording(id="x", audio="call.wav"), io.BytesIO(file)).clips


def live_clips(segmenter: LiveSegmenter, data: bytes, piece: int) -> list[Clip]:
    clips = [clip for start in range(0, len(data), piece) for clip in segmenter.push(data[start : start + piece])]
    return clips + segmenter.finish()


@pytest.mark.parametrize(
    ("encoding", "rate", "piece"),
    [("ulaw", 8000, 160), ("alaw", 8000, 1000), ("pcm16", 8000, 321), ("pcm16", 16000, 640), ("pcm16", 24000, 4801)],
)
def test_live_audio_has_the_clips_of_its_recording(encoding: Encoding, rate: int, piece: int) -> None:
    live = live_clips(LiveSegmenter(LiveFormat(encoding, rate), 30.0, load_silero()), raw(encoding, rate), piece)
    file = file_clips(encoding, rate)
    assert len(live) == 2
    for streamed, cut in zip(live, file, strict=True):
        assert (streamed.start_s, streamed.end_s) == (cut.start_s, cut.end_s)
        np.testing.assert_array_equal(streamed.samples, cut.samples)


def test_partial_clips_grow() -> None:
    segmenter = LiveSegmenter(LiveFormat("ulaw", 8000), 30.0, load_silero())
    data = raw("ulaw", 8000)
    lengths = []
    for start in range(0, 4 * 8000, 800):
        assert not segmenter.push(data[start : start + 800])
        if (clip := segmenter.partial_clip()) is not None:
            assert clip.start_s == pytest.approx(0.75, abs=0.3)
            assert clip.end_s <= segmenter.received_s
            assert len(clip.samples) == round((clip.end_s - clip.start_s) * 16_000)
            lengths.append(len(clip.samples))
    assert lengths == sorted(lengths)
    assert len(lengths) > 20


def test_finish_ends_the_open_clip_and_times_continue() -> None:
    segmenter = LiveSegmenter(LiveFormat("ulaw", 8000), 30.0, load_silero())
    data = raw("ulaw", 8000)
    assert not segmenter.push(data[: 2 * 8000])
    [first] = segmenter.finish()
    assert first.end_s == pytest.approx(2.0, abs=0.1)
    assert segmenter.partial_clip() is None
    rest = live_clips(segmenter, data[2 * 8000 :], 160)
    assert [clip.start_s > 1.9 for clip in rest] == [True, True]
    assert segmenter.received_s == pytest.approx(len(SPEECH) / 8000)
