"""Settings that every test runs under."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

os.environ.setdefault("AMEIR_FAST_POISON", "1")  # native scratch memory is NaN before every use

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton's kernels on the CPU; read when they are first imported

if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
    from tests import fast_interpreter

    fast_interpreter.install()

# Small tensors everywhere: more threads would only wait for each other. Tests of threads set their own
# number.
torch.set_num_threads(1)

with torch.device("meta"):  # PyTorch notes now which functions a default device is for, before they are replaced below
    torch.empty(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, so that no process is left with them when the others have nothing more to do."""
    items.sort(key=lambda item: item.path.name != "test_triton_supernet.py")


def _poison(tensor: torch.Tensor) -> torch.Tensor:
    """NaN, or the largest integer, which is an id outside every table."""
    with torch.no_grad():
        if tensor.is_floating_point() or tensor.is_complex():
            return tensor.fill_(float("nan"))
        if tensor.dtype not in (torch.bool, torch.uint8):
            return tensor.fill_(torch.iinfo(tensor.dtype).max)
    return tensor


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory handed out uninitialised reads as NaN, so that an output element nobody wrote fails its test
    instead of holding whatever was there, often the right value of the test before."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        original = getattr(owner, name)

        def poisoned(*args, _original=original, **kwargs):
            return _poison(_original(*args, **kwargs))

        monkeypatch.setattr(owner, name, poisoned)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that PyTorch's own C++ hands out uninitialised is NaN too, or the largest integer."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]
