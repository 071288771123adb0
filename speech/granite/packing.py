"""Clips cut into blocks of frames, so that clips of any length make one batch.

Granite's Conformer attends within blocks of ``size`` frames, counted from the start of a clip. So a batch here is
a row of blocks, shape (blocks, size, ...), and no longer a row of clips: a clip takes as many blocks as it needs, and
is padded to a whole block, whatever the lengths of the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class Packing:
    """Where the frames of clips are in a batch of blocks.

    Attributes:
        lengths: frames of each clip.
        size: frames of a block.
        device: of the tensors.
    """

    lengths: Sequence[int]
    size: int
    device: torch.device

    @property
    def blocks(self) -> list[int]:
        """Blocks of each clip."""
        return [-(-length // self.size) for length in self.lengths]

    @cached_property
    def rows(self) -> torch.Tensor:
        """The row of each frame of each clip among those of the blocks, shape (frames,)."""
        starts = self._starts()
        return torch.cat(
            [torch.arange(start, start + length) for start, length in zip(starts, self.lengths, strict=True)]
        ).to(self.device)

    @cached_property
    def valid(self) -> torch.Tensor:
        """Which frames belong to a clip, and are no padding, shape (blocks, size)."""
        valid = torch.zeros(sum(self.blocks) * self.size, dtype=torch.bool, device=self.device)
        valid[self.rows] = True
        return valid.view(-1, self.size)

    @cached_property
    def continues(self) -> torch.Tensor:
        """Which blocks continue the clip of the block before, shape (blocks,)."""
        return torch.cat([torch.arange(count) > 0 for count in self.blocks]).to(self.device)

    def windows(self, size: int) -> torch.Tensor:
        """The rows of the frames of each clip's windows of ``size``, shape (windows, size).

        A clip's last window is filled up with the row after the last one, which stands for zeros.
        """
        padding = sum(self.blocks) * self.size
        parts = []
        for start, length in zip(self._starts(), self.lengths, strict=True):
            rows = torch.full((-(-length // size) * size,), padding)
            rows[:length] = torch.arange(start, start + length)
            parts.append(rows.view(-1, size))
        return torch.cat(parts).to(self.device)

    def pack(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames of all clips, shape (frames, dim), in blocks: shape (blocks, size, dim), zero where padded."""
        packed = frames.new_zeros(sum(self.blocks) * self.size, frames.shape[1])
        packed[self.rows] = frames
        return packed.view(-1, self.size, frames.shape[1])

    def _starts(self) -> list[int]:
        """The row of each clip's first frame."""
        starts, row = [], 0
        for count in self.blocks:
            starts.append(row)
            row += count * self.size
        return starts
