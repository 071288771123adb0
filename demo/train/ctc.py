"""Phase ctc: trains the encoder with CTC over characters, on its last layer and, with weight 0.3, its middle one.

The encoder feeds the middle layer's CTC posteriors back into its states (self-conditioning). Labels
are Unicode code points and the blank is 0, as in the released checkpoints.

The test set's voice is in no training clip; masking, frequency warping and spectral tilt are the
augmentation for speaker variety.
"""

import logging
from collections.abc import Callable
from random import Random

import torch
from torch.nn.functional import ctc_loss
from transformers import GraniteSpeechForConditionalGeneration

from demo.train.checkpoint import CTC_BLANK, CTC_LABELS
from demo.train.corpus import Clip, Corpus
from demo.train.evaluate import ctc_error_rate
from demo.train.schedule import Budget, Trainer, autocast, equal_length_batches, worker

log = logging.getLogger(__name__)

MELS = 80
PEAK_RATE = 1.5e-3
FRAMES_PER_BATCH = 2880
_MIDDLE_WEIGHT = 0.3
# CTC converges sooner on short clips with little augmentation, in small batches (more steps).
_SHORT_FRAMES, _SHORT_STEPS = 150, 500
_FULL_STRENGTH_STEPS = 1500
_REPORT_EVERY_MINUTES = 3.0


def train_encoder(
    model: GraniteSpeechForConditionalGeneration,
    train: Corpus,
    dev: Corpus,
    budget: Budget,
    *,
    seed: int,
    fresh: bool,
    save: Callable[[], None],
) -> None:
    """Trains ``model``'s encoder in place until the budget is spent; ``save`` is called at each report.

    A ``fresh`` encoder starts with short clips and little augmentation.
    """
    rng = Random(seed * 1000 + worker())
    device = model.device
    encoder = model.model.encoder.train()
    trainer = Trainer(list(encoder.parameters()), budget, PEAK_RATE)
    running, next_report = 0.0, _REPORT_EVERY_MINUTES
    while budget.progress < 1:
        clips = train.clips
        if fresh and trainer.step < _SHORT_STEPS:
            clips = [clip for clip in clips if clip.frames <= _SHORT_FRAMES]
        for batch in equal_length_batches(clips, FRAMES_PER_BATCH, rng):
            if budget.progress >= 1 or (len(clips) < len(train.clips) and trainer.step >= _SHORT_STEPS):
                break
            strength = min(1.0, trainer.step / _FULL_STRENGTH_STEPS) if fresh else 1.0
            features = load_batch(train, batch, rng, strength).to(device)
            _, loss = encode(model, features, [clip.text for clip in batch])
            trainer.update(loss)
            running = 0.98 * running + 0.02 * loss.item()
            if trainer.step % 100 == 0:
                log.info("ctc step %d, %.1f min, loss %.3f", trainer.step, budget.minutes_used, running)
            if worker() == 0 and budget.minutes_used > next_report:
                next_report += _REPORT_EVERY_MINUTES
                save()
                log.info("ctc dev wer %.1f %%", 100 * ctc_error_rate(model, dev, limit=60))
                encoder.train()
    if worker() == 0:
        save()


def encode(
    model: GraniteSpeechForConditionalGeneration, features: torch.Tensor, texts: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The encoder's last layer, and the CTC loss per character: the last layer's plus 0.3 of the middle one's."""
    encoder = model.model.encoder
    middle: list[torch.Tensor] = []
    # The encoder returns only its last layer. Its first call of ``out`` is the middle layer's.
    hook = encoder.out.register_forward_hook(lambda module, args, output: middle.append(output))
    with autocast(features.device):
        hidden = encoder(features).last_hidden_state
        logits = encoder.out(hidden)
    hook.remove()
    targets = [code_points(text) for text in texts]
    last, middle_one = (ctc_per_label(scores, targets, CTC_BLANK) for scores in (logits, middle[0]))
    return hidden, last + _MIDDLE_WEIGHT * middle_one


def ctc_per_label(scores: torch.Tensor, targets: list[torch.Tensor], blank: int) -> torch.Tensor:
    """CTC loss per label of ``[clips, positions, labels]``, all rows full length; 0 where no alignment exists."""
    lengths = torch.tensor([len(target) for target in targets])
    positions = torch.full((len(targets),), scores.shape[1])
    by_time = scores.float().log_softmax(-1).transpose(0, 1).cpu()
    losses = ctc_loss(by_time, torch.cat(targets), positions, lengths, blank, reduction="none", zero_infinity=True)
    return losses.sum() / lengths.sum().clamp(min=1)


def code_points(text: str) -> torch.Tensor:
    """The CTC labels of a text."""
    labels = torch.tensor([ord(char) for char in text], dtype=torch.long)
    if len(labels) and int(labels.max()) >= CTC_LABELS:
        raise ValueError(f"a character of {text!r} has no CTC label")
    return labels


def load_batch(corpus: Corpus, batch: list[Clip], rng: Random, strength: float = 1.0) -> torch.Tensor:
    """Features of clips of one length, each augmented in its own way, all shortened by the same 0 to 14 frames."""
    keep = batch[0].frames - rng.randrange(15)  # so that incomplete Q-Former windows are trained too
    features = torch.stack([corpus.features(clip)[:keep] for clip in batch])
    return augment(features, rng, strength)


def augment(features: torch.Tensor, rng: Random, strength: float = 1.0) -> torch.Tensor:
    """Frequency warping, spectral tilt, frequency and time masking; ``[batch, frames, 160]``."""
    batch, frames, _ = features.shape
    mel = features.reshape(batch, frames * 2, MELS)
    noise = torch.Generator().manual_seed(rng.getrandbits(32))
    bins = torch.arange(MELS, dtype=torch.float32)

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.empty(batch, 1).uniform_(low, high, generator=noise)

    tract = uniform(1 - 0.1 * strength, 1 + 0.1 * strength)  # vocal tract length perturbation
    source = (bins * tract).clamp(0, MELS - 1)
    below = source.floor().long().clamp(max=MELS - 2)
    share = (source - below)[:, None, :]
    pick = below[:, None, :].expand(-1, frames * 2, -1)
    mel = torch.lerp(mel.gather(2, pick), mel.gather(2, pick + 1), share)
    mel = mel + (uniform(-0.15, 0.15) * (bins / MELS - 0.5))[:, None, :] + uniform(-0.1, 0.1)[:, None, :]

    floor = mel.mean(dim=(1, 2), keepdim=True)
    for _ in range(2):
        width, start = uniform(0, 10 * strength), uniform(0, MELS)
        band = (bins >= start) & (bins < start + width)
        mel = torch.where(band[:, None, :], floor, mel)
    time = torch.arange(frames * 2, dtype=torch.float32)
    for _ in range(max(1, frames // 150)):
        width, start = uniform(0, 24 * strength), uniform(0, frames * 2)
        span = (time >= start) & (time < start + width)
        mel = torch.where(span[:, :, None], floor, mel)
    return mel.reshape(batch, frames, 2 * MELS)
