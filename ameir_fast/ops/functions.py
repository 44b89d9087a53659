"""The operations as functions with a ``backend`` argument. Shapes and meaning: ``ameir_fast.reference``."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference import embedding_update as _embedding_update_reference
from . import _triton
from ._table import NAMESPACE, OPS, Backend, resolve


def _call(name: str, backend, of: Tensor, *arguments):
    chosen = resolve(name, backend, of.device, of.dtype)
    if chosen is Backend.REFERENCE:
        # Called as it is, so that autograd and torch.compile see through it.
        return OPS[name].reference(*arguments)
    if chosen is Backend.TRITON and not of.is_cuda:
        return _triton.interpreted(name, arguments, OPS[name].differentiable)
    return getattr(getattr(torch.ops, NAMESPACE), name)(*arguments)


def _flat(interactions) -> tuple[list[int], list[int]]:
    return [f for fields in interactions for f in fields], [len(fields) for fields in interactions]


def embedding_interactions(embedding: Tensor, rows: Tensor, bag_rows: Tensor | None, bag_offsets: Tensor | None,
                           multi_fields, interactions, dense: Tensor | None, weight: Tensor, bias: Tensor,
                           activation: str = "identity", backend: Backend | str | None = None) -> Tensor:
    """Lookup + Hadamard products + first linear layer + activation, [B, out]
    (``reference.embedding_interactions``). Raises ``RuntimeError`` for a backend that is not available."""
    return _call("embedding_interactions", backend, embedding, embedding, rows, bag_rows, bag_offsets,
                 list(multi_fields), *_flat(interactions), dense, weight, bias, activation)


def squeeze_excite(embedding: Tensor, rows: Tensor, bag_rows: Tensor | None, bag_offsets: Tensor | None,
                   multi_fields, interactions, project: Tensor, squeeze: Tensor, excite: Tensor,
                   backend: Backend | str | None = None) -> Tensor:
    """The SE shortcut from ids, [B, K] (``reference.squeeze_excite``)."""
    return _call("squeeze_excite", backend, embedding, embedding, rows, bag_rows, bag_offsets,
                 list(multi_fields), *_flat(interactions), project, squeeze, excite)


def sliced_mlp(x: Tensor, weights: list[Tensor], biases: list[Tensor], activations: list[str],
               dice: list[Tensor] = (), backend: Backend | str | None = None) -> tuple[Tensor, Tensor]:
    """The MLP from its first pre-activation on; output and Dice statistics (``reference.sliced_mlp``)."""
    if backend is None and list(activations) in (["relu"], ["identity"]):
        backend = Backend.REFERENCE  # torch has just these, without the cost of an operation around them
    return _call("sliced_mlp", backend, x, x, list(weights), list(biases), list(activations), list(dice))


def mlp_population(x: Tensor, weights: list[Tensor], biases: list[Tensor], dice: list[Tensor], head: Tensor,
                   common: Tensor, children: Tensor, backend: Backend | str | None = None) -> Tensor:
    """Logits [n, B] of n children's MLPs over one first pre-activation (``reference.mlp_population``). Not
    differentiable."""
    return _call("mlp_population", backend, x, x, list(weights), list(biases), list(dice), head, common, children)


def interaction_population(e: Tensor, base: Tensor, interactions, projections: Tensor, weight: Tensor, bias: Tensor,
                           head: Tensor, head_bias: Tensor, backend: Backend | str | None = None) -> Tensor:
    """Step 2's logits [n, B] of n candidates over one first pre-activation (``reference.interaction_population``). Not
    differentiable."""
    return _call("interaction_population", backend, e, e, base, *_flat(interactions), projections, weight, bias, head,
                 head_bias)


def sequence_block(x: Tensor, offsets: Tensor, norm: list[Tensor], weights: list[Tensor], target: Tensor | None,
                   layer: str, activation: str, max_length: int, backend: Backend | str | None = None) -> Tensor:
    """One behaviour block on jagged sequences, [ΣT, D] (``reference.sequence_block``)."""
    return _call("sequence_block", backend, x, x, offsets, list(norm), list(weights), target, layer,
                 activation, max_length)


def sequence_activations(x: Tensor, offsets: Tensor, norm: list[Tensor], weights: list[Tensor], target: Tensor | None,
                         layer: str, activations: list[str], max_length: int,
                         backend: Backend | str | None = None) -> Tensor:
    """One behaviour block with each of n activations, [n, ΣT, D] (``reference.sequence_activations``). Not
    differentiable."""
    return _call("sequence_activations", backend, x, x, offsets, list(norm), list(weights), target, layer,
                 list(activations), max_length)


def sequence_pool(x: Tensor, offsets: Tensor, target: Tensor | None, attention: list[Tensor], max_length: int,
                  backend: Backend | str | None = None) -> Tensor:
    """Sum, last and target-attention pooling, [B, 2D or 3D] (``reference.sequence_pool``)."""
    return _call("sequence_pool", backend, x, x, offsets, target, list(attention), max_length)


def embedding_update(embedding: Tensor, state: list[Tensor], rows: Tensor, gradient: Tensor, optimizer: str,
                     learning_rate: float, step: int, beta1: float = 0.9, beta2: float = 0.999,
                     eps: float = 1e-8, backend: Backend | str | None = None) -> None:
    """Optimizer step on the touched rows, in place (``reference.embedding_update``)."""
    rest = (rows, gradient, optimizer, learning_rate, step, beta1, beta2, eps)
    if resolve("embedding_update", backend, embedding.device, embedding.dtype) is Backend.REFERENCE:
        _embedding_update_reference(embedding, list(state), *rest)
    else:
        first, second = (*state, None, None)[:2]
        _call("embedding_update", backend, embedding, embedding, first, second, *rest)


def embedding_catch_up(embedding: Tensor, first: Tensor, second: Tensor, last_step: Tensor, rows: Tensor | None,
                       sums: Tensor, base: int, step: int, exact: int, window: int, beta1: float = 0.9,
                       beta2: float = 0.999, eps: float = 1e-8, backend: Backend | str | None = None) -> None:
    """Adam's steps on rows without a gradient, in place (``reference.embedding_catch_up``)."""
    _call("embedding_catch_up", backend, embedding, embedding, first, second, last_step, rows, sums, base, step, exact,
          window, beta1, beta2, eps)
