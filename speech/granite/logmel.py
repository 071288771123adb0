"""Log-mel features of many clips at once, on any device, without padding.

The arithmetic is that of Transformers' ``GraniteSpeechFeatureExtractor`` for one clip: torchaudio's
``MelSpectrogram`` with its window and filters, log10, the lowest values raised to 8 below the clip's highest, scaled,
and two frames stacked to one. That extractor pads the clips of a batch to the longest before all this, so that the
highest value and the frames at the end of a clip depend on the others.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

MIN_POWER = 1e-10
DYNAMIC_RANGE = 8.0  # in log10 of power
STACKED = 2  # frames of the spectrogram in one of the encoder


class LogMel:
    """Features of clips.

    Args:
        transform: torchaudio's ``MelSpectrogram`` (``mel_filters`` of the feature extractor).
        device: of the clips and the features.
    """

    def __init__(self, transform: Any, device: torch.device) -> None:
        self._fft, self._hop = transform.n_fft, transform.hop_length
        window = transform.spectrogram.window
        missing = self._fft - len(window)  # torch.stft centres a window that is shorter than the transform
        self._window = F.pad(window, (missing // 2, missing - missing // 2)).to(device)
        self._filters = transform.mel_scale.fb.to(device)

    @property
    def min_samples(self) -> int:
        """Samples of the shortest clip: its ends are mirrored over half a transform, and it has one encoder frame."""
        return max(self._fft // 2 + 1, self._hop)

    def lengths(self, samples: Sequence[int]) -> list[int]:
        """Frames of the encoder for clips of so many samples."""
        return [(count // self._hop + 1) // STACKED for count in samples]

    def __call__(self, clips: Sequence[torch.Tensor]) -> torch.Tensor:
        """The features of all clips, one clip after another.

        Args:
            clips: int16 at 16 kHz, each of shape (samples,), with at least ``min_samples``.

        Returns:
            Shape (frames of all clips, stacked mel bins), float32.
        """
        windows = [self._windows(clip) for clip in clips]
        spectrum = torch.fft.rfft(torch.cat(windows) * self._window)
        power = torch.view_as_real(spectrum).square().sum(-1)
        log_power = (power @ self._filters).clamp_(min=MIN_POWER).log10_()
        # The odd last frame of a clip is left out, but its power counts for the highest.
        highest = torch.stack([each.max() for each in log_power.split([len(each) for each in windows])])
        counts = torch.tensor([len(each) for each in windows], device=log_power.device)
        floor = highest.repeat_interleave(counts, output_size=len(log_power)) - DYNAMIC_RANGE
        log_power = torch.maximum(log_power, floor[:, None]).div_(4).add_(1)
        kept = [each[: len(each) // STACKED * STACKED] for each in log_power.split([len(each) for each in windows])]
        return torch.cat(kept).view(-1, STACKED * log_power.shape[1])

    def _windows(self, clip: torch.Tensor) -> torch.Tensor:
        """Overlapping windows of a clip, mirrored at its ends: shape (spectrogram frames, transform's length)."""
        half = self._fft // 2
        waveform = clip.float() / 32768.0
        return F.pad(waveform[None], (half, half), mode="reflect")[0].unfold(0, self._fft, self._hop)
