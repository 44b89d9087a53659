"""Triton kernels of sequence_block (convolutions, pools, target attention, zero) and sequence_pool against the fp64
reference, forward and every gradient: in Triton's interpreter, or on a GPU where there is one."""

from __future__ import annotations

import inspect
import math
import random

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")

from ameir_fast.kernels import sequence_block, sequence_pool
from ameir_fast.kernels._launch import interpreting
from ameir_fast.ops import OPS
from tests.helpers import strided
from tests.test_native_sequences import ACTIVATIONS, as_type, block_arguments, gradients
from tests.test_ops import Maker, offsets_of, unit

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [
    pytest.mark.skipif(DEVICE == "cpu" and not interpreting(), reason="no GPU, and TRITON_INTERPRET is not set"),
    # numpy says so of swish at large negative numbers, where 1 / (1 + inf) is right.
    pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning"),
]
MODULES = {"sequence_block": sequence_block, "sequence_pool": sequence_pool}
FLAT = ["conv1", "conv3", "dconv3", "dconv5", "dconv7", "avg_pool3", "max_pool3"]  # tiles of elements
EPS = 3e-6


def to_device(arguments: list, device: str = DEVICE) -> list:
    return [a.to(device) if isinstance(a, Tensor) else [t.to(device) for t in a] if isinstance(a, list) else a
            for a in arguments]


def results(op: str, arguments: list, cotangent: Tensor) -> list[Tensor]:
    """Output and gradients of the kernels, on the CPU."""
    arguments, cotangent = to_device(arguments), cotangent.to(DEVICE)
    found = [MODULES[op].forward(*arguments), *MODULES[op].backward(cotangent, *arguments)]
    assert all(t.is_contiguous() and t.dtype == torch.float32 for t in found)
    return [t.cpu() for t in found]


def cotangent_of(op: str, arguments: list) -> Tensor:
    x, offsets = arguments[:2]
    shape = x.shape if op == "sequence_block" else (offsets.shape[0] - 1, (2 if arguments[2] is None else 3) * x.shape[1])
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


class Errors:
    """Squared errors of kernels and of eager float32 against fp64, summed over cases: of a single number rounding's luck
    is a large part."""

    def __init__(self):
        self.sums: dict[int, list[float]] = {}

    def add(self, op: str, arguments: list) -> None:
        single = as_type(arguments, torch.float32)
        cotangent = cotangent_of(op, single)
        right, eager = ([out, *grads] for out, grads in (
            gradients(OPS[op].reference, as_type(single, dtype), cotangent) for dtype in (torch.float64, torch.float32)))
        got = results(op, single, cotangent)
        for place, (r, e, g) in enumerate(zip(right, eager, got, strict=True)):
            assert g.shape == r.shape, f"{place}: {g.shape} {r.shape}"
            if r.numel():
                row = self.sums.setdefault(place, [0.0, 0.0, 0.0, 0.0])
                for column, value in enumerate([(g - r).square().sum(), (e - r).square().sum(), r.square().sum(), r.numel()]):
                    row[column] += float(value)

    def check(self, what: str) -> None:
        for place, (ours, theirs, size, count) in self.sums.items():
            ours, theirs, scale = (math.sqrt(v / count) for v in (ours, theirs, size))
            assert ours <= (2 if count >= 64 else 8) * theirs + EPS * scale, \
                f"{what}, result {place}: {ours:.3g}, eager {theirs:.3g}, scale {scale:.3g}"


@pytest.mark.parametrize("op", MODULES)
def test_the_arguments_are_those_of_the_schema(op):
    names = [argument.split()[-1] for argument in OPS[op].arguments.split(", ")]
    assert list(inspect.signature(MODULES[op].forward).parameters) == names
    assert list(inspect.signature(MODULES[op].backward).parameters) == ["gradient", *names]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layer", FLAT)
def test_blocks_of_neighbours(layer, activation):
    for norm in (False, True):
        errors = Errors()
        for seed, lengths in enumerate([[3, 0, 1, 5, 2], [7] * 20 + [1] * 13, [0, 0], [], [1]]):
            errors.add("sequence_block", block_arguments(layer, norm, activation, 8, lengths, seed))
        errors.check(f"{layer}, {activation}, norm {norm}")


@pytest.mark.parametrize("layer", FLAT)
def test_widths_of_blocks(layer):
    for width in {"conv3": (1, 17, 70), "max_pool3": (1, 5, 64, 200), "dconv3": (130,)}.get(layer, (3, 33, 64)):
        errors = Errors()
        errors.add("sequence_block", block_arguments(layer, True, "gelu", width, [3, 0, 1, 7, 2, 11], width))
        errors.check(f"{layer}, width {width}")


@pytest.mark.parametrize("layer", ["conv3", "dconv7", "avg_pool3", "max_pool3"])
def test_histories_longer_than_a_tile(layer):
    errors = Errors()
    errors.add("sequence_block", block_arguments(layer, True, "swish", 8, [50, 291, 3, 50], 0))
    errors.check(layer)


def attention_arguments(norm: bool, activation: str, width: int, lengths: list[int], seed: int) -> list:
    """With weights of a trained unit's size: of larger ones the activations saturate and sums cancel, and then a single
    number's error says little."""
    arguments = block_arguments("target_attn", norm, activation, width, lengths, seed)
    arguments[3] = [t * 0.3 for t in arguments[3]]
    return arguments


@pytest.mark.parametrize("norm", [False, True])
def test_blocks_of_target_attention(norm):
    errors = Errors()
    for activation in ACTIVATIONS:
        for width, lengths in ((8, [3, 0, 1]), (8, [0, 0]), (3, [1])):
            errors.add("sequence_block", attention_arguments(norm, activation, width, lengths, width))
    errors.check("several activations")
    for width, lengths in ((8, [2, 17]), (17, [2, 0]), (70, [2, 1])):
        errors = Errors()
        errors.add("sequence_block", attention_arguments(norm, "gelu", width, lengths, width))
        errors.check(f"width {width}, {lengths}")


def pool_arguments(width: int, lengths: list[int], target: bool, seed: int) -> list:
    make = Maker(seed, grad=False)
    return [make(sum(lengths), width), offsets_of(lengths), make(len(lengths), width) if target else None,
            [t * 0.3 for t in unit(make, width)] if target else [], max(lengths, default=0)]


@pytest.mark.parametrize("target", [False, True])
def test_pools(target):
    for width, lengths in ((8, [3, 0, 17]), (8, [0, 0]), (8, []), (1, [1]), (5, [2, 33]), (70, [2, 1])):
        errors = Errors()
        errors.add("sequence_pool", pool_arguments(width, lengths, target, width))
        errors.check(f"width {width}, {lengths}")


def test_ties_of_the_maximum_go_to_the_first():
    x = torch.tensor([1.0, 1.0, 2.0, 2.0, 2.0, 0.0])[:, None].repeat(1, 3)
    arguments = [x, offsets_of([4, 2]), [], [], None, "max_pool3", "identity", 4]
    weight = torch.arange(1.0, 19.0).view(6, 3)
    want, want_grads = gradients(OPS["sequence_block"].reference, list(arguments), weight)
    got = results("sequence_block", to_device([x.detach(), *arguments[1:]]), weight)
    assert torch.equal(got[0], want) and torch.equal(got[1], want_grads[0])


def test_not_a_number_stays_one():
    x = torch.tensor([[1.0], [float("nan")], [2.0], [3.0], [4.0]])
    for layer in ("avg_pool3", "max_pool3"):
        arguments = [x, offsets_of([4, 1]), [], [], None, layer, "identity", 4]
        want = OPS["sequence_block"].reference(*arguments)
        assert torch.equal(sequence_block.forward(*to_device(arguments)).cpu().isnan(), want.isnan())


@pytest.mark.parametrize("layer", [*FLAT, "target_attn"])
def test_memory_of_any_layout(layer):
    arguments = as_type(block_arguments(layer, True, "relu", 8, [3, 0, 5, 1], 0), torch.float32)
    spread = [strided(a) if isinstance(a, Tensor) else [strided(t) for t in a] if isinstance(a, list) else a
              for a in arguments]
    spread[0] = arguments[0].t().contiguous().t()
    cotangent = cotangent_of("sequence_block", arguments)
    want = results("sequence_block", arguments, cotangent)
    got = results("sequence_block", spread, strided(cotangent))
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(want, got, strict=True))


def test_memory_of_any_layout_of_pools():
    arguments = as_type(pool_arguments(8, [3, 0, 2], True, 0), torch.float32)
    spread = [strided(a) if isinstance(a, Tensor) else [strided(t) for t in a] if isinstance(a, list) else a
              for a in arguments]
    cotangent = cotangent_of("sequence_pool", arguments)
    expanded = torch.ones(()).expand(cotangent.shape)
    for one, other in ((cotangent, strided(cotangent)), (expanded.contiguous(), expanded)):
        want, got = results("sequence_pool", arguments, one), results("sequence_pool", spread, other)
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(want, got, strict=True))


@pytest.mark.parametrize("layer, lengths", [("zero", [3, 0, 2]), ("conv3", [0, 0]), ("target_attn", [0, 0]), ("conv1", [])])
def test_what_is_not_read_has_gradients_of_zero(layer, lengths):
    make = Maker(0, torch.float32, grad=False)
    arguments = as_type(block_arguments(layer, True, "gelu", 8, lengths, 0), torch.float32)
    arguments[4] = make(len(lengths), 8)
    cotangent = cotangent_of("sequence_block", arguments)
    out, dx, *others = results("sequence_block", arguments, cotangent)
    assert torch.equal(out, arguments[0]) and torch.equal(dx, cotangent)
    wanted = [*arguments[2], *arguments[3], arguments[4]]
    assert [t.shape for t in others] == [t.shape for t in wanted] and not any(bool(t.any()) for t in others)


def test_the_target_that_a_layer_does_not_read_has_a_gradient_of_zero():
    make = Maker(0, torch.float32, grad=False)
    arguments = as_type(block_arguments("avg_pool3", True, "gelu", 4, [3, 2], 0), torch.float32)
    arguments[4] = make(2, 4)
    *_, dtarget = results("sequence_block", arguments, cotangent_of("sequence_block", arguments))
    assert dtarget.shape == (2, 4) and not bool(dtarget.any())


@pytest.mark.parametrize("layer", ["dconv5", "max_pool3", "target_attn"])
def test_results_are_the_same_from_run_to_run(layer):
    lengths = [random.Random(0).randint(0, 5) for _ in range(4 if DEVICE == "cpu" else 4000)]
    arguments = as_type(block_arguments(layer, True, "gelu", 8, lengths, 0), torch.float32)
    cotangent = cotangent_of("sequence_block", arguments)
    once, again = (results("sequence_block", arguments, cotangent) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("seed", range(12))
def test_random_blocks(seed):
    rng = random.Random(seed)
    layer, width = rng.choice(FLAT), rng.choice([1, 2, 3, 5, 8, 16, 33])
    lengths = [rng.randint(0, rng.choice([1, 5, 13])) for _ in range(rng.choice([1, 2, 5, 17, 33]))]
    errors = Errors()
    errors.add("sequence_block", block_arguments(layer, rng.random() < 0.5, rng.choice(ACTIVATIONS), width, lengths, seed))
    errors.check(f"{layer}, width {width}, {lengths}")
