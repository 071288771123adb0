"""Two speakers on two channels are split, dual mono is not, in every codec."""

import io
from collections.abc import Iterator

import numpy as np
import pytest

from speech.audio.channels import ChannelGroups, average_groups, channels_differ, select_channels
from speech.audio.decoding import open_audio
from speech.errors import AudioError
from speech.recording import Channels, Options, Recording
from testing.synthetic_audio import RATE, call, ffmpeg, sndfile

STEREO = call(exchanges=2)[0]
AGENT, CUSTOMER = STEREO.T
MONO = AGENT + CUSTOMER


def noise(level_db: float, seed: int = 0) -> np.ndarray:
    return (10 ** (level_db / 20) * np.random.default_rng(seed).standard_normal(len(MONO))).astype(np.float32)


def stereo(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.stack([left, right], axis=1).astype(np.float32)


ENCODERS = {
    "pcm": lambda samples: sndfile(samples, "WAV", "PCM_16"),
    "mulaw": lambda samples: sndfile(samples, "WAV", "ULAW"),
    "adpcm": lambda samples: sndfile(samples, "WAV", "IMA_ADPCM"),
    "opus": lambda samples: sndfile(samples, "OGG", "OPUS"),
    "mp3 at 16 kbit/s": lambda samples: ffmpeg(samples, "mp3", "libmp3lame", 16000, bit_rate=16_000),
    "aac at 24 kbit/s": lambda samples: ffmpeg(samples, "mp4", "aac", 16000, bit_rate=24_000),
    "aac at 64 kbit/s": lambda samples: ffmpeg(samples, "mp4", "aac", 44100, bit_rate=64_000),
}
COPIES = {
    "identical": stereo(MONO, MONO),
    "20 dB down": stereo(MONO, MONO * 0.1),
    "12 dB up": stereo(MONO * 0.25, MONO),
    "inverted": stereo(MONO, -MONO),
    "independent noise": stereo(MONO + noise(-60), MONO + noise(-60, seed=1)),
    "very quiet": stereo(MONO, MONO * 0.8) * 0.01,
    "digital silence": stereo(MONO, MONO) * 0,
}
DIFFERENT = {
    "a call": STEREO,
    "a quiet call": STEREO * 0.003,
    "second silent": stereo(MONO, MONO * 0),
    "first silent": stereo(MONO * 0, MONO),
    "second only noise": stereo(MONO, noise(-60)),
    "crosstalk 10 dB down": stereo(AGENT + 0.316 * CUSTOMER, CUSTOMER + 0.316 * AGENT),
    "crosstalk 3 dB down": stereo(AGENT + 0.7 * CUSTOMER, CUSTOMER + 0.7 * AGENT),
    "echo after 50 ms": stereo(MONO, 0.5 * np.roll(MONO, RATE // 20)),
    "different at the end only": np.concatenate([stereo(MONO, MONO), stereo(CUSTOMER * 0, CUSTOMER)[-6 * RATE :]]),
}


def differs(data: bytes) -> bool:
    with open_audio(io.BytesIO(data), "call.wav") as audio:
        assert audio.channels == 2
        return channels_differ(audio.blocks(), audio.sample_rate)


@pytest.mark.parametrize("codec", ENCODERS)
@pytest.mark.parametrize("name", COPIES)
def test_copies_do_not_differ(name: str, codec: str) -> None:
    assert not differs(ENCODERS[codec](COPIES[name]))


@pytest.mark.parametrize("codec", ENCODERS)
@pytest.mark.parametrize("name", DIFFERENT)
def test_two_speakers_differ(name: str, codec: str) -> None:
    assert differs(ENCODERS[codec](DIFFERENT[name]))


def test_reading_stops_at_the_first_difference() -> None:
    read = 0

    def hours() -> Iterator[np.ndarray]:
        nonlocal read
        while True:
            read += 1
            yield STEREO

    assert channels_differ(hours(), RATE)
    assert read == 1


def selected(samples: np.ndarray, channels: Channels, speakers: tuple[str, ...] = ()) -> ChannelGroups:
    recording = Recording(id="1", audio="call.wav", speakers=speakers, options=Options(channels=channels))
    with open_audio(io.BytesIO(sndfile(samples, "WAV", "PCM_16")), "call.wav") as audio:
        return select_channels(audio, recording)


def test_each_channels_option() -> None:
    dual_mono, both, first = stereo(MONO, MONO), ((0,), (1,)), ((0,),)
    assert selected(STEREO, "auto") == both
    assert selected(dual_mono, "auto") == first
    assert selected(dual_mono, "split") == both
    assert selected(STEREO, "first") == first
    assert selected(STEREO, "mix") == ((0, 1),)
    assert [selected(MONO, option) for option in ("auto", "split", "first", "mix")] == [first] * 4


def test_groups_are_averaged() -> None:
    block = np.array([[1, 2, 3], [4, 5, 9]], np.float32)
    assert average_groups(block, ((0,), (1,), (2,))).tolist() == block.tolist()
    assert average_groups(block, ((0,),)).tolist() == [[1], [4]]
    assert average_groups(block, ((0, 1, 2),)).tolist() == [[2], [6]]


def test_a_third_channel_is_compared() -> None:
    assert not channels_differ([np.stack([MONO, MONO, MONO], axis=1)], RATE)
    assert channels_differ([np.stack([MONO, MONO, CUSTOMER], axis=1)], RATE)


def test_split_with_more_speakers_than_channels_is_bad_channel() -> None:
    with pytest.raises(AudioError, match="bad_channel"):
        selected(MONO, "split", speakers=("agent", "customer"))
    assert selected(MONO, "auto", speakers=("agent", "customer")) == ((0,),)
