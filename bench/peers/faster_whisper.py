"""faster-whisper as a contender of ``bench.peers.whisper``: clip by clip, or batched over one recording of all clips.

Run by an interpreter that has faster-whisper; needs nothing else of this repository's environment.
"""

import argparse
import os
from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from bench.peers.turns import SAMPLE_RATE, Answer, Clips, compete, load_clips, waveform


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("clips")
    parser.add_argument("--compute-type", default="float32")
    parser.add_argument("--batch-size", type=int, default=0, help="0: clip by clip")
    parser.add_argument("--tokens", type=int, help="of every clip, whatever the model would write")
    parsed = parser.parse_args()
    compete(lambda: _load(parsed))


def _load(parsed: argparse.Namespace) -> Callable[[], Answer]:
    from faster_whisper import BatchedInferencePipeline, WhisperModel
    from faster_whisper.tokenizer import Tokenizer

    clips = load_clips(parsed.clips)
    model = WhisperModel(parsed.model, compute_type=parsed.compute_type, cpu_threads=os.cpu_count() or 1)
    options: dict[str, Any] = {"language": "en", "beam_size": 1, "temperature": 0.0, "without_timestamps": True}
    options |= {"vad_filter": False, "no_speech_threshold": None}
    # Greedy, once: no second attempt at a higher temperature.
    options |= {"compression_ratio_threshold": None, "log_prob_threshold": None}
    if parsed.tokens:
        end = Tokenizer(model.hf_tokenizer, model.model.is_multilingual, task="transcribe", language="en").eot
        # CTranslate2 ends a clip at half the length that it is given, of prompt (4 tokens) and text, less one.
        options |= {"max_new_tokens": 2 * (parsed.tokens + 1) - 4, "suppress_tokens": [end]}
    if parsed.batch_size:
        pipeline = BatchedInferencePipeline(model)
        return lambda: _batched(pipeline, clips, options | {"batch_size": parsed.batch_size})
    return lambda: _one_by_one(model, clips, options | {"condition_on_previous_text": False})


def _one_by_one(model: Any, clips: Clips, options: dict[str, Any]) -> Answer:
    segments = [list(model.transcribe(waveform(clip), **options)[0]) for clip in clips]
    texts = ["".join(segment.text for segment in each).strip() for each in segments]
    return Answer(texts, sum(len(segment.tokens) for each in segments for segment in each))


def _batched(pipeline: Any, clips: Clips, options: dict[str, Any]) -> Answer:
    starts_s = np.concatenate([[0], np.cumsum([len(clip) for clip in clips])]) / SAMPLE_RATE
    spans = [{"start": start, "end": end} for start, end in pairwise(starts_s)]
    segments, _ = pipeline.transcribe(waveform(np.concatenate(clips)), clip_timestamps=spans, **options)
    texts, tokens = [""] * len(clips), 0
    for segment in segments:
        texts[bisect_right(starts_s, segment.start + 0.001) - 1] += segment.text
        tokens += len(segment.tokens)
    return Answer([text.strip() for text in texts], tokens)


if __name__ == "__main__":
    main()
