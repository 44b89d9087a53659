"""Triton's block with self-attention against the float64 reference, forward and every gradient."""

from __future__ import annotations

import random

import pytest
import torch

pytest.importorskip("triton")

from ameir_fast.kernels import _narrow_attention, _self_attention
from tests import triton_blocks as blocks

pytestmark = pytest.mark.skipif(not blocks.can_run(), reason=blocks.WHY_NOT)
ACTIVATIONS = ("relu", "gelu", "swish", "identity")


def check(heads: int, norm: bool, activation: str, width: int, lengths: list[int], seed: int = 0) -> None:
    arguments = blocks.arguments_of(f"self_attn{heads}", norm, activation, width, lengths, seed)
    blocks.check(_self_attention, arguments, heads, what=f"{heads} heads, width {width}, {lengths}")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", [False, True])
def test_activations_and_norms(activation, norm):
    check(2, norm, activation, 8, [3, 0, 1, 5, 2])
    check(4, norm, activation, 32, [3, 0, 1, 5, 2])


@pytest.mark.parametrize("heads,width", [(2, 2), (4, 4), (2, 6), (4, 12), (2, 16), (4, 20), (2, 34), (4, 64), (2, 72)])
def test_widths(heads, width):
    check(heads, True, "gelu", width, [4, 0, 1, 3])


def test_widest():
    check(2, True, "swish", 144, [2, 1])


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0], [1], [0, 7], [15, 16, 17], [31, 32, 33], [50, 64], [65, 3], [97]],
                         ids=str)
@pytest.mark.parametrize("heads,width", [(4, 8), (2, 32)])
def test_rows(heads, width, lengths):
    """Each size of tile of the narrow kernel, and more tiles than one of the other."""
    check(heads, True, "relu", width, lengths)


@pytest.mark.parametrize("seed", range(6))
def test_random(seed):
    rng = random.Random(seed)
    heads, width = rng.choice([2, 4]), rng.choice([4, 8, 16, 28, 64])
    lengths = [rng.choice([0, rng.randint(1, 19)]) for _ in range(rng.choice([2, 5, 9]))]
    check(heads, rng.random() < 0.5, rng.choice(ACTIVATIONS), width, lengths, seed)


def test_long_max_length():
    """``max_length`` is a size for scratch memory alone: other kernels, the same result."""
    arguments = blocks.arguments_of("self_attn2", True, "gelu", 8, [3, 0, 20])
    assert _narrow_attention.fits(8, 20) and not _narrow_attention.fits(8, 100)
    for longest in (20, 40, 100):
        blocks.check(_self_attention, [*arguments[:-1], longest], 2)


def test_many_elements():
    """More ranges of elements than one in the gradients of weights."""
    check(2, True, "gelu", 8, [40] * 14)


@pytest.mark.parametrize("width", [8, 32])
@pytest.mark.parametrize("activation", ["swish", "identity"])
def test_strides(width, activation):
    arguments = blocks.arguments_of("self_attn2", True, activation, width, [3, 0, 2])
    cotangent = torch.randn(5, width, generator=torch.Generator().manual_seed(1))
    blocks.check(_self_attention, blocks.moved(arguments, blocks.large_strides), 2,
                 cotangent=blocks.large_strides(cotangent))


@pytest.mark.parametrize("width", [8, 32])
def test_scores_of_any_size(width):
    """Exponentials that would overflow or vanish without the maximum; tiles of keys with very different ones."""
    for lengths in ([5, 0, 40], [70]):
        arguments = blocks.arguments_of("self_attn2", False, "identity", width, lengths)
        arguments[0][::2] *= 30
        cotangent = torch.ones(arguments[0].shape)
        single, double = (blocks.gradients(blocks.OPS["sequence_block"].reference, blocks.as_type(arguments, dtype),
                                           cotangent) for dtype in (torch.float32, torch.float64))
        for g, e, r in zip(blocks.results(_self_attention, arguments, cotangent, 2), [single[0], *single[1]],
                           [double[0], *double[1]], strict=True):
            assert bool(torch.isfinite(g).all())
            ours, theirs = ((t.double() - r).abs().max() for t in (g, e))
            assert float(ours) <= 3 * float(theirs) + 5e-5 * float(r.abs().max())


@pytest.mark.parametrize("width", [8, 32])
def test_deterministic_and_row_by_row(width):
    blocks.assert_deterministic(_self_attention, blocks.arguments_of("self_attn4", True, "gelu", width, [9, 0, 4, 1]), 4)
    blocks.assert_rows_are_apart(_self_attention, "self_attn4", width, 4)
