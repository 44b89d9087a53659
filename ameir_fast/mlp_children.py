"""Children that differ in their aggregation MLP alone (Step 3): computed together, from one first pre-activation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from . import forward, ops
from .reference.mlp_population import ACTIVATIONS
from .space import Architecture
from .supernet import Supernet


class MlpChildren:
    """``archs`` share blocks, interactions and shortcut, and their MLPs are given as ratios.

    What they have in common of a batch is its front: the full-width first pre-activation [B, K0] and one number a
    sample, the head's bias and the shortcut's part of the logit. ``order`` are the places of the children so that those
    which begin alike are neighbours, as one computation of a part of them wants it.
    """

    def __init__(self, net: Supernet, archs: Sequence[Architecture]):
        self.net, self.arch = net, archs[0]
        self.k0 = net.space.k0(len(self.arch.interactions))
        self.layers = len(self.arch.mlp)
        table = [[n for layer in arch.mlp for n in (layer.units(self.k0), ACTIVATIONS.index(layer.activation))]
                 for arch in archs]
        self.order = sorted(range(len(archs)), key=lambda i: _place(table[i]))
        self.table = torch.tensor(table, dtype=torch.int64)
        units = [net.mlp[str(layer)] for layer in range(self.layers)]
        self.weights = [unit.weight for unit in units[1:]]
        self.biases = [unit.bias for unit in units[1:]]
        self.dice = [unit.dice.alpha for unit in units]
        # Where a backend has no kernel, the reference shares what children have in common too.
        lacks = net.backend is not None and "mlp_population" in ops.missing(net.backend)
        self.backend = ops.Backend.REFERENCE if lacks else net.backend

    def front(self, inputs: forward.Inputs, h_a: Tensor | None) -> tuple[Tensor, Tensor]:
        """What all children have in common of a batch."""
        weights = self.net.weights(self.arch)
        pre = forward.first_layer(weights, self.arch, h_a, inputs, outputs=self.k0)
        h_se = forward.shortcut(weights, self.arch, inputs)
        common = self.net.head.bias.expand(pre.shape[0])
        if h_se is not None:
            common = common + h_se @ self.net.head.weight[0, -self.net.embedding_dim:]
        return pre, common

    def logits(self, front: tuple[Tensor, Tensor], members: Sequence[int] | None = None) -> Tensor:
        """[n, B] of all children, or of those at these places."""
        pre, common = front
        table = self.table if members is None else self.table[list(members)]
        return ops.mlp_population(pre, self.weights, self.biases, self.dice, self.net.head.weight[0], common, table,
                                  backend=self.backend)

    def work(self) -> tuple[int, int]:
        """Multiplications a sample from the first pre-activation on: one child after the other, and together."""
        rows = sorted((self.table[i].tolist() for i in self.order), key=_place)
        alone = sum(a * b for row in rows for a, b in itertools.pairwise([*row[::2], 1]))
        return alone, self._together(rows, 0)

    def _together(self, rows: list[list[int]], layer: int) -> int:
        total = 0
        for _, branch in itertools.groupby(rows, key=lambda row: row[2 * layer + 1]):
            inputs = outputs = 0
            for units, stop in itertools.groupby(branch, key=lambda row: row[2 * layer]):
                stop = list(stop)
                last = layer + 1 == self.layers
                wide = 1 if last else max(outputs, *(row[2 * layer + 2] for row in stop))
                total += outputs * (units - inputs) + (wide - outputs) * units
                inputs, outputs = units, wide
                if not last:
                    total += self._together(stop, layer + 1)
        return total


def shares_front(arch: Architecture) -> bool:
    """Whether ``MlpChildren`` can take the architecture: an MLP, all of it given as ratios."""
    return bool(arch.mlp) and not arch.has_fixed_mlp


def _place(row: list[int]) -> list[tuple[int, int]]:
    """Sort key: activation, then units, of one layer after the other."""
    return [(row[i + 1], row[i]) for i in range(0, len(row), 2)]
