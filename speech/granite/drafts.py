"""The drafts that the language model verifies, from CTC hypotheses (Saon et al., arXiv 2603.11243).

The paper's fast mode, which takes sure hypotheses as texts, is not here: see ARCHITECTURE.md.
"""

from typing import Any, Protocol

from speech.granite.ctc import CtcHypothesis
from speech.granite.spelling import SpellingCorrector


class Tokenizer(Protocol):
    """As much of the model's tokenizer as is used here."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]: ...


class Drafts:
    """The drafts of one engine.

    Args:
        tokenizer: of the language model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._corrector = SpellingCorrector()

    def extra_args(self, hypothesis: CtcHypothesis) -> dict[str, Any]:
        """``SamplingParams.extra_args`` of a clip, which ``speech.granite.drafter`` reads."""
        text = self._corrector.correct(hypothesis.text)
        return {"draft": self._tokenizer.encode(text, add_special_tokens=False)}

    def learn(self, text: str) -> None:
        """Learns the words of a text that the model has written, to correct later drafts by them."""
        self._corrector.learn(text.split())
