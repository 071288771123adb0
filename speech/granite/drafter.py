"""CTC drafts for vLLM: the encoder's own hypothesis, proposed to the language model for verification.

vLLM builds ``CtcDrafter`` in its worker process from ``speculative_config={"method": "custom_class"}``
and calls ``propose`` after every step. That interface says which tokens were sampled in which row of
the batch, but not for which request. The two missing links are read from vLLM's model runner
(``speech.granite.runner``):

- row → request: the runner's batch. ``DrafterBinding``, a worker extension (a supported option),
  passes the runner to the drafter once, by ``collective_rpc("bind_drafter")`` before the first request.
- request → CTC hypothesis: by the clip's embeddings in the encoder cache, for which the model keeps
  the hypothesis (``speech.granite.model``). That holds after a hit in that cache as well, and does not depend on the
  order of clips within an encoder batch.

At temperature 0 vLLM accepts a draft token only where it is the model's first choice, so a wrong, a missing or a
mixed-up draft costs time and never changes the text. If a clip has no hypothesis (its embeddings have left the
encoder cache, say) its request has no draft.

A request is drafted for if its sampling parameters ask for it: ``extra_args={"draft": "ctc"}``, or a
list of tokens, to be proposed instead of the CTC hypothesis (for benches and tests). Words that CTC has misspelled
are corrected by those that the model has output before (``speech.granite.spelling``). With ``"accept":
[max_entropy, min_prob]`` beside it, the text is made by the three steps of the paper's fast mode:

1. If no frame's entropy exceeds ``max_entropy``, the CTC hypothesis is the text, whole, in the step in which the
   encoder ran. (vLLM prefills the prompt in that same step, so this much of the model's work is not saved.)
2. Else every token of it to which the model gives at least ``min_prob`` is accepted, up to the first that is
   not. The end-of-text token is one of them: where the model rejects it, decoding continues.
3. From there on the model decodes, and the rest of the draft is verified exactly.
"""

from dataclasses import dataclass, field
from typing import Any

from vllm.config import VllmConfig
from vllm.tokenizers import TokenizerLike, cached_tokenizer_from_config

from speech.granite.acceptance import DraftWindow, RelaxedSampling
from speech.granite.alignment import Draft
from speech.granite.ctc import CtcHypothesis
from speech.granite.draft_length import STEP_COST_TOKENS, AcceptanceCount, DraftLengthPolicy
from speech.granite.runner import ModelRunner, Request, drafter_of
from speech.granite.spelling import SpellingCorrector

DRAFT, ACCEPT = "draft", "accept"  # keys in extra_args
CTC = "ctc"


@dataclass
class DraftState:
    """The draft of one request."""

    draft: Draft
    request: Request
    min_prob: float | None = None  # relaxed acceptance from this probability on; None: exact verification
    accept_all: bool = False  # the draft is the text, whatever the model's probabilities
    learn: bool = False  # the spelling corrector learns the output's words
    # What the model should output next: the slice proposed to the scheduler, and the draft token after it, which can
    # be accepted as the same step's bonus token.
    window: list[int] = field(default_factory=list)
    consumed: int = 0  # output tokens that the draft has been advanced by
    count: AcceptanceCount = field(default_factory=AcceptanceCount)

    def propose(self, size: int) -> list[int]:
        """The next slice of the draft."""
        self.window = self.draft.propose(size + 1)
        return self.window[:size]


class CtcDrafter:
    """Proposes, for each request, the next tokens of its draft."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        speculation = vllm_config.speculative_config
        assert speculation is not None  # vLLM builds us because of it
        self._limit: int = speculation.num_speculative_tokens
        self._tokenizer = cached_tokenizer_from_config(vllm_config.model_config)
        self._vocabulary = Vocabulary(self._tokenizer)
        self._runner: ModelRunner | None = None
        # By request id; None for a request without a draft. No more of them than requests in the runner.
        self._states: dict[str, DraftState | None] = {}

    def load_model(self, model: object) -> None:
        """There is nothing to load; vLLM's CPU runner calls this on every drafter."""

    def bind(self, runner: ModelRunner, adaptive: bool, relaxed: bool) -> None:
        """Sets the model runner to draft for.

        Args:
            runner: of this worker.
            adaptive: whether slices are sized by acceptance and load, or always the longest.
            relaxed: whether requests may ask for the fast mode's three steps.
        """
        self._runner = runner
        step_cost_tokens = STEP_COST_TOKENS[runner.device_type] if adaptive else None
        self._length_policy = DraftLengthPolicy(self._limit, step_cost_tokens)
        self._corrector = SpellingCorrector()
        if relaxed:
            RelaxedSampling(self._windows).install(runner)
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
        state = self._state_of(runner, request_id, prefill_done)
        if state is None or not prefill_done:
            return []
        output = state.request.output_tokens[state.consumed :]
        state.consumed += len(output)
        accepted, rejected = state.draft.advance(output)
        if rejected:
            state.min_prob = None  # step 3: exact verification from here on
        self._length_policy.observe(state.count, accepted, rejected)
        return state.propose(self._length_policy.size(state.count, running))

    def _state_of(self, runner: ModelRunner, request_id: str, prefill_done: bool) -> DraftState | None:
        """A request's draft; None if there is none, or none yet."""
        if request_id not in self._states:
            # Looked up from the first step on: after prefill the encoder cache may drop the clip.
            state = self._new_state(runner, runner.request(request_id))
            if state is None and not prefill_done:
                return None  # the encoder may run with a later chunk of the prompt
            self._states[request_id] = state
        return self._states[request_id]

    def _new_state(self, runner: ModelRunner, request: Request) -> DraftState | None:
        """A request's whole draft; None if it asks for none, or none is known yet."""
        asked = request.extra_args
        if isinstance(asked.get(DRAFT), list):
            return DraftState(Draft(asked[DRAFT], self._vocabulary), request)
        if asked.get(DRAFT) != CTC or request.clip_key is None:
            return None
        hypothesis: CtcHypothesis | None = runner.ctc_hypothesis(request.clip_key)
        if hypothesis is None:
            return None
        if ACCEPT not in asked:
            draft = Draft(self._encode(self._corrector.correct(hypothesis.text)), self._vocabulary)
            return DraftState(draft, request, learn=True)
        max_entropy, min_prob = asked[ACCEPT]
        room = runner.max_model_len - request.prompt_tokens
        text = [*self._encode(hypothesis.text), self._tokenizer.eos_token_id][:room]
        accept_all = hypothesis.max_entropy <= max_entropy
        return DraftState(Draft(text, self._vocabulary), request, min_prob, accept_all)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _windows(self) -> list[DraftWindow]:
        """What may be accepted of the draft of each decoding row that has asked for relaxed acceptance."""
        assert self._runner is not None  # bind installs the sampling that calls this
        windows = []
        for row, request_id in enumerate(self._runner.request_ids):
            prefill_done = self._runner.prefill_done(row)
            state = self._state_of(self._runner, request_id, prefill_done) if prefill_done else None
            if state is None or state.min_prob is None:
                continue
            if not state.request.output_tokens:  # its prefill ends in this step: nothing was proposed before
                state.propose(self._runner.max_model_len if state.accept_all else 0)
            windows.append(DraftWindow(row, state.window, state.min_prob, state.accept_all))
        return windows

    def _drop_finished(self, runner: ModelRunner) -> None:
        """Drops the state of requests that the runner no longer holds (it holds preempted ones), and learns words."""
        for request_id in self._states.keys() - runner.held_requests:
            state = self._states.pop(request_id)
            if state is not None and state.learn:
                text = self._tokenizer.decode(state.request.output_tokens, skip_special_tokens=True)
                self._corrector.learn(text.split())


class DrafterBinding:
    """Mixed into vLLM's worker (``worker_extension_cls``): methods callable by ``collective_rpc``."""

    model_runner: Any

    def bind_drafter(self, adaptive: bool, relaxed: bool) -> bool:
        """Binds this worker's drafter to its model runner.

        Args:
            adaptive, relaxed: as of ``CtcDrafter.bind``.

        Returns:
            Whether this worker has a drafter: of a pipeline only the last one does.

        Raises:
            VllmMismatchError: the model runner is not as in the versions of vLLM that this was made for.
        """
        drafter = drafter_of(self.model_runner)
        if not isinstance(drafter, CtcDrafter):
            return False
        drafter.bind(ModelRunner(self.model_runner), adaptive, relaxed)
        return True


class Vocabulary:
    """The text of a tokenizer's tokens, in its own alphabet (``Ġ`` for a space, and the like)."""

    def __init__(self, tokenizer: TokenizerLike) -> None:
        self._tokens: dict[str, int] = tokenizer.get_vocab()
        self._texts = {token: text for text, token in self._tokens.items()}
        # Special tokens have no text: a character that no text has, so that no draft resumes within one.
        self._texts |= dict.fromkeys(tokenizer.all_special_ids, "\0")

    def text_of(self, token: int) -> str:
        """A token's text; empty for an id that only pads the embedding table."""
        return self._texts.get(token, "")

    def token_of(self, text: str) -> int | None:
        """The token with exactly this text, if there is one."""
        return self._tokens.get(text)
