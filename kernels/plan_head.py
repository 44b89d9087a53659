"""A plan's last layer: the logits ``w · [h, h_se] + b`` of a CTR model, without putting h [B, H] and the shortcut's h_se [B, K]
side by side first. A program has a tile of samples. Bytes: 4 B (H + K) read and 4 B written; 2 B (H + K) operations.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._launch import Config, Kernel, Specimen, bucket


@triton.jit
def weighted(x, weight, sample, present, width, x_row, x_column, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr):
    """x [BLOCK_B, width] times weight [width]."""
    total = tl.zeros([BLOCK_B, BLOCK_C], tl.float32)
    for begin in range(0, width, BLOCK_C):
        column = begin + tl.arange(0, BLOCK_C)
        part = tl.load(x + sample[:, None] * x_row + column[None, :] * x_column,
                       mask=present[:, None] & (column < width)[None, :], other=0.0)
        total += part * tl.load(weight + column, mask=column < width, other=0.0)[None, :]
    return tl.sum(total, 1)


@triton.jit
def plan_head_kernel(h, shortcut, weight, bias, out, samples, width, shortcut_width, h_row, h_column, shortcut_row,
                     shortcut_column, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    present = sample < samples
    logit = weighted(h, weight, sample, present, width, h_row, h_column, BLOCK_B, BLOCK_C)
    if shortcut is not None:
        logit += weighted(shortcut, weight + width, sample, present, shortcut_width, shortcut_row, shortcut_column, BLOCK_B,
                          BLOCK_C)
    tl.store(out + sample, logit + tl.load(bias), mask=present)


HEAD = Kernel(plan_head_kernel, "forward",
              {**dict.fromkeys(("h", "shortcut", "weight", "bias", "out"), "*fp32"),
               **dict.fromkeys(("samples", "width", "shortcut_width", "h_row", "h_column", "shortcut_row", "shortcut_column"),
                               "i32")},
              [Config(BLOCK_B=16, BLOCK_C=64), Config(BLOCK_B=32, BLOCK_C=32), Config(BLOCK_B=64, BLOCK_C=32, num_warps=8),
               Config(BLOCK_B=8, BLOCK_C=128)],
              [Specimen("with a shortcut", {"h_column": 1, "shortcut_column": 1}),
               Specimen("without", {"h_column": 1, "shortcut": None})])


def logits(h: Tensor, shortcut: Tensor | None, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    """Fills ``out`` float32 [B] from h [B, H], ``shortcut`` [B, K], ``weight`` [1, H + K] or [1, H], contiguous, and ``bias``
    [1]."""
    samples, width = h.shape
    row, column = (0, 0) if shortcut is None else shortcut.stride()
    HEAD(lambda blocks: (triton.cdiv(samples, blocks["BLOCK_B"]),), bucket(samples, width), h=h, shortcut=shortcut,
         weight=weight, bias=bias, out=out, samples=samples, width=width, shortcut_width=weight.shape[1] - width,
         h_row=h.stride(0), h_column=h.stride(1), shortcut_row=row, shortcut_column=column)
