"""Native sequence_block and sequence_pool against the fp64 reference, forward and every gradient, on every instruction
set of this processor."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from ameir_fast import native, ops
from ameir_fast.ops import OPS
from tests import oracle
from tests.helpers import strided
from tests.test_ops import Maker, layer_weights, offsets_of, unit

pytestmark = [pytest.mark.skipif(native.why_not("_C") is not None, reason=str(native.why_not("_C"))),
              pytest.mark.usefixtures("poisoned")]
SETS = torch.ops.ameir_fast.instruction_sets() if native.ops_loaded() else []
LAYERS = [name for name in oracle.LAYERS if name != "zero"]
MANY = -1  # stands for the number of results, where they are of many cases
ACTIVATIONS = ("relu", "gelu", "swish", "identity")


@pytest.fixture(params=SETS)
def instruction_set(request):
    assert torch.ops.ameir_fast.use_instruction_set(request.param) == request.param
    yield request.param
    torch.ops.ameir_fast.use_instruction_set("")


def gradients(function, arguments: list, cotangent: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Output and the gradients of all floating-point tensors, in order."""
    def leaf(value):
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.detach().requires_grad_()
        return [leaf(one) for one in value] if isinstance(value, list) else value

    arguments = [leaf(value) for value in arguments]
    leaves = [t for a in arguments for t in (a if isinstance(a, list) else [a])
              if isinstance(t, Tensor) and t.is_floating_point()]
    out = function(*arguments)
    if not out.requires_grad:  # of nothing, which the reference says without a computation
        return out, [torch.zeros_like(t) for t in leaves]
    found = torch.autograd.grad(out, leaves, cotangent.to(out.dtype), allow_unused=True)
    return out.detach(), [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, found, strict=True)]


def as_type(arguments: list, dtype: torch.dtype) -> list:
    def cast(value):
        if isinstance(value, Tensor):
            return value.to(dtype) if value.is_floating_point() else value
        return [cast(one) for one in value] if isinstance(value, list) else value
    return [cast(value) for value in arguments]


def errors(op: str, arguments: list, what: str, draws: int = 1) -> list[tuple[float, float, float, int]]:
    """Of the output and every gradient: mean squared error of the native operation and of eager float32 against fp64,
    the largest number, and how many there are; over so many random cotangents."""
    single = as_type(arguments, torch.float32)
    exact = as_type(single, torch.float64)
    shape = OPS[op].reference(*exact).shape
    found: list[tuple[float, float, float, int]] = []
    for draw in range(1, draws + 1):
        cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(draw), dtype=torch.float64).float()
        right, right_grads = gradients(OPS[op].reference, exact, cotangent)
        eager, eager_grads = gradients(OPS[op].reference, single, cotangent)
        got, got_grads = gradients(getattr(torch.ops.ameir_fast, op), single, cotangent)
        rows = []
        for r, e, g in zip([right, *right_grads], [eager, *eager_grads], [got, *got_grads], strict=True):
            assert g.shape == r.shape and g.dtype == torch.float32, what
            if not r.numel():
                rows.append((0.0, 0.0, 0.0, 0))
                continue
            ours, theirs = (float((one.double() - r).square().mean()) for one in (g, e))
            rows.append((ours, theirs, float(r.abs().max()), r.numel()))
        found = [(a + c / draws, b + d / draws, max(scale, s), n) for (a, b, scale, _), (c, d, s, n)
                 in zip(found or [(0.0, 0.0, 0.0, 0)] * len(rows), rows, strict=True)]
    return found


def assert_as_right_as_eager(found: list[tuple[float, float, float, int]], what: str) -> None:
    """At most twice the error of eager float32 over many cases. Of a single one rounding's luck is a large part, and of a
    few numbers a larger one."""
    for place, (ours, theirs, scale, count) in enumerate(found):
        factor = 2 if count == MANY else 4 if count >= 64 else 16
        assert ours ** 0.5 <= factor * theirs ** 0.5 + 5e-7 * max(1e-3, scale), f"{what}: {place} {ours ** 0.5:.3g} {theirs ** 0.5:.3g}"


def lengths_of(rng: random.Random) -> list[int]:
    rows, longest = rng.choice([0, 1, 2, 5, 16, 17, 33]), rng.choice([1, 2, 5, 13])
    kind = rng.random()
    if kind < 0.2:
        return [longest] * rows
    if kind < 0.3:
        return [0] * rows
    return [rng.randint(0, longest) for _ in range(rows)]


def block_arguments(layer: str, norm: bool, activation: str, width: int, lengths: list[int], seed: int) -> list:
    make = Maker(seed, grad=False)
    return [make(sum(lengths), width), offsets_of(lengths), [make(width), make(width)] if norm else [],
            layer_weights(make, layer, width), make(len(lengths), width) if layer == "target_attn" else None, layer,
            activation, max(lengths, default=0)]


@pytest.mark.parametrize("layer", LAYERS)
def test_blocks(layer, instruction_set):
    for norm in (False, True):
        cases = [errors("sequence_block", block_arguments(layer, norm, activation, 8, lengths, seed), layer)
                 for activation in ACTIVATIONS
                 for seed, lengths in enumerate([[3, 0, 1, 5, 2], [6] * 16, [7] * 20 + [1] * 13, [0, 0], [], [50, 1]])]
        together = [(sum(c[0] for c in column), sum(c[1] for c in column), max(c[2] for c in column), MANY)
                    for column in zip(*cases, strict=True)]
        assert_as_right_as_eager(together, f"{layer} {norm}")


@pytest.mark.parametrize("seed", range(40))
def test_random_blocks(seed, instruction_set):
    rng = random.Random(seed)
    layer = rng.choice(LAYERS)
    width = rng.choice([4, 8, 12, 16, 28, 64]) if layer in ("bi_gru", "self_attn2", "self_attn4") else \
        rng.choice([1, 2, 3, 5, 8, 17, 64, 128])
    arguments = block_arguments(layer, rng.random() < 0.5, rng.choice(ACTIVATIONS), width, lengths_of(rng), seed)
    assert_as_right_as_eager(errors("sequence_block", arguments, layer), f"{layer} width {width}")


@pytest.mark.parametrize("seed", range(24))
def test_random_pools(seed, instruction_set):
    rng = random.Random(seed)
    make, width, lengths, target = Maker(seed, grad=False), rng.choice([1, 3, 4, 8, 19, 64]), lengths_of(rng), rng.random() < 0.6
    arguments = [make(sum(lengths), width), offsets_of(lengths), make(len(lengths), width) if target else None,
                 unit(make, width) if target else [], max(lengths, default=0)]
    assert_as_right_as_eager(errors("sequence_pool", arguments, "pool"), f"width {width}, {lengths}")


@pytest.mark.parametrize("layer", ["self_attn2", "self_attn4"])
def test_attention_with_scores_of_any_size(layer, instruction_set):
    """Rows whose exponentials would overflow, beside rows whose would not, beside rows without elements."""
    arguments = block_arguments(layer, False, "identity", 8, [5, 0, 9, 9, 3] * 5, 0)
    arguments[0][::2] *= 8
    single = as_type(arguments, torch.float32)
    cotangent = torch.ones(single[0].shape)
    right, right_grads = gradients(OPS["sequence_block"].reference, as_type(single, torch.float64), cotangent)
    eager, eager_grads = gradients(OPS["sequence_block"].reference, single, cotangent)
    got, got_grads = gradients(torch.ops.ameir_fast.sequence_block, single, cotangent)
    for r, e, g in zip([right, *right_grads], [eager, *eager_grads], [got, *got_grads], strict=True):
        assert bool(torch.isfinite(g).all())
        ours, theirs = ((one.double() - r).abs().max() for one in (g, e))
        assert float(ours) <= 3 * float(theirs) + 1e-5 * float(r.abs().max())


def test_ties_of_the_maximum_go_to_the_first(instruction_set):
    x = torch.tensor([1.0, 1.0, 2.0, 2.0, 2.0, 0.0])[:, None].repeat(1, 3).requires_grad_()
    offsets, weight = offsets_of([4, 2]), torch.arange(1.0, 19.0).view(6, 3)
    arguments = (x, offsets, [], [], None, "max_pool3", "identity", 4)
    want, = torch.autograd.grad((OPS["sequence_block"].reference(*arguments) * weight).sum(), x)
    got, = torch.autograd.grad((torch.ops.ameir_fast.sequence_block(*arguments) * weight).sum(), x)
    assert torch.equal(got, want)


@pytest.mark.parametrize("layer", LAYERS)
def test_memory_of_any_layout(layer):
    arguments = as_type(block_arguments(layer, True, "relu", 8, [3, 0, 9, 1], 0), torch.float32)
    spread = [strided(a) if isinstance(a, Tensor) else [strided(t) for t in a] if isinstance(a, list) else a for a in arguments]
    cotangent = torch.randn(arguments[0].shape)
    want, want_grads = gradients(torch.ops.ameir_fast.sequence_block, arguments, cotangent)
    got, got_grads = gradients(torch.ops.ameir_fast.sequence_block, spread, strided(cotangent))
    assert all(torch.equal(a, b) for a, b in zip([want, *want_grads], [got, *got_grads], strict=True))


@pytest.mark.parametrize("layer", LAYERS)
def test_results_do_not_depend_on_the_number_of_threads(layer):
    lengths = [random.Random(0).randint(0, 20) for _ in range(150)]
    arguments = as_type(block_arguments(layer, True, "gelu", 8, lengths, 0), torch.float32)
    cotangent = torch.randn(arguments[0].shape)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one, one_grads = gradients(torch.ops.ameir_fast.sequence_block, arguments, cotangent)
        torch.set_num_threads(3)
        three, three_grads = gradients(torch.ops.ameir_fast.sequence_block, arguments, cotangent)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip([one, *one_grads], [three, *three_grads], strict=True))


@pytest.mark.parametrize("offsets, said", [([0, 3, 2, 5], "fall at row 1"), ([0, 2, 4], "rise from 0 to 5"),
                                           ([1, 2, 5], "rise from 0 to 5"), ([0, 2, 9], "rise from 0 to 5")])
def test_corrupt_offsets_raise(offsets, said):
    offsets = torch.tensor(offsets)
    with pytest.raises(RuntimeError, match=said):
        torch.ops.ameir_fast.sequence_block(torch.zeros(5, 4), offsets, [], [], None, "avg_pool3", "relu", 3)
    with pytest.raises(RuntimeError, match=said):
        torch.ops.ameir_fast.sequence_pool(torch.zeros(5, 4), offsets, None, [], 3)


def test_wrong_arguments_are_named():
    x, offsets, make = torch.zeros(5, 4), offsets_of([3, 2]), Maker(0, torch.float32, grad=False)
    call = lambda *rest: torch.ops.ameir_fast.sequence_block(x, offsets, *rest, 3)
    with pytest.raises(RuntimeError, match="weight 0 is"):
        call([], [make(4, 4, 5), make(4)], None, "conv3", "relu")
    with pytest.raises(RuntimeError, match="too few"):
        call([], [make(4, 4, 3)], None, "conv3", "relu")
    with pytest.raises(RuntimeError, match="2 weights, not 0"):
        call([], [make(4), make(4)], None, "avg_pool3", "relu")
    with pytest.raises(RuntimeError, match="target"):
        call([], unit(make, 4), None, "target_attn", "relu")
    with pytest.raises(RuntimeError, match="norm's bias"):
        call([make(4), make(5)], [], None, "avg_pool3", "relu")
    with pytest.raises(ValueError, match="unknown layer 'conv9'"):
        call([], [], None, "conv9", "relu")
    with pytest.raises(ValueError, match="unknown activation 'tanh'"):
        call([], [], None, "avg_pool3", "tanh")
    with pytest.raises(RuntimeError, match="not float32"):
        torch.ops.ameir_fast.sequence_block(x.double(), offsets, [], [], None, "avg_pool3", "relu", 3)
    with pytest.raises(RuntimeError, match="computes in float32"):
        ops.sequence_block(x.double(), offsets, [], [], None, "avg_pool3", "relu", 3, backend="cpp")
    odd = torch.zeros(5, 3)
    with pytest.raises(RuntimeError, match="even width, not 3"):
        torch.ops.ameir_fast.sequence_block(odd, offsets, [], layer_weights(make, "bi_gru", 4), None, "bi_gru", "relu", 3)


@pytest.mark.parametrize("op", ["sequence_block_backward", "sequence_pool_backward"])
def test_opcheck_of_the_backward_operations(op):
    make = Maker(0, torch.float32, grad=False)
    if op == "sequence_block_backward":
        arguments = as_type(block_arguments("target_attn", True, "gelu", 8, [3, 0, 2], 0), torch.float32)
        grad = make(5, 8)
    else:
        arguments = [make(5, 8), offsets_of([3, 0, 2]), make(3, 8), unit(make, 8), 3]
        grad = make(3, 24)
    torch.library.opcheck(getattr(torch.ops.ameir_fast, op).default, (grad, *arguments),
                          test_utils=("test_schema", "test_faketensor"))


def test_gradients_of_gradients_are_refused():
    """Cut off without a word they would be wrong; the reference has them."""
    x, offsets = torch.randn(5, 4, requires_grad=True), offsets_of([3, 2])
    arguments = (offsets, [], layer_weights(Maker(0, torch.float32), "conv3", 4), None, "conv3", "gelu", 3)
    out = ops.sequence_block(x, *arguments, backend="cpp")
    with pytest.raises(RuntimeError, match="differentiable once; backend 'reference'"):
        torch.autograd.grad(out.sum(), x, create_graph=True)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward-mode"):
        ops.sequence_block(torch.autograd.forward_ad.make_dual(x.detach(), torch.ones(5, 4)), *arguments, backend="cpp")
    out = ops.sequence_block(x, *arguments, backend="reference")
    grad, = torch.autograd.grad(out.sum(), x, create_graph=True)
    assert torch.autograd.grad(grad.sum(), x)[0].abs().sum() > 0


def test_memory_of_a_thread_is_not_kept_twice():
    """Ever longer histories leave a block as large as the last ones need, or so."""
    script = """
import resource, torch
from ameir_fast import ops
torch.set_num_threads(1)
def peak(lengths):
    for n in lengths:
        x = torch.zeros(16 * n, 64, requires_grad=True)
        out = ops.sequence_block(x, torch.arange(0, 16 * n + 1, n), [], [torch.zeros(192, 64), torch.zeros(192), torch.zeros(64, 64), torch.zeros(64)],
                                 None, "self_attn2", "relu", n, backend="cpp")
        out.sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
once = peak([1])
print(peak([600]) - once, peak(range(100, 601, 25)) - once)
"""
    once, rising = map(int, subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True,
                                           env={**os.environ, "AMEIR_FAST_POISON": ""}).stdout.split())
    assert rising < 1.5 * once + 20_000
