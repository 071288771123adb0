"""Files of several streams, with holes, late starts or unknown lengths: all of their speech, at its time."""

import io
import itertools
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from speech.audio import SAMPLE_RATE
from speech.audio.containers import CONTAINERS
from speech.audio.decoders import FormatChanged
from speech.audio.decoding import open_audio, resampled
from speech.errors import AudioError
from speech.listener import Listener
from speech.recording import Recording
from testing.audio_formats import COMPOSED, SENTENCE, amr_with_dtx, piped
from testing.synthetic_audio import RATE, at_rate, encoded, ffmpeg, multitrack, peak_correlation, sentence, sndfile

AGENT = at_rate(SENTENCE, SAMPLE_RATE)
CUSTOMER = at_rate(sentence("customer"), SAMPLE_RATE)


def decode(data: bytes, offset: float = 0.0, duration: float | None = None) -> np.ndarray:
    """All channels at 16 kHz: (frames, channels)."""
    with open_audio(io.BytesIO(data), "call") as audio:
        while True:
            try:
                return np.concatenate(list(resampled(audio.blocks(offset, duration), audio.sample_rate)))
            except FormatChanged:
                continue


def code_of(data: bytes) -> str:
    with pytest.raises(AudioError) as caught:
        decode(data)
    return caught.value.code


def has(decoded: np.ndarray, reference: np.ndarray, at_s: float, least: float = 0.97, within_s: float = 0.06) -> bool:
    """Whether ``reference`` is in ``decoded``, both at 16 kHz, at a time."""
    start = round(at_s * SAMPLE_RATE)
    part = np.pad(decoded, (0, SAMPLE_RATE))[start : start + len(reference) + round(within_s * SAMPLE_RATE)]
    return peak_correlation(part[: len(reference)], reference, within_s) >= least


@pytest.mark.parametrize("name", ["chained-opus", "chained-vorbis"])
def test_all_links_of_a_chained_ogg_are_decoded(name: str) -> None:
    data = COMPOSED[name]()
    decoded, second_s = decode(data), len(SENTENCE) / RATE
    assert decoded.shape[1] == 2
    assert has(decoded[:, 0], AGENT, 0.0)
    assert not decoded[: len(AGENT) - 800, 1].any(), "a mono link is on the first channel only"
    assert has(decoded[:, 1], CUSTOMER, second_s)
    assert peak_correlation(decode(data, offset=4.0, duration=2.0)[:, 1], decoded[64_000:96_000, 1], 0.001) > 0.99


def test_a_chained_ogg_of_another_rate_and_an_empty_link() -> None:
    data = sndfile(SENTENCE, "OGG", "VORBIS", 8000)
    data += sndfile(SENTENCE[:0], "OGG", "VORBIS", 16000) + sndfile(SENTENCE, "OGG", "VORBIS", 16000)
    decoded = decode(data)[:, 0]
    assert has(decoded, AGENT, 0.0)
    assert has(decoded, AGENT, len(SENTENCE) / RATE)


def test_a_chained_ogg_without_the_end_of_its_last_link_is_truncated() -> None:
    assert code_of(COMPOSED["chained-opus"]()[:-500]) == "truncated"


@pytest.mark.parametrize("container", ["WAV", "FLAC"])
def test_files_joined_by_cat_are_decoded_to_the_last(container: str) -> None:
    customer = sentence("customer")
    stereo = np.stack([np.zeros_like(customer), customer], axis=1)
    data = sndfile(SENTENCE, container, "PCM_16") + sndfile(stereo, container, "PCM_16", 16000)
    decoded = decode(data)
    assert has(decoded[:, 0], AGENT, 0.0)
    assert has(decoded[:, 1], CUSTOMER, len(SENTENCE) / RATE)
    assert len(decoded) == pytest.approx(len(AGENT) + len(CUSTOMER), abs=4)
    assert code_of(data[: len(data) - 20_000]) == "truncated"


def test_a_hole_in_ogg_is_silence() -> None:
    plain, gapped = decode(ffmpeg(SENTENCE, "ogg", "libopus", 48000)), decode(COMPOSED["opus-gap"]())
    assert len(gapped) - len(plain) == pytest.approx(2 * SAMPLE_RATE, abs=0.03 * SAMPLE_RATE)
    assert peak_correlation(gapped[-SAMPLE_RATE:, 0], plain[-SAMPLE_RATE:, 0]) > 0.99


def test_an_offset_in_a_hole_begins_with_the_rest_of_its_silence() -> None:
    data = COMPOSED["opus-gap"]()
    whole, part = decode(data), decode(data, offset=2.5)
    assert len(part) == pytest.approx(len(whole) - 2.5 * SAMPLE_RATE, abs=0.03 * SAMPLE_RATE)
    assert peak_correlation(part[-SAMPLE_RATE:, 0], whole[-SAMPLE_RATE:, 0]) > 0.99


@pytest.mark.parametrize("container", ["webm", "matroska", "ogg"])
def test_audio_alone_begins_at_zero_whatever_its_timestamps(container: str) -> None:
    decoded = decode(ffmpeg(SENTENCE, container, "libopus", 48000, start_s=5.0))
    assert len(decoded) == pytest.approx(len(AGENT), abs=0.05 * SAMPLE_RATE)
    assert has(decoded[:, 0], AGENT, 0.0)


@pytest.mark.parametrize(("container", "codec"), [("mp4", "aac"), ("matroska", "libopus"), ("mpegts", "aac")])
def test_audio_that_begins_after_the_video_keeps_its_time(container: str, codec: str) -> None:
    rate = 48000 if codec == "libopus" else 16000
    data = multitrack([(SENTENCE, rate)], container, codec, start_s=5.0)
    decoded = decode(data)[:, 0]
    assert not decoded[: round(4.9 * SAMPLE_RATE)].any()
    assert has(decoded, AGENT, 5.0)
    assert has(decode(data, offset=4.0)[:, 0], AGENT, 1.0)
    assert len(decode(data, offset=1.0, duration=2.0)) == 2 * SAMPLE_RATE, "a range before the audio is silence"


@pytest.mark.parametrize("container", ["W64", "AIFF"])
def test_a_file_written_to_a_pipe_is_decoded_to_its_end(container: str, tmp_path: Path) -> None:
    whole = decode(sndfile(SENTENCE, container, "PCM_16"))
    assert np.array_equal(decode(piped(container)), whole)
    (tmp_path / "call").write_bytes(piped(container))
    with open_audio(tmp_path / "call") as audio:
        assert sum(map(len, audio.blocks())) == len(SENTENCE)


@pytest.mark.parametrize("declared_s", [0.5, 2.0])
def test_samples_behind_the_declared_end_of_a_wav_are_decoded(declared_s: float) -> None:
    whole = sndfile(SENTENCE, "WAV", "PCM_16")
    data = bytearray(whole)
    data[40:44] = struct.pack("<I", round(declared_s * RATE) * 2)
    assert np.array_equal(decode(bytes(data)), decode(whole))
    listed = whole + b"LIST" + struct.pack("<I", 9000) + bytes(9000)
    assert np.array_equal(decode(listed), decode(whole)), "a chunk behind the data is not audio"


ID3V2 = b"ID3\x04\0\0\0\0\x01\x0a" + bytes(138)  # a length of 7-bit bytes
ID3V1 = b"TAG" + bytes(125)
CODINGS: dict[str, Callable[[], bytes]] = {
    "wav": lambda: sndfile(SENTENCE, "WAV", "ULAW"),
    "flac": lambda: sndfile(SENTENCE, "FLAC", "PCM_16"),
    "ogg": lambda: sndfile(SENTENCE, "OGG", "VORBIS"),
    "mp3": lambda: ffmpeg(SENTENCE, "mp3", "libmp3lame", 16000),
    "m4a": lambda: ffmpeg(SENTENCE, "ipod", "aac", 16000),
    "amr": lambda: ffmpeg(SENTENCE, "amr", "libopencore_amrnb", bit_rate=12200),
}


@pytest.mark.parametrize("name", CODINGS)
def test_id3_tags_in_front_and_behind_change_nothing(name: str) -> None:
    data = CODINGS[name]()
    assert np.array_equal(decode(ID3V2 + data), decode(data))
    assert np.array_equal(decode(ID3V2 + ID3V2 + data), decode(data))
    assert np.array_equal(decode(data + ID3V1), decode(data))


@pytest.mark.parametrize("name", sorted(CODINGS.keys() - {"amr"}))
def test_a_truncated_file_with_id3_tags_is_truncated(name: str) -> None:
    data = CODINGS[name]()
    assert code_of(ID3V2 + data[: len(data) // 2]) == "truncated"


@pytest.mark.parametrize(("container", "codec"), [("avi", "libmp3lame"), ("asf", "wmav2"), ("mov", "aac")])
def test_other_containers_that_declare_their_size_are_truncated(container: str, codec: str) -> None:
    data = ffmpeg(SENTENCE, container, codec, 44100, bit_rate=64_000)
    assert has(decode(data)[:, 0], AGENT, 0.0)
    assert code_of(data[: len(data) * 3 // 4]) == "truncated"


def test_a_live_recording_that_declares_no_size_is_decoded() -> None:
    data = bytearray(ffmpeg(SENTENCE, "webm", "libopus", 48000))
    at = data.index(b"\x18\x53\x80\x67") + 4
    data[at : at + 8] = b"\x01" + b"\xff" * 7
    assert len(decode(bytes(data))) == pytest.approx(len(AGENT), abs=0.05 * SAMPLE_RATE)
    # The duration, which is still declared, is then what counts.
    assert code_of(bytes(data[: len(data) // 2])) == "truncated"


def test_amr_frames_without_speech_are_silence() -> None:
    data = amr_with_dtx()
    frame_types, at = set(), len(b"#!AMR\n")
    while at < len(data):
        frame_types.add(data[at] >> 3 & 0xF)
        at += (13, 14, 16, 18, 20, 21, 27, 32, 6)[data[at] >> 3 & 0xF] if data[at] >> 3 & 0xF < 9 else 1
    assert {8, 15} <= frame_types, "the file has SID and NO_DATA frames"
    decoded = decode(data)[:, 0]
    second_s = len(SENTENCE) / RATE + 2.0
    assert len(decoded) == pytest.approx((second_s + len(SENTENCE) / RATE) * SAMPLE_RATE, abs=0.05 * SAMPLE_RATE)
    assert has(decoded, AGENT, 0.0, least=0.8)
    assert has(decoded, AGENT, second_s, least=0.8)


def test_an_amr_of_silence_alone_is_silence() -> None:
    decoded = decode(b"#!AMR\n" + b"\x7c" * 100)  # NO_DATA
    assert len(decoded) == 2 * SAMPLE_RATE
    assert not decoded.any()


def test_rate_and_channels_that_change_within_a_file() -> None:
    data = COMPOSED["mp3-mono-stereo"]()
    with open_audio(io.BytesIO(data), "call") as audio:
        assert (audio.sample_rate, audio.channels) == (16_000, 1)
        with pytest.raises(FormatChanged):
            list(audio.blocks())
        assert (audio.sample_rate, audio.channels) == (16_000, 2)
    decoded = decode(data)
    assert has(decoded[:, 0], AGENT, 0.0)
    assert has(decoded[:, 1], CUSTOMER, len(SENTENCE) / RATE, within_s=0.15)  # the encoders' delays
    backwards = ffmpeg(SENTENCE, "adts", "aac", 8000) + ffmpeg(SENTENCE, "adts", "aac", 16000)
    assert has(decode(backwards)[:, 0], AGENT, len(SENTENCE) / RATE + 0.2, within_s=0.15), (
        "a higher rate keeps what it has"
    )


def test_the_listener_cuts_both_parts_of_a_file_whose_channels_change() -> None:
    source = io.BytesIO(COMPOSED["mp3-mono-stereo"]())
    result = Listener(clip_s=30.0).listen(Recording(id="1", audio="call.mp3"), source)
    assert result.channels == 2
    assert {clip.channel for clip in result.clips} == {0, 1}
    assert max(clip.end_s for clip in result.clips if clip.channel == 0) < len(SENTENCE) / RATE + 0.3
    assert min(clip.start_s for clip in result.clips if clip.channel == 1) > len(SENTENCE) / RATE - 0.3


@pytest.mark.parametrize("container", ["matroska", "mov", "mpegts"])
def test_all_tracks_are_channels_in_track_order(container: str) -> None:
    stereo = np.stack([np.roll(SENTENCE, 8000), SENTENCE], axis=1)
    tracks = [(sentence("customer"), 16000), (SENTENCE, 44100), (stereo, 48000)]
    decoded = decode(multitrack(tracks, container, "aac"))
    assert decoded.shape[1] == 4
    assert has(decoded[:, 0], CUSTOMER, 0.0, within_s=0.15)  # MPEG-TS has no place for the encoder's delay
    assert has(decoded[:, 1], AGENT, 0.0, within_s=0.15)
    assert has(decoded[:, 3], AGENT, 0.0, within_s=0.15)
    assert peak_correlation(decoded[: len(AGENT), 2], AGENT, 0.06) < 0.7


def test_a_range_of_a_file_with_two_tracks() -> None:
    data = COMPOSED["mkv-two-tracks"]()
    whole, part = decode(data), decode(data, offset=1.0, duration=3.0)
    assert len(part) == 3 * SAMPLE_RATE
    for channel in (0, 1):
        assert peak_correlation(part[:32_000, channel], whole[16_000:48_000, channel], 0.001) > 0.99
    assert not part[40_000:, 0].any(), "the shorter track is followed by silence"


def test_more_channels_than_can_be_in_all_tracks_are_refused() -> None:
    stereo = np.stack([SENTENCE[:4000]] * 2, axis=1)
    with pytest.raises(AudioError, match="34 channels"):
        decode(multitrack([(stereo, 48000)] * 17, "matroska", "libopus"))


def test_a_codec_that_is_not_on_the_list_is_not_decoded() -> None:
    assert code_of(ffmpeg(SENTENCE, "matroska", "real_144")) == "unsupported_codec"


def test_tracks_without_a_decoder_are_left_out_and_flagged() -> None:
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as file:
        packets = [encoded(file, SENTENCE, "real_144", RATE), encoded(file, SENTENCE, "aac", 16000)]
        for packet in itertools.chain(*packets):
            file.mux(packet)
    result = Listener(clip_s=30.0).listen(Recording(id="1", audio="call.mkv"), io.BytesIO(out.getvalue()))
    assert (result.channels, result.flags) == (1, ("skipped_tracks",))
    assert len(result.clips) == 1


def test_a_wave64_of_another_size_is_still_truncated() -> None:
    data = bytearray(sndfile(SENTENCE, "W64", "PCM_16"))
    data[16:24] = struct.pack("<Q", len(data) + 100_000)
    assert code_of(bytes(data)) == "truncated"


def test_every_row_of_the_table_has_a_reason() -> None:
    assert all(container.reason for container in CONTAINERS)
