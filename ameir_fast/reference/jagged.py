"""Between jagged [ΣT, D] and padded [B, T, D] (zeros beyond the true length), differentiable both ways."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where the elements of a jagged batch lie in its padded form of ``longest`` columns."""

    lengths: Tensor          # int64 [B]
    longest: int
    positions: Tensor | None  # int64 [ΣT], row-major padded positions; None when every row is full

    @classmethod
    def of(cls, offsets: Tensor, elements: int, longest: int) -> Layout:
        lengths = offsets.diff()
        rows = lengths.shape[0]
        if elements == rows * longest:
            return cls(lengths, longest, None)
        owner = torch.repeat_interleave(lengths, output_size=elements)
        inside = torch.arange(elements, device=offsets.device) - offsets[:-1].index_select(0, owner)
        return cls(lengths, longest, owner * longest + inside)

    @property
    def rows(self) -> int:
        return self.lengths.shape[0]

    @property
    def mask(self) -> Tensor | None:
        """bool [B, T], true at true elements; None when every position is one."""
        if self.positions is None:
            return None
        return torch.arange(self.longest, device=self.lengths.device) < self.lengths[:, None]

    def pad(self, x: Tensor) -> Tensor:
        """[ΣT, D] to [B, T, D]."""
        shape = (self.rows, self.longest, x.shape[1])
        if self.positions is None:
            return x.reshape(shape)
        return x.new_zeros(self.rows * self.longest, x.shape[1]).index_copy(0, self.positions, x).view(shape)

    def unpad(self, x: Tensor) -> Tensor:
        """[B, T, D] to [ΣT, D]."""
        flat = x.reshape(self.rows * self.longest, x.shape[2])
        return flat if self.positions is None else flat.index_select(0, self.positions)
