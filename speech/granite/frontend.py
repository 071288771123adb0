"""Granite Speech's front end: from samples to the audio embeddings of the language model, and the CTC reading.

Log-mel features, Conformer with CTC head, projector, in plain PyTorch on the checkpoint's own weights. Many clips are
encoded at once, and what comes out for a clip does not depend on the others (``speech.granite.packing``).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from speech.granite import ctc
from speech.granite.conformer import Conformer
from speech.granite.ctc import CtcHypothesis
from speech.granite.logmel import LogMel
from speech.granite.packing import Packing
from speech.granite.projector import Projector
from speech.granite.weights import Weights, read_tensors

# Blocks of one pass, at most, by kind of device: as many as give the device enough to do at once. On a CPU a pass
# should fit its caches, and end soon, so that the language model has work.
MAX_BLOCKS = {"cpu": 16, "cuda": 128}

Encoded = TypeVar("Encoded")
Encode = Callable[[list[torch.Tensor]], list[Encoded]]


@dataclass(frozen=True)
class EncodedClip:
    """What the front end makes of a clip.

    Attributes:
        embeddings: of the audio, for the language model, shape (audio tokens, its hidden size), on the CPU, from where
            another process takes them.
        hypothesis: of the CTC head.
    """

    embeddings: torch.Tensor
    hypothesis: CtcHypothesis


class FrontEnd:
    """The front end of one checkpoint.

    Args:
        config: of the checkpoint.
        log_mel: features of clips.
        tensors: ``encoder.*`` and ``projector.*`` of the checkpoint.

    Raises:
        UnknownWeightsError: the checkpoint is not of an architecture that is known here.
    """

    def __init__(self, config: Any, log_mel: LogMel, tensors: dict[str, torch.Tensor]) -> None:
        weights = Weights(tensors)
        self._log_mel = log_mel
        self._conformer = Conformer(config.encoder_config, weights.scope("encoder"))
        self._projector = Projector(config, weights.scope("projector"))
        self._block, self._window = config.encoder_config.context_size, config.window_size
        weights.check_all_used()
        some_tensor = next(iter(tensors.values()))
        self._device, self._dtype = some_tensor.device, some_tensor.dtype
        self._max_blocks = MAX_BLOCKS[self._device.type]

    @classmethod
    def load(cls, model: str, device: torch.device, dtype: torch.dtype) -> "FrontEnd":
        """Loads the front end of a checkpoint.

        Args:
            model: hub id or folder.
            device, dtype: of weights and arithmetic; log-mel features and CTC posteriors are float32.

        Raises:
            OSError: it cannot be read.
            UnknownWeightsError: it is not of an architecture that is known here.
        """
        from transformers import AutoConfig, AutoFeatureExtractor

        log_mel = LogMel(AutoFeatureExtractor.from_pretrained(model).mel_filters, device)
        tensors = read_tensors(_folder(model), ("encoder", "projector"), device, dtype)
        return cls(AutoConfig.from_pretrained(model), log_mel, tensors)

    def check_length(self, samples: int) -> None:
        """Raises ValueError for a clip of too few samples to be encoded."""
        if samples < self._log_mel.min_samples:
            raise ValueError(f"a clip of {samples} samples is too short")

    @torch.inference_mode()
    def encode(self, clips: Sequence[np.ndarray]) -> list[EncodedClip]:
        """Encodes clips: int16 mono at 16 kHz, each of shape (samples,)."""
        return self._in_passes(clips, self._encode)

    @torch.inference_mode()
    def hypotheses(self, clips: Sequence[np.ndarray]) -> list[CtcHypothesis]:
        """The CTC hypotheses of clips alone, without the projector's work."""
        return self._in_passes(clips, self._hypotheses_alone)

    def _in_passes(self, clips: Sequence[np.ndarray], encode: Encode[Encoded]) -> list[Encoded]:
        encoded: list[Encoded] = []
        for part in self.passes([len(clip) for clip in clips]):
            encoded += self._within_memory(clips[part], encode)
        return encoded

    def _within_memory(self, clips: Sequence[np.ndarray], encode: Encode[Encoded]) -> list[Encoded]:
        """Encodes clips in one pass; where the device has no memory for it in two, and later passes are smaller too."""
        try:
            return encode(self._on_device(clips))
        except torch.OutOfMemoryError:
            if len(clips) == 1:
                raise
            self._max_blocks = max(1, self._max_blocks // 2)
        # Not in the handler: the error's traceback holds the tensors of the pass.
        torch.cuda.empty_cache()
        middle = len(clips) // 2
        return self._within_memory(clips[:middle], encode) + self._within_memory(clips[middle:], encode)

    def _on_device(self, clips: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """The samples on the device, by one copy, on a GPU from pinned memory and beside its work."""
        samples = torch.from_numpy(np.concatenate(clips))
        if self._device.type == "cuda":
            samples = samples.pin_memory()
        return list(samples.to(self._device, non_blocking=True).split([len(clip) for clip in clips]))

    def passes(self, samples: Sequence[int]) -> Iterator[slice]:
        """Splits clips of so many samples, in their order, into passes of what the device is given at once."""
        start, blocks = 0, 0
        for index, count in enumerate(Packing(self._log_mel.lengths(samples), self._block, self._device).blocks):
            if index > start and blocks + count > self._max_blocks:
                yield slice(start, index)
                start, blocks = index, 0
            blocks += count
        if start < len(samples):
            yield slice(start, len(samples))

    def _packing(self, waveforms: list[torch.Tensor]) -> Packing:
        return Packing(self._log_mel.lengths([len(each) for each in waveforms]), self._block, self._device)

    def _states(self, waveforms: list[torch.Tensor], packing: Packing) -> torch.Tensor:
        """The Conformer's states, shape (frames of all blocks, hidden size)."""
        features = self._log_mel(waveforms).to(self._dtype)
        return self._conformer(packing.pack(features), packing).flatten(0, 1)

    def _encode(self, waveforms: list[torch.Tensor]) -> list[EncodedClip]:
        packing = self._packing(waveforms)
        # Before the Conformer: a copy to a GPU waits for all that it was given before.
        window_rows = packing.windows(self._window)
        rows = self._states(waveforms, packing)
        windows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])[window_rows]
        # One copy for all clips, in the thread that encodes: each would wait for the GPU's work on the next pass.
        embeddings = self._projector(windows).cpu().split([-(-length // self._window) for length in packing.lengths])
        return [
            EncodedClip(clip.flatten(0, 1), hypothesis)
            for clip, hypothesis in zip(embeddings, self._hypotheses(rows, packing), strict=True)
        ]

    def _hypotheses_alone(self, waveforms: list[torch.Tensor]) -> list[CtcHypothesis]:
        packing = self._packing(waveforms)
        return self._hypotheses(self._states(waveforms, packing), packing)

    def _hypotheses(self, rows: torch.Tensor, packing: Packing) -> list[CtcHypothesis]:
        return ctc.decode(self._conformer.ctc_logits(rows[packing.rows]), packing.lengths)


def _folder(model: str) -> Path:
    """The folder of a checkpoint; one of the hub is downloaded into its cache."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, allow_patterns="*.safetensors"))
