"""How much of a draft is worth verifying: the rule of ``--speculation auto``.

A step of the engine costs a fixed sum, whatever it verifies, and a price for every token; let F be the
number of tokens that cost as much as the fixed sum. With b requests in the batch, a token gained saves
its request a b-th of a step: F/b + 1 tokens' worth. The i-th token of a slice is gained if it and all
before it are right, with probability p**i where a share p of drafted tokens is. So it is worth its
price as long as

    p**i > 1 / (F/b + 1)  =  b / (b + F)

Few requests: long slices. Many requests, or bad drafts: short ones, at last none. p is measured, by
request, starting from what the engine has seen lately; where nothing is proposed it is measured all the
same, on the tokens that the model writes unasked. F is the machine's.
"""

import math
from dataclasses import dataclass

# F of the kinds of machine. CPU: on the demo checkpoint, where vLLM's own work is most of a step, bench/speculation.py
# has fitted 50, 107 and 168 on two cores. GPU: reckoned and not yet measured; a bf16 model of 1.6 B parameters reads
# its weights in the time of a few hundred tokens' arithmetic (bench/speculation_gpu.py fits it).
STEP_COST_TOKENS = {"cpu": 100.0, "cuda": 256.0}

_OWN_WEIGHT = 8.0  # refusals and acceptances that the engine's experience counts for in a request's share
_MEMORY = 0.99  # of that experience, from one slice to the next
_FIRST_GUESS = (19.0, 1.0)  # accepted and refused, before anything was seen


@dataclass
class AcceptanceCount:
    """What became of drafted tokens. Those after a refused one were never looked at: they don't count."""

    accepted: float = 0.0
    rejected: float = 0.0

    def add(self, accepted: int, rejected: bool) -> None:
        """Counts one slice."""
        self.accepted += accepted
        self.rejected += rejected


class DraftLengthPolicy:
    """Sizes the slices of all requests of one engine.

    Args:
        limit: tokens of the longest slice.
        free_tokens: F; None to propose the longest slice always.
    """

    def __init__(self, limit: int, step_cost_tokens: float | None) -> None:
        self._limit = limit
        self._step_cost_tokens = step_cost_tokens
        self._seen = AcceptanceCount(*_FIRST_GUESS)

    def size(self, own: AcceptanceCount, running: int) -> int:
        """Tokens worth proposing for a request, given its own tally and the requests in the batch."""
        if self._step_cost_tokens is None:
            return self._limit
        share = self._share(own)
        price = running / (running + self._step_cost_tokens)
        size = self._limit if share >= 1 else int(math.log(price) / math.log(share)) if share > 0 else 0
        return min(self._limit, size)

    def observe(self, own: AcceptanceCount, accepted: int, rejected: bool) -> None:
        """Takes note of what became of a request's slice."""
        if not accepted and not rejected:
            return  # the draft is at its end: nothing learned, nothing to forget
        own.add(accepted, rejected)
        self._seen.accepted *= _MEMORY
        self._seen.rejected *= _MEMORY
        self._seen.add(accepted, rejected)

    def _share(self, own: AcceptanceCount) -> float:
        """p: a request's own share of right tokens, leaning on the engine's while it is new."""
        engine = self._seen.accepted / (self._seen.accepted + self._seen.rejected)
        return (own.accepted + _OWN_WEIGHT * engine) / (own.accepted + own.rejected + _OWN_WEIGHT)
