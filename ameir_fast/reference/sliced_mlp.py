"""The aggregation MLP on slices of maximal matrices (paper section 2.3, Step 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .activations import activate, batch_statistics, dice


def sliced_mlp(x: Tensor, weights: list[Tensor], biases: list[Tensor], activations: list[str],
               dice_parameters: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Activation, then (linear, activation) for each weight: the MLP from its first pre-activation on.

    Args:
        x: [B, n_0], the first layer's pre-activation (or its output, when ``activations[0]`` is identity).
        weights: L-1 matrices [n_l, n_{l-1}], slices ``W[:out, :in]`` read in place.
        biases: L-1 vectors [n_l].
        activations: L names of relu, swish, identity, dice.
        dice_parameters: for each Dice in order: ``alpha [n]`` (statistics of the batch at hand), or
            ``[3, n]`` stacked alpha, mean and variance (fixed statistics).
    Returns:
        the last layer's output [B, n_L], and the statistics used by the Dice layers, concatenated:
        mean_1, variance_1, mean_2, … (empty without Dice).
    """
    statistics, units = [], iter(dice_parameters)
    for index, name in enumerate(activations):
        if index:
            x = F.linear(x, weights[index - 1], biases[index - 1])
        if name != "dice":
            x = activate(name, x)
            continue
        given = next(units)
        alpha, mean, variance = (given, *batch_statistics(x)) if given.dim() == 1 else given.unbind(0)
        statistics += [mean, variance]
        x = dice(x, alpha, mean, variance)
    return x, torch.cat(statistics).detach() if statistics else x.new_empty(0)
