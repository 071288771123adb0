"""Crosstalk is transcribed once; a channel's own speech is never taken for crosstalk."""

import io

import numpy as np
import pytest

from speech.audio import SAMPLE_RATE
from speech.audio.crosstalk import CrosstalkDetector
from speech.audio.segmenting import SpeechRegion
from speech.listener import Listener, ListenResult
from speech.recording import Options, Recording
from testing.synthetic_audio import RATE, call, ffmpeg, sentence, sndfile

CALL, TURNS = call(exchanges=3)
AGENT, CUSTOMER = CALL.T


@pytest.fixture(scope="module")
def listener() -> Listener:
    return Listener(clip_s=30.0, open_audio=lambda uri: io.BytesIO(FILES[uri]))


FILES: dict[str, bytes] = {}


def listen(listener: Listener, data: bytes) -> ListenResult:
    FILES["call.wav"] = data
    return listener.listen(Recording(id="1", audio="call.wav", options=Options(channels="split")))


def channels_of(listened: ListenResult) -> list[int]:
    return [clip.channel for clip in listened.clips]


def mixed(left: np.ndarray, right: np.ndarray) -> bytes:
    return sndfile(np.stack([left, right], axis=1).astype(np.float32), "WAV", "PCM_16")


@pytest.mark.parametrize("gain", [0.03, 0.1, 0.3, 0.6])
def test_crosstalk_is_dropped(gain: float, listener: Listener) -> None:
    listened = listen(listener, mixed(AGENT + gain * CUSTOMER, CUSTOMER + gain * AGENT))
    assert channels_of(listened) == [turn.channel for turn in TURNS]
    assert listened.speech_s == pytest.approx(sum(turn.end_s - turn.start_s for turn in TURNS), rel=0.1)


def test_crosstalk_of_opus_at_a_low_bitrate_is_dropped(listener: Listener) -> None:
    data = ffmpeg(CALL, "ogg", "libopus", 48000, bit_rate=20_000, options={"application": "voip"})
    clips = listen(listener, data).clips
    for turn in TURNS:
        assert any(clip.channel == turn.channel and clip.start_s <= turn.start_s < clip.end_s for clip in clips)
    assert len(clips) <= len(TURNS) + 1  # one while the encoder's panning settles; without the check, each turn twice


@pytest.mark.parametrize("loudness", [1.0, 0.3])
def test_a_word_on_top_of_crosstalk_is_kept(loudness: float, listener: Listener) -> None:
    start = round(TURNS[0].start_s * RATE) + RATE
    word = sentence("customer")[: round(0.4 * RATE)]
    customer = CUSTOMER + 0.3 * AGENT
    assert channels_of(listen(listener, mixed(AGENT, customer))).count(1) == 3
    customer[start : start + len(word)] += loudness * word
    assert channels_of(listen(listener, mixed(AGENT, customer))).count(1) == 4


def test_overlapping_speech_with_crosstalk_is_kept_on_both_channels(listener: Listener) -> None:
    both = [np.pad(sentence(name), (RATE, 2 * RATE))[: 5 * RATE] for name in ("agent", "customer")]
    assert sorted(channels_of(listen(listener, mixed(both[0] + 0.3 * both[1], both[1] + 0.3 * both[0])))) == [0, 1]


def test_dc_on_both_channels_does_not_make_quiet_speech_crosstalk(listener: Listener) -> None:
    listened = listen(listener, mixed(0.05 * AGENT + 0.1, 0.05 * CUSTOMER + 0.2))
    assert channels_of(listened) == [turn.channel for turn in TURNS]


@pytest.mark.parametrize("hertz", [50, 60])
def test_hum_on_both_channels_does_not_make_speech_crosstalk(hertz: int) -> None:
    seconds = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    hum = 0.1 * np.sin(2 * np.pi * hertz * seconds)
    speech = 0.02 * np.sin(2 * np.pi * 440 * seconds)
    detector = CrosstalkDetector()
    detector.push(np.stack([speech + hum, 2 * hum], axis=1).astype(np.float32))
    assert not detector.is_crosstalk(0, SpeechRegion(0, SAMPLE_RATE, SAMPLE_RATE))


def test_split_keeps_identical_channels_apart(listener: Listener) -> None:
    assert sorted(channels_of(listen(listener, mixed(AGENT, AGENT)))) == [0, 0, 0, 1, 1, 1]
