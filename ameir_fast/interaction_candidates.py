"""Step 2's candidates, computed together: one lookup, one base projection, and per candidate what is its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import ops
from .batch import Batch
from .supernet import Supernet, interaction_name


class InteractionCandidates:
    """``candidates`` (tuples of fields) of a supernet for clicks, with their projections side by side: as they are now."""

    def __init__(self, net: Supernet, candidates: Sequence[tuple[int, ...]]):
        self.net, self.candidates = net, [list(c) for c in candidates]
        own = [net.step2.interactions[interaction_name(c)].weight.detach() for c in candidates]
        self.projections = torch.stack(own) if own else \
            net.embedding.weight.new_empty(0, net.step2.fields.weight.shape[0], net.embedding_dim)
        # Where a backend has no kernel, the reference shares what candidates have in common too.
        lacks = net.backend is not None and "interaction_population" in ops.missing(net.backend)
        self.backend = ops.Backend.REFERENCE if lacks else net.backend

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """[n, B], as ``net.interaction_logit(batch, candidate)`` in evaluation mode, one after the other."""
        e, base = self.net.interaction_base(batch)
        second, head = self.net.step2.mlp["1"], self.net.step2.head
        return ops.interaction_population(e, base, self.candidates, self.projections, second.weight, second.bias,
                                          head.weight[0], head.bias, backend=self.backend)
