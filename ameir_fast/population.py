"""Evaluation of many children on the same samples, sharing the work they have in common."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import forward, ops
from .batch import Batch
from .errors import InputError
from .metrics import auc_columns, log_loss_columns
from .mlp_children import MlpChildren, shares_front
from .path_children import TOGETHER, PathChildren, shares_mlp
from .space import Architecture
from .supernet import Supernet, reads_step1

#: Scores of children of one front are made, judged and dropped this many bytes at a time, counted as float64.
BLOCK_BYTES = 128 * 2**20


@dataclass(frozen=True)
class PopulationResult:
    """``auc`` and ``log_loss`` float64 [n], in the order of the architectures; ``logits`` [n, samples] if asked.

    ``shared_work``: multiplications of one child after the other over those that were done, from the first pre-activation
    on, of all children whose MLPs were computed together; where there are none, layers of step 1's paths one after the other
    over those that were computed; 1 where there are none either.
    """

    auc: np.ndarray
    log_loss: np.ndarray
    logits: Tensor | None = None
    shared_work: float = 1.0


@torch.no_grad()
def evaluate_population(net: Supernet, archs: Sequence[Architecture], batches: Iterable[Batch],
                        return_logits: bool = False,
                        on_child: Callable[[int], None] | None = None) -> PopulationResult:
    """Scores of all ``archs`` (CTR) with the supernet's weights; equal to ``net(batch, arch)`` one by one.

    Children that are the same in canonical form are computed once. All are visited in the order of their behaviour
    paths, so that every common prefix of blocks, every layer after it that differs in the activation alone, the pooled
    history, the SE shortcut and the full-width first pre-activation are computed once a batch; children that differ in
    the MLP alone are computed together (``MlpChildren``), and so are the fixed MLPs of step 1's (``PathChildren``).

    Memory, beside ``batches``, one batch's hidden states along one path (with up to four activations of each block) and
    16 of its pooled histories: of each group of more than K0 + 1 children that differ in the MLP alone, samples ×
    (K0 + 1) floats, whatever their number; of other children their scores, n × samples floats; and at most twice 128 MiB
    of scores (or one child's) for the metrics. ``return_logits`` adds n × samples floats.

    ``on_child`` is told the number of children finished; while batches go through all children of some groups at once, and
    it is known how many batches there are, their part of these. Raises ``InputError`` for an architecture outside the
    space, for unlabelled batches and for the retrieval task.
    """
    if net.schema.task != "ctr":
        raise InputError("evaluate_population scores click-through rates; this schema's task is retrieval")
    archs = [archs] if isinstance(archs, Architecture) else list(archs)
    batches = [batches] if isinstance(batches, Batch) else batches
    distinct: dict[Architecture, int] = {}
    place = [distinct.setdefault(net.check(a), len(distinct)) for a in archs]
    canonical, times = list(distinct), np.bincount(place, minlength=len(distinct))
    order = sorted(range(len(canonical)), key=lambda i: _shared_key(canonical[i]))
    alike = [list(members) for _, members in itertools.groupby(order, key=lambda i: _shared_key(canonical[i]))]
    groups: list[_Group | _Paths] = []
    on_paths = []
    for members in alike:
        if net.space.num_blocks and all(shares_mlp(canonical[i]) for i in members):
            on_paths += members
        else:
            groups.append(_Group(net, canonical, members))
    if on_paths:
        groups.append(_Paths(net, canonical, on_paths))
    siblings = _siblings(net, canonical)
    was_training = net.training
    net.eval()
    labels = []
    # Of these nothing but the judging is left when all batches have been visited.
    visited = sum(int(times[group.members].sum()) for group in groups if isinstance(group, _Paths) or not group.keeps_front)
    steps = len(batches) if hasattr(batches, "__len__") else 0
    try:
        for step, batch in enumerate(batches, start=1):
            if batch.label is None:
                raise InputError("evaluate_population needs labelled batches")
            walk = _Walk(net, batch, siblings)
            for group in groups:
                group.visit(walk)
            labels.append(batch.label.cpu())
            if on_child is not None and visited and steps:
                on_child(visited * step // (steps + 1))
        if not labels:
            raise InputError("evaluate_population got no batches")
        label = torch.cat(labels)
        auc, log_loss = np.empty(len(canonical)), np.empty(len(canonical))
        logits = torch.empty(len(canonical), len(label), dtype=net.embedding.weight.dtype) if return_logits else None
        done = 0
        reached = visited * steps // (steps + 1)  # told before: it does not go back
        for members, scores in _blocks(groups, len(label)):
            auc[members], log_loss[members] = _judged(scores, label, lambda column, m=members: place.index(m[column]))
            if logits is not None:
                logits[members] = scores
            done += int(times[members].sum())
            if on_child is not None:
                on_child(max(done, reached))
    finally:
        net.train(was_training)
    work = [group.children.work() for group in groups if isinstance(group, _Group) and group.children is not None]
    if on_paths and not work:
        work = [_layers([canonical[i] for i in on_paths], times[on_paths].tolist(), bool(siblings))]
    shared = sum(alone for alone, _ in work) / sum(together for _, together in work) if work else 1.0
    if len(canonical) < len(archs) and logits is not None:
        logits = logits[place]
    return PopulationResult(auc[place], log_loss[place], logits, shared)


def _judged(scores: Tensor, label: Tensor, child: Callable[[int], int]) -> tuple[np.ndarray, np.ndarray]:
    """AUC and log loss of columns; ``child`` tells which one a column is."""
    try:
        return auc_columns(scores, label), log_loss_columns(scores, label)
    except InputError:
        for column, sample in scores.isnan().nonzero()[:1].tolist():
            raise InputError(f"score of child {child(column)}, sample {sample} is NaN") from None
        raise


class _Group:
    """Children that share all but the MLP, at these places among all. ``parts`` is what is kept of every batch: their
    logits, or, where it is smaller, what all these are computed from."""

    def __init__(self, net: Supernet, archs: Sequence[Architecture], members: list[int]):
        self.archs, self.members = [archs[i] for i in members], members
        together = len(members) > 1 and shares_front(self.archs[0])
        self.children = MlpChildren(net, self.archs) if together else None
        self.keeps_front = together and len(members) > self.children.k0 + 1
        self.parts: list = []

    def visit(self, walk: _Walk) -> None:
        if self.children is None:
            logits = torch.stack([walk.logits(arch) for arch in self.archs]).cpu()
        else:
            front = self.children.front(walk.inputs, walk.behavior(self.archs[0], walk.net.weights(self.archs[0])))
            if self.keeps_front:
                self.parts.append(front)
                return
            logits = self.children.logits(front).cpu()
        self.parts.append(logits)

    def scores(self, samples: int, size: int) -> Iterator[tuple[list[int], Tensor]]:
        """Places of children, and their logits [n, samples], at most ``size`` children at a time from kept fronts."""
        if not self.keeps_front:
            yield self.members, torch.cat(self.parts, 1)
        for start in range(0, len(self.members) if self.keeps_front else 0, size):
            part = self.children.order[start:start + size]
            logits, at = torch.empty(len(part), samples, dtype=self.parts[0][0].dtype), 0
            for front in self.parts:
                rows = len(front[1])
                logits[:, at:at + rows] = self.children.logits(front, part).cpu()
                at += rows
            yield [self.members[i] for i in part], logits
        self.parts.clear()


class _Paths:
    """Step 1's children, at these places among all, in the order of their paths. Their logits are kept."""

    def __init__(self, net: Supernet, archs: Sequence[Architecture], members: list[int]):
        self.net, self.members = net, members
        self.archs = [archs[i] for i in members]
        self.parts: list[Tensor] = []

    def visit(self, walk: _Walk) -> None:
        children = PathChildren(self.net, walk.inputs)
        logits = children.base.new_empty(len(self.archs), children.base.shape[0])
        weights = self.net.weights(self.archs[0])
        for start in range(0, len(self.archs), TOGETHER):
            some = self.archs[start:start + TOGETHER]
            logits[start:start + len(some)] = children.logits([walk.behavior(arch, weights) for arch in some])
        self.parts.append(logits.cpu())

    def scores(self, samples: int, size: int) -> Iterator[tuple[list[int], Tensor]]:
        """As ``_Group.scores``."""
        for start in range(0, len(self.members), size):
            yield self.members[start:start + size], torch.cat([part[start:start + size] for part in self.parts], 1)
        self.parts.clear()


def _blocks(groups: list[_Group | _Paths], samples: int) -> Iterator[tuple[list[int], Tensor]]:
    """All groups' scores, many columns at once."""
    size = max(1, BLOCK_BYTES // (8 * max(1, samples)))
    members, held = [], []
    for group in groups:
        for some, logits in group.scores(samples, size):
            members, held = members + some, [*held, logits]
            if len(members) >= size:
                yield members, held[0] if len(held) == 1 else torch.cat(held)
                members, held = [], []
    if members:
        yield members, torch.cat(held)


def _shared_key(arch: Architecture) -> tuple:
    return arch.behavior, arch.interactions, arch.has_fixed_mlp, arch.shortcut


def _layers(archs: list[Architecture], times: list[int], activations_together: bool) -> tuple[int, int]:
    """Layers of paths that are asked for so many times: one after the other, and computed; at least one."""
    alone, computed = 0, set()
    for arch, count in zip(archs, times, strict=True):
        for i, block in enumerate(arch.behavior):
            if block.layer != "zero":
                alone += count
                computed.add((arch.behavior[:i], block.norm, block.layer, None if activations_together else block.activation))
    return max(1, alone), max(1, len(computed))


def _siblings(net: Supernet, archs: Sequence[Architecture]) -> dict[tuple, list[str]]:
    """By the blocks before, norm and layer: activations of blocks that differ in these alone, where there are several."""
    weight = net.embedding.weight
    chosen = ops.resolve("sequence_block", net.backend, weight.device, weight.dtype)
    if "sequence_activations" in ops.missing(chosen):
        return {}
    found: dict[tuple, dict[str, None]] = {}
    for arch in archs:
        for i, block in enumerate(arch.behavior):
            if block.layer != "zero":
                found.setdefault((arch.behavior[:i], block.norm, block.layer), {})[block.activation] = None
    return {key: list(acts) for key, acts in found.items() if len(acts) > 1}


class _Walk:
    """Hidden states of one batch along the path visited last, and of its last blocks with other activations."""

    def __init__(self, net: Supernet, batch: Batch, siblings: dict[tuple, list[str]]):
        self.net, self.siblings = net, siblings
        self.beside: dict[int, tuple[tuple, dict[str, Tensor]]] = {}
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
            self.states.append(self._block(weights, index, arch.behavior))
            self.path.append(arch.behavior[index])
        if self.pooled is None or self.pooled[0] != arch.behavior:
            self.pooled = arch.behavior, forward.pool(weights, self.states[-1], self.inputs)
        return self.pooled[1]

    def _block(self, weights, index: int, behavior: tuple) -> Tensor:
        """The block's hidden state; of all activations that come after the same layer, at the first one."""
        block, x = behavior[index], self.states[-1]
        key = behavior[:index], block.norm, block.layer
        if key not in self.siblings:
            return forward.run_block(weights, index, block, x, self.inputs)
        if index not in self.beside or self.beside[index][0] != key:
            acts = self.siblings[key]
            found = forward.run_activations(weights, index, block.norm, block.layer, acts, x, self.inputs)
            self.beside[index] = key, dict(zip(acts, found, strict=True))
        return self.beside[index][1][block.activation]

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
