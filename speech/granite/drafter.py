"""Drafts for vLLM: tokens that each request brings along, proposed to the language model for verification.

vLLM builds ``CtcDrafter`` in its worker process from ``speculative_config={"method": "custom_class"}``
and calls ``propose`` after every step. That interface says which tokens were sampled in which row of the batch, but
not for which request. The missing link is read from vLLM's model runner (``speech.granite.runner``), which
``DrafterBinding``, a worker extension (a supported option), passes to the drafter once, by
``collective_rpc("bind_drafter")`` before the first request.

The draft is in the request's sampling parameters: ``extra_args={"draft": TOKENS}`` (of the encoder's CTC hypothesis:
``speech.granite.drafts``). At temperature 0 vLLM accepts a draft token only where it is the model's first choice, so a
wrong or a missing draft costs time and never changes the text.
"""

from dataclasses import dataclass, field
from typing import Any

from vllm.config import VllmConfig
from vllm.tokenizers import cached_tokenizer_from_config

from speech.granite.alignment import Draft
from speech.granite.draft_length import STEP_COST_TOKENS, AcceptanceCount, DraftLengthPolicy
from speech.granite.runner import ModelRunner, Request, drafter_of
from speech.granite.vocabulary import Vocabulary

DRAFT = "draft"  # the key in extra_args


@dataclass
class DraftState:
    """The draft of one request."""

    draft: Draft
    request: Request
    consumed: int = 0  # output tokens that the draft has been advanced by
    count: AcceptanceCount = field(default_factory=AcceptanceCount)


class CtcDrafter:
    """Proposes, for each request, the next tokens of its draft."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        speculation = vllm_config.speculative_config
        assert speculation is not None  # vLLM builds us because of it
        self._limit: int = speculation.num_speculative_tokens
        self._vocabulary = Vocabulary(cached_tokenizer_from_config(vllm_config.model_config))
        self._runner: ModelRunner | None = None
        # By request id; None for a request without a draft. No more of them than requests in the runner.
        self._states: dict[str, DraftState | None] = {}

    def load_model(self, model: object) -> None:
        """There is nothing to load; vLLM's CPU runner calls this on every drafter."""

    def bind(self, runner: ModelRunner, adaptive: bool) -> None:
        """Sets the model runner to draft for.

        Args:
            runner: of this worker.
            adaptive: whether slices are sized by acceptance and load, or always the longest.
        """
        self._runner = runner
        step_cost_tokens = STEP_COST_TOKENS[runner.device_type] if adaptive else None
        self._length_policy = DraftLengthPolicy(self._limit, step_cost_tokens)
        runner.draft_to_context_end(self._limit)

    def propose(
        self, sampled_token_ids: list[list[int]], num_tokens_no_spec: Any, token_ids_cpu: Any, slot_mappings: Any = None
    ) -> list[list[int]]:
        """Draft tokens for each row of the batch, at most ``num_speculative_tokens``.

        Args:
            sampled_token_ids: tokens of each row in this step; none during its prefill.
            num_tokens_no_spec, token_ids_cpu, slot_mappings: part of vLLM's interface; unused.
        """
        if self._runner is None:
            return [[] for _ in sampled_token_ids]
        request_ids, running = self._runner.request_ids, len(sampled_token_ids)
        proposed = [
            self._propose_for(self._runner, request_ids[row], bool(sampled), running)
            for row, sampled in enumerate(sampled_token_ids)
        ]
        self._drop_finished(self._runner)
        return proposed

    def _propose_for(self, runner: ModelRunner, request_id: str, prefill_done: bool, running: int) -> list[int]:
        state = self._state_of(runner, request_id)
        if state is None or not prefill_done:
            return []
        output = state.request.output_tokens[state.consumed :]
        state.consumed += len(output)
        accepted, rejected = state.draft.advance(output)
        self._length_policy.observe(state.count, accepted, rejected)
        return state.draft.propose(self._length_policy.size(state.count, running))

    def _state_of(self, runner: ModelRunner, request_id: str) -> DraftState | None:
        """A request's draft; None if it has none."""
        if request_id not in self._states:
            request = runner.request(request_id)
            tokens = request.extra_args.get(DRAFT)
            self._states[request_id] = None if tokens is None else DraftState(Draft(tokens, self._vocabulary), request)
        return self._states[request_id]

    def _drop_finished(self, runner: ModelRunner) -> None:
        """Drops the state of requests that the runner no longer holds (it holds preempted ones)."""
        for request_id in self._states.keys() - runner.held_requests:
            del self._states[request_id]


class DrafterBinding:
    """Mixed into vLLM's worker (``worker_extension_cls``): methods callable by ``collective_rpc``."""

    model_runner: Any

    def bind_drafter(self, adaptive: bool) -> bool:
        """Binds this worker's drafter to its model runner.

        Args:
            adaptive: as of ``CtcDrafter.bind``.

        Returns:
            Whether this worker has a drafter: of a pipeline only the last one does.

        Raises:
            VllmMismatchError: the model runner is not as in the versions of vLLM that this was made for.
        """
        drafter = drafter_of(self.model_runner)
        if not isinstance(drafter, CtcDrafter):
            return False
        drafter.bind(ModelRunner(self.model_runner), adaptive)
        return True
