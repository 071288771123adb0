"""How many draft tokens to propose at once: the rule of ``--speculation auto``.

A step of the engine has a fixed cost, and a cost for every token that it computes; let F be the number of tokens that
cost as much as the fixed part. With b requests in the batch, an accepted token saves its request one b-th of a step,
which is worth F/b + 1 tokens. The i-th token of a slice is accepted if it and all before it are right, with
probability p**i if a share p of draft tokens is right. So it is worth its cost as long as

    p**i > 1 / (F/b + 1)  =  b / (b + F)

Few requests: long slices. Many requests, or bad drafts: short ones, at last none. p is measured for each request,
starting from the engine's recent average; where nothing is proposed it is measured all the same, by comparing the
draft with the model's output. F is a constant of the machine.
"""

import math
from dataclasses import dataclass

# F by kind of device. CPU: on the demo checkpoint, where vLLM's own work is most of a step, bench/speculation.py
# has fitted 50, 107 and 168 on two cores. GPU: estimated and not yet measured; a bf16 model of 1.6 B parameters reads
# its weights in the time of a few hundred tokens' arithmetic (bench/speculation_gpu.py fits it).
STEP_COST_TOKENS = {"cpu": 100.0, "cuda": 256.0}

_PRIOR_WEIGHT = 8.0  # tokens that the engine's average counts for in a request's acceptance rate
_DECAY = 0.99  # of the engine's counts, from one slice to the next
_INITIAL_COUNTS = (19.0, 1.0)  # accepted and rejected, before the first slice


@dataclass
class AcceptanceCount:
    """Draft tokens accepted and rejected. Those after a rejected one were not verified and do not count."""

    accepted: float = 0.0
    rejected: float = 0.0

    def add(self, accepted: int, rejected: bool) -> None:
        """Counts one slice."""
        self.accepted += accepted
        self.rejected += rejected


class DraftLengthPolicy:
    """Chooses the length of the slices of all requests of one engine.

    Args:
        limit: tokens of the longest slice.
        step_cost_tokens: F; None to propose the longest slice always.
    """

    def __init__(self, limit: int, step_cost_tokens: float | None) -> None:
        self._limit = limit
        self._step_cost_tokens = step_cost_tokens
        self._engine_count = AcceptanceCount(*_INITIAL_COUNTS)

    def size(self, count: AcceptanceCount, running: int) -> int:
        """Tokens worth proposing for a request, given its own count and the number of requests in the batch."""
        if self._step_cost_tokens is None:
            return self._limit
        rate = self._acceptance_rate(count)
        threshold = running / (running + self._step_cost_tokens)
        size = self._limit if rate >= 1 else int(math.log(threshold) / math.log(rate)) if rate > 0 else 0
        return min(self._limit, size)

    def observe(self, count: AcceptanceCount, accepted: int, rejected: bool) -> None:
        """Adds the outcome of a request's slice to its own count and to the engine's."""
        if not accepted and not rejected:
            return  # the draft is at its end: no outcome, and nothing to decay for
        count.add(accepted, rejected)
        self._engine_count.accepted *= _DECAY
        self._engine_count.rejected *= _DECAY
        self._engine_count.add(accepted, rejected)

    def _acceptance_rate(self, count: AcceptanceCount) -> float:
        """p: a request's own share of accepted tokens, with the engine's average as prior."""
        engine = self._engine_count
        prior = engine.accepted / (engine.accepted + engine.rejected)
        return (count.accepted + _PRIOR_WEIGHT * prior) / (count.accepted + count.rejected + _PRIOR_WEIGHT)
