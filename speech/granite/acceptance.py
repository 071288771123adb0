"""Relaxed acceptance: a draft token is accepted if the model finds it likely enough.

Exact verification accepts a draft token only where it is the model's first choice. The second step of the paper's fast
mode (Saon et al., arXiv 2603.11243) accepts the tokens whose probability reaches a threshold: fewer rejections, fewer
steps, and a text that may differ from the model's own. Which requests, which tokens and which threshold is decided in
``speech.granite.drafter``; here it is applied to what vLLM samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from speech.granite.runner import (
    PLACEHOLDER_TOKEN_ID,
    LogprobsTensors,
    ModelRunner,
    RejectionSampler,
    Sample,
    SamplerOutput,
    SamplingMetadata,
    SpecDecodeMetadata,
)


@dataclass(frozen=True)
class DraftWindow:
    """What may be accepted of one request's draft in this step."""

    row: int  # of the batch
    tokens: Sequence[int]  # the slice that is being verified, and the draft token after it
    min_prob: float  # a token is accepted from this probability on


class RelaxedSampling:
    """Wraps a model runner's sampling; rows without a draft window are sampled as by vLLM alone.

    Args:
        windows: called once a step, for the rows of the current batch that have asked for relaxed acceptance.
    """

    def __init__(self, windows: Callable[[], list[DraftWindow]]) -> None:
        self._windows = windows
        self._step_windows: list[DraftWindow] = []

    def install(self, runner: ModelRunner) -> None:
        """Replaces the runner's sampling and rejection sampler."""
        runner.replace_sampling(self._wrap, lambda exact: RelaxedRejectionSampler(exact, lambda: self._step_windows))

    def _wrap(self, exact_sample: Sample) -> Sample:
        def sample(logits: torch.Tensor, spec_decode_metadata: SpecDecodeMetadata | None) -> SamplerOutput:
            """As vLLM's ``_sample``.

            Args:
                logits: at the position of every draft token and at the position after each row's draft,
                    shape (positions, vocabulary).
                spec_decode_metadata: where those are in ``logits``; None if no row has a draft.
            """
            self._step_windows = windows = self._windows()
            sampled = exact_sample(logits, spec_decode_metadata)
            if not windows:
                return sampled
            if spec_decode_metadata is None:
                bonus_logits, draft_lengths = logits, [0] * len(logits)
            else:
                bonus_logits = logits[spec_decode_metadata.bonus_logits_indices]
                draft_lengths = spec_decode_metadata.num_draft_tokens
            return accept_next_token(sampled, bonus_logits, windows, draft_lengths)

        return sample


class RelaxedRejectionSampler(RejectionSampler):
    """vLLM's rejection sampler, with a probability threshold for the rows that have a draft window.

    Args:
        exact: the runner's own rejection sampler.
        windows: of the current step.
    """

    def __init__(self, exact: RejectionSampler, windows: Callable[[], list[DraftWindow]]) -> None:
        super().__init__(exact.sampler)
        self._windows = windows

    def apply_logits_processors(
        self, logits: torch.Tensor, sampling_metadata: SamplingMetadata, metadata: SpecDecodeMetadata
    ) -> torch.Tensor:
        """Makes each draft token that is likely enough the first choice.

        Reported log-probabilities stay the model's own: vLLM takes them from a copy of the logits made before.
        """
        logits = super().apply_logits_processors(logits, sampling_metadata, metadata)
        min_prob = {window.row: window.min_prob for window in self._windows()}
        return prefer_likely_drafts(logits, metadata.draft_token_ids, min_prob, metadata.num_draft_tokens)


def prefer_likely_drafts(
    logits: torch.Tensor, draft_tokens: torch.Tensor, min_prob: dict[int, float], draft_lengths: Sequence[int]
) -> torch.Tensor:
    """Sets to infinity the logits of draft tokens whose probability reaches their row's threshold.

    Args:
        logits: of the model at each draft token's position, shape (draft tokens, vocabulary), float32.
        draft_tokens: shape (draft tokens,), row after row.
        min_prob: threshold by row; the logits of other rows are not changed.
        draft_lengths: draft tokens of each row.
    """
    if not any(draft_lengths[row] for row in min_prob):
        return logits
    thresholds = torch.tensor(
        # 2.0, above any probability, for rows without a threshold.
        [min_prob.get(row, 2.0) for row, length in enumerate(draft_lengths) for _ in range(length)],
        device=logits.device,
    )
    draft_tokens = draft_tokens.to(torch.int64)[:, None]
    likely = logits.softmax(-1).gather(1, draft_tokens)[:, 0] >= thresholds
    raised = logits.gather(1, draft_tokens)[:, 0].masked_fill(likely, float("inf"))
    return logits.scatter(1, draft_tokens, raised[:, None])


def accept_next_token(
    sampled: SamplerOutput, logits: torch.Tensor, windows: Sequence[DraftWindow], draft_lengths: Sequence[int]
) -> SamplerOutput:
    """Replaces the bonus token of rows whose whole slice was accepted, or was empty, by the next draft token.

    Only where that is likely enough. Without this a text would depend on where its draft was cut into slices.

    Args:
        sampled: tokens of this step; changed in place.
        logits: of the model at the position after each row's slice, shape (rows, vocabulary).
        windows: of the rows in question.
        draft_lengths: length of each row's slice.
    """
    tokens = sampled.sampled_token_ids
    counts = (tokens != PLACEHOLDER_TOKEN_ID).sum(-1).tolist()
    # A slice that was accepted whole brings one token more than it has: the model's own, the bonus token.
    replaced = [
        window for window in windows if counts[window.row] == draft_lengths[window.row] + 1 <= len(window.tokens)
    ]
    if not replaced:
        return sampled
    rows = torch.tensor([window.row for window in replaced], device=logits.device)
    positions = torch.tensor([draft_lengths[window.row] for window in replaced], device=logits.device)
    next_tokens = torch.tensor([window.tokens[draft_lengths[window.row]] for window in replaced], device=logits.device)
    logprobs = logits[rows].float().log_softmax(-1)
    next_logprobs = logprobs.gather(1, next_tokens[:, None])
    thresholds = torch.tensor([window.min_prob for window in replaced], device=logits.device)
    likely = next_logprobs[:, 0].exp() >= thresholds
    rows, positions, next_tokens = rows[likely], positions[likely], next_tokens[likely]
    tokens[rows, positions] = next_tokens.to(tokens.dtype)
    if sampled.logprobs_tensors is not None:
        lines = rows * tokens.shape[1] + positions
        ranks = (logprobs >= next_logprobs).sum(-1)[likely]
        _write_logprobs(sampled.logprobs_tensors, lines, next_tokens, next_logprobs[likely, 0], ranks)
    return sampled


def _write_logprobs(
    tensors: LogprobsTensors, lines: torch.Tensor, tokens: torch.Tensor, logprobs: torch.Tensor, ranks: torch.Tensor
) -> None:
    """Writes token, log-probability and rank of sampled tokens, which come first in their lines."""
    tensors.logprob_token_ids[lines, 0] = tokens.to(tensors.logprob_token_ids.dtype)
    tensors.logprobs[lines, 0] = logprobs.to(tensors.logprobs.dtype)
    tensors.selected_token_ranks[lines] = ranks.to(tensors.selected_token_ranks.dtype)
