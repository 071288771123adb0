"""Granite Speech's projector: a Q-Former that makes three audio embeddings of fifteen frames.

The arithmetic is that of Transformers' ``GraniteSpeechEncoderProjector`` with ``Blip2QFormerModel`` (BLIP-2, arXiv
2301.12597). A window never sees another, so its embeddings do not depend on the batch. What precedes the first
cross-attention is the same for every window: it is computed once, when the weights are read.
"""

from typing import Any

import torch
import torch.nn.functional as F
from transformers.activations import ACT2FN

from speech.granite.weights import Weights


class Projector:
    """The projector.

    Args:
        config: of the checkpoint.
        weights: below ``projector``.
    """

    def __init__(self, config: Any, weights: Weights) -> None:
        former, eps = config.projector_config, config.projector_config.layer_norm_eps
        layers = [weights.scope(f"qformer.encoder.layer.{index}") for index in range(former.num_hidden_layers)]
        query = weights.layer_norm("qformer.layernorm", eps)(weights["query"])
        self._query = _Attention(former, layers[0].scope("attention"))(query, query)
        self._first = _CrossAttention(former, layers[0], has_self_attention=False)
        self._others = [_CrossAttention(former, layer) for layer in layers[1:]]
        self._linear = weights.linear("linear")

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """Audio embeddings.

        Args:
            windows: encoder frames, shape (windows, 15, hidden), zero past the end of a clip.

        Returns:
            Shape (windows, 3, hidden of the language model).
        """
        query = self._query.expand(len(windows), -1, -1)
        for layer in (self._first, *self._others):
            query = layer(query, windows)
        return self._linear(query)


class _CrossAttention:
    """One layer: attention among the queries (unless that is done), to the frames where it has it, feed-forward."""

    def __init__(self, config: Any, weights: Weights, has_self_attention: bool = True) -> None:
        self._self = _Attention(config, weights.scope("attention")) if has_self_attention else None
        crosses = "crossattention.attention.query.weight" in weights  # every cross_attention_frequency-th layer does
        self._cross = _Attention(config, weights.scope("crossattention")) if crosses else None
        self._up, self._down = weights.linear("intermediate_query.dense"), weights.linear("output_query.dense")
        self._activation = ACT2FN[config.hidden_act]
        self._norm = weights.layer_norm("output_query.LayerNorm", config.layer_norm_eps)

    def __call__(self, query: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        if self._self is not None:
            query = self._self(query, query)
        if self._cross is not None:
            query = self._cross(query, frames)
        return self._norm(query + self._down(self._activation(self._up(query))))


class _Attention:
    def __init__(self, config: Any, weights: Weights) -> None:
        self._heads = config.num_attention_heads
        scope = weights.scope("attention")
        self._query, self._key, self._value = (scope.linear(name) for name in ("query", "key", "value"))
        self._dense = weights.linear("output.dense")
        self._norm = weights.layer_norm("output.LayerNorm", config.layer_norm_eps)

    def __call__(self, query: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        attended = F.scaled_dot_product_attention(
            self._split(self._query(query)), self._split(self._key(states)), self._split(self._value(states))
        )
        return self._norm(query + self._dense(attended.transpose(1, 2).flatten(2)))

    def _split(self, states: torch.Tensor) -> torch.Tensor:
        """Shape (windows, heads, positions, dim)."""
        return states.unflatten(-1, (self._heads, -1)).transpose(1, 2)
