"""Children of step 1, which differ in their behaviour path alone: their fixed MLPs computed together."""

from __future__ import annotations

import torch
from torch import Tensor

from . import forward, ops
from .space import Architecture
from .space.architecture import fixed_mlp
from .supernet import FIXED_WIDTHS, Supernet, reads_step1

FIXED = fixed_mlp(*FIXED_WIDTHS)
TOGETHER = 16  # pooled histories that wait for their MLP


def shares_mlp(arch: Architecture) -> bool:
    """Whether ``PathChildren`` can take the architecture: step 1's MLP with ReLUs."""
    return reads_step1(arch) and arch.mlp == FIXED


class PathChildren:
    """Scores of one batch, pooled history by pooled history: what fields add to the first layer is computed once."""

    def __init__(self, net: Supernet, inputs: forward.Inputs):
        own = net.step1
        self.net, self.second, self.head = net, own.mlp["1"], own.head
        weight, bias = own.mlp["0"].weight, own.mlp["0"].bias
        fields = inputs.rows.shape[1] * inputs.embedding.shape[1]
        self.width = weight.shape[1] - fields
        self.projection = weight[:, :self.width]
        self.base = ops.embedding_interactions(*inputs.lookup, [], None, weight[:, self.width:], bias,
                                               backend=net.backend) if fields else bias.expand(inputs.rows.shape[0], -1)
        # Where a backend has no kernel, the reference shares what children have in common too.
        lacks = net.backend is not None and "interaction_population" in ops.missing(net.backend)
        self.backend = ops.Backend.REFERENCE if lacks else net.backend

    def logits(self, pooled: list[Tensor]) -> Tensor:
        """[n, B] of children whose pooled histories these are, each [B, W]."""
        # A pooled history is to the first layer what a product is in step 2: a vector of its own beside a common base.
        return ops.interaction_population(
            torch.stack(pooled, 1), self.base, [[i] for i in range(len(pooled))],
            self.projection.expand(len(pooled), -1, -1), self.second.weight, self.second.bias, self.head.weight[0],
            self.head.bias, backend=self.backend)
