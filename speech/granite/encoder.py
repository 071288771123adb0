"""Granite Speech's Conformer encoder, batch-invariant: a clip's output does not depend on the rest of the batch.

vLLM pads clips with zero frames and encodes them together without a mask, so that the output for a clip depends on
the lengths of the others. Padding enters in three places: attention in the last, partly filled block; the depthwise
convolution past the last frame; and the Q-Former's last window. Here each is masked with the clip's own length,
so that the output for a clip is the same as without padding.

The arithmetic is vLLM's (``vllm.model_executor.models.granite_speech``), layer by layer, on vLLM's
own weights; only the masks are new.
"""

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from vllm.model_executor.models.granite_speech import (
    GraniteSpeechConformerAttention,
    GraniteSpeechConformerBlock,
    GraniteSpeechConformerConvModule,
    GraniteSpeechCTCEncoder,
)

# A batch may hold at most this many frames, padding included, for each frame of a clip. Below it, one larger batch
# is cheaper than two; above it, the padding costs more than the batching saves.
MAX_PADDING = 1.25


class BatchInvariantEncoder(GraniteSpeechCTCEncoder):
    """vLLM's encoder (Granite Speech and Speech Plus), masked by the lengths of the clips."""

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Encodes a padded batch.

        Args:
            features: stacked log-mel frames, shape (clips, frames, 160); frames past a clip's length
                are ignored.
            lengths: frames of each clip without padding, shape (clips,), int64, on the device of ``features``.

        Returns:
            Shape (clips, frames, hidden), zero past each clip's length. For Speech Plus ``hidden``
            holds the layers of ``cat_hidden_layers`` before the last.
        """
        frames = torch.arange(features.shape[1], device=features.device) < lengths[:, None]
        kept_layers = set(getattr(self.config, "cat_hidden_layers", None) or ()) - {self.num_layers}
        kept = []
        hidden = self.input_linear(features)
        if 0 in kept_layers:
            kept.append(hidden)
        for index, layer in enumerate(self.layers, start=1):
            hidden = _conformer_block(layer, hidden, self.attention_dists, frames)
            if index in kept_layers:
                kept.append(hidden)
            if index == self.num_layers // 2:  # self-conditioning on the CTC posteriors of the middle layer
                hidden = hidden + self.out_mid(self.softmax(self.out(hidden)[0]))[0]
        return torch.cat([*kept, hidden], dim=-1) * frames[..., None]

    def ctc_logits(self, states: torch.Tensor) -> torch.Tensor:
        """The CTC head applied to the output of ``forward``: logits, shape (clips, frames, labels)."""
        return self.out(states[..., -self.config.hidden_dim :])[0]  # Speech Plus has earlier layers' states before


def similar_lengths(lengths: list[int], max_padding: float = MAX_PADDING) -> list[list[int]]:
    """Groups clips so that padding each group to its longest stays within ``max_padding``.

    Args:
        lengths: frames of each clip.
        max_padding: frames of a group with padding over frames without, at most.

    Returns:
        Lists of indices into ``lengths``; each index is in exactly one.
    """
    groups: list[list[int]] = []
    unpadded_frames = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        # In ascending order, so this one is the longest so far and sets the padded length of the whole group.
        if groups and lengths[index] * (len(groups[-1]) + 1) <= max_padding * (unpadded_frames + lengths[index]):
            groups[-1].append(index)
            unpadded_frames += lengths[index]
        else:
            groups.append([index])
            unpadded_frames = lengths[index]
    return groups


def _conformer_block(
    block: GraniteSpeechConformerBlock, hidden: torch.Tensor, distances: torch.Tensor, frames: torch.Tensor
) -> torch.Tensor:
    hidden = 0.5 * block.ff1(hidden) + hidden
    hidden = _attend(block.attn, hidden, distances, frames) + hidden
    hidden = _convolve(block.conv, hidden, frames) + hidden
    hidden = 0.5 * block.ff2(hidden) + hidden
    return block.post_norm(hidden)


def _attend(
    attention: GraniteSpeechConformerAttention, hidden: torch.Tensor, distances: torch.Tensor, frames: torch.Tensor
) -> torch.Tensor:
    """Attention within blocks of ``context_size`` frames; frames past a clip's length are masked out."""
    clips, length, _ = hidden.shape
    size = attention.context_size
    padding = -length % size
    hidden = F.pad(attention.pre_norm(hidden), (0, 0, 0, padding))
    attended = F.pad(frames, (0, padding)).view(clips, -1, 1, 1, size)

    def blocks(projected: torch.Tensor) -> torch.Tensor:  # (clips, blocks, heads, size, dim)
        return projected.view(clips, -1, size, attention.num_heads, attention.dim_head).transpose(2, 3)

    query = blocks(attention.to_q(hidden))
    key, value = map(blocks, attention.to_kv(hidden).chunk(2, dim=-1))
    # Shaw's relative positions (arXiv 1803.02155), as a bias on the scores.
    relative = attention.rel_pos_emb(distances.to(hidden.device))
    bias = torch.einsum("bnhid,ijd->bnhij", query, relative) * attention.scale
    bias.masked_fill_(~attended, -torch.finfo(bias.dtype).max)
    with sdpa_kernel(SDPBackend.MATH):
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=attention.scale)
    out = out.transpose(2, 3).reshape(clips, length + padding, -1)
    return attention.to_out(out[:, :length])


def _convolve(conv: GraniteSpeechConformerConvModule, hidden: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """The convolution module, with zeros past a clip's length, as a clip without padding has past its end."""
    hidden = conv.glu(conv.up_conv(conv.norm(hidden).transpose(1, 2)))
    hidden = conv.depth_conv(hidden * frames[:, None])
    hidden = conv.down_conv(conv.silu(conv.batch_norm(hidden)))
    return hidden.transpose(1, 2)
