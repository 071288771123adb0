"""Granite Speech's Conformer encoder with its CTC head, on blocks of frames (``speech.granite.packing``).

The arithmetic is that of Transformers' ``GraniteSpeechCTCEncoder`` for a single clip, on the checkpoint's own
weights. A clip's output does not depend on the others of its batch: attention never leaves a block, the convolution
takes its neighbouring frames from blocks of the same clip, and everything else is by frame.

Folded when the weights are read: the macaron's halves into the second layer of each feed-forward, BatchNorm into the
depthwise convolution before it, queries, keys and values into one product, the scale of attention into the relative
positions.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from speech.granite.packing import Packing
from speech.granite.weights import Weights

BATCH_NORM_EPS = 1e-5  # PyTorch's default, which the checkpoint's model has


class Conformer:
    """The encoder.

    Args:
        config: ``encoder_config`` of the checkpoint.
        weights: below ``encoder``.
    """

    def __init__(self, config: Any, weights: Weights) -> None:
        self._input = weights.linear("input_linear")
        self._layers = [_Layer(config, weights.scope(f"layers.{index}")) for index in range(config.num_layers)]
        self._out, self._out_mid = weights.linear("out"), weights.linear("out_mid")
        self._hidden_dim: int = config.hidden_dim
        # Layers whose states Speech Plus gives to its projector beside the last one's; 0 is the input.
        self._kept = set(getattr(config, "cat_hidden_layers", None) or ()) - {config.num_layers}

    def __call__(self, features: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Encodes blocks.

        Args:
            features: stacked log-mel frames, shape (blocks, size, 160).
            packing: of the blocks.

        Returns:
            Shape (blocks, size, hidden); of padding without meaning. For Speech Plus ``hidden`` holds the states of
            ``cat_hidden_layers`` before the last.
        """
        kept = []
        hidden = self._input(features)
        if 0 in self._kept:
            kept.append(hidden)
        for index, layer in enumerate(self._layers, start=1):
            hidden = layer(hidden, packing)
            if index == len(self._layers) // 2:  # self-conditioning on the CTC posteriors of the middle layer
                hidden = hidden + self._out_mid(self._out(hidden).softmax(-1))
            if index in self._kept:
                kept.append(hidden)
        return torch.cat([*kept, hidden], dim=-1)

    def ctc_logits(self, states: torch.Tensor) -> torch.Tensor:
        """The CTC head applied to the encoder's output: shape (..., labels)."""
        return self._out(states[..., -self._hidden_dim :])


class _Layer:
    def __init__(self, config: Any, weights: Weights) -> None:
        self._first = _FeedForward(weights.scope("ff1"))
        self._attention = _Attention(config, weights.scope("attn"))
        self._convolution = _Convolution(weights.scope("conv"))
        self._second = _FeedForward(weights.scope("ff2"))
        self._norm = weights.layer_norm("post_norm")

    def __call__(self, hidden: torch.Tensor, packing: Packing) -> torch.Tensor:
        hidden = hidden + self._first(hidden)
        hidden = hidden + self._attention(hidden, packing)
        hidden = hidden + self._convolution(hidden, packing)
        return self._norm(hidden + self._second(hidden))


class _FeedForward:
    def __init__(self, weights: Weights) -> None:
        self._norm = weights.layer_norm("pre_norm")
        self._up, self._down = weights.linear("up_proj"), weights.linear("down_proj", scale=0.5)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._down(F.silu(self._up(self._norm(hidden)), inplace=True))


class _Attention:
    """Attention within blocks, with Shaw's relative positions (arXiv 1803.02155) as a bias on the scores."""

    def __init__(self, config: Any, weights: Weights) -> None:
        self._heads, self._dim, size = config.num_heads, config.dim_head, config.context_size
        self._scale = self._dim**-0.5
        self._norm = weights.layer_norm("pre_norm")
        self._qkv = torch.cat([weights["to_q.weight"], weights["to_kv.weight"]])
        self._out = weights.linear("to_out")
        # The embedding of query - key + max_pos_emb. With the keys in reverse order, the embeddings of one query's
        # keys are consecutive, and those of all queries a view: shape (queries, dim, keys).
        table = weights["rel_pos_emb.weight"]
        first = config.max_pos_emb - (size - 1)
        self._positions = (table[first : first + 2 * size - 1] * self._scale).unfold(0, size, 1)

    def __call__(self, hidden: torch.Tensor, packing: Packing) -> torch.Tensor:
        blocks, size, _ = hidden.shape
        # Softmax does not depend on the order of the keys.
        padding = ~packing.valid.flip(1)[:, None, None]
        states = F.linear(self._norm(hidden), self._qkv).view(blocks, size, 3, self._heads, self._dim)
        query, key, value = (states[:, :, index].transpose(1, 2) for index in range(3))
        query = query.reshape(-1, size, self._dim)
        key, value = (each.flip(2).reshape(-1, size, self._dim) for each in (key, value))
        bias = torch.bmm(query.transpose(0, 1).contiguous(), self._positions).transpose(0, 1)
        scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=self._scale)
        scores = scores.view(blocks, self._heads, size, size)
        scores.masked_fill_(padding, torch.finfo(scores.dtype).min)
        attended = torch.bmm(scores.softmax(-1).view(-1, size, size), value)
        return self._out(attended.view(blocks, self._heads, size, -1).transpose(1, 2).reshape(blocks, size, -1))


class _Convolution:
    """The convolution module; a block's first and last frames see those of its neighbours of the same clip."""

    def __init__(self, weights: Weights) -> None:
        self._norm = weights.layer_norm("norm")
        self._up, self._down = weights.linear("up_conv"), weights.linear("down_conv")
        norm = weights.scope("batch_norm")
        self._kernel, self._bias = fuse_conv_bn_weights(
            weights["depth_conv.conv.weight"],
            None,
            norm["running_mean"],
            norm["running_var"],
            BATCH_NORM_EPS,
            norm["weight"],
            norm["bias"],
        )

    def __call__(self, hidden: torch.Tensor, packing: Packing) -> torch.Tensor:
        hidden = F.glu(self._up(self._norm(hidden)), dim=-1) * packing.valid[..., None]
        hidden = self._with_neighbours(hidden, packing.continues[:, None, None])
        # As an image of height 1, channels last, which spares a copy on every device.
        image = hidden[:, None].permute(0, 3, 1, 2)
        image = F.conv2d(image, self._kernel[:, :, None], self._bias, groups=len(self._kernel))
        return self._down(F.silu(image.permute(0, 2, 3, 1)[:, 0]))

    def _with_neighbours(self, hidden: torch.Tensor, continues: torch.Tensor) -> torch.Tensor:
        """Blocks with the frames before and after them that the kernel reaches, zeros at the ends of a clip."""
        width = self._kernel.shape[-1]
        before, after = width // 2, (width - 1) // 2
        left = hidden[:, -before:].roll(1, 0) * continues
        right = (hidden[:, :after] * continues).roll(-1, 0)
        return torch.cat([left, hidden, right], dim=1)
