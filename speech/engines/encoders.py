"""Encoders that transcribe by themselves: Granite Speech's CTC head, and the CTC and TDT models of Transformers.

All decode greedily, and what comes out for a clip does not depend on the others: Granite's clips are packed in blocks
(``speech.granite.packing``). Those of Transformers' models are padded, but their features are extracted a clip at a
time (TurboCTC's extractor mirrors the end of a clip only where no longer one is beside it), and the models mask what is
padded in attention and convolutions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from speech.audio import SAMPLE_RATE
from speech.engines.base import DecodingResult
from speech.engines.pieces import Piece, timed_words
from speech.granite import ctc
from speech.granite.ctc import CtcHypothesis
from speech.granite.frontend import FrontEnd
from speech.granite.word_times import FRAME_S, LABEL_LAG_S
from speech.transcript import Usage, Word

# Samples of one padded batch, at most, by kind of device: what bounds the memory of a pass.
MAX_SAMPLES = {"cpu": 60 * SAMPLE_RATE, "cuda": 1920 * SAMPLE_RATE}
# Shorter clips have no frame after subsampling, or too few for a variance.
MIN_SAMPLES = SAMPLE_RATE // 10


@dataclass(frozen=True)
class EncodedText:
    """What an encoder makes of a clip.

    Attributes:
        result: without words.
        words: computes them, with their times: few clips are asked for them.
    """

    result: DecodingResult
    words: Callable[[], tuple[Word, ...]]


class GraniteCtcEncoder:
    """The Conformer and CTC head of a Granite Speech checkpoint; its language model is not loaded.

    Args:
        model: hub id or folder.
        device, dtype: of weights and arithmetic.

    Raises:
        OSError, ValueError: the checkpoint cannot be read, or is of another architecture.
    """

    def __init__(self, model: str, device: torch.device, dtype: torch.dtype) -> None:
        self._front_end = FrontEnd.load(model, device, dtype)

    def check_length(self, samples: int) -> None:
        self._front_end.check_length(samples)

    def passes(self, samples: Sequence[int]) -> Iterator[slice]:
        return self._front_end.passes(samples)

    @torch.inference_mode()
    def encode(self, clips: Sequence[np.ndarray]) -> list[EncodedText]:
        return [self._encoded(hypothesis) for hypothesis in self._front_end.hypotheses(clips)]

    def _encoded(self, hypothesis: CtcHypothesis) -> EncodedText:
        log_posteriors = hypothesis.log_posteriors
        tokens = _collapsed(log_posteriors, ctc.BLANK)
        return EncodedText(
            _ctc_result(hypothesis.text, tokens, log_posteriors, ctc.BLANK),
            lambda: timed_words(_pieces(log_posteriors, ctc.BLANK, chr), FRAME_S, LABEL_LAG_S),
        )


class _Padded:
    """A model of Transformers, its features, and batches of them.

    Args:
        loader: of the model's class.
        model: hub id or folder.
        device, dtype: of weights and arithmetic; features are float32.

    Raises:
        OSError, ValueError: the checkpoint cannot be read, or is of another architecture.
        ImportError: Transformers' feature extractor needs a package that is not installed.
    """

    def __init__(self, loader: Any, model: str, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(model)
        self._extractor, self._tokenizer = processor.feature_extractor, processor.tokenizer
        self._special_ids = frozenset(self._tokenizer.all_special_ids)
        self._model = loader.from_pretrained(model, dtype=dtype).to(device).eval()

    def check_length(self, samples: int) -> None:
        if samples < MIN_SAMPLES:
            raise ValueError(f"a clip of {samples} samples is too short")

    def passes(self, samples: Sequence[int]) -> Iterator[slice]:
        start, longest = 0, 0
        limit = MAX_SAMPLES[self._model.device.type]
        for index, count in enumerate(samples):
            longest = max(longest, count)
            if index > start and (index + 1 - start) * longest > limit:
                yield slice(start, index)
                start, longest = index, count
        if start < len(samples):
            yield slice(start, len(samples))

    def _features(self, clips: Sequence[np.ndarray]) -> list[Any]:
        """``input_features`` and ``attention_mask`` of each clip, on the CPU.

        Parakeet's extractor takes a ``device`` and leaves the samples where they are (transformers 5.19).
        """
        return [
            self._extractor(clip.astype(np.float32) / 32768.0, sampling_rate=SAMPLE_RATE, return_tensors="pt")
            for clip in clips
        ]

    def _batch(self, features: list[Any]) -> dict[str, torch.Tensor]:
        """The model's arguments: features padded to the longest, and a mask of which are not padding."""
        batch = {
            name: pad_sequence([each[name][0] for each in features], batch_first=True).to(self._model.device)
            for name in ("input_features", "attention_mask")
        }
        return batch | {"input_features": batch["input_features"].to(self._model.dtype)}

    def _text(self, token_ids: Sequence[int]) -> str:
        """The words of tokens that are neither blanks nor a token's further frames."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True, group_tokens=False)
        return text.strip()

    def _piece(self, token_id: int) -> str:
        """A token as it is in the vocabulary; empty for one that is no text."""
        piece: str = self._tokenizer.convert_ids_to_tokens(token_id)
        return "" if token_id in self._special_ids else piece


class CtcEncoder(_Padded):
    """A CTC model of Transformers: ``GraniteSpeech5ForCTC`` (TurboCTC), ``ParakeetForCTC``."""

    def __init__(self, model: str, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import AutoModelForCTC

        super().__init__(AutoModelForCTC, model, device, dtype)

    @torch.inference_mode()
    def encode(self, clips: Sequence[np.ndarray]) -> list[EncodedText]:
        return [
            self._encoded(log_posteriors, len(clip) / SAMPLE_RATE)
            for clip, log_posteriors in zip(clips, self.log_posteriors(clips), strict=True)
        ]

    @torch.inference_mode()
    def log_posteriors(self, clips: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """The log-posteriors of each clip, shape (frames, vocabulary), float32."""
        encoded = self._model.encoder(**self._batch(self._features(clips)))
        log_posteriors = self._model.ctc_head(encoded.last_hidden_state).float().log_softmax(-1)
        lengths = encoded.attention_mask.sum(-1).tolist()
        return [each[:length] for each, length in zip(log_posteriors, lengths, strict=True)]

    def _encoded(self, log_posteriors: torch.Tensor, clip_s: float) -> EncodedText:
        blank = self._model.config.pad_token_id  # Transformers' CTC models have no other
        tokens = _collapsed(log_posteriors, blank)
        return EncodedText(
            _ctc_result(self._text(tokens.tolist()), tokens, log_posteriors, blank),
            lambda: timed_words(_pieces(log_posteriors, blank, self._piece), clip_s / len(log_posteriors)),
        )


class TransducerEncoder(_Padded):
    """A transducer of Transformers: ``ParakeetForTDT``.

    It is decoded by Transformers' own loop, a step of the prediction network for all clips at a time.
    """

    def __init__(self, model: str, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import AutoModelForTDT

        super().__init__(AutoModelForTDT, model, device, dtype)

    @torch.inference_mode()
    def encode(self, clips: Sequence[np.ndarray]) -> list[EncodedText]:
        from transformers import LogitsProcessorList

        features = self._features(clips)
        logprobs = _ChosenLogprobs()
        output = self._model.generate(
            **self._batch(features),
            max_new_tokens=max(map(self._max_steps, features)),
            logits_processor=LogitsProcessorList([logprobs]),
        )
        rows = zip(
            [len(clip) / SAMPLE_RATE for clip in clips],
            features,
            output.sequences[:, 1:].tolist(),  # without the start token
            output.durations[:, 1:].tolist(),
            torch.stack(logprobs.steps, dim=1).tolist(),
            strict=True,
        )
        return [self._encoded(*row) for row in rows]

    def _encoded(
        self, clip_s: float, features: Any, tokens: list[int], durations: list[int], logprobs: list[float]
    ) -> EncodedText:
        """The result of a clip, from steps of its batch: tokens, frames by which each advanced, log-probabilities."""
        frames, limit = self._frames(int(features["attention_mask"].sum())), self._max_steps(features)
        steps = next(
            (step for step, at in enumerate(np.cumsum(durations), start=1) if at >= frames), len(durations) + 1
        )
        blank = self._model.config.blank_token_id
        said = [index for index, token in enumerate(tokens[: min(steps, limit)]) if token != blank]
        token_ids = tuple(tokens[index] for index in said)
        result = DecodingResult(
            text=self._text(token_ids),
            token_ids=token_ids,
            avg_logprob=sum(logprobs[index] for index in said) / len(said) if said else None,
            complete=steps <= limit,
            usage=Usage(audio_tokens=frames, output_tokens=len(token_ids)),
        )
        return EncodedText(
            result, lambda: timed_words(self._pieces(said, tokens, durations, logprobs, frames), clip_s / frames)
        )

    def _pieces(
        self, said: list[int], tokens: list[int], durations: list[int], logprobs: list[float], frames: int
    ) -> Iterator[Piece]:
        """What was said in which steps; a token lasts for the frames by which it advanced, of those that there are."""
        starts = [0, *np.cumsum(durations).tolist()]
        for step in said:
            if text := self._piece(tokens[step]):
                last = max(starts[step], min(starts[step + 1], frames) - 1)
                yield Piece(text, starts[step], last, logprobs[step])

    def _frames(self, features: int) -> int:
        """Frames of the encoder for so many of its input."""
        return -(-features // int(self._model.config.encoder_config.subsampling_factor))

    def _max_steps(self, features: Any) -> int:
        """Steps after which Transformers ends a clip that is decoded alone; its own default, less the start token."""
        return int(self._model.config.max_symbols_per_step) * self._frames(features["input_features"].shape[1]) - 1


class _ChosenLogprobs:
    """Keeps the log-probability of the likeliest token of each step, shape (clips,), of those that may be chosen."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.steps.append(scores.float().log_softmax(-1).amax(-1))
        return scores


def _ctc_result(text: str, tokens: torch.Tensor, log_posteriors: torch.Tensor, blank: int) -> DecodingResult:
    """The result of a clip by greedy CTC decoding.

    ``avg_logprob`` is the log-probability of its tokens, over all ways to align them to the frames (Graves et al. 2006,
    section 4.1), divided by their number.

    Args:
        text: the words of the tokens.
        tokens: of ``_collapsed``.
        log_posteriors: shape (frames, labels), float32.
        blank: the label that is no token.
    """
    lengths = torch.tensor([len(log_posteriors)]), torch.tensor([len(tokens)])
    loss = F.ctc_loss(log_posteriors[:, None], tokens[None], *lengths, blank=blank, reduction="sum")
    return DecodingResult(
        text=text,
        token_ids=tuple(tokens.tolist()),
        avg_logprob=-loss.item() / len(tokens) if len(tokens) else None,
        complete=True,
        usage=Usage(audio_tokens=len(log_posteriors), output_tokens=len(tokens)),
    )


def _pieces(log_posteriors: torch.Tensor, blank: int, text_of: Callable[[int], str]) -> Iterator[Piece]:
    """The text of each run of one label, blanks and labels without text left out."""
    best = log_posteriors.max(-1)
    logprobs = best.values.tolist()
    frame = 0
    for label, run in groupby(best.indices.tolist()):
        first, frame = frame, frame + len(list(run))
        if label != blank and (text := text_of(label)):
            yield Piece(text, first, frame - 1, max(logprobs[first:frame]))


def _collapsed(log_posteriors: torch.Tensor, blank: int) -> torch.Tensor:
    """The tokens of the likeliest labels: repeated ones are one token, blanks none; shape (tokens,)."""
    labels = torch.unique_consecutive(log_posteriors.argmax(-1))
    return labels[labels != blank]
