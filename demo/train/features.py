"""The trained encoder's output for every training clip, cached on disk.

With the encoder frozen, a training step takes a quarter of the time of the whole model's.
The first variant is of the clip as it is, the others are of augmented features, so that the language
model is trained on uncertain encoder output too.
"""

from pathlib import Path
from random import Random

import numpy as np
import torch
from transformers import GraniteSpeechForConditionalGeneration

from demo.train.corpus import Clip, Corpus
from demo.train.ctc import augment
from demo.train.schedule import autocast, equal_length_batches, wait_for_all, worker, workers

_FRAMES_PER_BATCH = 12_000


def cache_features(
    model: GraniteSpeechForConditionalGeneration, corpus: Corpus, path: Path, *, variants: int, seed: int
) -> None:
    """Writes ``[variants, all frames, hidden]`` of float16 to ``path``."""
    rng = Random(seed * 1000 + worker())
    encoder = model.model.encoder.eval()
    frames = sum(clip.frames for clip in corpus.clips)
    shape = (variants, frames, model.config.encoder_config.hidden_dim)
    path.unlink(missing_ok=True)
    partial = path.with_suffix(".part")  # renamed when complete: missing clips of a partial cache would read as zeros
    if worker() == 0:
        np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape).flush()
    wait_for_all()
    cached = np.lib.format.open_memmap(partial, mode="r+")
    for variant in range(variants):
        batches = list(equal_length_batches(corpus.clips, _FRAMES_PER_BATCH, Random(seed + variant)))
        for batch in batches[worker() :: workers()]:
            features = torch.stack([corpus.features(clip) for clip in batch])
            if variant:
                features = augment(features, rng)
            with torch.inference_mode(), autocast(model.device):
                hidden = encoder(features.to(model.device)).last_hidden_state.float().cpu().numpy()
            for clip, rows in zip(batch, hidden, strict=True):
                cached[variant, clip.offset : clip.offset + clip.frames] = rows
    cached.flush()
    wait_for_all()
    if worker() == 0:
        partial.rename(path)


class CachedFeatures:
    """The cache, read from disk."""

    def __init__(self, path: Path) -> None:
        self._cached = np.load(path, mmap_mode="r")

    def batch(self, clips: list[Clip], frames: int, rng: Random) -> torch.Tensor:
        """``[clips, frames, hidden]``: the first ``frames`` frames of each, in a random variant."""
        rows = [self._cached[rng.randrange(len(self._cached)), clip.offset : clip.offset + frames] for clip in clips]
        return torch.from_numpy(np.stack(rows).astype(np.float32))
