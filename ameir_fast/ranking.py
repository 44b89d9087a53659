"""Ranking metrics of retrieval: where the positive item stands among all items or among sampled ones.

``ameir_fast::rank_counts`` counts, natively on the CPU (``csrc/cpu/rank_counts.cpp``) and in tiles elsewhere, how many
items score above the positive; no [rows, items] matrix is kept. From the counts follow HR@k and NDCG@k.

Ties are shared: a positive tied with others takes each of their ranks with equal probability, and the metrics are
expectations over that. A model that scores everything alike gets k/C, and no order of the items helps; counting ties
for the positive would give it 1, counting them against it would punish models of few score levels (popularity). A
score that is not finite compares with nothing and would rank the positive first: it raises.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import native
from .errors import InputError

#: Scores are worked on in pieces of about this many, so that temporaries stay small.
_CHUNK = 1 << 22

CUTS = (5, 10)

_library = torch.library.Library("ameir_fast", "FRAGMENT")
_library.define(
    "rank_counts(Tensor users, Tensor items, Tensor positive, Tensor? candidates, Tensor? seen_offsets, Tensor? seen) "
    "-> Tensor"
)


@torch.library.register_fake("ameir_fast::rank_counts", lib=_library)
def _(users: Tensor, items: Tensor, positive: Tensor, candidates=None, seen_offsets=None, seen=None) -> Tensor:
    torch._check(users.dim() == 2 and items.dim() == 2, lambda: "users must be [B, K] and items [V, K]")
    torch._check(users.shape[1] == items.shape[1], lambda: "users and items must be equally wide")
    torch._check(positive.dim() == 1 and positive.shape[0] == users.shape[0], lambda: "positive must be [B]")
    return positive.new_empty(users.shape[0], 2)


def rank_counts_torch(users: Tensor, items: Tensor, positive: Tensor, candidates: Tensor | None = None,
                      seen_offsets: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
    """:func:`rank_counts` in plain PyTorch, without its checks: what the native operation computes, up to the
    rounding of scores."""
    chunk = max(1, _CHUNK // (items.shape[0] if candidates is None else 1 + candidates.shape[1] * items.shape[1]))
    result = []
    for start in range(0, len(users), chunk):
        rows = slice(start, start + chunk)
        if candidates is None:
            own = None if seen is None else _pairs(seen_offsets, seen, rows)
            result.append(_among_all(users[rows], items, positive[rows], own))
        else:
            result.append(_among_candidates(users[rows], items, positive[rows], candidates[rows]))
    return torch.cat(result) if result else positive.new_zeros(0, 2)


def _pairs(offsets: Tensor, seen: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """(row within the slice, item) of all seen items of a slice of rows."""
    offsets = offsets[rows.start:rows.stop + 1]
    owner = torch.arange(len(offsets) - 1, device=seen.device).repeat_interleave(offsets.diff())
    return owner, seen[offsets[0]:offsets[-1]].long()


def _among_all(users: Tensor, items: Tensor, positive: Tensor, seen: tuple[Tensor, Tensor] | None) -> Tensor:
    scores = users @ items.t()
    ranked = torch.ones_like(scores, dtype=torch.bool)
    if seen is not None:
        ranked[seen] = False
    ranked[:, 0] = False
    return _counted(scores, scores.gather(1, positive[:, None]), ranked.scatter_(1, positive[:, None], False))


def _among_candidates(users: Tensor, items: Tensor, positive: Tensor, candidates: Tensor) -> Tensor:
    ids = torch.cat([positive[:, None], candidates.long()], 1)
    scores = (F.embedding(ids, items) @ users[..., None])[..., 0]
    return _counted(scores, scores[:, :1], (ids != 0) & (ids != positive[:, None]))


def _counted(scores: Tensor, own: Tensor, ranked: Tensor) -> Tensor:
    found = torch.stack([((scores > own) & ranked).sum(1), ((scores == own) & ranked).sum(1) + 1], 1)
    return found.masked_fill_(~scores.isfinite().all(1, keepdim=True), -1)


@torch.no_grad()
def rank_counts(users: Tensor, items: Tensor, positive: Tensor, candidates: Tensor | None = None,
                seen: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """How many items score above the positive of each row, and how many as high, itself included.

    The score of item i for row b is ``users[b] · items[i]``. Item 0 is never ranked.

    Args:
        users: [B, K], floating point; ``items``: [V, K], of the same type and device (float32 and float64 are taken as
            they are, others as float32).
        positive: integers [B], each in 1..V-1.
        candidates: int32 [B, n] to rank against; ``None`` for all items. 0 stands for no candidate, and the
            positive does not compete with itself.
        seen: items of each row that are left out of a ranking among all: offsets int64 [B+1] and ids int32 [*],
            ascending and distinct within a row. The positive is ranked even if it is one of them.

    Returns:
        int64 [B, 2]: above, tied. Native and PyTorch scores differ by rounding, so that near ties may fall the other
        way; natively, items of equal vectors tie exactly.

    Raises:
        InputError: shapes that don't belong together, a positive, candidate or seen item outside its range, or a score
            that is not finite; each names the row.
    """
    if users.dim() != 2 or items.dim() != 2 or users.shape[1] != items.shape[1]:
        raise InputError(f"users {list(users.shape)} and items {list(items.shape)} are not [B, K] and [V, K]")
    if positive.shape != users.shape[:1]:
        raise InputError(f"positive is {list(positive.shape)} for {len(users)} rows")
    if users.dtype not in (torch.float32, torch.float64):
        users = users.float()
    items, positive = items.to(users.dtype), positive.to(users.device, torch.int64)
    last = items.shape[0] - 1
    for row in ((positive < 1) | (positive > last)).nonzero()[:1, 0].tolist():
        raise InputError(f"positive {int(positive[row])} of row {row} is outside 1..{last}")
    if candidates is not None:
        candidates = candidates.to(users.device, torch.int32)
        if seen is not None:
            raise InputError("seen items are left out of all items, not of candidates")
        if candidates.dim() != 2 or candidates.shape[0] != len(users):
            raise InputError(f"candidates are {list(candidates.shape)} for {len(users)} rows")
        for row, column in ((candidates < 0) | (candidates > last)).nonzero()[:1].tolist():
            raise InputError(f"candidate {int(candidates[row, column])} of row {row} is outside 0..{last}")
    offsets, ids = (None, None) if seen is None else _checked_seen(*seen, len(users), last, users.device)
    native_cpu = users.device.type == "cpu" and native.ops_loaded()
    function = torch.ops.ameir_fast.rank_counts if native_cpu else rank_counts_torch
    counts = function(users, items, positive, candidates, offsets, ids)
    for row in (counts[:, 0] < 0).nonzero()[:1, 0].tolist():
        raise InputError(f"row {row} has a score that is not finite")
    return counts


def _checked_seen(offsets: Tensor, ids: Tensor, rows: int, last: int, device: torch.device) -> tuple[Tensor, Tensor]:
    offsets, ids = offsets.to(device, torch.int64), ids.to(device, torch.int32)
    sizes = offsets.diff()
    if offsets.shape != (rows + 1,) or int(offsets[0]) or int(offsets[-1]) != len(ids) or bool((sizes < 0).any()):
        raise InputError(f"offsets of the seen items do not rise from 0 to {len(ids)} over {rows} rows")
    owner = torch.arange(rows, device=device).repeat_interleave(sizes)
    wrong = (ids < 0) | (ids > last)
    wrong[1:] |= (ids[1:] <= ids[:-1]) & (owner[1:] == owner[:-1])
    for at in wrong.nonzero()[:1, 0].tolist():
        raise InputError(f"seen items of row {int(owner[at])} are not ascending and distinct in 0..{last}")
    return offsets, ids


def row_metrics(counts: Tensor | np.ndarray, k: Sequence[int] = CUTS) -> dict[str, np.ndarray]:
    """Expected HR@k and NDCG@k of each row from its counts [B, 2] (above, tied), as float64 [B] by name.

    With one relevant item NDCG@k is 1/log2(rank + 1) up to rank k and 0 beyond; tied ranks are averaged.

    Raises:
        InputError: no rows, or a cut-off below 1.
    """
    counts = np.asarray(counts)
    if not len(counts):
        raise InputError("there are no rows to rank")
    if min(k, default=1) < 1:
        raise InputError(f"cut-offs must be at least 1, not {list(k)}")
    above, tied = counts.T
    result = {}
    for cut in k:
        gain = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, cut + 2)))])
        first, last = np.minimum(above, cut), np.minimum(above + tied, cut)
        result[f"hr@{cut}"] = (last - first) / tied
        result[f"ndcg@{cut}"] = (gain[last] - gain[first]) / tied
    return result


def rank_metrics(counts: Tensor | np.ndarray, k: Sequence[int] = CUTS) -> dict[str, float]:
    """Means over rows of :func:`row_metrics`: ``{"hr@5": …, "ndcg@5": …, …}``."""
    return {name: float(values.mean()) for name, values in row_metrics(counts, k).items()}


def hit_rate_ndcg(
    scores: Tensor | np.ndarray, positive: Tensor | np.ndarray | int, k: Sequence[int] = CUTS
) -> dict[str, float]:
    """HR@k and NDCG@k of one relevant candidate among C per row, from scores.

    Args:
        scores: [B, C]. A candidate that must not be ranked is −inf.
        positive: column of the relevant candidate, one for all rows or int [B].
        k: cut-offs.

    Raises:
        InputError: no rows, a NaN score, a positive outside the columns or with score −inf, a cut-off below
            1.
    """
    scores = torch.as_tensor(scores)
    if scores.dim() != 2 or not scores.shape[0]:
        raise InputError(f"scores must be [B, C] with at least one row, not {list(scores.shape)}")
    rows, candidates = scores.shape
    positive = torch.as_tensor(positive, dtype=torch.int64, device=scores.device).expand(rows)
    for row in ((positive < 0) | (positive >= candidates)).nonzero()[:1, 0]:
        raise InputError(f"positive {int(positive[row])} of row {int(row)} is outside 0..{candidates - 1}")
    own = scores.gather(1, positive[:, None])
    for row in (scores.isnan().any(1) | (own[:, 0] == -math.inf)).nonzero()[:1, 0]:
        raise InputError(f"row {int(row)} has a NaN score, or its positive is −inf")
    return rank_metrics(torch.stack([(scores > own).sum(1), (scores == own).sum(1)], 1).cpu(), k)
