"""Small constant tensors on a device."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def table(values: list[int] | tuple[int, ...], device: torch.device) -> Tensor:
    """``values`` as a tensor int64, for reading only. On a GPU each is copied there once and kept: a copy from the host waits
    for the device, and may not be part of a CUDA graph."""
    if device.type != "cuda" or torch.compiler.is_compiling():
        return torch.tensor(values, dtype=torch.int64, device=device)
    return _kept(tuple(values), device)


@functools.lru_cache(maxsize=1024)
def _kept(values: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # whoever comes next may want to save it for a backward pass
        return torch.tensor(values, dtype=torch.int64, device=device)
