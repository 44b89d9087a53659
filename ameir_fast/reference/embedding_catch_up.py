"""What dense Adam does to the rows of an embedding matrix that have no gradient, many steps at once."""

from __future__ import annotations

import torch
from torch import Tensor

ORDERS = 5  # of the expansion; csrc/train/update.h knows the columns too
CENTRE, ORDER_0, LEARNING_RATE, COLUMNS = 0, 1, 1 + ORDERS, 2 + ORDERS


def embedding_catch_up(embedding: Tensor, first: Tensor, second: Tensor, last_step: Tensor, rows: Tensor | None,
                       sums: Tensor, base: int, step: int, exact: int, window: int, beta1: float = 0.9,
                       beta2: float = 0.999, eps: float = 1e-8) -> None:
    """Brings rows, in place, to where Adam without weight decay has them after step ``step``, if all their gradients
    since ``last_step`` were zero.

    A row that was current at step s, with moments m and v, moves at step s + j by
    ``lr · m β1^j / (1 − β1^(s+j)) / (√v / h_j + eps)`` with ``h_j = √((1 − β2^(s+j)) / β2^j)``. About a centre H,
    with ``D = √v + eps·H`` and ``z = eps / D``, the sum over j is ``m / D · Σ_p (−z)^p N_p``, where
    ``N_p = Σ_j lr β1^j / (1 − β1^(s+j)) · h_j (h_j − H)^p`` belongs to the step s and not to the row: ``sums`` holds
    it. The series is exact at once where eps is nothing beside √v, and short where h changes slowly; rows from before
    step ``exact``, where it changes fast, are followed step by step instead. What comes more than ``window`` steps
    after s is below the precision of the weights and left out.

    Args:
        embedding, first, second: [F, K], changed in place, as is ``last_step``, int32 [F].
        rows: int64 [n], with repeats; None for all rows.
        sums: float64 [steps, 7], row i for step ``base + i``: H, N_0 to N_4 up to ``step``, learning rate
            (``embedding_optimizer.py`` fills it).
    Raises:
        ValueError: a row is from before ``base``.
    """
    rows = torch.arange(embedding.shape[0], device=embedding.device) if rows is None else rows.unique()
    since = last_step[rows].long()
    if bool((since < base).any()):
        raise ValueError(f"embedding_catch_up: a row is from step {int(since.min())}, before {base}")
    behind = since < step
    rows, since = rows[behind], since[behind]
    m, v = first[rows], second[rows]
    root, table = v.sqrt(), sums[since - base].to(v.dtype)[..., None]
    over = 1 / (root + eps * table[:, CENTRE])
    z, total = eps * over, table[:, ORDER_0 + ORDERS - 1]
    for order in reversed(range(ORDERS - 1)):
        total = table[:, ORDER_0 + order] - z * total
    total = total * over
    early = (since < exact) & (m != 0).any(1)
    if bool(early.any()):
        total[early] = _step_by_step(root[early], since[early], sums, base, step, window, beta1, beta2, eps)
    gap = (step - since)[:, None].double()
    embedding[rows] -= m * total
    first[rows] = m * (beta1 ** gap).to(m.dtype)
    second[rows] = v * (beta2 ** gap).to(v.dtype)
    last_step[rows] = step


def _step_by_step(root: Tensor, since: Tensor, sums: Tensor, base: int, step: int, window: int, beta1: float,
                  beta2: float, eps: float) -> Tensor:
    total = torch.zeros_like(root)
    for j in range(1, min(window, step - int(since.min())) + 1):
        now = since + j
        there = now <= step
        rate = sums[(now - base).clamp(max=step - base), LEARNING_RATE] * there
        factor = (rate * beta1 ** j / (1 - beta1 ** now.double())).to(root.dtype)[:, None]
        h = ((1 - beta2 ** now.double()) / beta2 ** j).sqrt().to(root.dtype)[:, None]
        total += factor / (root / h + eps)
    return total
