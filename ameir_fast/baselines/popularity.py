"""POP: every user is recommended what most training rows have."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from .. import forward
from ..batch import Batch


class Popularity(nn.Module):
    """Scores of items are their counts [V]; nothing is trained."""

    def __init__(self, counts: np.ndarray):
        super().__init__()
        self.register_buffer("counts", torch.as_tensor(counts).to(torch.float64)[:, None])

    def forward(self, batch: Batch, items: forward.Items = None) -> Tensor:
        if isinstance(items, Tensor):
            return self.counts[items.long(), 0]
        users = self.counts.new_ones(len(batch), 1)
        return users @ self.counts.t() if items is None else items(users, self.counts)

    def parameter_counts(self) -> tuple[int, int]:
        """Trainable parameters: none."""
        return 0, 0
