"""The encoder's CTC hypothesis of a clip: the draft that the language model verifies.

Granite Speech's encoder is trained with CTC over characters: label 0 is the blank, labels up to 255 are code points.
The 92 above, of granite-4.0-1b-speech, are katakana for the sounds of Japanese (model card of granite-speech-4.1-2b),
in an order that is not published. One linear layer, whose weights the encoder's self-conditioning needs anyway, maps
the final states to labels (Saon et al., arXiv 2603.11243).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

BLANK = 0
CODE_POINTS = 256  # labels below are characters by their code points


@dataclass(frozen=True)
class CtcHypothesis:
    """Greedy CTC decoding of one clip.

    Attributes:
        labels: the likeliest of each frame, shape (frames,), on the CPU.
        log_posteriors: natural logarithm of each frame's, shape (frames, labels), float32, on the encoder's device.
    """

    labels: torch.Tensor
    log_posteriors: torch.Tensor

    @cached_property
    def text(self) -> str:
        """The words, with single spaces between them and none around.

        Repeated labels are one character, blanks none. A frame's label may be a space, also before the first word
        and after another space.
        """
        labels = torch.unique_consecutive(self.labels).tolist()
        return " ".join("".join(chr(label) for label in labels if label != BLANK).split())

    def transcript(self, language: str) -> str | None:
        """The text, if it is one in the script of the language: not in Japanese, for whose labels see above."""
        return None if language == "ja" else self.text


def decode(logits: torch.Tensor, lengths: Sequence[int]) -> list[CtcHypothesis]:
    """Decodes clips greedily. The labels of all come from the encoder's device in one copy.

    Args:
        logits: of the CTC head for the frames of all clips, one clip after another, shape (frames, labels).
        lengths: frames of each clip.
    """
    log_posteriors = logits.float().log_softmax(-1)
    clips = zip(log_posteriors.argmax(-1).cpu().split(list(lengths)), log_posteriors.split(list(lengths)), strict=True)
    return [CtcHypothesis(*clip) for clip in clips]
