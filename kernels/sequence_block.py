"""One behaviour block on jagged histories: ``Act(Layer(Norm(H))) + H`` (paper equation 1), each layer a file of its own.

x [ΣT, D] holds the elements of all histories, offsets [B + 1] where each begins. Every layer fuses the norm in front of
it and activation and residual behind it, so that a block reads x and writes the result once where the layer lets it:

- ``_convolution``: products of neighbouring elements and weights, tiles of the flat matrix;
- ``_window_pool``: mean and maximum of three neighbours, tiles of the flat matrix;
- ``_target_attention``: the local activation unit's weight times each element, a program for each history;
- ``_recurrent``, ``_self_attention``: what needs a whole history.

Zero is a copy of x: every activation of the space is 0 at 0. Backward recomputes norm, layer and activation's slope
from the arguments; nothing is stored in between.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from ameir_fast.space.choices import LAYERS


def _convolution(layer: str) -> tuple[ModuleType, tuple]:
    from . import _convolution
    return _convolution, (LAYERS[layer].dilation,)


def _window_pool(layer: str) -> tuple[ModuleType, tuple]:
    from . import _window_pool
    return _window_pool, (layer == "max_pool3",)


def _recurrent(layer: str) -> tuple[ModuleType, tuple]:
    from . import _recurrent
    return _recurrent, ()


def _self_attention(layer: str) -> tuple[ModuleType, tuple]:
    from . import _self_attention
    return _self_attention, (LAYERS[layer].divisor,)


#: The module of each layer but zero and target_attn, with what it wants to know beside the op's arguments.
_MODULES: dict[str, Callable[[str], tuple[ModuleType, tuple]]] = {
    **{name: _convolution for name, layer in LAYERS.items() if layer.kernel},
    "avg_pool3": _window_pool, "max_pool3": _window_pool, "bi_gru": _recurrent,
    "self_attn2": _self_attention, "self_attn4": _self_attention,
}


def forward(x: Tensor, offsets: Tensor, norm: list[Tensor], weights: list[Tensor], target: Tensor | None, layer: str,
            activation: str, max_length: int) -> Tensor:
    """Gives [ΣT, D]."""
    if layer == "zero" or x.numel() == 0:
        return x.clone(memory_format=torch.contiguous_format)
    offsets = offsets.contiguous()
    if layer == "target_attn":
        from . import _target_attention
        return _target_attention.forward(x, offsets, norm, weights, target, activation, max_length)
    module, more = _MODULES[layer](layer)
    return module.forward(x, offsets, norm, weights, activation, max_length, *more)


def backward(gradient: Tensor, x: Tensor, offsets: Tensor, norm: list[Tensor], weights: list[Tensor],
             target: Tensor | None, layer: str, activation: str, max_length: int) -> list[Tensor]:
    """Gives the gradients of x, norm, weights and the target, in this order; zeros of what the layer does not read."""
    if layer == "zero" or x.numel() == 0:
        dx = gradient.clone(memory_format=torch.contiguous_format)
        return [dx, *_zeros([*norm, *weights, *_present(target)])]
    offsets = offsets.contiguous()
    if layer == "target_attn":
        from . import _target_attention
        return _target_attention.backward(gradient, x, offsets, norm, weights, target, activation, max_length)
    module, more = _MODULES[layer](layer)
    found = module.backward(gradient, x, offsets, norm, weights, activation, max_length, *more)
    return [*found, *_zeros(_present(target))]


def _present(target: Tensor | None) -> list[Tensor]:
    return [] if target is None else [target]


def _zeros(tensors: list[Tensor]) -> list[Tensor]:
    return [torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in tensors]
