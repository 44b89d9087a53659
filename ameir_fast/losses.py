"""Losses of the two tasks (paper section 2.1, "Loss Function")."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def ctr_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Mean binary log loss of logits [..., B] against labels [B] in {0, 1}."""
    return F.binary_cross_entropy_with_logits(logits, label.to(logits.dtype).expand_as(logits))


def retrieval_loss(scores: Tensor) -> Tensor:
    """Sampled binary cross-entropy of scores [..., B, 1 + n], the positive in column 0.

    Mean over rows of ``−log σ(s⁺) − Σ_j log(1 − σ(s⁻_j))``; the negatives are summed, not averaged.
    """
    return (F.softplus(-scores[..., 0]) + F.softplus(scores[..., 1:]).sum(-1)).mean()
