"""What the engine does with a clip's CTC hypothesis: the draft that the language model verifies, or the text itself.

With ``--speculation ctc-accept`` a text is made by the three steps of the paper's fast mode (Saon et al., arXiv
2603.11243): if no frame's entropy exceeds a threshold, the hypothesis is the text, and the clip never enters the
language model. Else every token of it to which the model gives a certain probability is accepted, up to the first that
is not; the end-of-text token is one of them. From there on the model decodes, and verifies the rest of the draft
exactly (``speech.granite.drafter``).
"""

from typing import Any, Protocol

from speech.granite.ctc import CtcHypothesis
from speech.granite.spelling import SpellingCorrector


class Tokenizer(Protocol):
    """As much of the model's tokenizer as is used here."""

    eos_token_id: int

    def encode(self, text: str, add_special_tokens: bool) -> list[int]: ...


class Drafts:
    """The drafts of one engine.

    Args:
        tokenizer: of the language model.
        accept_entropy, accept_probability: thresholds of the fast mode; None: every token is verified exactly.
    """

    def __init__(
        self, tokenizer: Tokenizer, accept_entropy: float | None = None, accept_probability: float | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._accept_entropy, self._accept_probability = accept_entropy, accept_probability
        self._corrector = SpellingCorrector()

    def accepted(self, hypothesis: CtcHypothesis) -> list[int] | None:
        """The tokens of a hypothesis that is the text as it is; None if the model must be asked."""
        if self._accept_entropy is None or hypothesis.max_entropy > self._accept_entropy:
            return None
        return self._with_end(hypothesis.text)

    def extra_args(self, hypothesis: CtcHypothesis) -> dict[str, Any]:
        """``SamplingParams.extra_args`` for a clip that the model decodes."""
        if self._accept_probability is not None:
            return {"draft": self._with_end(hypothesis.text), "accept": self._accept_probability}
        return {"draft": self._encode(self._corrector.correct(hypothesis.text))}

    def learn(self, text: str) -> None:
        """Learns the words of a text that the model has written, to correct later drafts by them."""
        self._corrector.learn(text.split())

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _with_end(self, text: str) -> list[int]:
        return [*self._encode(text), self._tokenizer.eos_token_id]
