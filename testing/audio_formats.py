"""One sentence in every format that an encoder at hand can write."""

from collections.abc import Callable

from testing.synthetic_audio import ffmpeg, sentence, sndfile

SAID = sentence("agent")

# How it is made, and how much of the waveform the codec keeps. GSM and AMR keep how speech sounds, not its shape.
FORMATS: dict[str, tuple[Callable[[], bytes], float]] = {
    "wav-u8": (lambda: sndfile(SAID, "WAV", "PCM_U8"), 0.98),
    "wav-s16": (lambda: sndfile(SAID, "WAV", "PCM_16"), 0.9999),
    "wav-s24": (lambda: sndfile(SAID, "WAV", "PCM_24"), 0.9999),
    "wav-s32": (lambda: sndfile(SAID, "WAV", "PCM_32"), 0.9999),
    "wav-float": (lambda: sndfile(SAID, "WAV", "FLOAT"), 0.9999),
    "wav-double": (lambda: sndfile(SAID, "WAV", "DOUBLE"), 0.9999),
    "wav-mulaw": (lambda: sndfile(SAID, "WAV", "ULAW"), 0.999),
    "wav-alaw": (lambda: sndfile(SAID, "WAV", "ALAW"), 0.999),
    "wav-gsm": (lambda: sndfile(SAID, "WAV", "GSM610"), 0.9),
    "wav-ima": (lambda: sndfile(SAID, "WAV", "IMA_ADPCM"), 0.99),
    "wav-ms-adpcm": (lambda: sndfile(SAID, "WAV", "MS_ADPCM"), 0.99),
    "wav-g722": (lambda: ffmpeg(SAID, "wav", "g722", 16000), 0.99),
    "rf64": (lambda: sndfile(SAID, "RF64", "PCM_16"), 0.9999),
    "w64": (lambda: sndfile(SAID, "W64", "PCM_16"), 0.9999),
    "aiff": (lambda: sndfile(SAID, "AIFF", "PCM_16"), 0.9999),
    "au-mulaw": (lambda: sndfile(SAID, "AU", "ULAW"), 0.999),
    "caf": (lambda: sndfile(SAID, "CAF", "PCM_16"), 0.9999),
    "sphere": (lambda: sndfile(SAID, "NIST", "PCM_16"), 0.9999),
    "sphere-mulaw": (lambda: sndfile(SAID, "NIST", "ULAW"), 0.999),
    "flac": (lambda: sndfile(SAID, "FLAC", "PCM_16", 44100), 0.9999),
    "mp3": (lambda: sndfile(SAID, "MP3", "MPEG_LAYER_III", 16000), 0.99),
    "mp3-48k": (lambda: ffmpeg(SAID, "mp3", "libmp3lame", 48000), 0.98),
    "ogg-vorbis": (lambda: sndfile(SAID, "OGG", "VORBIS"), 0.98),
    "ogg-opus": (lambda: sndfile(SAID, "OGG", "OPUS"), 0.98),
    "m4a-16k": (lambda: ffmpeg(SAID, "ipod", "aac", 16000), 0.98),
    "m4a-44k": (lambda: ffmpeg(SAID, "mp4", "aac", 44100), 0.98),
    "aac": (lambda: ffmpeg(SAID, "adts", "aac", 16000), 0.98),
    "webm": (lambda: ffmpeg(SAID, "webm", "libopus", 48000), 0.98),
    "mka": (lambda: ffmpeg(SAID, "matroska", "libopus", 48000), 0.98),
    "amr-nb": (lambda: ffmpeg(SAID, "amr", "libopencore_amrnb", bit_rate=12200), 0.8),
    "3gp": (lambda: ffmpeg(SAID, "3gp", "libopencore_amrnb", bit_rate=12200), 0.8),
}
