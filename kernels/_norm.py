"""Backward of the norm in front of a layer, for layers that cannot hold whole rows of their gradient in registers:
``dx = norm'(dh) + g`` where dh is the gradient of the norm's output and g that of the residual, 16 D bytes an element, and
the gradients of weight and bias in shares by tile."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._launch import Config, Kernel, bucket
from ._sequence import layer_norm_backward, padded, shares, specimen, summed


@triton.jit
def norm_backward_kernel(x, norm_weight, gradient, dx, dnorm, elements, x_row, x_column, norm_weight_stride, gradient_row,
                         gradient_column, WIDTH: tl.constexpr, PADDED: tl.constexpr, AREA: tl.constexpr):
    """``dx`` [ΣT, WIDTH] holds dh and is given the result; ``dnorm`` [tiles, 2, WIDTH]."""
    TILE: tl.constexpr = max(4, AREA // PADDED)
    tile = tl.program_id(0).to(tl.int64)
    element, column = tile * TILE + tl.arange(0, TILE)[:, None], tl.arange(0, PADDED)[None, :]
    known = column < WIDTH
    inside = (element < elements) & known
    gain = tl.load(norm_weight + column * norm_weight_stride, mask=known, other=0.0)
    h = tl.load(x + element * x_row + column * x_column, mask=inside, other=0.0)
    dh = tl.load(dx + element * WIDTH + column, mask=inside, other=0.0)
    through, hat = layer_norm_backward(dh, h, gain, known, WIDTH)
    share = dnorm + tile * 2 * WIDTH + tl.arange(0, PADDED)
    tl.store(share, tl.sum(dh * hat, axis=0), mask=tl.arange(0, PADDED) < WIDTH)
    tl.store(share + WIDTH, tl.sum(dh, axis=0), mask=tl.arange(0, PADDED) < WIDTH)
    g = tl.load(gradient + element * gradient_row + column * gradient_column, mask=inside, other=0.0)
    tl.store(dx + element * WIDTH + column, through + g, mask=inside)


# One tile size in all configurations: the shares are by tile.
NORM = Kernel(norm_backward_kernel, "backward",
              {**dict.fromkeys(("x", "norm_weight", "gradient", "dx", "dnorm"), "*fp32"),
               **dict.fromkeys(("elements", "x_row", "x_column", "norm_weight_stride", "gradient_row", "gradient_column"),
                               "i32")},
              [Config(AREA=2048, num_warps=4), Config(AREA=2048, num_warps=8)],
              [specimen(norm_backward_kernel, label, {"WIDTH": width, "PADDED": padded(width), "x_column": 1,
                                                      "norm_weight_stride": 1, "gradient_column": 1})
               for label, width in (("64", 64), ("256", 256))], accumulates=("dx",))


def norm_backward(dx: Tensor, gradient: Tensor, x: Tensor, norm: list[Tensor]) -> Tensor:
    """``dx`` holds the gradient of the norm's output (contiguous) and is given that of x, the residual's ``gradient``
    included. Gives the gradients of the norm's weight and bias [2, D]."""
    elements, width = x.shape
    channels = padded(width)

    def grid(blocks):
        return (triton.cdiv(elements, max(4, blocks["AREA"] // channels)),)

    dnorm = shares(*grid(NORM.configs[0].blocks), 2, width, like=x)
    NORM(grid, bucket(elements, width), x=x, norm_weight=norm[0], gradient=gradient, dx=dx, dnorm=dnorm, elements=elements,
         x_row=x.stride(0), x_column=x.stride(1), norm_weight_stride=norm[0].stride(0), gradient_row=gradient.stride(0),
         gradient_column=gradient.stride(1), WIDTH=width, PADDED=channels)
    return summed(dnorm)
