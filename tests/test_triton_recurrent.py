"""Triton's block with a bidirectional recurrent layer against the float64 reference, forward and every gradient."""

from __future__ import annotations

import random

import pytest
import torch

pytest.importorskip("triton")

from ameir_fast.kernels import _recurrent
from tests import triton_blocks as blocks

pytestmark = [pytest.mark.skipif(not blocks.can_run(), reason=blocks.WHY_NOT),
              # numpy's word on 1 / (1 + inf), which is right
              pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")]
ACTIVATIONS = ("relu", "gelu", "swish", "identity")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", [False, True])
def test_activations_and_norms(activation, norm):
    blocks.check(_recurrent, blocks.arguments_of("bi_gru", norm, activation, 8, [3, 0, 1, 5, 2]))


@pytest.mark.parametrize("width", [2, 4, 6, 10, 16, 18, 32, 64, 72])
def test_widths(width):
    """Sums over blocks, products with kept matrices, products with matrices from memory; odd ones of each."""
    blocks.check(_recurrent, blocks.arguments_of("bi_gru", True, "gelu", width, [4, 0, 1, 3]), what=f"width {width}")


def test_widest():
    blocks.check(_recurrent, blocks.arguments_of("bi_gru", True, "swish", 144, [2, 1]))


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0], [1], [1] * 17, [0, 7], [50], [0] * 33 + [2], [3] * 16],
                         ids=lambda lengths: f"{len(lengths)} rows, longest {max(lengths, default=0)}")
def test_rows(lengths):
    blocks.check(_recurrent, blocks.arguments_of("bi_gru", True, "relu", 8, lengths))
    blocks.check(_recurrent, blocks.arguments_of("bi_gru", False, "swish", 32, lengths[:20]))


@pytest.mark.parametrize("seed", range(6))
def test_random(seed):
    rng = random.Random(seed)
    width, rows = rng.choice([4, 8, 14, 24, 64]), rng.choice([2, 5, 19])
    lengths = [rng.choice([0, rng.randint(1, 9)]) for _ in range(rows)]
    arguments = blocks.arguments_of("bi_gru", rng.random() < 0.5, rng.choice(ACTIVATIONS), width, lengths, seed)
    arguments[-1] += rng.randint(0, 3)
    blocks.check(_recurrent, arguments, what=f"width {width}, {lengths}")


def test_many_elements():
    """More ranges of elements than one in the gradients of weights, more tiles than one in all else."""
    blocks.check(_recurrent, blocks.arguments_of("bi_gru", True, "gelu", 8, [40] * 14))


@pytest.mark.parametrize("width", [8, 32, 72])
def test_strides(width):
    arguments = blocks.arguments_of("bi_gru", True, "swish", width, [3, 0, 2])
    cotangent = torch.randn(5, width, generator=torch.Generator().manual_seed(1))
    blocks.check(_recurrent, blocks.moved(arguments, blocks.large_strides), cotangent=blocks.large_strides(cotangent))


def test_saturated_gates():
    """States at ±1 and gates at 0 and 1: finite, and right."""
    arguments = blocks.arguments_of("bi_gru", False, "identity", 8, [6, 2])
    arguments[0] *= 100
    blocks.check(_recurrent, arguments)


@pytest.mark.parametrize("width", [8, 32])
def test_deterministic_and_row_by_row(width):
    blocks.assert_deterministic(_recurrent, blocks.arguments_of("bi_gru", True, "gelu", width, [9, 0, 4, 1]))
    blocks.assert_rows_are_apart(_recurrent, "bi_gru", width)
