"""The relaxed criterion: a drafted token is good enough if the model finds it likely enough.

Exact verification keeps a drafted token only where it is the model's first choice. The paper's fast mode
(Saon et al., arXiv 2603.11243, step 2) keeps it where its probability reaches a threshold: fewer
disagreements, fewer steps, and a text that may differ from the model's own. At a threshold of 0 the
draft is taken whatever the model says (step 1, for clips that CTC is sure of).
"""

from collections.abc import Callable, Sequence

import torch
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.rejection_sampler import RejectionSampler
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata


class RelaxedSampler(RejectionSampler):
    """vLLM's verification, with a threshold for the requests that have one.

    Args:
        exact: the runner's own verification.
        least_probabilities: the threshold of each row of the batch in hand; None for exact rows.
    """

    def __init__(self, exact: RejectionSampler, least_probabilities: Callable[[], Sequence[float | None]]) -> None:
        super().__init__(exact.sampler)
        self._least_probabilities = least_probabilities

    def apply_logits_processors(
        self, logits: torch.Tensor, sampling_metadata: SamplingMetadata, metadata: SpecDecodeMetadata
    ) -> torch.Tensor:
        """Makes each drafted token that is likely enough the first choice.

        Log-probabilities are taken from the logits as they were before (vLLM keeps a copy), so that what
        the model thinks of the text is still told truthfully.
        """
        logits = super().apply_logits_processors(logits, sampling_metadata, metadata)
        return prefer_likely(logits, metadata.draft_token_ids, self._least_probabilities(), metadata.num_draft_tokens)


def prefer_likely(
    logits: torch.Tensor, drafted: torch.Tensor, least: Sequence[float | None], counts: Sequence[int]
) -> torch.Tensor:
    """Raises to infinity the logits of drafted tokens whose probability reaches their request's threshold.

    Args:
        logits: of the model at each drafted token's place, shape (drafted tokens, vocabulary), float32.
        drafted: the tokens, shape (drafted tokens,), request after request.
        least: threshold of each request, or None to leave its logits alone.
        counts: drafted tokens of each request.
    """
    relaxed = [(threshold, count) for threshold, count in zip(least, counts, strict=True)]
    if not any(count for threshold, count in relaxed if threshold is not None):
        return logits
    thresholds = torch.tensor(
        # Above any probability: these are left alone.
        [2.0 if threshold is None else threshold for threshold, count in relaxed for _ in range(count)],
        device=logits.device,
    )
    drafted = drafted.to(torch.int64)[:, None]
    likely = logits.softmax(-1).gather(1, drafted)[:, 0] >= thresholds
    chosen = logits.gather(1, drafted)[:, 0].masked_fill(likely, float("inf"))
    return logits.scatter(1, drafted, chosen[:, None])
