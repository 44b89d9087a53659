"""How the operands of matrix products are rounded: ``AMEIR_FAST_TRITON_PRECISION``.

``ieee``, the default, multiplies in float32; ``tf32`` and ``bf16`` use tensor cores: operands keep 10 or 7 bits of the
mantissa, sums are float32. Kernels take the name as the constexpr ``PRECISION``.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

PRECISIONS = ("ieee", "tf32", "bf16")


def precision() -> str:
    """The precision that launches from now on use."""
    name = os.environ.get("AMEIR_FAST_TRITON_PRECISION", "").strip().lower() or "ieee"
    if name not in PRECISIONS:
        raise ValueError(f"AMEIR_FAST_TRITON_PRECISION is {name!r}; it may be one of {', '.join(PRECISIONS)}")
    return name


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """``a @ b`` of float32 blocks, summed in float32."""
    if PRECISION == "bf16":
        c = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    else:
        c = tl.dot(a, b, input_precision=PRECISION)
    return c
