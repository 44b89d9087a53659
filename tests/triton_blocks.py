"""Blocks of Triton against the float64 reference: what the tests of single layers share."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ameir_fast.kernels._launch import interpreting
from ameir_fast.ops import OPS
from tests.test_native_sequences import as_type, block_arguments, gradients

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WHY_NOT = "no CUDA device, and kernels are not interpreted"


def can_run() -> bool:
    return DEVICE == "cuda" or interpreting()


def arguments_of(layer: str, norm: bool, activation: str, width: int, lengths: list[int], seed: int = 0) -> list:
    """Of ``sequence_block``, matrices small enough that gates and softmax are not saturated, so that gradients say
    something of everything."""
    arguments = as_type(block_arguments(layer, norm, activation, width, lengths, seed), torch.float32)
    arguments[3] = [w / w.shape[1] ** 0.5 if w.dim() == 2 else w for w in arguments[3]]
    return arguments


def moved(arguments: list, change) -> list:
    """``change`` of every tensor."""
    return [change(a) if isinstance(a, Tensor) else [change(t) for t in a] if isinstance(a, list) else a
            for a in arguments]


def results(module, arguments: list, cotangent: Tensor, *more) -> list[Tensor]:
    """Output and gradients of a layer's kernels, on the CPU. The layer's arguments are the block's without target and
    layer."""
    x, offsets, norm, weights, _, _, activation, longest = moved(arguments, lambda t: t.to(DEVICE))
    rest = (x, offsets, norm, weights, activation, longest, *more)
    return [module.forward(*rest).cpu(), *(t.cpu() for t in module.backward(cotangent.to(DEVICE), *rest))]


def check(module, arguments: list, *more, cotangent: Tensor | None = None, what: str = "") -> None:
    """Every result is as near to float64 as twice what eager float32 is, and a few 1e-6 of its scale for rounding's luck."""
    if cotangent is None:
        cotangent = torch.randn(arguments[0].shape, generator=torch.Generator().manual_seed(1))
    reference = OPS["sequence_block"].reference
    right, right_grads = gradients(reference, as_type(arguments, torch.float64), cotangent)
    eager, eager_grads = gradients(reference, as_type(arguments, torch.float32), cotangent)
    got = results(module, arguments, cotangent, *more)
    assert len(got) == 1 + len(right_grads)
    for i, (g, r, e) in enumerate(zip(got, [right, *right_grads], [eager, *eager_grads], strict=True)):
        assert g.shape == r.shape and g.dtype == torch.float32 and g.is_contiguous(), f"{what}: result {i}"
        if r.numel():
            ours, theirs, scale = (float(d.abs().max()) for d in (g - r, e - r, r))
            assert ours <= 2 * theirs + 3e-6 * max(1.0, scale), f"{what}: result {i}: {ours:.3g} {theirs:.3g} of {scale:.3g}"


def large_strides(t: Tensor) -> Tensor:
    """The same values as part of larger memory, matrices transposed; offsets stay as they are."""
    if not t.is_floating_point():
        return t
    if t.dim() == 1:
        return torch.stack([t, torch.full_like(t, torch.nan)], dim=1)[:, 0]
    memory = torch.full((t.shape[1] + 2, t.shape[0] + 3), torch.nan, device=t.device)
    view = memory[1:-1, 2:-1].t()
    view.copy_(t)
    return view


def assert_deterministic(module, arguments: list, *more) -> None:
    cotangent = torch.randn(arguments[0].shape, generator=torch.Generator().manual_seed(1))
    first, second = (results(module, arguments, cotangent, *more) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def assert_rows_are_apart(module, layer: str, width: int, *more) -> None:
    """A row's output and input gradient do not depend on its neighbours."""
    arguments = arguments_of(layer, True, "swish", width, [3, 5, 2])
    cotangent = torch.randn(arguments[0].shape, generator=torch.Generator().manual_seed(1))
    out, dx, *_ = results(module, arguments, cotangent, *more)
    for a, b in itertools.pairwise(arguments[1].tolist()):
        alone = [arguments[0][a:b], torch.tensor([0, b - a]), *arguments[2:7], b - a]
        one_out, one_dx, *_ = results(module, alone, cotangent[a:b], *more)
        torch.testing.assert_close(out[a:b], one_out, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(dx[a:b], one_dx, rtol=1e-5, atol=1e-5)
