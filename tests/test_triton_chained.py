"""Two layers of sliced_mlp in one Triton kernel against the reference in float64."""

from __future__ import annotations

import itertools

import pytest
import torch

from ameir_fast import reference

pytest.importorskip("triton")
from ameir_fast.kernels import sliced_mlp
from ameir_fast.kernels._launch import interpreting, recording
from tests.test_triton_fields import FLOOR, Draw, compare, detached, error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.skipif(DEVICE == "cpu" and not interpreting(), reason="neither a GPU nor TRITON_INTERPRET=1"),
              pytest.mark.filterwarnings("ignore:overflow encountered in exp")]  # far from a mean, where σ is 0

ALL = ("relu", "gelu", "swish", "identity", "fixed", "batch")
KINDS = [*itertools.product(ALL, ("relu", "swish", "fixed"), ("identity", "fixed", "batch")),
         *itertools.product(("relu", "batch"), ("gelu", "identity"), ("relu", "gelu", "swish"))]


def arguments(draw: Draw, samples: int, widths: tuple[int, int, int], kinds: tuple[str, str, str]) -> list:
    """Dice with fixed statistics is ``fixed``, with those of the batch ``batch``."""
    dice = []
    for n, kind in zip(widths, kinds, strict=True):
        if kind in ("fixed", "batch"):
            alpha, fixed = draw(n), [draw(n), draw(n).abs() + 0.5]
            dice.append((torch.stack([alpha, *fixed]) if kind == "fixed" else alpha).detach().requires_grad_())
    names = ["dice" if kind in ("fixed", "batch") else kind for kind in kinds]
    weights = [draw(b, a, scale=a ** -0.5) for a, b in itertools.pairwise(widths)]
    return [draw(samples, widths[0]), weights, [draw(n) for n in widths[1:]], names, dice]


def launches(made: list) -> list[str]:
    names = []
    with recording(names):
        sliced_mlp.forward(*detached(made))
    return names


SHAPES = [(70, (92, 55, 28)), (33, (20, 128, 64)), (17, (200, 80, 1)), (1, (7, 1, 3)), (0, (16, 16, 16)), (5, (3, 65, 17))]


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_forward_and_gradients(shape):
    """Over a share of the kinds of activations at most twice the error of eager float32."""
    samples, widths = SHAPES[shape]
    ours = theirs = 0.0
    for seed, kinds in list(enumerate(KINDS))[shape::len(SHAPES) + 1]:
        got, eager = compare("sliced_mlp", lambda dtype, seed=seed, kinds=kinds: arguments(
            Draw(seed, dtype), samples, widths, kinds), seed)
        ours, theirs = ours + sum(e * e for e in got), theirs + sum(e * e for e in eager)
    assert ours ** 0.5 <= 2 * theirs ** 0.5 + FLOOR, (ours ** 0.5, theirs ** 0.5)


@pytest.mark.parametrize("kinds", [("relu", "swish", "identity"), ("fixed", "fixed", "fixed"), ("batch", "relu", "relu"),
                                   ("relu", "relu", "batch")])
def test_one_kernel(kinds):
    """The kernel, and beside it what measures a batch and nothing else."""
    made = arguments(Draw(0, torch.float32), 40, (92, 55, 28), kinds)
    measuring = [["column_statistics_kernel", "join_statistics_kernel"] if kind == "batch" else [] for kind in kinds]
    last = ["dice_kernel"] if kinds[2] == "batch" else []
    assert launches(made) == [*measuring[0], "chained_kernel", *measuring[2], *last]


@pytest.mark.parametrize(("widths", "kinds"), [((92, 55, 28), ("relu", "batch", "relu")),
                                               ((92, 129, 28), ("relu", "relu", "relu")),
                                               ((92, 55, 65), ("relu", "relu", "relu"))])
def test_a_kernel_a_layer_where_it_does_not_fit(widths, kinds):
    made = arguments(Draw(1, torch.float32), 40, widths, kinds)
    assert launches(made).count("linear_kernel") == 2
    want, _ = reference.sliced_mlp(*detached(arguments(Draw(1, torch.float64), 40, widths, kinds)))
    assert error(sliced_mlp.forward(*detached(made))[0], want) <= 1e-5 * max(1.0, float(want.abs().max()))
