"""One sentence in every format that the encoders of soundfile and PyAV write."""

import struct
from collections.abc import Callable

import numpy as np

from testing.synthetic_audio import ffmpeg, multitrack, sentence, silence, sndfile

SENTENCE = sentence("agent")

# How a file is made, and the least correlation of its waveform with the original's. GSM and AMR keep the spectrum of
# speech better than its waveform.
FORMATS: dict[str, tuple[Callable[[], bytes], float]] = {
    "wav-u8": (lambda: sndfile(SENTENCE, "WAV", "PCM_U8"), 0.98),
    "wav-s16": (lambda: sndfile(SENTENCE, "WAV", "PCM_16"), 0.9999),
    "wav-s24": (lambda: sndfile(SENTENCE, "WAV", "PCM_24"), 0.9999),
    "wav-s32": (lambda: sndfile(SENTENCE, "WAV", "PCM_32"), 0.9999),
    "wav-float": (lambda: sndfile(SENTENCE, "WAV", "FLOAT"), 0.9999),
    "wav-double": (lambda: sndfile(SENTENCE, "WAV", "DOUBLE"), 0.9999),
    "wav-mulaw": (lambda: sndfile(SENTENCE, "WAV", "ULAW"), 0.999),
    "wav-alaw": (lambda: sndfile(SENTENCE, "WAV", "ALAW"), 0.999),
    "wav-gsm": (lambda: sndfile(SENTENCE, "WAV", "GSM610"), 0.9),
    "wav-ima": (lambda: sndfile(SENTENCE, "WAV", "IMA_ADPCM"), 0.99),
    "wav-ms-adpcm": (lambda: sndfile(SENTENCE, "WAV", "MS_ADPCM"), 0.99),
    "wav-g722": (lambda: ffmpeg(SENTENCE, "wav", "g722", 16000), 0.99),
    "wav-mp3": (lambda: ffmpeg(SENTENCE, "wav", "libmp3lame", 16000), 0.98),
    "rf64": (lambda: sndfile(SENTENCE, "RF64", "PCM_16"), 0.9999),
    "w64": (lambda: sndfile(SENTENCE, "W64", "PCM_16"), 0.9999),
    "aiff": (lambda: sndfile(SENTENCE, "AIFF", "PCM_16"), 0.9999),
    "au-mulaw": (lambda: sndfile(SENTENCE, "AU", "ULAW"), 0.999),
    "caf": (lambda: sndfile(SENTENCE, "CAF", "PCM_16"), 0.9999),
    "sphere": (lambda: sndfile(SENTENCE, "NIST", "PCM_16"), 0.9999),
    "sphere-mulaw": (lambda: sndfile(SENTENCE, "NIST", "ULAW"), 0.999),
    "flac": (lambda: sndfile(SENTENCE, "FLAC", "PCM_16", 44100), 0.9999),
    "mp3": (lambda: sndfile(SENTENCE, "MP3", "MPEG_LAYER_III", 16000), 0.99),
    "mp3-48k": (lambda: ffmpeg(SENTENCE, "mp3", "libmp3lame", 48000), 0.98),
    "ogg-vorbis": (lambda: sndfile(SENTENCE, "OGG", "VORBIS"), 0.98),
    "ogg-opus": (lambda: sndfile(SENTENCE, "OGG", "OPUS"), 0.98),
    "m4a-16k": (lambda: ffmpeg(SENTENCE, "ipod", "aac", 16000), 0.98),
    "m4a-44k": (lambda: ffmpeg(SENTENCE, "mp4", "aac", 44100), 0.98),
    "aac": (lambda: ffmpeg(SENTENCE, "adts", "aac", 16000), 0.98),
    "webm": (lambda: ffmpeg(SENTENCE, "webm", "libopus", 48000), 0.98),
    "mka": (lambda: ffmpeg(SENTENCE, "matroska", "libopus", 48000), 0.98),
    "amr-nb": (lambda: ffmpeg(SENTENCE, "amr", "libopencore_amrnb", bit_rate=12200), 0.8),
    "3gp": (lambda: ffmpeg(SENTENCE, "3gp", "libopencore_amrnb", bit_rate=12200), 0.8),
}


def piped(container: str) -> bytes:
    """The sentence in W64 or AIFF as it is written to a pipe: the sizes in the header are unknown."""
    data = bytearray(sndfile(SENTENCE, container, "PCM_16"))
    if container == "W64":  # as FFmpeg writes it
        at = data.index(b"data\xf3\xac\xd3\x11")
        data[16:24] = struct.pack("<q", -1)
        data[at + 16 : at + 24] = struct.pack("<Q", 0x7FFF_FFFF_FFFF_FFFF)
    else:  # as sox writes it
        at, counted = data.index(b"SSND"), data.index(b"COMM") + 10
        data[4:8] = struct.pack(">I", 0x7F00_0050)
        data[counted : counted + 4] = struct.pack(">I", 0x1FC0_0000)
        data[at + 4 : at + 8] = struct.pack(">I", 0x7F00_0008)
    return bytes(data)


def chained(coding: str = "OPUS") -> bytes:
    """The sentence in mono, then the customer's in stereo on the right, as two links of an Ogg file."""
    customer = sentence("customer")
    stereo = np.stack([np.zeros_like(customer), customer], axis=1)
    return sndfile(SENTENCE, "OGG", coding, 16000) + sndfile(stereo, "OGG", coding, 16000)


def amr_with_dtx() -> bytes:
    """The sentence, two seconds of silence and the sentence, with SID and NO_DATA frames for the silence."""
    quiet = np.concatenate([SENTENCE, silence(2.0), SENTENCE])
    return ffmpeg(quiet, "amr", "libopencore_amrnb", bit_rate=12200, options={"dtx": "1"})


def mp3_mono_then_stereo() -> bytes:
    """The sentence in mono at 16 kHz, then the customer's in stereo on the right at 44.1 kHz, in one MP3."""
    customer = sentence("customer")
    stereo = np.stack([np.zeros_like(customer), customer], axis=1)
    return ffmpeg(SENTENCE, "mp3", "libmp3lame", 16000) + ffmpeg(stereo, "mp3", "libmp3lame", 44100, bit_rate=128_000)


# Files that are not just one sentence in one track, for the tests of each and for fuzzing.
COMPOSED: dict[str, Callable[[], bytes]] = {
    "chained-opus": chained,
    "chained-vorbis": lambda: chained("VORBIS"),
    "opus-gap": lambda: ffmpeg(SENTENCE, "ogg", "libopus", 48000, gap_s=2.0),
    "piped-w64": lambda: piped("W64"),
    "piped-aiff": lambda: piped("AIFF"),
    "webm-at-5s": lambda: ffmpeg(SENTENCE, "webm", "libopus", 48000, start_s=5.0),
    "amr-dtx": amr_with_dtx,
    "mp3-mono-stereo": mp3_mono_then_stereo,
    "mkv-two-tracks": lambda: multitrack([(SENTENCE, 48000), (sentence("customer"), 16000)], "matroska", "libopus"),
    "mp4-late": lambda: multitrack([(SENTENCE, 16000)], "mp4", "aac", start_s=5.0),
    "wav-behind-id3": lambda: b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + sndfile(SENTENCE, "WAV", "PCM_16"),
    "m4a-id3v1": lambda: ffmpeg(SENTENCE, "ipod", "aac", 16000) + b"TAG" + bytes(125),
}
