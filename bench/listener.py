"""Throughput of a Listener, against plain decoding of the same files and against faster-whisper's front end.

    python -m bench.listener                        # the recordings of demo/samples
    python -m bench.listener calls/*.wav --rounds 9

The measure is hours of audio per core-second (``time.process_time``, all threads of the process), the median over
rounds. In each round every file goes to every contender in turn, and the ratio is the median of the rounds' ratios,
so that other load on the machine affects all alike. What is compared:

    read             soundfile and soxr, the whole file at once to 16 kHz mono: decoding alone
    faster-whisper   its decode_audio and its get_speech_timestamps on the mono mixture, our segmentation settings
    listener mix     the same work: one mixture, decoded, VAD, cut into clips
    listener auto    what a run does: channels compared, then one speaker a channel, so stereo is segmented twice

The ratio is ``listener mix`` over ``faster-whisper``. Files that cannot be decoded are skipped, and named.

A second table has ``listener auto`` by codec: a made call of ten minutes, agent and customer in turns over the noise of
a line, one a channel and both on one.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import soxr
from faster_whisper.audio import decode_audio
from faster_whisper.vad import VadOptions, get_speech_timestamps

from speech.audio import SAMPLE_RATE
from speech.audio.segmenting import MIN_SILENCE_S, MIN_SPEECH_S, ONSET_PROBABILITY, PADDING_S
from speech.errors import AudioError
from speech.listener import Listener
from speech.recording import Channels, Options, Recording
from testing.synthetic_audio import RATE, call, ffmpeg, sndfile

SAMPLES = Path(__file__).parent.parent / "demo" / "samples"
CLIP_S = 30.0
NOISE = 10 ** (-65 / 20)
CODECS: dict[str, tuple[Callable[[np.ndarray], bytes], tuple[str, ...]]] = {
    "G.711": (lambda samples: sndfile(samples, "WAV", "ULAW"), ("mono", "stereo")),
    "GSM": (lambda samples: sndfile(samples, "WAV", "GSM610"), ("mono",)),
    "Opus": (lambda samples: ffmpeg(samples, "ogg", "libopus", 48_000, bit_rate=24_000), ("mono", "stereo")),
    "MP3": (lambda samples: ffmpeg(samples, "mp3", "libmp3lame", 16_000, bit_rate=32_000), ("mono", "stereo")),
    "AAC": (lambda samples: ffmpeg(samples, "mp4", "aac", 16_000, bit_rate=32_000), ("mono", "stereo")),
    "FLAC": (lambda samples: sndfile(samples, "FLAC", "PCM_16"), ("mono", "stereo")),
    "AMR": (lambda samples: ffmpeg(samples, "amr", "libopencore_amrnb", bit_rate=12_200), ("mono",)),
}
NOT_AUDIO = {".jsonl", ".json", ".md", ".txt", ".csv", ".py"}

VAD_OPTIONS = VadOptions(
    threshold=ONSET_PROBABILITY,
    min_speech_duration_ms=round(MIN_SPEECH_S * 1000),
    max_speech_duration_s=CLIP_S,
    min_silence_duration_ms=round(MIN_SILENCE_S * 1000),
    speech_pad_ms=round(PADDING_S * 1000),
)


def read(path: Path) -> None:
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    soxr.resample(samples.mean(axis=1), rate, SAMPLE_RATE)


def faster_whisper(path: Path) -> None:
    get_speech_timestamps(decode_audio(str(path), sampling_rate=SAMPLE_RATE), VAD_OPTIONS)


def listen_with(listener: Listener, channels: Channels) -> Callable[[Path], None]:
    def listen(path: Path) -> None:
        listener.listen(Recording(id=path.name, audio=str(path), options=Options(channels=channels)))

    return listen


def readable(paths: list[Path], listener: Listener) -> dict[Path, float]:
    """The files that all contenders can read, and their durations in seconds."""
    seconds: dict[Path, float] = {}
    for path in paths:
        try:
            listened = listener.listen(Recording(id=path.name, audio=str(path)))
            soundfile.info(path)
            seconds[path] = listened.duration_s
        except AudioError as error:
            print(f"skipped: {error}")
        except soundfile.LibsndfileError:
            print(f"skipped: {path}, which soundfile cannot read")
    return seconds


def core_seconds(contender: Callable[[Path], None], path: Path) -> float:
    start = time.process_time()
    contender(path)
    return time.process_time() - start


def codec_rates(listener: Listener, rounds: int) -> dict[str, dict[str, float]]:
    """Hours of audio per core-second of a made call, mono and stereo, in each codec that has the form."""
    speech, _ = call(exchanges=56)
    stereo = speech + NOISE * np.random.default_rng(0).standard_normal(speech.shape).astype(np.float32)
    hours = len(stereo) / RATE / 3600
    rates: dict[str, dict[str, float]] = defaultdict(dict)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "call"
        for codec, (encode, forms) in CODECS.items():
            for form in forms:
                path.write_bytes(encode(stereo if form == "stereo" else stereo.mean(axis=1, keepdims=True)))
                times = [core_seconds(listen_with(listener, "auto"), path) for _ in range(rounds)]
                rates[codec][form] = hours / statistics.median(times)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the Listener against its peers.")
    parser.add_argument("files", nargs="*", type=Path, help="recordings (default: those of demo/samples)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-codecs", action="store_true", help="leave out the second table")
    arguments = parser.parse_args()
    paths = arguments.files or sorted(path for path in SAMPLES.rglob("*.*") if path.suffix not in NOT_AUDIO)
    listener = Listener(clip_s=CLIP_S)
    seconds = readable(paths, listener)
    if not seconds:
        parser.error("no readable recordings: give files, or make demo/samples first")
    contenders: dict[str, Callable[[Path], None]] = {
        "read": read,
        "faster-whisper": faster_whisper,
        "listener mix": listen_with(listener, "mix"),
        "listener auto": listen_with(listener, "auto"),
    }
    for contender in contenders.values():  # warm-up: imports, ONNX sessions, the page cache
        core_seconds(contender, next(iter(seconds)))
    spent: dict[str, list[float]] = {name: [0.0] * arguments.rounds for name in contenders}
    for round_number in range(arguments.rounds):
        for path in seconds:
            for name, contender in contenders.items():
                spent[name][round_number] += core_seconds(contender, path)

    hours = sum(seconds.values()) / 3600
    rates = {name: hours / statistics.median(times) for name, times in spent.items()}
    print(f"\n{len(seconds)} files, {hours * 60:.1f} minutes, {arguments.rounds} rounds")
    print(f"{'':<16}{'audio-hours / core-second':>26}{'x real time':>14}{'spread':>9}")
    for name, times in spent.items():
        spread = (max(times) - min(times)) / statistics.median(times)
        print(f"{name:<16}{rates[name]:>26.3f}{rates[name] * 3600:>14.0f}{spread:>9.0%}")
    ratio = statistics.median(
        theirs / ours for theirs, ours in zip(spent["faster-whisper"], spent["listener mix"], strict=True)
    )
    print(f"listener mix over faster-whisper: {ratio:.2f}\n")
    by_codec = {} if arguments.no_codecs else codec_rates(listener, arguments.rounds)
    if by_codec:
        print(f"{'x real time':<16}{'mono':>10}{'stereo':>10}")
    for codec, forms in by_codec.items():
        print(f"{codec:<16}" + "".join(f"{forms[form] * 3600:>10.0f}" for form in ("mono", "stereo") if form in forms))
    print()
    figures = {name.replace(" ", "_").replace("-", "_"): round(rate, 4) for name, rate in rates.items()}
    print(
        json.dumps(
            {"bench": "listener", "files": len(seconds), "audio_hours": round(hours, 4), "rounds": arguments.rounds}
            | {"by_codec": {codec: {k: round(v, 4) for k, v in forms.items()} for codec, forms in by_codec.items()}}
            | {"audio_hours_per_core_second": figures, "ratio_to_faster_whisper": round(ratio, 3)}
        )
    )


if __name__ == "__main__":
    main()
