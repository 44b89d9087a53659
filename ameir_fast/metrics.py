"""Metrics: exact AUC of many columns at once, log loss, and their errors; those of retrieval are in ranking.py.

``ameir_fast::auc_columns`` and ``log_loss_columns`` are operations whose CPU implementations are native (``csrc/cpu``).
Where these are not built, and on other devices, :func:`auc_columns_torch` and :func:`log_loss_columns_torch` compute the
same: AUC to the last bit, since both count pairs in integers and divide once; log loss to the rounding of float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from . import native
from .errors import InputError

#: Scores are worked on in pieces of about this many, so that temporaries stay small beside them.
_CHUNK = 1 << 22

_library = torch.library.Library("ameir_fast", "FRAGMENT")
_library.define("auc_columns(Tensor scores, Tensor label) -> Tensor")
_library.define("log_loss_columns(Tensor logits, Tensor label) -> Tensor")


@torch.library.register_fake("ameir_fast::auc_columns", lib=_library)
@torch.library.register_fake("ameir_fast::log_loss_columns", lib=_library)
def _(scores: Tensor, label: Tensor) -> Tensor:
    torch._check(scores.dim() == 2, lambda: f"scores must be [n, S], not of {scores.dim()} dimensions")
    torch._check(label.dim() == 1 and label.shape[0] == scores.shape[1], lambda: "label must be [S]")
    return scores.new_empty(scores.shape[0], dtype=torch.float64)


def auc_columns_torch(scores: Tensor, label: Tensor) -> Tensor:
    """AUC of each row of ``scores`` [n, S] against ``label`` [S], in plain PyTorch, as float64 [n].

    ``scores`` are float32 or float64. NaN where a score is NaN or the label has one class only. This defines what the
    native operation computes.
    """
    positive = label == 1
    wins = scores.new_zeros(scores.shape[0], dtype=torch.int64)
    num_positive = int(positive.sum())
    pairs = 2.0 * num_positive * (label.shape[0] - num_positive)
    if pairs == 0:
        return wins.to(torch.float64).fill_(math.nan)
    above = scores[:, positive].contiguous()
    below = scores[:, ~positive].sort(dim=1).values
    # A positive wins against each negative below it, and once more against each that is not above it.
    for right in (False, True):
        wins += torch.searchsorted(below, above, right=right).sum(1)
    return (wins.to(torch.float64) / pairs).masked_fill_(scores.isnan().any(1), math.nan)


def auc_columns(scores: Tensor | np.ndarray, label: Tensor | np.ndarray) -> np.ndarray:
    """Area under the ROC curve of n models on the same S samples, exact, tied scores averaged.

    Args:
        scores: [n, S], float32 or float64 (other floats are taken as float32); any device.
        label: [S], each 0 or 1, of any type.

    Returns:
        float64 [n], the same whether computed natively or in PyTorch.

    Raises:
        InputError: a NaN score (named by column and sample), a label other than 0 and 1, one class only, or
            shapes that don't belong together.
    """
    scores, label = _columns(scores, label)
    native_cpu = scores.device.type == "cpu" and native.ops_loaded()
    function = torch.ops.ameir_fast.auc_columns if native_cpu else auc_columns_torch
    rows = max(1, scores.shape[0]) if native_cpu else _rows_at_a_time(scores)
    result = [function(part, label) for part in scores.split(rows)]
    auc = torch.cat(result).cpu().numpy() if result else np.empty(0)
    if np.isnan(auc).any():
        column, sample = (int(i) for i in scores.isnan().nonzero()[0])
        raise InputError(f"score of column {column}, sample {sample} is NaN")
    return auc


def auc(scores: Tensor | np.ndarray, label: Tensor | np.ndarray) -> float:
    """Area under the ROC curve of one model; see :func:`auc_columns`. ``scores`` and ``label`` are [S]."""
    return float(auc_columns(_one(scores), label)[0])


def log_loss_columns_torch(logits: Tensor, label: Tensor) -> Tensor:
    """Log loss of each row of ``logits`` [n, S] against ``label`` [S], in plain PyTorch, as float64 [n]. This defines what
    the native operation computes."""
    return -logsigmoid(logits.to(torch.float64) * (2 * label - 1).to(torch.float64)).mean(1)


def log_loss_columns(logits: Tensor | np.ndarray, label: Tensor | np.ndarray) -> np.ndarray:
    """Mean binary log loss of n models on the same S samples, from logits [n, S], in float64:
    −log σ((2·label − 1)·logit).

    Accurate for every finite logit. Returns float64 [n]. Raises ``InputError`` as :func:`auc_columns`, except
    that one class suffices.
    """
    logits, label = _columns(logits, label, both_classes=False)
    if logits.device.type == "cpu" and native.ops_loaded():
        result = [torch.ops.ameir_fast.log_loss_columns(logits, label)]
    else:
        result = [log_loss_columns_torch(part, label) for part in logits.split(_rows_at_a_time(logits))]
    loss = torch.cat(result).cpu().numpy() if result else np.empty(0)
    for column in np.flatnonzero(np.isnan(loss))[:1]:
        sample = int(logits[column].isnan().nonzero()[0])
        raise InputError(f"logit of column {column}, sample {sample} is NaN")
    return loss


def log_loss(logits: Tensor | np.ndarray, label: Tensor | np.ndarray) -> float:
    """Mean binary log loss of one model from logits [S]; see :func:`log_loss_columns`."""
    return float(log_loss_columns(_one(logits), label)[0])


def auc_standard_error(scores: Tensor | np.ndarray, label: Tensor | np.ndarray) -> float:
    """Standard error of :func:`auc` over samples drawn anew, by the exact variance of DeLong et al.
    (Biometrics 1988).

    With V_p the share of negatives that positive p beats and V_q the share of positives that beat negative q
    (ties one half), the variance is var(V_p)/P + var(V_q)/N. ``scores`` and ``label`` are [S].

    Raises:
        InputError: as :func:`auc_columns`, or fewer than two samples of a class.
    """
    scores, label = _columns(_one(scores), label)
    if bool(scores.isnan().any()):
        raise InputError(f"score of sample {int(scores[0].isnan().nonzero()[0])} is NaN")
    positive = label == 1
    above, below = scores[0, positive].sort().values, scores[0, ~positive].sort().values
    if min(len(above), len(below)) < 2:
        raise InputError("the standard error of an AUC needs at least two samples of each class")
    variance = _share_below(above, below).var() / len(above) + _share_below(below, above).var() / len(below)
    return math.sqrt(float(variance))


def _share_below(values: Tensor, others: Tensor) -> Tensor:
    """Per value the share of the sorted ``others`` below it, float64, ties counting one half."""
    doubled = torch.searchsorted(others, values) + torch.searchsorted(others, values, right=True)
    return doubled.to(torch.float64) / (2 * len(others))


class Paired(NamedTuple):
    """Differences of paired runs: their mean, its standard error (NaN for a single pair), the pairs won, all
    pairs."""

    difference: float
    standard_error: float
    wins: int
    n: int


def paired(a: Sequence[float], b: Sequence[float]) -> Paired:
    """Compare two variants run with the same seeds: ``a[i]`` and ``b[i]`` belong to one seed; a win is
    ``a[i] > b[i]``.

    Raises:
        InputError: no runs, or not as many of one as of the other.
    """
    if len(a) != len(b) or not len(a):
        raise InputError(f"paired runs need the same number of runs, at least one, not {len(a)} and {len(b)}")
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    n = len(difference)
    error = float(difference.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Paired(float(difference.mean()), error, int((difference > 0).sum()), n)


def _one(scores: Tensor | np.ndarray) -> Tensor:
    scores = torch.as_tensor(scores)
    if scores.dim() != 1:
        raise InputError(f"scores of one model must be [S], not {list(scores.shape)}")
    return scores[None]


def _columns(scores, label, both_classes: bool = True) -> tuple[Tensor, Tensor]:
    """Scores as a float [n, S], label as a float32 [S] of zeros and ones on the same device."""
    scores = torch.as_tensor(scores).detach()
    label = torch.as_tensor(label, device=scores.device)
    if scores.dim() != 2 or label.dim() != 1 or label.shape[0] != scores.shape[1]:
        raise InputError(f"scores {list(scores.shape)} and label {list(label.shape)} are not [n, S] and [S]")
    if scores.dtype not in (torch.float32, torch.float64):
        if not scores.is_floating_point():
            raise InputError(f"scores are {scores.dtype}, not floating point")
        scores = scores.float()
    if not label.shape[0]:
        raise InputError("there are no samples")
    positive = label == 1
    wrong = ~(positive | (label == 0))  # NaN is neither
    if bool(wrong.any()):
        sample = int(wrong.nonzero()[0])
        raise InputError(f"label of sample {sample} is {label[sample].item()}, neither 0 nor 1")
    count = int(positive.sum())
    if both_classes and count in (0, label.shape[0]):
        raise InputError(f"all {label.shape[0]} labels are {int(count > 0)}: the AUC needs both classes")
    return scores, positive.float()


def _rows_at_a_time(scores: Tensor) -> int:
    return max(1, _CHUNK // scores.shape[1])
