"""embedding_update: one step of SGD, Adagrad or Adam on the rows of E [F, K] that occur in ``rows`` int64 [n], in
place.

Gradients [n, K] of a row that occurs more than once are added first, in the order of their places. A row's step, with
its sum g:

    sgd       E −= η g
    adagrad   s += g²;  E −= η g / (√s + ε)
    adam      m = β1 m + (1 − β1) g;  v = β2 v + (1 − β2) g²;  E −= η m / (1 − β1^t) / (√(v / (1 − β2^t)) + ε)

Rows are sorted stably, and the kernels of ``_segments`` add the gradients of each and take its step in the same breath:
sums never reach device memory, but of rows whose occurrences lie across the edge of a chunk. Bytes moved beside the
sort: 4 n K of gradients, 12 n of rows and places, and for each distinct row 8 K (sgd), 16 K (adagrad), 24 K (adam).
Operations: a few for each of these numbers; nothing is recomputed, and there is no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._segments import ADAGRAD, ADAM, SGD, reduce_sorted

_STEPS = {"sgd": (SGD, 0), "adagrad": (ADAGRAD, 1), "adam": (ADAM, 2)}


def forward(embedding: Tensor, first: Tensor | None, second: Tensor | None, rows: Tensor, gradient: Tensor,
            optimizer: str, learning_rate: float, step: int, beta1: float, beta2: float, eps: float) -> None:
    if optimizer not in _STEPS:
        raise ValueError(f"unknown optimizer {optimizer!r}; known: {', '.join(_STEPS)}")
    code, needed = _STEPS[optimizer]
    states = [s for s in (first, second) if s is not None]
    if len(states) != needed:
        raise ValueError(f"{optimizer} needs {needed} state tensors, got {len(states)}")
    for name, tensor in (("embedding", embedding), ("first", first), ("second", second)):
        if tensor is not None and not tensor.is_contiguous():
            raise RuntimeError(f"embedding_update: {name} must be contiguous")
    keys, order = torch.sort(rows.to(torch.int32), stable=True)
    numbers = {"learning_rate": learning_rate, "beta1": beta1, "beta2": beta2, "rest1": 1 - beta1, "rest2": 1 - beta2,
               "correction1": 1 - beta1 ** step, "correction2": 1 - beta2 ** step, "eps": eps}
    reduce_sorted(embedding, keys, order, gradient, step=code, first=first, second=second, numbers=numbers)
