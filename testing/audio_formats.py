"""One sentence in every format that the encoders of soundfile and PyAV write."""

from collections.abc import Callable

from testing.synthetic_audio import ffmpeg, sentence, sndfile

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
