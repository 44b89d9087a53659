"""Optimizer step on the touched rows of an embedding matrix only."""

from __future__ import annotations

import torch
from torch import Tensor


def embedding_update(embedding: Tensor, state: list[Tensor], rows: Tensor, gradient: Tensor, optimizer: str,
                     learning_rate: float, step: int, beta1: float = 0.9, beta2: float = 0.999,
                     eps: float = 1e-8) -> None:
    """One step of SGD, Adagrad or Adam, in place, for the rows that occur in ``rows``.

    Gradients of a row that occurs more than once are added first. Adam is lazy: a row without a gradient
    keeps its moments and its value; the bias correction uses ``step`` (1 for the first).

    Args:
        embedding: [F, K], changed in place.
        state: [] for ``sgd``, [sum of squares [F, K]] for ``adagrad``, [first, second moment] for ``adam``.
        rows: int64 [n]; gradient: [n, K].
    """
    needed = {"sgd": 0, "adagrad": 1, "adam": 2}
    if optimizer not in needed:
        raise ValueError(f"unknown optimizer {optimizer!r}; known: {', '.join(needed)}")
    if len(state) != needed[optimizer]:
        raise ValueError(f"{optimizer} needs {needed[optimizer]} state tensors, got {len(state)}")
    touched, place = torch.unique(rows, return_inverse=True)
    total = gradient.new_zeros(touched.shape[0], gradient.shape[1]).index_add(0, place, gradient)
    if optimizer == "sgd":
        change = total
    elif optimizer == "adagrad":
        squares = state[0][touched] + total.square()
        state[0][touched] = squares
        change = total / (squares.sqrt() + eps)
    else:
        first = beta1 * state[0][touched] + (1 - beta1) * total
        second = beta2 * state[1][touched] + (1 - beta2) * total.square()
        state[0][touched], state[1][touched] = first, second
        change = first / (1 - beta1 ** step) / ((second / (1 - beta2 ** step)).sqrt() + eps)
    embedding[touched] -= learning_rate * change
