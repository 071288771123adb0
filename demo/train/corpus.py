"""Phase corpus: clips of synthetic speech with their references, as log-mel features on disk.

A corpus folder holds, for each split, ``<split>.jsonl`` (a clip a line) and ``<split>.f16`` (all
their features concatenated). Features are ``GraniteSpeechFeatureExtractor``'s of each clip alone.

Every clip is extended with its own background noise to a multiple of 0.6 s. So many clips have
exactly the same length and batches need no padding: the encoder has no mask, so that padded frames
would change the frames beside them, which never happens at inference.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch
from transformers import GraniteSpeechFeatureExtractor

from demo.train.channel import random_channel
from demo.train.grammar import Sentence, join, name_sentence, part_of, sentence
from demo.train.voices import Speaker, held_out_speaker, training_speaker
from speech.audio import SAMPLE_RATE

FRAME_SAMPLES = 320  # two mel hops, stacked
FRAMES_STEP = 30  # clip lengths are multiples of this: two Q-Former windows, 0.6 s
MAX_FRAMES = 1500  # 30 s, the clip limit of the real model
FEATURE_SIZE = 160

SPLITS = ("train", "dev", "test", "names")


@dataclass(frozen=True)
class Clip:
    """One training example; ``names`` are its rare names, ``offset`` and ``frames`` find its features."""

    text: str
    german: str
    names: tuple[str, ...]
    voice: str
    offset: int
    frames: int


class Corpus:
    """A split read from disk: clips and their features (memory-mapped)."""

    def __init__(self, folder: Path, split: str) -> None:
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        self.clips = [Clip(**{**row, "names": tuple(row["names"])}) for row in rows]
        self._features = np.memmap(folder / f"{split}.f16", dtype=np.float16, mode="r").reshape(-1, FEATURE_SIZE)

    def features(self, clip: Clip) -> torch.Tensor:
        """The clip's features, ``[frames, 160]``, float32."""
        return torch.from_numpy(self._features[clip.offset : clip.offset + clip.frames].astype(np.float32))


def build_corpus(folder: Path, *, train_clips: int, test_clips: int, seed: int, workers: int) -> None:
    """Synthesises every split. The same seed gives the same sentences, voices and telephone lines."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {"train": train_clips, "dev": test_clips, "test": test_clips, "names": test_clips}
    with ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for split, count in counts.items():
            seeds = [f"{seed}/{split}/{i}" for i in range(count)]
            made = pool.map(partial(_make_clip, split), seeds, chunksize=16)
            _write_split(folder, split, made)


def _write_split(folder: Path, split: str, made: Iterator[tuple[dict, np.ndarray]]) -> None:
    offset = 0
    with open(folder / f"{split}.jsonl", "w") as rows, open(folder / f"{split}.f16", "wb") as features:
        for row, frames in made:
            clip = Clip(**row, offset=offset, frames=len(frames))
            rows.write(json.dumps(asdict(clip), ensure_ascii=False) + "\n")
            features.write(frames.tobytes())
            offset += len(frames)


_extractor: GraniteSpeechFeatureExtractor | None = None


def log_mel(samples: np.ndarray) -> np.ndarray:
    """The model's input features of one clip, ``[frames, 160]``, float16."""
    global _extractor
    if _extractor is None:
        _extractor = GraniteSpeechFeatureExtractor()
    return _extractor(torch.from_numpy(samples))["input_features"][0].numpy().astype(np.float16)


def _make_clip(split: str, seed: str) -> tuple[dict, np.ndarray]:
    rng = Random(seed)
    speaker = training_speaker(rng) if split in ("train", "dev") else held_out_speaker(rng)
    sentences = _script(split, rng)
    samples, spoken = _speak(sentences, speaker, rng)
    samples = random_channel(samples, rng)
    whole = join(spoken) if spoken else Sentence("", "", "")
    row = {"text": whole.text, "german": whole.german, "names": whole.names, "voice": speaker.voice}
    return row, log_mel(samples)


def _script(split: str, rng: Random) -> list[Sentence]:
    """The sentences of one clip."""
    test = split != "train"
    if split == "names":
        return [name_sentence(rng, test=True)]
    plain = partial(sentence, rng, test=test)
    kind = rng.random()
    if split != "train":
        # One in twelve is long; none is cut, silent or with rare names, so that the error rate is that of plain speech.
        return [plain() for _ in range(rng.choice((3, 4, 5, 6)) if kind < 0.08 else 1)]
    if kind < 0.015:
        return []
    if kind < 0.07:
        return [plain() if rng.random() < 0.75 else name_sentence(rng, test=False) for _ in range(rng.randrange(3, 8))]
    if kind < 0.35:
        return [name_sentence(rng, test=False)]
    if kind < 0.47:
        return [part_of(plain(), rng)]
    if kind < 0.55:
        return [plain(), plain()]
    return [plain()]


def _speak(sentences: list[Sentence], speaker: Speaker, rng: Random) -> tuple[np.ndarray, list[Sentence]]:
    """The sentences that fit into 30 s, synthesised, with pauses between and silence around, to a multiple of 0.6 s."""
    step = FRAMES_STEP * FRAME_SAMPLES
    if not sentences:
        # Not digital silence: random_channel scales its noise to the power of the signal.
        count = rng.randrange(1, 8) * step
        return np.random.default_rng(rng.getrandbits(32)).standard_normal(count).astype(np.float32) * 1e-4, []
    parts = [_silence(rng.uniform(0.02, 0.5))]
    fitting: list[Sentence] = []
    room = MAX_FRAMES * FRAME_SAMPLES - SAMPLE_RATE
    for one in sentences:
        spoken = speaker.say(one.spoken)
        room -= len(spoken)
        if room < 0:
            break
        fitting.append(one)
        parts += [spoken, _silence(rng.uniform(0.1, 0.7))]
        room -= len(parts[-1])
    parts[-1] = _silence(rng.uniform(0.04, 0.4))
    samples = np.concatenate(parts)
    return np.pad(samples, (0, -len(samples) % step)), fitting


def _silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * SAMPLE_RATE), dtype=np.float32)
