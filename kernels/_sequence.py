"""What the kernels over jagged histories share: layer norm of a tile in registers and its backward, the history of an
element of the flat [ΣT, D] matrix, and sums over programs.

A tile's last axis is the behaviour width D padded to a power of two; its padding holds zeros, and ``inside`` says which
columns are true. A norm costs two sums over registers, so it is recomputed wherever it is read and stored nowhere.

Gradients of weights are sums over all elements. Each program adds up its own share in a fixed order and writes it
beside those of the others; :func:`summed` adds the shares up. No atomics, so results are the same from run to run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import Specimen

NORM_EPS = tl.constexpr(1e-5)  # as in ameir_fast.reference.sequence_block


def padded(width: int, least: int = 1) -> int:
    """The size of an axis of a tile that holds ``width`` columns; matrix products want at least 16."""
    return max(least, triton.next_power_of_2(max(1, width)))


def search_steps(offsets: Tensor) -> int:
    """Steps of the search in :func:`owner_of`."""
    return (offsets.shape[0] - 1).bit_length()


def shares(programs: int, *shape: int, like: Tensor) -> Tensor:
    """Where programs leave their sums: float32 [programs, *shape]; every program writes the whole of its own."""
    return torch.empty((programs, *shape), dtype=torch.float32, device=like.device)


def summed(partial: Tensor) -> Tensor:
    """The sum of the programs' shares [programs, *shape], in a fixed order."""
    return partial.sum(0)


def norm_tensors(norm: list[Tensor]) -> tuple[Tensor | None, Tensor | None, int, int]:
    """Weight and bias of a norm, or None twice, and their strides: the pointers of a kernel."""
    return (norm[0], norm[1], norm[0].stride(0), norm[1].stride(0)) if norm else (None, None, 0, 0)


@triton.jit
def owner_of(element, offsets, rows, steps):
    """The history that each ``element`` (int64, any shape) of the flat matrix lies in: the last row whose offset is
    not above it, found by halving in ``steps`` steps. Elements beyond the last are given to the last row."""
    low = element * 0
    high = low + rows - 1
    for _ in range(steps):
        middle = (low + high + 1) // 2
        right = tl.load(offsets + middle) <= element
        low = tl.where(right, middle, low)
        high = tl.where(right, high, tl.maximum(middle - 1, 0))
    return low


@triton.jit
def normalised(x, inside, WIDTH: tl.constexpr):
    """(x − mean) / √(variance + ε) over the last axis, and 1 / √(variance + ε) with that axis kept as 1. Padding of
    ``x`` is zero and stays it; ``inside`` (bool, broadcastable) is true in columns below WIDTH."""
    AXIS: tl.constexpr = len(x.shape) - 1
    mean = tl.sum(x, axis=AXIS, keep_dims=True) / WIDTH
    centred = tl.where(inside, x - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, axis=AXIS, keep_dims=True) / WIDTH + NORM_EPS)
    return centred * rstd, rstd


@triton.jit
def layer_norm(x, weight, bias, inside, WIDTH: tl.constexpr):
    """LayerNorm over the last axis. ``weight`` and ``bias`` are broadcastable to ``x`` and zero in its padding, and so is
    the result. Rows of zeros, which stand for no element, give ``bias``: mask them where that matters."""
    hat, _ = normalised(x, inside, WIDTH)
    return hat * weight + bias


@triton.jit
def layer_norm_backward(dh, x, weight, inside, WIDTH: tl.constexpr):
    """Gradient of ``x`` from that of the norm's output, and the normalised x̂: the weight's gradient is the sum of
    ``dh * x̂`` over rows, the bias's that of ``dh``."""
    AXIS: tl.constexpr = len(x.shape) - 1
    hat, rstd = normalised(x, inside, WIDTH)
    scaled = dh * weight
    mean = tl.sum(scaled, axis=AXIS, keep_dims=True) / WIDTH
    along = tl.sum(scaled * hat, axis=AXIS, keep_dims=True) / WIDTH
    return tl.where(inside, (scaled - mean - hat * along) * rstd, 0.0), hat


def specimen(function: Callable, label: str, constants: Mapping[str, object]) -> Specimen:
    """A specimen of those of the constants that are arguments of ``function``."""
    return Specimen(label, {name: value for name, value in constants.items() if name in function.arg_names})
