"""Every format decodes to what was encoded; every bad file gives its error code, with no output on stderr."""

import errno
import io
import itertools
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from speech.audio import SAMPLE_RATE
from speech.audio.decoding import AudioSource, open_audio, resampled
from speech.errors import AudioError, StorageError
from testing.audio_formats import FORMATS, SENTENCE
from testing.synthetic_audio import RATE, at_rate, ffmpeg, peak_correlation, sndfile

LENGTH_S = len(SENTENCE) / RATE


def decode(source: AudioSource | bytes, offset: float = 0.0, duration: float | None = None) -> np.ndarray:
    """The first channel, at 16 kHz."""
    source = io.BytesIO(source) if isinstance(source, bytes) else source
    with open_audio(source, "it") as audio:
        return np.concatenate(list(resampled(audio.blocks(offset, duration), audio.sample_rate)))[:, 0]


def error_of(source: AudioSource | bytes, offset: float = 0.0, duration: float | None = None) -> AudioError | None:
    try:
        decode(source, offset, duration)
    except AudioError as error:
        return error
    return None


def code_of(source: AudioSource | bytes, offset: float = 0.0, duration: float | None = None) -> str:
    error = error_of(source, offset, duration)
    return error.code if error is not None else "decoded"


# Raw AAC and MP3 in WAV do not declare the encoder's delay, and Matroska's timestamps are in milliseconds.
MAX_LAG_S = {"aac": 0.07, "wav-mp3": 0.08}
RANGE_LAG_S = {"webm": 0.001, "mka": 0.001}


@pytest.fixture(params=FORMATS)
def format_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_format_decodes_to_its_length_and_waveform(format_name: str, tmp_path: Path) -> None:
    make, kept = FORMATS[format_name]
    path = tmp_path / "call.xyz"  # the format is detected from the content
    path.write_bytes(make())
    decoded = decode(path)
    assert len(decoded) / SAMPLE_RATE == pytest.approx(LENGTH_S, abs=0.13)
    assert peak_correlation(decoded, at_rate(SENTENCE, SAMPLE_RATE), MAX_LAG_S.get(format_name, 0.015)) >= kept
    assert np.array_equal(decoded, decode(path.read_bytes())), "a file object and a path give different samples"


def test_a_range_equals_that_part_of_the_whole(format_name: str) -> None:
    data = FORMATS[format_name][0]()
    whole, part = decode(data), decode(data, offset=1.5, duration=1.0)
    assert len(part) == SAMPLE_RATE
    max_lag_s = RANGE_LAG_S.get(format_name, 0.0)
    assert peak_correlation(part, whole[24_000:40_000], max_lag_s) > 0.99
    assert peak_correlation(decode(data, offset=1.5), whole[24_000:], max_lag_s) > 0.99


def test_amr_wb_decodes() -> None:
    # There is no free encoder, so: a second of frames at 23.85 kbit/s with random bits.
    frames = np.random.default_rng(0).integers(0, 256, (50, 61), np.uint8)
    frames[:, 0] = 8 << 3 | 4  # frame type and quality bit (RFC 4867, 5.3)
    with open_audio(io.BytesIO(b"#!AMR-WB\n" + frames.tobytes()), "it") as audio:
        assert (audio.sample_rate, audio.channels) == (16_000, 1)
        assert sum(map(len, audio.blocks())) == 16_000


def test_channels_keep_their_order() -> None:
    both = np.stack([SENTENCE, np.roll(SENTENCE, 8000)], axis=1)
    for data in (sndfile(both, "WAV", "ULAW"), ffmpeg(both, "mp4", "aac", 44100, bit_rate=128_000)):
        with open_audio(io.BytesIO(data), "it") as audio:
            decoded = np.concatenate(list(resampled(audio.blocks(), audio.sample_rate)))
        for channel in (0, 1):
            assert peak_correlation(decoded[:, channel], at_rate(both[:, channel], SAMPLE_RATE)) > 0.97


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_resampling_is_aligned_and_independent_of_blocks(rate: int) -> None:
    samples = np.sin(2 * np.pi * 440 * np.arange(rate * 3 + 7) / rate).astype(np.float32)[:, None]
    blocks = [samples[at : at + 1777] for at in range(0, len(samples), 1777)]
    decoded = np.concatenate(list(resampled(blocks, rate)))
    assert len(decoded) == pytest.approx(len(samples) * SAMPLE_RATE / rate, abs=1)
    expected = np.sin(2 * np.pi * 440 * np.arange(len(decoded)) / SAMPLE_RATE)
    assert np.abs(decoded[:, 0] - expected)[400:-400].max() < 1e-4
    assert np.array_equal(decoded, np.concatenate(list(resampled([samples], rate))))


def wav(**header: int) -> bytes:
    """A valid WAV with fields of its header overwritten."""
    data = bytearray(sndfile(SENTENCE, "WAV", "PCM_16"))
    fields = {
        "riff_size": (4, "<I"),
        "tag": (20, "<H"),
        "channels": (22, "<H"),
        "rate": (24, "<I"),
        "data_size": (40, "<I"),
    }
    for name, value in header.items():
        at, kind = fields[name]
        struct.pack_into(kind, data, at, value)
    return bytes(data)


def with_sample(value: float) -> bytes:
    samples = SENTENCE.copy()
    samples[9999] = value
    return sndfile(samples, "WAV", "FLOAT")


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "no bytes": (lambda: b"", "empty"),
    "no frames": (lambda: sndfile(SENTENCE[:0], "WAV", "PCM_16"), "empty"),
    "text": (lambda: b"Dear customer,\nthank you for your call.\n" * 99, "unreadable"),
    "zeros": (lambda: bytes(20_000), "unreadable"),
    "noise": (lambda: np.random.default_rng(1).bytes(20_000), "unreadable"),
    "half a header": (lambda: wav()[:20], "unreadable"),
    "0 channels": (lambda: wav(channels=0), "unreadable"),
    "1000 channels": (lambda: wav(channels=1000), "unreadable"),
    "0 Hz": (lambda: wav(rate=0), "unreadable"),
    "500 kHz": (lambda: wav(rate=500_000), "unreadable"),
    "NaN": (lambda: with_sample(np.nan), "unreadable"),
    "Inf": (lambda: with_sample(np.inf), "unreadable"),
    "integers as floats": (lambda: with_sample(20_000.0), "unreadable"),
    "unknown codec": (lambda: wav(tag=0x9999), "unsupported_codec"),
    "a gigabyte declared": (lambda: wav(riff_size=1 << 30, data_size=1 << 30), "truncated"),
    "a picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(300), "unreadable"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gives_its_code_and_no_output(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make, code = BAD[name]
    path = tmp_path / "call.wav"
    path.write_bytes(make())
    assert code_of(path) == code
    assert code_of(make()) == code
    assert capfd.readouterr() == ("", "")


def test_missing_forbidden_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_of(tmp_path / "gone.wav") == "not_found"
    assert code_of(tmp_path) == "unreadable"

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # tests may run as root, which may read everything
    assert code_of(tmp_path / "private.wav") == "forbidden"


def test_a_folder_that_is_missing_is_a_fault_of_the_machine_and_a_file_is_not(tmp_path: Path) -> None:
    """A node without the mount would fail every row in no time: the run has to stop."""
    assert not isinstance(error_of(tmp_path / "gone.wav"), StorageError)
    unmounted = error_of(tmp_path / "mount" / "call.wav")
    assert isinstance(unmounted, StorageError)
    assert unmounted.code == "not_found"
    assert str(tmp_path / "mount") in unmounted.message


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_disk_that_fails_is_a_fault_of_the_machine(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", fail)
    assert isinstance(error_of(tmp_path / "call.wav"), StorageError)


DECLARE_NO_LENGTH = {"aac", "amr-nb"}


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - DECLARE_NO_LENGTH))
def test_half_a_file_is_truncated(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = FORMATS[name][0]()
    assert code_of(data[: len(data) // 2]) == "truncated"
    assert capfd.readouterr() == ("", "")


def test_a_range_before_the_truncation_is_decoded() -> None:
    data = sndfile(SENTENCE, "WAV", "PCM_16")
    assert len(decode(data[: len(data) // 2], duration=1.0)) == SAMPLE_RATE
    assert code_of(data[: len(data) // 2], duration=LENGTH_S) == "truncated"


def test_a_truncated_file_is_refused_before_decoding() -> None:
    data = sndfile(np.tile(SENTENCE, 9), "WAV", "PCM_16")
    with open_audio(io.BytesIO(data[: len(data) * 9 // 10]), "it") as audio, pytest.raises(AudioError):
        next(iter(audio.blocks()))


def test_a_flac_with_a_damaged_middle_is_truncated() -> None:
    data = bytearray(sndfile(np.tile(SENTENCE, 9), "FLAC", "PCM_16"))
    middle = len(data) // 2
    data[middle : middle + 4000] = bytes(4000)
    assert code_of(bytes(data)) == "truncated"


@pytest.mark.parametrize("size", [0, 0x7FFF_F000, 0x8000_0000, 0xFFFF_FFFF])
def test_a_wav_written_to_a_pipe_is_read_to_its_end(size: int) -> None:
    assert np.array_equal(decode(wav(riff_size=size, data_size=size)), decode(wav()))


@pytest.mark.parametrize("subtype", ["ULAW", "ALAW"])
def test_speech_behind_the_size_that_a_crashed_recorder_left_is_no_chunk(subtype: str) -> None:
    whole = sndfile(0.5 * SENTENCE[:-1], "WAV", subtype)  # an even number of bytes has no padding
    start = whole.index(b"data") + 8
    like_a_name = next(match for match in re.finditer(rb"[A-Za-z0-9_ ]{4}", whole) if match.start() > start + 4000)
    size = struct.pack("<I", like_a_name.start() - start)
    assert np.array_equal(decode(whole[: start - 4] + size + whole[start:]), decode(whole))


def test_a_flac_written_to_a_pipe_is_read_to_its_end() -> None:
    whole = sndfile(SENTENCE, "FLAC", "PCM_16")
    piped = bytearray(whole)
    piped[21] &= 0xF0  # the 36 bits that count the samples
    piped[22:26] = bytes(4)
    assert np.array_equal(decode(bytes(piped)), decode(whole))


def test_a_gap_in_timestamps_is_filled_with_silence() -> None:
    plain = decode(ffmpeg(SENTENCE, "webm", "libopus", 48000))
    gapped = decode(ffmpeg(SENTENCE, "webm", "libopus", 48000, gap_s=2.0))
    assert len(gapped) - len(plain) == pytest.approx(2 * SAMPLE_RATE, abs=0.01 * SAMPLE_RATE)
    assert peak_correlation(gapped[-SAMPLE_RATE:], plain[-SAMPLE_RATE:]) > 0.99
    middle = len(plain) // 2 + SAMPLE_RATE
    assert not gapped[middle - 8000 : middle + 8000].any()


def test_an_offset_beyond_the_end_is_a_bad_range() -> None:
    for name in ("wav-mulaw", "wav-gsm", "mp3", "webm"):
        data = FORMATS[name][0]()
        assert code_of(data, offset=LENGTH_S + 1) == "bad_range"
        assert code_of(data, offset=LENGTH_S + 1, duration=1.0) == "bad_range"
        assert len(decode(data, offset=1.0, duration=99.0)) / SAMPLE_RATE == pytest.approx(LENGTH_S - 1, abs=0.13)


def test_too_long_applies_to_the_range_that_is_read() -> None:
    data = sndfile(SENTENCE, "WAV", "ULAW")
    with open_audio(io.BytesIO(data), "it", max_duration_s=2.0) as audio:
        assert sum(map(len, audio.blocks(1.0, 1.5))) == 12_000
        with pytest.raises(AudioError, match="too_long"):
            list(audio.blocks())


def test_the_message_has_the_reason_of_each_decoder(tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_bytes(b"RIFF\0\0\0\0WAVE" + b"not audio " * 99)
    with (
        pytest.raises(AudioError, match=r"notes\.wav.*libsndfile: .*FFmpeg: ") as caught,
        open_audio(tmp_path / "notes.wav"),
    ):
        pass
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("playlist", ["#EXTM3U\n#EXTINF:9,\nsecret.wav\n", "ffconcat version 1.0\nfile secret.wav\n"])
def test_a_playlist_opens_no_other_file(playlist: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("secret.wav").write_bytes(wav())
    assert code_of(playlist.encode()) == "unreadable"


class Failing(io.BytesIO):
    """A remote file whose connection fails after some reads."""

    def __init__(self, data: bytes, reads: int, error: Exception) -> None:
        super().__init__(data)
        self.reads, self.error = reads, error

    def read(self, size: int | None = -1) -> bytes:
        self.reads -= 1
        if self.reads < 0:
            raise self.error
        return super().read(size)


@pytest.mark.parametrize("name", ["wav-s16", "flac", "mp3", "m4a-16k"])
@pytest.mark.parametrize("error", [ConnectionResetError("peer gone"), RuntimeError("of an SDK")])
def test_a_lost_connection_is_not_the_end_of_the_file(
    name: str, error: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    data = FORMATS[name][0]()
    for reads in itertools.count():  # until a run succeeds: each of its reads has failed once
        error_found = error_of(Failing(data, reads, error))
        if error_found is None:
            break
        assert error_found.code == "unreadable"
        assert str(error) in error_found.message
    assert reads > 3
    assert capfd.readouterr() == ("", "")
