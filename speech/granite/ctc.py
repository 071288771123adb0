"""What the encoder's CTC head reads from a clip: the draft that the language model verifies.

Granite Speech's encoder is trained with CTC over characters: label 0 is the blank, every other label
the code point of a letter (granite-4.0-1b-speech has 348 labels, up to Latin Extended-A). One linear
layer, whose weights vLLM holds anyway for the encoder's self-conditioning, turns the final states
into a transcript (Saon et al., arXiv 2603.11243).
"""

from dataclasses import dataclass

import torch

BLANK = 0


@dataclass(frozen=True)
class CtcHypothesis:
    """One clip, read greedily. On the device of the encoder, until somebody asks."""

    labels: torch.Tensor  # the likeliest of each frame, shape (frames,), int64
    entropies: torch.Tensor  # of each frame's distribution, shape (frames,), in nats

    @property
    def text(self) -> str:
        """The words, with single spaces between them and none around.

        Repeats are one letter, blanks none. A frame's label may be a space, and the head has no notion of
        where a text begins.
        """
        letters = torch.unique_consecutive(self.labels).tolist()
        return " ".join("".join(chr(letter) for letter in letters if letter != BLANK).split())

    @property
    def max_entropy(self) -> float:
        """The entropy of the frame that CTC is least sure of, which the paper gates by; 0 without frames."""
        return self.entropies.max().item() if len(self.entropies) else 0.0


def read(logits: torch.Tensor, lengths: list[int]) -> list[CtcHypothesis]:
    """Reads a padded batch.

    Args:
        logits: of the CTC head, shape (clips, frames, labels).
        lengths: true frames of each clip.
    """
    log_probs = logits.float().log_softmax(-1)
    labels, entropies = log_probs.argmax(-1), -(log_probs.exp() * log_probs).sum(-1)
    return [CtcHypothesis(labels[row, :length], entropies[row, :length]) for row, length in enumerate(lengths)]
