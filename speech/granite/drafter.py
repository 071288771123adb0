"""CTC drafts for vLLM: the encoder's own transcript, proposed to the language model for verification.

vLLM builds ``CtcDrafter`` in its worker process from ``speculative_config={"method": "custom_class"}``
and calls ``propose`` after every step. That interface says which tokens were sampled in which row of
the batch, and nothing of who they belong to. The two missing links are taken where they lie:

- row → request: the model runner's batch. ``DrafterBinding``, a worker extension (a supported option),
  hands the runner over once, by ``collective_rpc("bind_drafter")`` before the first request.
- request → what CTC read: the clip's embeddings in the encoder cache, to which the model has attached
  its reading (``speech.granite.model``). That holds after a hit in that cache as well, and no order
  of clips within an encoder batch is relied on.

At temperature 0 vLLM accepts a drafted token only where it is what the model would have written, so a
wrong, a missing or a mixed-up draft costs time and never a word. Where a link is missing (another
vLLM keeps its embeddings elsewhere, say) there is simply no draft.

A request is drafted for if its sampling parameters ask for it: ``extra_args={"draft": "ctc"}``, or a
list of tokens, to be proposed instead of what CTC read (for benches and tests). Words that CTC has spelled as
the model never would are mended by those that it has written before (``speech.granite.spelling``). With ``"accept":
[doubt, probability]`` beside it, the answer is made by the three steps of the paper's fast mode:

1. If no frame's entropy exceeds ``max_entropy``, what CTC read is the answer, whole, in the step in which the
   encoder ran. (vLLM reads the prompt in that same step, so this much of the model's work is not saved.)
2. Else every token of it that the model gives at least ``probability`` is kept, up to the first that is
   not. The end of the text is such a token, too: where the model would rather go on, it does.
3. From there on the model writes, and the rest of the draft is verified exactly.
"""

from dataclasses import dataclass, field
from typing import Any

from vllm.config import VllmConfig
from vllm.tokenizers import TokenizerLike, cached_tokenizer_from_config

from speech.granite.acceptance import DraftWindow, RelaxedSampling
from speech.granite.alignment import Draft
from speech.granite.ctc import CtcHypothesis
from speech.granite.draft_length import STEP_COST_TOKENS, AcceptanceCount, DraftLengthPolicy
from speech.granite.spelling import SpellingCorrector

DRAFT, ACCEPT = "draft", "accept"  # keys in extra_args
CTC = "ctc"


@dataclass
class DraftState:
    """A request that is drafted for."""

    draft: Draft
    min_prob: float | None = None  # probability of a drafted token that is kept; None: the model's first choice only
    accept_all: bool = False  # the draft is the answer, whatever the model says
    # What the model should write next: a slice, as the scheduler was told, and the token after it, which the
    # same step brings for nothing.
    windows: list[int] = field(default_factory=list)
    followed: int = 0  # of the tokens that the model has written
    request: Any = None  # the runner's, if its words are to be learned
    tally: AcceptanceCount = field(default_factory=AcceptanceCount)

    def propose(self, size: int) -> list[int]:
        """The next slice of the draft."""
        self.windows = self.draft.propose(size + 1)
        return self.windows[:size]


class CtcDrafter:
    """Proposes, for each request, the next tokens of its draft."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        speculation = vllm_config.speculative_config
        assert speculation is not None  # vLLM builds us because of it
        self._limit: int = speculation.num_speculative_tokens
        self._tokenizer = cached_tokenizer_from_config(vllm_config.model_config)
        self._vocabulary = Vocabulary(self._tokenizer)
        self._runner: Any = None
        # By request id; None for a request without a draft. No more of them than requests in the runner.
        self._states: dict[str, DraftState | None] = {}

    def load_model(self, model: object) -> None:
        """There is nothing of our own to load; vLLM's CPU runner calls this unasked."""

    def bind(self, runner: Any, step_cost_tokens: float | None, relaxed: bool) -> None:
        """Gives the drafter the model runner that it drafts for.

        Args:
            runner: vLLM's, of this worker.
            free_tokens: for ``DraftLengthPolicy``.
            relaxed: whether requests may ask for the fast mode's three steps.
        """
        self._runner = runner
        self._length_policy = DraftLengthPolicy(self._limit, step_cost_tokens)
        self._corrector = SpellingCorrector()
        if relaxed:
            RelaxedSampling(self._windows).install(runner)
        self._ctc_hypotheses = runner.get_model().enable_ctc()
        # vLLM stops every draft while any request is within a draft's length of the context's end, as
        # draft models have contexts of their own. This one has none, and the scheduler cuts to fit.
        runner.effective_drafter_max_model_len = runner.max_model_len + self._limit

    def propose(
        self, sampled_token_ids: list[list[int]], num_tokens_no_spec: Any, token_ids_cpu: Any, slot_mappings: Any = None
    ) -> list[list[int]]:
        """Draft tokens for each row of the batch, at most ``num_speculative_tokens``.

        Args:
            sampled_token_ids: what each row was given in this step; empty while its prompt is read.
        """
        if self._runner is None:
            return [[] for _ in sampled_token_ids]
        req_ids, running = self._runner.input_batch.req_ids, len(sampled_token_ids)
        proposed = [self._next(req_ids[row], bool(sampled), running) for row, sampled in enumerate(sampled_token_ids)]
        self._forget_finished()
        return proposed

    def _next(self, req_id: str, prefill_done: bool, running: int) -> list[int]:
        one = self._state_for(req_id, prefill_done)
        if one is None or not prefill_done:
            return []
        written = self._runner.requests[req_id].output_token_ids[one.followed :]
        one.followed += len(written)
        accepted, rejected = one.draft.advance(written)
        if rejected:
            one.min_prob = None  # step 3: exactly, from here on
        self._length_policy.observe(one.tally, accepted, rejected)
        return one.propose(self._length_policy.size(one.tally, running))

    def _state_for(self, req_id: str, prefill_done: bool) -> DraftState | None:
        """A request's draft; None where there is none, or none yet."""
        if req_id not in self._states:
            # Looked for from the first step on: once the prompt is read, the encoder cache may drop it.
            drafted = self._draft_for(self._runner.requests[req_id])
            if drafted is None and not prefill_done:
                return None  # the encoder's turn may come in the next part of the prompt
            self._states[req_id] = drafted
        return self._states[req_id]

    def _draft_for(self, request: Any) -> DraftState | None:
        """The whole draft; None where none is asked for, or none known yet."""
        asked = request.sampling_params.extra_args or {}
        if isinstance(asked.get(DRAFT), list):
            return DraftState(Draft(asked[DRAFT], self._vocabulary))
        if asked.get(DRAFT) != CTC or not request.mm_features:
            return None
        embeddings = self._runner.encoder_cache.get(request.mm_features[0].identifier)
        hypothesis: CtcHypothesis | None = self._ctc_hypotheses.get(embeddings) if embeddings is not None else None
        if hypothesis is None:
            return None
        if ACCEPT not in asked:
            tokens = self._tokenizer.encode(self._corrector.corrected(hypothesis.text), add_special_tokens=False)
            return DraftState(Draft(tokens, self._vocabulary), request=request)
        tokens = self._tokenizer.encode(hypothesis.text, add_special_tokens=False)
        max_entropy, min_prob = asked[ACCEPT]
        room = self._runner.max_model_len - request.num_prompt_tokens
        answer = [*tokens, self._tokenizer.eos_token_id][:room]
        return DraftState(Draft(answer, self._vocabulary), min_prob, accept_all=hypothesis.max_entropy <= max_entropy)

    def _windows(self) -> list[DraftWindow]:
        """What may be taken of the drafts of each row that is being written and has asked for it."""
        found = []
        for row, req_id in enumerate(self._runner.input_batch.req_ids):
            prefill_done = not self._runner.discard_request_mask.np[row]  # else its prompt has only been read in part
            one = self._state_for(req_id, prefill_done) if prefill_done else None
            if one is None or one.min_prob is None:
                continue
            if not self._runner.requests[req_id].output_token_ids:  # its prompt has just been read
                one.propose(self._runner.max_model_len if one.accept_all else 0)
            found.append(DraftWindow(row, one.windows, one.min_prob, one.accept_all))
        return found

    def _forget_finished(self) -> None:
        """Drops what is held of requests that the runner no longer has (a preempted one it has), and learns of them."""
        for req_id in self._states.keys() - self._runner.requests.keys():
            one = self._states.pop(req_id)
            if one is not None and one.request is not None:
                written = self._tokenizer.decode(one.request.output_token_ids, skip_special_tokens=True)
                self._corrector.learn(written.split())


class DrafterBinding:
    """Mixed into vLLM's worker (``worker_extension_cls``): what can be asked of it by ``collective_rpc``."""

    model_runner: Any

    def bind_drafter(self, adaptive: bool, relaxed: bool) -> None:
        """Introduces the drafter to the runner, where this worker has one (the last of a pipeline).

        Args:
            adaptive: whether slices are sized by acceptance and load, or as long as can be.
            relaxed: whether requests may ask for the fast mode's three steps.
        """
        drafter = getattr(self.model_runner, "drafter", None)
        if isinstance(drafter, CtcDrafter):
            step_cost_tokens = STEP_COST_TOKENS[self.model_runner.device.type] if adaptive else None
            drafter.bind(self.model_runner, step_cost_tokens, relaxed)


class Vocabulary:
    """The letters of a tokenizer's tokens, in its own alphabet (``Ġ`` for a space, and the like)."""

    def __init__(self, tokenizer: TokenizerLike) -> None:
        self._tokens: dict[str, int] = tokenizer.get_vocab()
        self._letters = {token: letters for letters, token in self._tokens.items()}
        # A special token is no text: one letter that no text has, so that no draft goes on inside it.
        self._letters |= dict.fromkeys(tokenizer.all_special_ids, "\0")

    def letters(self, token: int) -> str:
        """A token's letters; none for an id that pads the embedding to a round size."""
        return self._letters.get(token, "")

    def token(self, letters: str) -> int | None:
        """The token with exactly these letters, if there is one."""
        return self._tokens.get(letters)
