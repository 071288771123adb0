"""Two speakers on two channels are split, dual mono is not, in every codec."""

import io
from collections.abc import Iterator

import numpy as np
import pytest

from speech.audio.channels import SIMILAR_CHANNELS, ChannelGroups, ChannelMixer, compare_channels, select_channels
from speech.audio.decoding import open_audio
from speech.errors import AudioError
from speech.recording import Channels, Options, Recording
from testing.synthetic_audio import RATE, call, ffmpeg, peak_correlation, sentence, silence, sndfile

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
SLOW_CODECS = ("opus", "mp3 at 16 kbit/s", "aac at 24 kbit/s", "aac at 64 kbit/s")  # most of a second a test
CODECS = [pytest.param(name, marks=pytest.mark.slow if name in SLOW_CODECS else ()) for name in ENCODERS]
SECONDS = np.arange(len(MONO)) / RATE
HUM = np.sum([0.2 / order * np.sin(2 * np.pi * 50 * order * SECONDS) for order in (1, 2, 3, 5, 7)], axis=0)
BEEP = 0.5 * np.sin(2 * np.pi * 1400 * SECONDS[: 2 * RATE])
CLICK = np.where(np.arange(len(MONO)) // 80 == 15, 0.9, 0) * np.random.default_rng(2).choice([-1, 1], len(MONO))
COPIES = {
    "identical": stereo(MONO, MONO),
    "20 dB down": stereo(MONO, MONO * 0.1),
    "12 dB up": stereo(MONO * 0.25, MONO),
    "inverted": stereo(MONO, -MONO),
    "independent noise": stereo(MONO + noise(-60), MONO + noise(-60, seed=1)),
    "very quiet": stereo(MONO, MONO * 0.8) * 0.01,
    "digital silence": stereo(MONO, MONO) * 0,
    "unequal DC": stereo(MONO + 0.1, MONO - 0.05),
    "hum on one channel": stereo(MONO, MONO + 0.2 * HUM),
}
DIFFERENT = {
    "a call": STEREO,
    "a quiet call": STEREO * 0.003,
    "second silent": stereo(MONO, MONO * 0),
    "first silent": stereo(MONO * 0, MONO),
    "second only noise": stereo(MONO, noise(-60)),
    "crosstalk 10 dB down": stereo(AGENT + 0.316 * CUSTOMER, CUSTOMER + 0.316 * AGENT),
    "crosstalk 3 dB down": stereo(AGENT + 0.7 * CUSTOMER, CUSTOMER + 0.7 * AGENT),
    "common DC": STEREO * 0.5 + 0.3,
    "common hum": STEREO * 0.5 + HUM[:, None],
    "a quiet call with common hum": STEREO * 0.05 + HUM[:, None],
    "common beep first": np.concatenate([stereo(BEEP, BEEP), STEREO * 0.2]),
    "common beeps throughout": STEREO * 0.2
    + 0.5 * np.resize(np.append(BEEP[:RATE], np.zeros(RATE)), len(MONO))[:, None],
    "common click": STEREO * 0.1 + CLICK[:, None],
    "echo after 50 ms": stereo(MONO, 0.5 * np.roll(MONO, RATE // 20)),
    "different at the end only": np.concatenate([stereo(MONO, MONO), stereo(CUSTOMER * 0, CUSTOMER)[-6 * RATE :]]),
}


def differs(data: bytes) -> bool:
    with open_audio(io.BytesIO(data), "call.wav") as audio:
        assert audio.channels == 2
        return compare_channels(audio.blocks(), audio.sample_rate, 2).groups == ((0,), (1,))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", COPIES)
def test_copies_do_not_differ(name: str, codec: str) -> None:
    assert not differs(ENCODERS[codec](COPIES[name]))


@pytest.mark.parametrize("codec", CODECS)
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

    assert compare_channels(hours(), RATE, 2).groups == ((0,), (1,))
    assert read == 1


def selected(samples: np.ndarray, channels: Channels, speakers: tuple[str, ...] = ()) -> ChannelGroups:
    recording = Recording(id="1", audio="call.wav", speakers=speakers, options=Options(channels=channels))
    with open_audio(io.BytesIO(sndfile(samples, "WAV", "PCM_16")), "call.wav") as audio:
        return select_channels(audio, recording).groups


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
    assert ChannelMixer(((0,), (1,), (2,))).average(block).tolist() == block.tolist()
    assert ChannelMixer(((0,), (2,))).average(block).tolist() == [[1, 3], [4, 9]]
    assert ChannelMixer(((0, 1, 2),)).average(block).tolist() == [[2], [6]]


def test_inverted_channels_are_not_cancelled_by_the_average() -> None:
    inverted = stereo(MONO + 0.1, -MONO + 0.1)  # DC on both does not hide it
    average = ChannelMixer(((0, 1),)).average(inverted)[:, 0]
    assert peak_correlation(average - average.mean(), MONO, max_lag_s=0, rate=RATE) > 0.999
    assert np.square(average - average.mean()).mean() == pytest.approx(np.square(MONO).mean(), rel=0.01)


THIRD = np.roll(CUSTOMER, RATE)[::-1]
SILENT = MONO * 0


@pytest.mark.parametrize(
    ("channels", "kept"),
    [
        ((MONO, MONO, MONO), (0,)),
        ((MONO, MONO, CUSTOMER), (0, 2)),
        ((SILENT,) * 8, (0,)),
        ((AGENT, CUSTOMER, 0.5 * (AGENT + CUSTOMER)), (0, 1)),
        ((0.5 * (AGENT + CUSTOMER), AGENT, CUSTOMER), (1, 2)),
        ((AGENT, -(AGENT + CUSTOMER), CUSTOMER), (0, 2)),
        ((AGENT, CUSTOMER, AGENT + CUSTOMER + noise(-55)), (0, 1)),
        ((AGENT, CUSTOMER, THIRD), (0, 1, 2)),
        ((AGENT, CUSTOMER, THIRD, AGENT + CUSTOMER + THIRD), (0, 1, 2)),
        ((AGENT, CUSTOMER, AGENT, CUSTOMER), (0, 1)),
        ((AGENT, CUSTOMER, AGENT + CUSTOMER, AGENT + CUSTOMER), (0, 1)),
        ((AGENT, SILENT, SILENT, CUSTOMER), (0, 1, 3)),
    ],
)
def test_copies_and_mixtures_among_many_channels_are_left_out(
    channels: tuple[np.ndarray, ...], kept: tuple[int, ...]
) -> None:
    samples = np.stack(channels, axis=1).astype(np.float32)
    assert compare_channels([samples], RATE, len(channels)).groups == tuple((channel,) for channel in kept)


def test_channels_that_are_mostly_alike_are_flagged() -> None:
    alike = np.concatenate([stereo(MONO, MONO), stereo(SILENT, CUSTOMER)[-6 * RATE :]])
    assert compare_channels([alike], RATE, 2).flags == (SIMILAR_CHANNELS,)
    assert compare_channels([STEREO], RATE, 2).flags == ()
    assert compare_channels([stereo(MONO, MONO)], RATE, 2).flags == ()


@pytest.mark.parametrize("start_s", [0.0, 0.4, 0.9, 2.7])
@pytest.mark.parametrize("seconds", [0.3, 0.9])
@pytest.mark.parametrize("total_s", [0.0, 6.0, 30.0])
def test_short_speech_on_the_second_channel_only_is_kept(start_s: float, seconds: float, total_s: float) -> None:
    words = sentence("customer")[: round(seconds * RATE)]
    right = np.concatenate([silence(start_s), words])
    right = np.pad(right, (0, max(0, round(total_s * RATE) - len(right))))
    assert compare_channels([stereo(right * 0, right)], RATE, 2).groups == ((0,), (1,))
    both = np.pad(MONO, (0, len(right)))  # after speech that is common to both channels
    left, right = both, both + np.pad(right, (len(MONO), 0))
    assert compare_channels([stereo(left, right)], RATE, 2).groups == ((0,), (1,))


def test_a_click_on_one_channel_does_not_split_dual_mono() -> None:
    clicked = MONO.copy()
    clicked[round(0.5 * RATE)] = 1.0  # in the pause before the speech
    assert not differs(sndfile(stereo(MONO, clicked), "WAV", "PCM_16"))


def shift(samples: np.ndarray, delay: float) -> np.ndarray:
    """Delays by a fraction of a sample."""
    spectrum = np.fft.rfft(np.pad(samples, (0, RATE)))
    hz = np.arange(len(spectrum)) / (2 * (len(spectrum) - 1))
    return np.fft.irfft(spectrum * np.exp(-2j * np.pi * hz * delay))[: len(samples)].astype(np.float32)


@pytest.mark.parametrize("delay", [1, 2.5, -7, 30])
def test_a_delayed_copy_is_a_copy(delay: float) -> None:
    assert not differs(sndfile(stereo(MONO, 0.8 * shift(MONO, delay)), "WAV", "ULAW"))
    assert differs(sndfile(stereo(MONO, 0.8 * shift(CUSTOMER, delay)), "WAV", "ULAW"))


def test_split_with_more_speakers_than_channels_is_bad_channel() -> None:
    with pytest.raises(AudioError, match="bad_channel"):
        selected(MONO, "split", speakers=("agent", "customer"))
    assert selected(MONO, "auto", speakers=("agent", "customer")) == ((0,),)
