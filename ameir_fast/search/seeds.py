"""Random numbers as a pure function of where they are used, so that a resumed run needs no saved state."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, *where: object) -> int:
    """A 63-bit seed for one place (stage, step, …) of the run with ``seed``."""
    digest = hashlib.blake2b(repr((seed, *where)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, *where: object, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh generator for one place of the run."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *where))


_global_generator = threading.Lock()  # PyTorch's belongs to all threads


@contextmanager
def seeded_initialization(seed: int, *where: object) -> Iterator[None]:
    """Within the block, PyTorch's own initialisers draw from a seed; the global state is restored after it.

    One thread at a time may be within: others wait.
    """
    with _global_generator, torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, *where))
        yield
