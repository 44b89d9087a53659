"""The aggregation MLPs of many children over one first pre-activation (Step 3, ranked exhaustively)."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor

from .sliced_mlp import sliced_mlp

ACTIVATIONS = ("relu", "swish", "identity", "dice")  # a child's activations are places in it


def mlp_population(x: Tensor, weights: list[Tensor], biases: list[Tensor], dice: list[Tensor], head: Tensor,
                   common: Tensor, children: Tensor) -> Tensor:
    """Logits of every child. All of them read slices ``W[:out, :in]`` of the same matrices.

    Children that begin alike share the beginning: each different beginning is computed once.

    Args:
        x: [B, n_0], the pre-activation of the widest first layer.
        weights, biases: L-1 matrices [n_l, n_{l-1}] and vectors [n_l], those of the widest layers.
        dice: L vectors alpha [n_l]; Dice takes the statistics of the batch at hand.
        head: [n_L], the head's weights of the last layer's units.
        common: [B], what all logits have in common: the head's bias and the shortcut's part.
        children: int64 [n, 2 L]; of each layer its units and the place of its activation in ``ACTIVATIONS``.
    Returns:
        [n, B].
    """
    table = children.tolist()
    last = len(dice) - 1
    out = x.new_empty(len(table), x.shape[0])

    def visit(layer: int, s: Tensor, members: list[int]) -> None:
        """``members`` share the layers before ``layer``, and ``s`` is its pre-activation."""
        own = lambda child: table[child][2 * layer:2 * layer + 2]
        for (units, act), same in itertools.groupby(sorted(members, key=own), key=own):
            group, name = list(same), ACTIVATIONS[act]
            h, _ = sliced_mlp(s[:, :units], [], [], [name], [dice[layer][:units]] if name == "dice" else [])
            if layer == last:
                out[group] = h @ head[:units] + common
            else:
                wide = max(table[child][2 * layer + 2] for child in group)
                visit(layer + 1, F.linear(h, weights[layer][:wide, :units], biases[layer][:wide]), group)

    visit(0, x, list(range(len(table))))
    return out
