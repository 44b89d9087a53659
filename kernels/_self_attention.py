"""Block with self-attention over each history: ``Act(SelfAttention(Norm(x))) + x``, 2 or 4 heads.

    [q k v] = N(x) W_in^T + b_in     head j: columns j W to (j + 1) W, W = D / heads
    o_t = Σ_s softmax_s(q_t · k_s / √W) v_s          out = Act(o W_out^T + b_out) + x

Narrow and short histories have a kernel for the whole block (``_narrow_attention``). Of others, scratch is [ΣT, 3D] of
q, k, v and [ΣT, D] of o; scores stay in registers.

Backward recomputes q, k, v and o, keeping a logarithm for each element and head and mean and 1/σ of each element; then
the gradient before the activation (W_out's product again, with the slope at its store), through W_out, through attention,
through W_in and the LayerNorm. Weights' gradients are partial sums of ranges of elements.
"""

from __future__ import annotations

from torch import Tensor

from . import _flat, _narrow_attention
from ._attention import attention, attention_backward


def forward(x: Tensor, offsets: Tensor, norm: list[Tensor], weights: list[Tensor], activation: str, max_length: int,
            heads: int) -> Tensor:
    n, width = x.shape
    if n == 0:
        return x.new_empty(n, width)
    offsets, norm, weights = offsets.contiguous(), _flat.vectors(norm), _flat.vectors(weights)
    if _narrow_attention.fits(width, max_length):
        return _narrow_attention.forward(x, offsets, norm, weights, activation, max_length, heads)
    in_weight, in_bias, out_weight, out_bias = weights
    qkv = _flat.linear(x, norm, [in_weight], [in_bias], x.new_empty(n, 3 * width))
    mixed = x.new_empty(n, width)
    attention(qkv, offsets, mixed, None, heads, max_length)
    return _flat.linear(mixed, [], [out_weight], [out_bias], x.new_empty(n, width), end=_flat.RESIDUAL,
                        activation=activation, other=x)


def backward(gradient: Tensor, x: Tensor, offsets: Tensor, norm: list[Tensor], weights: list[Tensor], activation: str,
             max_length: int, heads: int) -> list[Tensor]:
    n, width = x.shape
    if n == 0:
        return [x.new_zeros(t.shape) for t in (x, *norm, *weights)]
    offsets, norm, weights = offsets.contiguous(), _flat.vectors(norm), _flat.vectors(weights)
    if _narrow_attention.fits(width, max_length, _narrow_attention.WIDEST_BACKWARD):
        return _narrow_attention.backward(gradient, x, offsets, norm, weights, activation, max_length, heads)
    in_weight, in_bias, out_weight, out_bias = weights
    statistics = x.new_empty(n, 2) if norm else None
    qkv = _flat.linear(x, norm, [in_weight], [in_bias], x.new_empty(n, 3 * width), statistics=statistics)
    mixed, logs = x.new_empty(n, width), x.new_empty(n, heads)
    attention(qkv, offsets, mixed, logs, heads, max_length)
    dense = gradient.stride() == (width, 1)
    dpre = gradient if activation == "identity" and dense else _flat.linear(
        mixed, [], [out_weight], [out_bias], x.new_empty(n, width), end=_flat.SLOPE, activation=activation,
        other=gradient)
    partials = _flat.Partials(x, [w.shape for w in weights])
    partials.add(dpre, mixed, 2, 3)
    dmixed = _flat.linear(dpre, [], [out_weight.t()], [], x.new_empty(n, width))
    dqkv = x.new_empty(n, 3 * width)
    attention_backward(qkv, offsets, mixed, logs, dmixed, dqkv, heads, max_length)
    partials.add(dqkv, x, 0, 1, norm=norm, statistics=statistics)
    dx, dnorm = _flat.input_gradient(dqkv, [in_weight], gradient, x, norm)
    return [dx, *dnorm, *partials.gradients()]
