"""The relaxed criterion: a drafted token is good enough if the model finds it likely enough.

Exact verification keeps a drafted token only where it is the model's first choice. The paper's fast mode
(Saon et al., arXiv 2603.11243) takes a draft that CTC is sure of without asking the model, and of any
other the tokens whose probability reaches a threshold: fewer disagreements, fewer steps, and a text that
may differ from the model's own. Which requests, which tokens and which threshold is
``speech.granite.drafter``'s to say; here it is done to what vLLM samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.rejection_sampler import PLACEHOLDER_TOKEN_ID, RejectionSampler
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

UNVERIFIED_RANK = 0  # rank of a token that was taken without asking the model, among ranks that begin at 1


@dataclass(frozen=True)
class DraftWindow:
    """What may be taken of one request's draft in this step."""

    row: int  # of the batch
    tokens: Sequence[int]  # the slice that is being verified, and what comes after it
    min_prob: float  # probability of a token that is taken
    accept_all: bool  # all tokens are taken, whatever the model says


class RelaxedSampling:
    """Puts itself into a model runner's sampling, which stays vLLM's own for every row but those in ``windows``.

    Args:
        ahead: the rows of the batch in hand that have asked for it.
    """

    def __init__(self, windows: Callable[[], list[DraftWindow]]) -> None:
        self._windows = windows
        self._rows: list[DraftWindow] = []  # of this step

    def install(self, runner: Any) -> None:
        """Takes the place of the runner's ``_sample`` and ``rejection_sampler``."""
        self._sample = runner._sample
        runner.rejection_sampler = RelaxedSampler(runner.rejection_sampler, lambda: self._rows)
        runner._sample = self.sample

    def sample(self, logits: torch.Tensor, metadata: SpecDecodeMetadata | None) -> SamplerOutput:
        """The runner's sampling, after which more is taken where it may be.

        Args:
            logits: of every drafted token's place and of the place after each row's draft.
            metadata: where those are in ``logits``; None where no row has a draft.
        """
        self._rows = self._windows()
        sampled = self._sample(logits, metadata)
        if not self._rows:
            return sampled
        after = logits if metadata is None else logits[metadata.bonus_logits_indices]
        drafted = [0] * len(after) if metadata is None else metadata.num_draft_tokens
        sampled = accept_whole_drafts(sampled, [one for one in self._rows if one.accept_all])
        return accept_next_token(sampled, after, [one for one in self._rows if not one.accept_all], drafted)


class RelaxedSampler(RejectionSampler):
    """vLLM's verification, with a threshold for the rows that have one.

    Args:
        exact: the runner's own verification.
        ahead: the rows that have one.
    """

    def __init__(self, exact: RejectionSampler, windows: Callable[[], list[DraftWindow]]) -> None:
        super().__init__(exact.sampler)
        self._windows = windows

    def apply_logits_processors(
        self, logits: torch.Tensor, sampling_metadata: SamplingMetadata, metadata: SpecDecodeMetadata
    ) -> torch.Tensor:
        """Makes each drafted token that is likely enough the first choice.

        Log-probabilities are taken from the logits as they were before (vLLM keeps a copy), so that what
        the model thinks of the text is still told truthfully.
        """
        logits = super().apply_logits_processors(logits, sampling_metadata, metadata)
        min_prob = {one.row: one.min_prob for one in self._windows()}
        return prefer_likely_drafts(logits, metadata.draft_token_ids, min_prob, metadata.num_draft_tokens)


def prefer_likely_drafts(
    logits: torch.Tensor, drafted: torch.Tensor, min_prob: dict[int, float], counts: Sequence[int]
) -> torch.Tensor:
    """Raises to infinity the logits of drafted tokens whose probability reaches their row's threshold.

    Args:
        logits: of the model at each drafted token's place, shape (drafted tokens, vocabulary), float32.
        drafted: the tokens, shape (drafted tokens,), row after row.
        least: threshold by row; the logits of other rows are left alone.
        counts: drafted tokens of each row.
    """
    if not any(counts[row] for row in min_prob):
        return logits
    thresholds = torch.tensor(
        # Above any probability: these are left alone.
        [min_prob.get(row, 2.0) for row, count in enumerate(counts) for _ in range(count)],
        device=logits.device,
    )
    drafted = drafted.to(torch.int64)[:, None]
    likely = logits.softmax(-1).gather(1, drafted)[:, 0] >= thresholds
    chosen = logits.gather(1, drafted)[:, 0].masked_fill(likely, float("inf"))
    return logits.scatter(1, drafted, chosen[:, None])


def accept_next_token(
    sampled: SamplerOutput, logits: torch.Tensor, windows: Sequence[DraftWindow], drafted: Sequence[int]
) -> SamplerOutput:
    """Gives rows whose whole slice was kept, or that had none, the next token of their draft if it is likely enough.

    Without it a text would depend on where its draft was cut into slices.

    Args:
        sampled: what the rows were given; changed in place.
        logits: of the model at the place after each row's slice, shape (rows, vocabulary).
        ahead: the rows in question.
        drafted: length of each row's slice.
    """
    tokens = sampled.sampled_token_ids
    kept = (tokens != PLACEHOLDER_TOKEN_ID).sum(-1).tolist()
    # One token more than the slice: the model's own, after a slice that was kept whole.
    open_rows = [one for one in windows if kept[one.row] == drafted[one.row] + 1 <= len(one.tokens)]
    if not open_rows:
        return sampled
    rows = torch.tensor([one.row for one in open_rows], device=logits.device)
    places = torch.tensor([drafted[one.row] for one in open_rows], device=logits.device)
    wanted = torch.tensor([one.tokens[drafted[one.row]] for one in open_rows], device=logits.device)
    logprobs = logits[rows].float().log_softmax(-1)
    of_wanted = logprobs.gather(1, wanted[:, None])
    likely = of_wanted[:, 0].exp() >= torch.tensor([one.min_prob for one in open_rows], device=logits.device)
    rows, places, wanted = rows[likely], places[likely], wanted[likely]
    tokens[rows, places] = wanted.to(tokens.dtype)
    if sampled.logprobs_tensors is not None:
        lines = rows * tokens.shape[1] + places
        ranks = (logprobs >= of_wanted).sum(-1)[likely]
        _write_logprobs(sampled.logprobs_tensors, lines, wanted, of_wanted[likely, 0], ranks)
    return sampled


def accept_whole_drafts(sampled: SamplerOutput, windows: Sequence[DraftWindow]) -> SamplerOutput:
    """Gives rows all the tokens of their drafts, in place of what they were given.

    What the model thinks of them is not known: they are told with a log-probability of 0 and the rank
    ``UNVERIFIED_RANK``.
    """
    if not windows:
        return sampled
    rows, width = sampled.sampled_token_ids.shape
    wider = max(0, max(len(one.tokens) for one in windows) - width)
    tokens = F.pad(sampled.sampled_token_ids, (0, wider), value=PLACEHOLDER_TOKEN_ID)
    logprobs = sampled.logprobs_tensors
    if logprobs is not None:
        logprobs = LogprobsTensors(
            *(
                # A line for each token of each row, wanted or not.
                F.pad(each.view(rows, width, -1), (0, 0, 0, wider)).view(rows * (width + wider), *each.shape[1:])
                for each in logprobs[:3]
            )
        )
    for one in windows:
        average_groups = torch.tensor(one.tokens, dtype=tokens.dtype, device=tokens.device)
        tokens[one.row] = PLACEHOLDER_TOKEN_ID
        tokens[one.row, : len(average_groups)] = average_groups
        if logprobs is not None:
            lines = one.row * (width + wider) + torch.arange(len(average_groups), device=tokens.device)
            _write_logprobs(
                logprobs,
                lines,
                average_groups,
                torch.zeros(len(average_groups), device=tokens.device),
                torch.full_like(average_groups, UNVERIFIED_RANK),
            )
    return SamplerOutput(sampled_token_ids=tokens, logprobs_tensors=logprobs)


def _write_logprobs(
    tensors: LogprobsTensors, lines: torch.Tensor, tokens: torch.Tensor, logprobs: torch.Tensor, ranks: torch.Tensor
) -> None:
    """Writes what is told of chosen tokens, which stand first in their lines."""
    tensors.logprob_token_ids[lines, 0] = tokens.to(tensors.logprob_token_ids.dtype)
    tensors.logprobs[lines, 0] = logprobs.to(tensors.logprobs.dtype)
    tensors.selected_token_ranks[lines] = ranks.to(tensors.selected_token_ranks.dtype)
