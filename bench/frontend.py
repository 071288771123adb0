"""The front end of Granite Speech alone: seconds of audio a CPU second, by the number of clips encoded at once.

    python -m bench.frontend [--model demo/model] [--manifest demo/samples/manifest.jsonl] [--clips 1,16,64]

From samples to audio embeddings and CTC labels, in this process: ``speech.granite.frontend``, and Transformers' feature
extractor, encoder and projector, one clip at a time, which is their only way to encode a clip as if alone. Both take
turns, round by round; figures are medians. Prints a table and, last, a line of JSON.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoProcessor, GraniteSpeechForConditionalGeneration

from bench.speculation import clips_of
from speech.audio import SAMPLE_RATE
from speech.granite.frontend import FrontEnd


@dataclass(frozen=True)
class Measurement:
    """Seconds of audio a CPU second, for so many clips at once."""

    clips: int
    front_end: float
    transformers: float
    ratio: float


class Reference:
    """Transformers' feature extractor, encoder, CTC head and projector."""

    def __init__(self, model: str) -> None:
        self._extractor = AutoProcessor.from_pretrained(model).audio_processor
        loaded: Any = GraniteSpeechForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
        self._model = loaded.eval().model

    @torch.inference_mode()
    def encode(self, clips: Sequence[np.ndarray]) -> None:
        for clip in clips:
            features = self._extractor(torch.from_numpy(clip.astype(np.float32) / 32768.0)[None])["input_features"]
            states = self._model.encoder(features).last_hidden_state
            self._model.projector(states)
            self._model.encoder.out(states).argmax(-1)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo/model")
    parser.add_argument("--manifest", default="demo/samples/manifest.jsonl")
    parser.add_argument("--clips", default="1,16,64")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parsed = parser.parse_args(arguments)
    torch.set_num_threads(parsed.threads)
    clips = [clip.samples for clip in clips_of(parsed.manifest, parsed.model)[1]]
    ours = FrontEnd.load(parsed.model, torch.device("cpu"), torch.float32)
    theirs = Reference(parsed.model)
    measured = [
        _measure(list(itertools.islice(itertools.cycle(clips), int(count))), ours.encode, theirs.encode, parsed.rounds)
        for count in parsed.clips.split(",")
    ]
    table = Table("clips at once", "front end", "Transformers", "ratio", title="seconds of audio a CPU second")
    for each in measured:
        table.add_row(str(each.clips), f"{each.front_end:.0f}", f"{each.transformers:.0f}", f"{each.ratio:.2f}")
    Console().print(table)
    print(json.dumps([asdict(each) for each in measured]))


def _measure(
    clips: list[np.ndarray],
    ours: Callable[[list[np.ndarray]], Any],
    theirs: Callable[[list[np.ndarray]], Any],
    rounds: int,
) -> Measurement:
    audio_s = sum(map(len, clips)) / SAMPLE_RATE
    ours(clips), theirs(clips)  # warm-up: one-time initialisation
    speeds = [(audio_s / _cpu_seconds(ours, clips), audio_s / _cpu_seconds(theirs, clips)) for _ in range(rounds)]
    return Measurement(
        clips=len(clips),
        front_end=statistics.median(speed for speed, _ in speeds),
        transformers=statistics.median(speed for _, speed in speeds),
        ratio=statistics.median(speed / other for speed, other in speeds),
    )


def _cpu_seconds(encode: Callable[[list[np.ndarray]], Any], clips: list[np.ndarray]) -> float:
    start = time.process_time()
    encode(clips)
    return time.process_time() - start


if __name__ == "__main__":
    main()
