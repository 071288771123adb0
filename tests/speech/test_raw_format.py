"""Audio without a header: the format comes from the file's name or from ``raw_format``."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speech.audio import SAMPLE_RATE
from speech.audio.decoding import open_audio, resampled
from speech.errors import AudioError, RequestError
from speech.listener import Listener
from speech.raw_format import RAW_SUFFIXES
from speech.recording import Options, Recording
from testing.audio_formats import SENTENCE
from testing.synthetic_audio import at_rate, ffmpeg, peak_correlation, sndfile

AGENT = at_rate(SENTENCE, SAMPLE_RATE)


def raw(subtype: str, rate: int = 8000, samples: np.ndarray = SENTENCE) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, at_rate(samples, rate), rate, subtype, "LITTLE", "RAW")
    return out.getvalue()


def g726(codec: str, bits: int = 4) -> bytes:
    return ffmpeg(SENTENCE, codec, codec, bit_rate=8000 * bits)


# By the suffix, how such a file is made and how much of the waveform its coding keeps.
FILES: dict[str, tuple[Callable[[], bytes], float]] = {
    "ulaw": (lambda: raw("ULAW"), 0.999),
    "ul": (lambda: raw("ULAW"), 0.999),
    "ALAW": (lambda: raw("ALAW"), 0.999),
    "sln": (lambda: raw("PCM_16"), 0.9999),
    "sln16": (lambda: raw("PCM_16", 16000), 0.9999),
    "gsm": (lambda: raw("GSM610"), 0.9),
    "vox": (lambda: raw("VOX_ADPCM", samples=SENTENCE[:-1]), 0.98),
    "g722": (lambda: ffmpeg(SENTENCE, "g722", "g722", 16000), 0.99),
    "g726": (lambda: g726("g726"), 0.98),
    "g726-32": (lambda: g726("g726le"), 0.98),
    "g726-16": (lambda: g726("g726le", 2), 0.9),
}


def decode(source: Path | io.BytesIO, name: str, **options: Any) -> np.ndarray:
    with open_audio(source, name, **options) as audio:
        return np.concatenate(list(resampled(audio.blocks(), audio.sample_rate)))


@pytest.mark.parametrize("suffix", FILES)
def test_a_raw_file_is_decoded_by_the_suffix_of_its_name(suffix: str, tmp_path: Path) -> None:
    make, kept = FILES[suffix]
    path = tmp_path / f"call.1 #2?.{suffix}"
    path.write_bytes(make())
    decoded = decode(path, str(path))[:, 0]
    assert len(decoded) == pytest.approx(len(AGENT), abs=0.05 * SAMPLE_RATE)
    assert peak_correlation(decoded, AGENT) >= kept
    assert np.array_equal(decode(io.BytesIO(make()), f"https://calls/a.{suffix}?sig=1.2")[:, 0], decoded)


def test_a_range_of_a_raw_file() -> None:
    whole = decode(io.BytesIO(raw("GSM610")), "a.gsm")
    with open_audio(io.BytesIO(raw("GSM610")), "a.gsm") as audio:
        part = np.concatenate(list(resampled(audio.blocks(1.0, 1.0), audio.sample_rate)))
    assert len(part) == SAMPLE_RATE
    assert peak_correlation(part[:, 0], whole[16_000:32_000, 0], 0.001) > 0.99


def test_raw_format_says_what_a_name_does_not() -> None:
    stereo = np.stack([SENTENCE, SENTENCE[::-1]], axis=1)
    decoded = decode(io.BytesIO(raw("PCM_16", samples=stereo)), "a.raw", raw_format="sln:8000:2")
    assert decoded.shape[1] == 2
    assert peak_correlation(decoded[:, 0], AGENT) > 0.999
    wide = raw("ULAW", 16000)
    assert peak_correlation(decode(io.BytesIO(wide), "a.ulaw", raw_format="ulaw:16000")[:, 0], AGENT) > 0.99


def test_a_header_counts_more_than_name_and_option() -> None:
    wav = sndfile(SENTENCE, "WAV", "PCM_16")
    assert np.array_equal(decode(io.BytesIO(wav), "a.ulaw", raw_format="alaw"), decode(io.BytesIO(wav), "a.wav"))


def test_silence_in_mu_law_is_not_taken_for_mp3() -> None:
    quiet = b"\xff\xfb" * 4000 + raw("ULAW")
    assert len(decode(io.BytesIO(quiet), "a.ulaw")) == pytest.approx(SAMPLE_RATE + len(AGENT), abs=2)


def test_audio_that_may_be_raw_is_refused_with_the_name_of_the_option() -> None:
    with pytest.raises(AudioError, match=r"raw_format \(--raw-format") as caught:
        decode(io.BytesIO(raw("PCM_16")), "a.raw")
    assert caught.value.code == "unreadable"


def test_a_file_that_is_not_gsm_is_not_decoded_as_gsm() -> None:
    with pytest.raises(AudioError, match="not GSM") as caught:
        decode(io.BytesIO(raw("PCM_16")), "a.gsm")
    assert caught.value.code == "unreadable"


@pytest.mark.parametrize("text", ["mp3", "ulaw:99", "ulaw:8000:2:1", "g722:8000", "gsm:16000", ""])
def test_an_unknown_raw_format_is_refused_with_the_names_there_are(text: str) -> None:
    with pytest.raises(RequestError, match="raw_format") as caught:
        Options(raw_format=text)
    assert caught.value.code == "unsupported_option"


def test_the_listener_reads_the_option_of_the_recording() -> None:
    recording = Recording(id="1", audio="upload", options=Options(raw_format="g722"))
    result = Listener(clip_s=30.0).listen(recording, io.BytesIO(FILES["g722"][0]()))
    assert len(result.clips) == 1


def test_a_folder_can_tell_raw_files_by_their_suffix() -> None:
    assert {"g722", "g726", "ulaw", "alaw", "sln", "gsm", "vox"} <= RAW_SUFFIXES
