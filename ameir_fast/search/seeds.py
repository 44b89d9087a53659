"""Random numbers as a pure function of where they are used, so that a resumed run needs no saved state."""

from __future__ import annotations

import hashlib
import threading

import torch


def derive_seed(seed: int, *where: object) -> int:
    """A 63-bit seed for one place (stage, step, …) of the run with ``seed``."""
    digest = hashlib.blake2b(repr((seed, *where)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, *where: object, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh generator for one place of the run."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *where))


_global_state = threading.RLock()  # PyTorch's, one for all threads


class seeded_initialization:
    """Within the block, PyTorch's own initialisers draw from a seed; the global state is restored after it.
    One thread at a time."""

    def __init__(self, seed: int, *where: object):
        self.seed = derive_seed(seed, *where)

    def __enter__(self):
        _global_state.acquire()
        self._fork = torch.random.fork_rng(devices=[])
        self._fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *error):
        try:
            return self._fork.__exit__(*error)
        finally:
            _global_state.release()
