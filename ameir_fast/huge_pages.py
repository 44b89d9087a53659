"""Large matrices on huge pages.

Rows that a batch reads lie anywhere in a matrix: on pages of 4 KiB nearly each of them costs a walk through the page tables
too, in a virtual machine a long one.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from torch import Tensor

PAGE = 2**21  # bytes, x86's and most others'; where huge pages are larger, none are asked for
LEAST = 4 * PAGE  # of a matrix, for which it is worth a call
SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
HUGEPAGE, COLLAPSE = 14, 25  # of madvise: for pages to come, and (Linux 6.1) for those that are there


def use_huge_pages(tensor: Tensor) -> int:
    """Moves a dense tensor's memory to huge pages where Linux lets programs ask for them; its contents stay. Advice: a system
    without them, or short of them, goes on as it is.

    Returns:
        the bytes that were asked for: 0 for small tensors, on other devices and other systems.
    """
    size = tensor.numel() * tensor.element_size()
    if sys.platform != "linux" or tensor.device.type != "cpu" or size < LEAST or not tensor.is_contiguous() or not _offered():
        return 0
    begin = -(-tensor.data_ptr() // PAGE) * PAGE
    size = (tensor.data_ptr() + size) // PAGE * PAGE - begin
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for advice in (HUGEPAGE, COLLAPSE):
        madvise(begin, size, advice)
    return size


def _offered() -> bool:
    """Whether this system has them in this size, and its administrator allows them, which collapsing would not ask."""
    size, allowed = SETTINGS / "hpage_pmd_size", SETTINGS / "enabled"
    if not (os.access(size, os.R_OK) and os.access(allowed, os.R_OK)):
        return False
    return int(size.read_text()) == PAGE and "[never]" not in allowed.read_text()
