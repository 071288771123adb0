"""Accuracy of word times: the error of each word's start and end on speech whose word times are known.

    python -m bench.word_times [--model demo/model] [--clips 200] [--channel clean|phone]

espeak-ng speaks parts of the sample calls' references, in a voice that the demo model has not been trained on, and
reports when each word begins and ends (``testing.timed_speech``). The engine transcribes them with word times. Words
are compared where the text agrees with the reference. Prints the median and the 90th percentile of the absolute errors,
the share of words compared, how the confidences of right and wrong words differ and, last, a line of JSON. ``phone``:
through G.711 at 8 kHz.
"""

import argparse
import asyncio
import io
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import soundfile
import soxr
from rich.console import Console
from rich.table import Table

from speech.audio import SAMPLE_RATE
from speech.engines.base import ClipRequest, DecodingResult, EngineConfig, start_engine
from speech.models.checkpoint import family_of
from speech.recording import Options
from speech.transcript import Word
from testing.timed_speech import EspeakNg, TimedSpeech

# Held out of the demo model's training (demo/train/voices.py).
VOICES = tuple(f"{accent}+f2" for accent in ("en-gb", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-us-nyc"))
PADDING_S = 0.3  # of silence around each sentence, as the Listener leaves


@dataclass(frozen=True)
class Accuracy:
    """Errors in seconds, absolute."""

    words: int
    compared: float  # share of words whose text is right
    start_median_s: float
    start_p90_s: float
    end_median_s: float
    end_p90_s: float
    ctc_score_right: float  # median of the words that are right
    ctc_score_wrong: float
    probability_right: float
    probability_wrong: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo/model")
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--channel", choices=("clean", "phone"), default="clean")
    parsed = parser.parse_args(arguments)
    speech = list(timed_sentences(parsed.clips, parsed.channel))
    decodings = asyncio.run(_decode(parsed.model, [clip.samples for clip in speech]))
    accuracy = accuracy_of([(clip.words, decoding.words) for clip, decoding in zip(speech, decodings, strict=True)])
    table = Table("error", "median", "90th percentile", title=f"{accuracy.words} words, {accuracy.compared:.0%} right")
    table.add_row("start", f"{1000 * accuracy.start_median_s:.0f} ms", f"{1000 * accuracy.start_p90_s:.0f} ms")
    table.add_row("end", f"{1000 * accuracy.end_median_s:.0f} ms", f"{1000 * accuracy.end_p90_s:.0f} ms")
    Console().print(table)
    print(json.dumps({name: round(value, 4) for name, value in asdict(accuracy).items()}))


def timed_sentences(count: int, channel: str) -> Iterator[TimedSpeech]:
    """Parts of the references, int16 samples; those that espeak-ng divides into other words are left out."""
    espeak, rng = EspeakNg(), random.Random(0)
    rows = map(json.loads, Path("demo/samples/manifest.jsonl").read_text().splitlines())
    references = [row["text"].split() for row in rows if row.get("text") and row.get("language", "en") == "en"]
    while count:
        words = rng.choice(references)
        start = rng.randrange(len(words))
        voice, speed, pitch = rng.choice(VOICES), rng.randint(140, 190), rng.randint(30, 70)
        try:
            spoken = espeak.say(" ".join(words[start : start + rng.randint(5, 15)]), voice, speed, pitch)
        except ValueError:
            continue
        count -= 1
        padding = np.zeros(round(PADDING_S * SAMPLE_RATE), np.float32)
        samples = np.concatenate([padding, spoken.samples, padding])
        if channel == "phone":
            samples = _through_g711(samples)
        timed = [Word(word.text, word.start_s + PADDING_S, word.end_s + PADDING_S) for word in spoken.words]
        yield TimedSpeech((samples * 32767).astype(np.int16), timed)


def _through_g711(samples: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    soundfile.write(file, soxr.resample(samples, SAMPLE_RATE, 8000), 8000, format="WAV", subtype="ULAW")
    file.seek(0)
    return soxr.resample(soundfile.read(file, dtype="float32")[0], 8000, SAMPLE_RATE)


async def _decode(model: str, clips: list[np.ndarray]) -> list[DecodingResult]:
    engine = start_engine(EngineConfig(model=model), family_of(model))
    options = Options(word_timestamps=True)
    try:
        requests = (ClipRequest(samples, options, f"clip/{number}") for number, samples in enumerate(clips))
        return await asyncio.gather(*map(engine.decode, requests))
    finally:
        engine.stop()


def accuracy_of(clips: Sequence[tuple[Sequence[Word], Sequence[Word]]]) -> Accuracy:
    """Compares words with the reference, clip by clip: (reference, found)."""
    starts, ends, right, wrong = [], [], [], []
    for reference, found in clips:
        matcher = SequenceMatcher(None, [each.text for each in reference], [each.text for each in found], False)
        blocks = matcher.get_matching_blocks()
        same = {block.b + offset: block.a + offset for block in blocks for offset in range(block.size)}
        for index, word in enumerate(found):
            if index not in same:
                wrong.append(word)
                continue
            right.append(word)
            starts.append(abs(word.start_s - reference[same[index]].start_s))
            ends.append(abs(word.end_s - reference[same[index]].end_s))
    total = sum(len(reference) for reference, _ in clips)
    return Accuracy(
        words=total,
        compared=len(right) / total,
        start_median_s=float(np.median(starts)),
        start_p90_s=float(np.percentile(starts, 90)),
        end_median_s=float(np.median(ends)),
        end_p90_s=float(np.percentile(ends, 90)),
        ctc_score_right=_median(word.ctc_score for word in right),
        ctc_score_wrong=_median(word.ctc_score for word in wrong),
        probability_right=_median(word.probability for word in right),
        probability_wrong=_median(word.probability for word in wrong),
    )


def _median(values: Iterator[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else float("nan")


if __name__ == "__main__":
    main()
