"""Activations of the space and their slopes, in float32 registers."""

from __future__ import annotations

import triton
import triton.language as tl

#: Names as constexpr codes.
CODES = {"identity": 0, "relu": 1, "gelu": 2, "swish": 3}


@triton.jit
def activate(x, CODE: tl.constexpr):
    """identity, relu, gelu (exact, by erf) or swish of ``x``."""
    if CODE == 1:
        y = tl.maximum(x, 0.0)
    elif CODE == 2:
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif CODE == 3:
        y = x * tl.sigmoid(x)
    else:
        y = x
    return y


@triton.jit
def slope(x, CODE: tl.constexpr):
    """Derivative of :func:`activate` at ``x``; that of relu at 0 is 0, as in PyTorch."""
    if CODE == 1:
        y = tl.where(x > 0, 1.0, 0.0)
    elif CODE == 2:
        y = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif CODE == 3:
        p = tl.sigmoid(x)
        y = p * (1.0 + x * (1.0 - p))
    else:
        y = tl.full(x.shape, 1.0, tl.float32)
    return y
