"""Block with a bidirectional gated recurrent layer: ``Act(BiGRU(Norm(x))) + x`` on jagged histories.

Of direction d (forward, or backward from each row's last element), with gates in the order r, z, n::

    gi = W_ih N(x_t) + b_ih                                            [3H], H = D / 2
    r = σ(gi_r + W_hr h + b_hr)    z = σ(gi_z + W_hz h + b_hz)    n = tanh(gi_n + r (W_hn h + b_hn))
    h' = (1 - z) n + z h           out[t, d H:(d + 1) H] = Act(h') + x[t, d H:(d + 1) H]

Forward: one product of all elements gives gi of both directions ([ΣT, 6H] of scratch: the part that does not wait for
the step before), then a scan: one program per direction and BLOCK_S rows, their state in registers, as many steps as
the longest of its rows, whose gi of the next step is on its way while this one is computed. W_hh stays on the chip:
in registers for H ≤ 8, where a product is a sum over a [S, H, H] block (padding to 16 would do 4 to 16 times the work),
else as an operand of ``tl.dot``. Bytes: x read once for each 32 columns of gi and once at the end, gi written and read,
out written. Operations: 12 H (D + H) of multiplying and adding for each element.

Backward: both again, the scan now writing r, z, n over gi and, beside them, W_hn h + b_hn and the state before the step
([ΣT, 10H] in all). The reverse scan carries dh and turns gates into their gradients in place; all that is left are
products of all elements: of weights as partial sums of ranges, of x through the LayerNorm.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _flat
from ._activations import CODES
from ._launch import Config, Kernel, Specimen, bucket, strides
from ._precision import precision
from ._recurrent_scan import gru_reverse_scan, gru_scan
from ._sequence import padded

NARROW = 8   # up to this H a product is a sum of a block; beyond, tl.dot
KEPT = 32    # up to this padded H the three [H, H] of W_hh stay on the chip; of wider ones
CHUNK = 16   # so many inputs at a time come from L2 at each step, and of the state from where it was just written


@triton.jit
def gru_narrow_scan_kernel(
    gates, offsets, weight0, weight1, bias0, bias1, x, out, before, batch, w0_row, w0_col, w1_row, w1_col, x_row, x_col,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr, KEEP: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_S: tl.constexpr,
):
    gru_scan(gates, offsets, weight0, weight1, bias0, bias1, x, out, before, batch, w0_row, w0_col, w1_row, w1_col, x_row,
             x_col, HIDDEN, WIDTH, ACTIVATION, KEEP, True, CHUNK, PRECISION, BLOCK_S)


@triton.jit
def gru_narrow_reverse_scan_kernel(
    gates, before, offsets, weight0, weight1, gradient, batch, w0_row, w0_col, w1_row, w1_col, gradient_row, gradient_col,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    gru_reverse_scan(gates, before, offsets, weight0, weight1, gradient, batch, w0_row, w0_col, w1_row, w1_col,
                     gradient_row, gradient_col, HIDDEN, WIDTH, ACTIVATION, True, CHUNK, PRECISION, BLOCK_S)


@triton.jit
def gru_scan_kernel(
    gates, offsets, weight0, weight1, bias0, bias1, x, out, before, batch, w0_row, w0_col, w1_row, w1_col, x_row, x_col,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr, KEEP: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_S: tl.constexpr,
):
    gru_scan(gates, offsets, weight0, weight1, bias0, bias1, x, out, before, batch, w0_row, w0_col, w1_row, w1_col, x_row,
             x_col, HIDDEN, WIDTH, ACTIVATION, KEEP, False, CHUNK, PRECISION, BLOCK_S)


@triton.jit
def gru_reverse_scan_kernel(
    gates, before, offsets, weight0, weight1, gradient, batch, w0_row, w0_col, w1_row, w1_col, gradient_row, gradient_col,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    gru_reverse_scan(gates, before, offsets, weight0, weight1, gradient, batch, w0_row, w0_col, w1_row, w1_col,
                     gradient_row, gradient_col, HIDDEN, WIDTH, ACTIVATION, False, CHUNK, PRECISION, BLOCK_S)


@triton.jit
def gru_wide_scan_kernel(
    gates, offsets, weight0, weight1, bias0, bias1, x, out, before, batch, w0_row, w0_col, w1_row, w1_col, x_row, x_col,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr, KEEP: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_S: tl.constexpr,
):
    gru_scan(gates, offsets, weight0, weight1, bias0, bias1, x, out, before, batch, w0_row, w0_col, w1_row, w1_col, x_row,
             x_col, HIDDEN, WIDTH, ACTIVATION, KEEP, False, CHUNK, PRECISION, BLOCK_S)


@triton.jit
def gru_wide_reverse_scan_kernel(
    gates, before, offsets, weight0, weight1, gradient, batch, w0_row, w0_col, w1_row, w1_col, gradient_row, gradient_col,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    gru_reverse_scan(gates, before, offsets, weight0, weight1, gradient, batch, w0_row, w0_col, w1_row, w1_col,
                     gradient_row, gradient_col, HIDDEN, WIDTH, ACTIVATION, False, CHUNK, PRECISION, BLOCK_S)


def _shape(hidden: int) -> dict[str, int]:
    width = padded(hidden) if hidden <= NARROW else padded(hidden, 16)
    return {"HIDDEN": hidden, "WIDTH": width, "CHUNK": CHUNK if width > KEPT else 0}


_POINTERS = dict.fromkeys(("gates", "weight0", "weight1", "bias0", "bias1", "x", "out", "before", "gradient"), "*fp32")
_NUMBERS = dict.fromkeys(("batch", "w0_row", "w0_col", "w1_row", "w1_col", "x_row", "x_col", "gradient_row",
                          "gradient_col"), "i32")
_SIGNATURE = _POINTERS | _NUMBERS | {"offsets": "*i64"}
_WIDTHS = {"alimama": 4, "D16": 8, "D32": 16, "beauty": 32, "D128": 64, "D256": 128}
_EXACT = {"ACTIVATION": CODES["gelu"], "PRECISION": "ieee"}


def _declared(kernel, direction: str, configs: tuple[Config, ...], labels: tuple[str, ...], occupancy: float) -> Kernel:
    specimens = []
    for label in labels:
        shape = {**_shape(_WIDTHS[label]), **_EXACT}
        if direction == "backward":
            specimens.append(Specimen(label, shape))
            continue
        scratch = {} if shape["CHUNK"] else {"before": None}
        specimens += [Specimen(label, {**shape, "KEEP": False, **scratch}),
                      Specimen(f"{label} kept", {**shape, "KEEP": True, "x": None, "out": None})]
    return Kernel(kernel, direction, {name: _SIGNATURE[name] for name in kernel.arg_names if name in _SIGNATURE}, configs,
                  specimens, accumulates=("gates",), occupancy=occupancy)


def _pair(forward_kernel, reverse_kernel, *declaration) -> tuple[Kernel, Kernel]:
    return _declared(forward_kernel, "forward", *declaration), _declared(reverse_kernel, "backward", *declaration)


# One warp needs no barrier between steps, and small programs spread a batch over the device; 16 rows are the least of a dot.
_narrow = _pair(gru_narrow_scan_kernel, gru_narrow_reverse_scan_kernel,
                (Config(1, 1, BLOCK_S=8), Config(1, 1, BLOCK_S=16), Config(1, 1, BLOCK_S=4), Config(4, 1, BLOCK_S=16)),
                ("alimama", "D16"), 0.375)
_middle = _pair(gru_scan_kernel, gru_reverse_scan_kernel,
                (Config(4, 1, BLOCK_S=16), Config(8, 1, BLOCK_S=16), Config(2, 1, BLOCK_S=16), Config(8, 1, BLOCK_S=32)),
                ("D32", "beauty"), 0.1875)
_wide = _pair(gru_wide_scan_kernel, gru_wide_reverse_scan_kernel,
              (Config(8, 1, BLOCK_S=16), Config(4, 1, BLOCK_S=16), Config(8, 1, BLOCK_S=32)), ("D128", "D256"), 0.125)


def _scans(hidden: int) -> tuple[Kernel, Kernel]:
    return _narrow if hidden <= NARROW else _wide if _shape(hidden)["CHUNK"] else _middle


def _scanned(gates: Tensor, x: Tensor, offsets: Tensor, weights: list[Tensor], activation: str, max_length: int,
             out: Tensor | None, before: Tensor | None) -> None:
    batch, hidden = offsets.shape[0] - 1, weights[1].shape[1]
    (w0_row, w0_col), (w1_row, w1_col) = strides(weights[1]), strides(weights[5])
    shape = _shape(hidden)
    if before is None and shape["CHUNK"]:
        before = torch.empty_like(out)
    scan, _ = _scans(hidden)
    scan(lambda blocks: (triton.cdiv(batch, blocks["BLOCK_S"]), 2), (*bucket(batch, hidden, max_length), out is None),
         gates=gates, offsets=offsets, weight0=weights[1], weight1=weights[5], bias0=weights[3], bias1=weights[7],
         x=None if out is None else x, out=out, before=before, batch=batch, w0_row=w0_row, w0_col=w0_col, w1_row=w1_row,
         w1_col=w1_col, x_row=x.stride(0), x_col=x.stride(1), ACTIVATION=CODES[activation], KEEP=out is None,
         PRECISION=precision(), **shape)


def _gates(x: Tensor, norm: list[Tensor], weights: list[Tensor], statistics: Tensor | None = None) -> Tensor:
    """gi of both directions, in three of every four parts of scratch [ΣT, 2, 4, H]."""
    hidden = weights[1].shape[1]
    return _flat.linear(x, norm, [weights[0], weights[4]], [weights[2], weights[6]], x.new_empty(x.shape[0], 8 * hidden),
                        4 * hidden, statistics)


def forward(x: Tensor, offsets: Tensor, norm: list[Tensor], weights: list[Tensor], activation: str,
            max_length: int) -> Tensor:
    out = x.new_empty(x.shape)
    if x.shape[0]:
        offsets, norm, weights = offsets.contiguous(), _flat.vectors(norm), _flat.vectors(weights)
        _scanned(_gates(x, norm, weights), x, offsets, weights, activation, max_length, out, None)
    return out


def backward(gradient: Tensor, x: Tensor, offsets: Tensor, norm: list[Tensor], weights: list[Tensor], activation: str,
             max_length: int) -> list[Tensor]:
    n, width = x.shape
    if n == 0:
        return [x.new_zeros(t.shape) for t in (x, *norm, *weights)]
    offsets, norm, weights = offsets.contiguous(), _flat.vectors(norm), _flat.vectors(weights)
    hidden, batch = width // 2, offsets.shape[0] - 1
    statistics = x.new_empty(n, 2) if norm else None
    gates, before = _gates(x, norm, weights, statistics), x.new_empty(n, width)
    _scanned(gates, x, offsets, weights, activation, max_length, None, before)
    (w0_row, w0_col), (w1_row, w1_col) = strides(weights[1]), strides(weights[5])
    _, reverse_scan = _scans(hidden)
    reverse_scan(lambda blocks: (triton.cdiv(batch, blocks["BLOCK_S"]), 2), bucket(batch, hidden, max_length),
                 gates=gates, before=before, offsets=offsets, weight0=weights[1], weight1=weights[5], gradient=gradient,
                 batch=batch, w0_row=w0_row, w0_col=w0_col, w1_row=w1_row, w1_col=w1_col,
                 gradient_row=gradient.stride(0), gradient_col=gradient.stride(1), ACTIVATION=CODES[activation],
                 PRECISION=precision(), **_shape(hidden))
    partials = _flat.Partials(x, [w.shape for w in weights])
    both = {"segments": 2, "dy_segment": 4 * hidden, "place_segment": partials.places[4]}
    partials.add(gates, x, 0, 2, norm=norm, statistics=statistics, **both)
    partials.add(gates, before, 1, 3, x_segment=hidden, gate=hidden, **both)
    dx, dnorm = _flat.input_gradient(gates, [weights[0], weights[4]], gradient, x, norm, 4 * hidden)
    return [dx, *dnorm, *partials.gradients()]
