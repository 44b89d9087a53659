"""The C library's allocator, asked to keep what a training step frees."""

from __future__ import annotations

import ctypes
import sys

# Of mallopt(3), in glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_MMAP_MAX = 32 << 20  # the largest mmap threshold that glibc takes on 64 bit


def keep_freed_memory() -> bool:
    """Stops glibc from handing freed tensors back to the system, only to fetch them again, page by page, a step
    later: about a tenth of a training step on a CPU. The process keeps up to 2 GiB that it once needed.

    Returns whether it took effect; other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux") or sys.maxsize < 2**32:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        return False
    return all(mallopt(option, value) == 1 for option, value in (
        (_MMAP_THRESHOLD, _MMAP_MAX), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2 * _MMAP_MAX)))
