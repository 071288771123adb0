"""A voice that leaks into the other channel is heard once; a voice of one's own is never taken for a leak."""

import io

import numpy as np
import pytest

from speech.listener import Listener, ListenResult
from speech.recording import Options, Recording
from testing.synthetic_audio import RATE, call, ffmpeg, sentence, sndfile

CALL, TURNS = call(exchanges=3)
AGENT, CUSTOMER = CALL.T


@pytest.fixture(scope="module")
def listener() -> Listener:
    return Listener(clip_s=30.0, open_audio=lambda uri: io.BytesIO(FILES[uri]))


FILES: dict[str, bytes] = {}


def push(listener: Listener, data: bytes) -> ListenResult:
    FILES["it"] = data
    return listener.listen(Recording(id="1", audio="it", options=Options(channels="split")))


def whose(listened: ListenResult) -> list[int]:
    return [clip.channel for clip in listened.clips]


def mixed(left: np.ndarray, right: np.ndarray) -> bytes:
    return sndfile(np.stack([left, right], axis=1).astype(np.float32), "WAV", "PCM_16")


@pytest.mark.parametrize("leak", [0.03, 0.1, 0.3, 0.6])
def test_crosstalk_is_heard_once(leak: float, listener: Listener) -> None:
    listened = push(listener, mixed(AGENT + leak * CUSTOMER, CUSTOMER + leak * AGENT))
    assert whose(listened) == [turn.channel for turn in TURNS]
    assert listened.speech_s == pytest.approx(sum(turn.end_s - turn.start_s for turn in TURNS), rel=0.1)


def test_opus_at_a_low_bitrate_is_heard_once(listener: Listener) -> None:
    data = ffmpeg(CALL, "ogg", "libopus", 48000, bit_rate=20_000, options={"application": "voip"})
    clips = push(listener, data).clips
    for turn in TURNS:
        assert any(clip.channel == turn.channel and clip.start_s <= turn.start_s < clip.end_s for clip in clips)
    assert len(clips) <= len(TURNS) + 1  # once while the encoder makes up its mind; without the check it is twice all


@pytest.mark.parametrize("loudness", [1.0, 0.3])
def test_a_word_said_over_a_leak_is_kept(loudness: float, listener: Listener) -> None:
    start = round(TURNS[0].start_s * RATE) + RATE
    word = sentence("customer")[: round(0.4 * RATE)]
    customer = CUSTOMER + 0.3 * AGENT
    assert whose(push(listener, mixed(AGENT, customer))).count(1) == 3
    customer[start : start + len(word)] += loudness * word
    assert whose(push(listener, mixed(AGENT, customer))).count(1) == 4


def test_two_who_speak_at_once_are_both_kept_in_spite_of_crosstalk(listener: Listener) -> None:
    both = [np.pad(sentence(name), (RATE, 2 * RATE))[: 5 * RATE] for name in ("agent", "customer")]
    assert sorted(whose(push(listener, mixed(both[0] + 0.3 * both[1], both[1] + 0.3 * both[0])))) == [0, 1]


def test_the_same_on_both_channels_stays_on_both_when_split_is_asked_for(listener: Listener) -> None:
    assert sorted(whose(push(listener, mixed(AGENT, AGENT)))) == [0, 0, 0, 1, 1, 1]
