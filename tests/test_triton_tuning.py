"""Measuring configurations changes no result: a kernel that works in place is measured on copies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")
from ameir_fast.kernels import _launch, _norm, embedding_interactions, embedding_update, sequence_block
from tests.triton_blocks import DEVICE, WHY_NOT, arguments_of, can_run, moved

pytestmark = pytest.mark.skipif(not can_run(), reason=WHY_NOT)


def norm() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    dx, gradient, x = (torch.rand(5, 6, generator=generator).to(DEVICE) for _ in range(3))
    return [_norm.norm_backward(dx, gradient, x, [x[0], x[1]]), dx]


def block(layer: str, width: int) -> list[Tensor]:
    arguments = moved(arguments_of(layer, True, "swish", width, [3, 1, 2]), lambda t: t.to(DEVICE))
    return sequence_block.backward(torch.ones_like(arguments[0]), *arguments)


def update(optimizer: str, states: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    embedding, *state = (torch.rand(5, 4, generator=generator).to(DEVICE) for _ in range(1 + states))
    rows = torch.randint(5, (70,), generator=generator).to(DEVICE)  # segments within chunks and across their edges
    gradient = torch.rand(70, 4, generator=generator).to(DEVICE)
    embedding_update.forward(embedding, *(*state, None, None)[:2], rows, gradient, optimizer, 0.1, 1, 0.9, 0.999, 1e-8)
    return [embedding, *state]


def interactions(atomics: str, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    monkeypatch.setenv("AMEIR_FAST_TRITON_ATOMICS", atomics)
    generator = torch.Generator().manual_seed(1)
    embedding, weight, gradient = (torch.rand(*shape, generator=generator).to(DEVICE) for shape in ((9, 4), (6, 16), (5, 6)))
    rows = torch.randint(9, (5, 3), generator=generator).to(DEVICE)
    return embedding_interactions.backward(gradient, embedding, rows, None, None, [], [0, 2], [2], None, weight, weight[:, 0],
                                           "identity")


CASES = {
    "norm": lambda _: norm(), "bi_gru": lambda _: block("bi_gru", 8),
    "sgd": lambda _: update("sgd", 0), "adagrad": lambda _: update("adagrad", 1), "adam": lambda _: update("adam", 2),
    "sorted": lambda patch: interactions("0", patch), "atomics": lambda patch: interactions("1", patch),
}


@pytest.mark.parametrize("case", CASES)
def test_tuning_changes_no_result(case, monkeypatch):
    want = CASES[case](monkeypatch)
    measured = []

    def twice(launch, return_mode):
        measured.append(launch)
        launch()
        launch()
        return len(measured)

    monkeypatch.setattr(_launch, "interpreting", lambda: False)
    monkeypatch.setattr(_launch, "autotuning", lambda: True)
    monkeypatch.setattr(triton.testing, "do_bench", twice)
    before = {name: dict(kernel._tuned) for name, kernel in _launch.KERNELS.items()}
    try:
        got = CASES[case](monkeypatch)
    finally:
        for name, kernel in _launch.KERNELS.items():
            kernel._tuned.clear()
            kernel._tuned.update(before.get(name, {}))
    assert len(measured) > 1
    for one, other in zip(want, got, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
