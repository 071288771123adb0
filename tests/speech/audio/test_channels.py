"""Two people on two channels are split; one mixture written twice is not, whatever a codec did to it."""

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


def hiss(level_db: float, seed: int = 0) -> np.ndarray:
    return (10 ** (level_db / 20) * np.random.default_rng(seed).standard_normal(len(MONO))).astype(np.float32)


def two(left: np.ndarray, right: np.ndarray) -> np.ndarray:
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
    "the same twice": two(MONO, MONO),
    "20 dB down": two(MONO, MONO * 0.1),
    "12 dB up": two(MONO * 0.25, MONO),
    "inverted": two(MONO, -MONO),
    "each with its own hiss": two(MONO + hiss(-60), MONO + hiss(-60, seed=1)),
    "very quiet": two(MONO, MONO * 0.8) * 0.01,
    "nothing at all": two(MONO, MONO) * 0,
}
DIFFERENT = {
    "a call": STEREO,
    "a quiet call": STEREO * 0.003,
    "second silent": two(MONO, MONO * 0),
    "first silent": two(MONO * 0, MONO),
    "second only hiss": two(MONO, hiss(-60)),
    "crosstalk 10 dB down": two(AGENT + 0.316 * CUSTOMER, CUSTOMER + 0.316 * AGENT),
    "crosstalk 3 dB down": two(AGENT + 0.7 * CUSTOMER, CUSTOMER + 0.7 * AGENT),
    "echo after 50 ms": two(MONO, 0.5 * np.roll(MONO, RATE // 20)),
    "alike but for the end": np.concatenate([two(MONO, MONO), two(CUSTOMER * 0, CUSTOMER)[-6 * RATE :]]),
}


def differ(data: bytes) -> bool:
    with open_audio(io.BytesIO(data), "it") as audio:
        assert audio.channels == 2
        return channels_differ(audio.blocks(), audio.sample_rate)


@pytest.mark.parametrize("codec", ENCODERS)
@pytest.mark.parametrize("name", COPIES)
def test_copies_are_one(name: str, codec: str) -> None:
    assert not differ(ENCODERS[codec](COPIES[name]))


@pytest.mark.parametrize("codec", ENCODERS)
@pytest.mark.parametrize("name", DIFFERENT)
def test_voices_are_two(name: str, codec: str) -> None:
    assert differ(ENCODERS[codec](DIFFERENT[name]))


def test_measuring_stops_when_it_knows() -> None:
    read = 0

    def hours() -> Iterator[np.ndarray]:
        nonlocal read
        while True:
            read += 1
            yield STEREO

    assert channels_differ(hours(), RATE)
    assert read == 1


def chosen(samples: np.ndarray, channels: Channels, speakers: tuple[str, ...] = ()) -> ChannelGroups:
    recording = Recording(id="1", audio="it", speakers=speakers, options=Options(channels=channels))
    with open_audio(io.BytesIO(sndfile(samples, "WAV", "PCM_16")), "it") as audio:
        return select_channels(audio, recording)


def test_what_each_option_takes() -> None:
    same, both, first = two(MONO, MONO), ((0,), (1,)), ((0,),)
    assert chosen(STEREO, "auto") == both
    assert chosen(same, "auto") == first
    assert chosen(same, "split") == both
    assert chosen(STEREO, "first") == first
    assert chosen(STEREO, "mix") == ((0, 1),)
    assert [chosen(MONO, option) for option in ("auto", "split", "first", "mix")] == [first] * 4


def test_what_is_taken_of_a_block() -> None:
    block = np.array([[1, 2, 3], [4, 5, 9]], np.float32)
    assert average_groups(block, ((0,), (1,), (2,))).tolist() == block.tolist()
    assert average_groups(block, ((0,),)).tolist() == [[1], [4]]
    assert average_groups(block, ((0, 1, 2),)).tolist() == [[2], [6]]


def test_a_third_channel_counts() -> None:
    assert not channels_differ([np.stack([MONO, MONO, MONO], axis=1)], RATE)
    assert channels_differ([np.stack([MONO, MONO, CUSTOMER], axis=1)], RATE)


def test_more_speakers_than_channels_cant_be_split() -> None:
    with pytest.raises(AudioError, match="bad_channel"):
        chosen(MONO, "split", speakers=("agent", "customer"))
    assert chosen(MONO, "auto", speakers=("agent", "customer")) == ((0,),)
