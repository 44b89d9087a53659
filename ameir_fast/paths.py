"""Several children of a supernet on one batch, for training: what they have in common is computed once, with its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import forward
from .batch import Batch
from .errors import InputError
from .space import Architecture

if TYPE_CHECKING:
    from .supernet import Supernet


def forward_children(net: Supernet, archs: Sequence[Architecture], batch: Batch, items: forward.Items = None) -> Tensor:
    """What ``net(batch, arch, items)`` gives for each of ``archs``, stacked: [n, B], or [n, B, m] of ``items`` [B, m].

    The batch is looked up once, and every common beginning of behaviour paths, its pooled history, the SE shortcut and the first
    layer's pre-activation of children that differ in the MLP alone are computed once. The gradient of a mean over children is
    the mean of their gradients, up to rounding; dropout draws for shared parts once.

    Raises ``InputError`` for an architecture that the supernet cannot compute, and for none at all.
    """
    if not archs:
        raise InputError("forward_children needs at least one architecture")
    archs = [net.check(arch) for arch in archs]
    inputs = forward.prepare(net.schema, net.embedding.weight, batch)
    known: dict[tuple, Tensor | None] = {(): inputs.history}

    def once(key: tuple, compute) -> Tensor | None:
        if key not in known:
            known[key] = compute()
        return known[key]

    def child(arch: Architecture) -> Tensor:
        weights = net.weights(arch)
        h_a = x = inputs.history
        for index, block in enumerate(arch.behavior):
            x = once(arch.behavior[:index + 1], lambda i=index, b=block, x=x: forward.run_block(weights, i, b, x, inputs))
        if x is not None:
            h_a = once(("pool", arch.behavior), lambda: forward.pool(weights, x, inputs))
        front = arch.behavior, arch.interactions, arch.has_fixed_mlp
        k0 = forward.input_width(arch, h_a, inputs)
        # With ratios all rows of the first matrix at once, of which every ratio's pre-activation is a slice.
        alike = sum((a.behavior, a.interactions, a.has_fixed_mlp) == front for a in archs)
        outputs = k0 if alike > 1 and not arch.has_fixed_mlp else None
        pre = once(("first", *front), lambda: forward.first_layer(weights, arch, h_a, inputs, outputs))
        h_se = once(("se", arch.interactions, arch.shortcut), lambda: forward.shortcut(weights, arch, inputs))
        h = forward.aggregate(weights, arch, pre[:, :arch.mlp[0].units(k0)], k0)
        return forward.score(weights, h, h_se, net.schema, batch, items)

    return torch.stack([child(arch) for arch in archs])
