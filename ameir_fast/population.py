"""Evaluation of many children on the same samples, sharing the work they have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import forward
from .batch import Batch
from .errors import InputError
from .metrics import auc_columns, log_loss_columns
from .reference import products, relu
from .space import Architecture
from .supernet import Supernet, interaction_name, reads_step1


@dataclass(frozen=True)
class PopulationResult:
    """``auc`` and ``log_loss`` float64 [n], in the order of the architectures; ``logits`` [n, samples] if asked."""

    auc: np.ndarray
    log_loss: np.ndarray
    logits: Tensor | None = None


@torch.no_grad()
def evaluate_population(net: Supernet, archs: Sequence[Architecture], batches: Iterable[Batch],
                        return_logits: bool = False,
                        on_child: Callable[[int], None] | None = None) -> PopulationResult:
    """Scores of all ``archs`` (CTR) with the supernet's weights; equal to ``net(batch, arch)`` one by one.

    Children are visited in the order of their behaviour paths, so that every common prefix of blocks, the
    pooled history, the SE shortcut and the full-width first pre-activation are computed once a batch.
    Memory: n × samples logits, plus one batch's hidden states along one path. ``on_child`` is told the
    number of children finished (over all batches). Raises ``InputError`` for an architecture outside the
    space, for unlabelled batches and for the retrieval task.
    """
    if net.schema.task != "ctr":
        raise InputError("evaluate_population scores click-through rates; this schema's task is retrieval")
    canonical = [net.check(a) for a in archs]
    order = sorted(range(len(canonical)), key=lambda i: _shared_key(canonical[i]))
    was_training = net.training
    net.eval()
    columns, labels = [], []
    try:
        for batch in batches:
            if batch.label is None:
                raise InputError("evaluate_population needs labelled batches")
            walk = _Walk(net, batch)
            out = torch.empty(len(archs), len(batch), dtype=net.embedding.weight.dtype, device=batch.device)
            for done, i in enumerate(order, start=1):
                out[i] = walk.logits(canonical[i])
                if on_child is not None:
                    on_child(done)
            columns.append(out.cpu())
            labels.append(batch.label.cpu())
    finally:
        net.train(was_training)
    if not columns:
        raise InputError("evaluate_population got no batches")
    logits, label = torch.cat(columns, 1), torch.cat(labels)
    return PopulationResult(auc_columns(logits, label), log_loss_columns(logits, label),
                            logits if return_logits else None)


def _shared_key(arch: Architecture) -> tuple:
    return arch.behavior, arch.interactions, arch.has_fixed_mlp, arch.shortcut


class _Walk:
    """Hidden states of one batch along the path visited last."""

    def __init__(self, net: Supernet, batch: Batch):
        self.net = net
        self.inputs = forward.prepare(net.schema, net.embedding.weight, batch)
        self.path: list = []
        self.states = [self.inputs.history]
        self.pooled: tuple | None = None
        self.front: tuple | None = None

    def behavior(self, arch: Architecture, weights) -> Tensor | None:
        if self.inputs.history is None:
            return None
        shared = 0
        while shared < len(self.path) and self.path[shared] == arch.behavior[shared]:
            shared += 1
        del self.path[shared:], self.states[shared + 1:]
        for index in range(shared, len(arch.behavior)):
            self.states.append(forward.run_block(weights, index, arch.behavior[index], self.states[-1], self.inputs))
            self.path.append(arch.behavior[index])
        if self.pooled is None or self.pooled[0] != arch.behavior:
            self.pooled = arch.behavior, forward.pool(weights, self.states[-1], self.inputs)
        return self.pooled[1]

    def logits(self, arch: Architecture) -> Tensor:
        weights = self.net.weights(arch)
        h_a = self.behavior(arch, weights)
        key = _shared_key(arch)
        k0 = forward.input_width(arch, h_a, self.inputs)
        if self.front is None or self.front[0] != key:
            # All of mlp.0's rows at once: every ratio's pre-activation is a slice of this one.
            full = None if reads_step1(arch) else k0
            self.front = (key, forward.first_layer(weights, arch, h_a, self.inputs, outputs=full),
                          forward.shortcut(weights, arch, self.inputs))
        _, pre, h_se = self.front
        h = forward.aggregate(weights, arch, pre[:, :arch.mlp[0].units(k0)], k0)
        return forward.score(weights, h, h_se, self.net.schema, self.inputs.batch, None)


@torch.no_grad()
def interaction_logits(net: Supernet, candidates: Sequence[tuple[int, ...]], batch: Batch,
                       chunk: int = 16) -> Tensor:
    """Step 2 (CTR): logits [n, B] of all candidates, the base projection computed once, ``chunk`` at a time."""
    e, base = net.interaction_base(batch)
    second, head = net.step2.mlp["1"], net.step2.head
    out = torch.empty(len(candidates), len(batch), dtype=e.dtype, device=e.device)
    for start in range(0, len(candidates), chunk):
        part = candidates[start:start + chunk]
        p = torch.stack(products(e, [list(c) for c in part]))                                # [c, B, K]
        w = torch.stack([net.step2.interactions[interaction_name(c)].weight for c in part])  # [c, 200, K]
        h = relu(torch.baddbmm(base, p, w.transpose(1, 2)))
        out[start:start + chunk] = head(relu(second(h)))[..., 0]
    return out
