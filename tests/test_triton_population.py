"""Triton kernels of mlp_population against the reference in float64."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

import ameir_fast as af
from ameir_fast import ops, reference
from ameir_fast.mlp_children import MlpChildren
from ameir_fast.reference.mlp_population import ACTIVATIONS
from ameir_fast.space.choices import RATIOS, width

pytest.importorskip("triton")
from ameir_fast.kernels import _population_tree, mlp_population
from ameir_fast.kernels._launch import interpreting, recording
from tests.helpers import make_schema, make_supernet, random_arch, random_batch
from tests.test_population import all_children
from tests.test_triton_fields import FLOOR, Draw, detached, error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.skipif(DEVICE == "cpu" and not interpreting(), reason="neither a GPU nor TRITON_INTERPRET=1"),
              pytest.mark.filterwarnings("ignore:overflow encountered in exp")]  # far from a mean, where σ is 0


def every_child(k0: int, layers: int) -> list[list[int]]:
    """All children of a space in which ratios do not grow."""
    return [[n for r, a in zip(ratios, acts, strict=True) for n in (width(r, k0), a)]
            for ratios in itertools.product(RATIOS, repeat=layers) if list(ratios) == sorted(ratios, reverse=True)
            for acts in itertools.product(range(len(ACTIVATIONS)), repeat=layers)]


def arguments(draw: Draw, samples: int, k0: int, children: list[list[int]]) -> list:
    """Matrices may be larger than the widest child."""
    layers, full, rng = len(children[0]) // 2, max(width(r, k0) for r in RATIOS), draw.rng
    shape = full + rng.randrange(3), full + rng.randrange(3)
    return detached([draw(samples, full), [draw(*shape, scale=full ** -0.5) for _ in range(layers - 1)],
                     [draw(shape[0]) for _ in range(layers - 1)], [draw(full + rng.randrange(2)) for _ in range(layers)],
                     draw(full + 3, scale=full ** -0.5), draw(samples), torch.tensor(children)])


def some_children(rng: random.Random, k0: int, layers: int, count: int) -> list[list[int]]:
    """Some may occur twice, and widths may grow from layer to layer."""
    found = []
    for _ in range(count):
        ratios = sorted(rng.choices(RATIOS, k=layers), reverse=rng.random() < 0.9)
        found.append([n for r in ratios for n in (width(r, k0), rng.randrange(len(ACTIVATIONS)))])
    return found


def compare(make) -> None:
    """``make`` gives arguments of a dtype."""
    want, eager = (reference.mlp_population(*make(dtype)) for dtype in (torch.float64, torch.float32))
    got = mlp_population.forward(*make(torch.float32))
    assert got.shape == want.shape and got.dtype == torch.float32 and got.is_contiguous()
    if want.numel():
        scale = max(1.0, float(want.abs().max()))
        assert error(got, want) <= 2 * error(eager, want) + FLOOR * scale, (error(got, want), error(eager, want))


def compare_drawn(seed: int, samples: int, k0: int, children: list[list[int]]) -> None:
    compare(lambda dtype: arguments(Draw(seed, dtype), samples, k0, children))


@pytest.mark.parametrize(("samples", "k0", "layers"), [(1, 7, 1), (33, 20, 1), (130, 92, 1), (1, 7, 2), (33, 7, 2),
                                                       (33, 20, 2), (3, 7, 3)])
def test_all_children_of_a_space(samples, k0, layers):
    """At 7, ratios round to the same width: children that are the same."""
    children = every_child(k0, layers)
    if layers == 3:
        children = children[::41]
    compare_drawn(samples + k0, samples, k0, children)


@pytest.mark.parametrize("seed", range(16))
def test_some_children(seed, monkeypatch):
    """However many nodes are made together."""
    rng = random.Random(seed)
    samples, k0 = rng.choice([0, 1, 2, 33, 65, 129]), rng.choice([1, 2, 7, 20, 33])
    layers, count = rng.choice([1, 2, 2, 3, 4]), rng.choice([1, 2, 10, 24])
    monkeypatch.setattr(mlp_population, "SCRATCH", rng.choice([1, 30 * max(1, samples), mlp_population.SCRATCH]))
    compare_drawn(seed, samples, k0, some_children(rng, k0, layers, count))


def test_wide_layers():
    """More outputs than a program has, more inputs between stops than a step takes, samples of several programs."""
    children = [[a, i % 4, b, j % 4] for i, a in enumerate((200, 37, 16)) for j, b in enumerate((150, 64, 5, 1))]
    compare_drawn(0, 70, 200, children)


def test_means_far_from_zero():
    """Dice's variance of units whose mean is a thousand times their spread."""
    def make(dtype):
        x, *rest = arguments(Draw(3, dtype), 300, 7, [[7, 3, 7, 3], [2, 3, 2, 0]])
        return [x + 1000, *rest]
    compare(make)


def test_units_that_never_differ():
    """Dice's variance of nought, whose root it divides by: the mean has to be the unit itself."""
    def make(dtype):
        x, weights, *rest = arguments(Draw(4, dtype), 65, 7, [[7, 0, 7, 3], [2, 3, 2, 3]])
        return [x, [w * 0 for w in weights], *rest]
    compare(make)


def test_no_children():
    made = arguments(Draw(0, torch.float32), 5, 7, [[7, 3, 7, 1]])
    assert mlp_population.forward(*made[:-1], made[-1][:0]).shape == (0, 5)


def test_backend_and_children_on_the_device():
    made = arguments(Draw(1, torch.float32), 20, 20, some_children(random.Random(1), 20, 2, 12))
    want = mlp_population.forward(*made)
    assert torch.equal(ops.mlp_population(*made, backend="triton"), want)
    assert torch.equal(mlp_population.forward(*made[:-1], made[-1].to(DEVICE)), want)


def test_the_tree_is_made_once(monkeypatch):
    made = arguments(Draw(2, torch.float32), 9, 20, some_children(random.Random(2), 20, 2, 12))
    want = mlp_population.forward(*made)
    monkeypatch.setattr(_population_tree, "_Builder", None)
    assert torch.equal(mlp_population.forward(*made[:-1], made[-1].clone()), want)


@pytest.mark.parametrize(("row", "says"), [([6, 4, 6, 3], "activation 4"), ([0, 0, 6, 3], "0 units"),
                                           ([6, 0, 7, 3], "7 units in layer 1 of 6")])
def test_wrong_children_are_named(row, says):
    zeros = lambda *shape: torch.zeros(shape, device=DEVICE)
    with pytest.raises(ValueError, match=says):
        mlp_population.forward(zeros(4, 6), [zeros(6, 6)], [zeros(6)], [zeros(6), zeros(6)], zeros(6), zeros(4),
                               torch.tensor([[6, 0, 6, 3], row]))


@torch.no_grad()
def test_a_supernet_ranks_by_the_kernels():
    schema = make_schema(fields=4, multi=1, behavior=2, seed=2)
    net, exact = (make_supernet(schema, 4, 1, dtype, mlp_layers=2, backend=backend).eval()
                  for dtype, backend in ((torch.float32, "triton"), (torch.float64, "reference")))
    archs = all_children(exact, af.Architecture.from_dict(random_arch(schema, 4, 1, mlp_layers=2)), 30)
    batches = [random_batch(schema, n, n) for n in (19, 1)]
    assert MlpChildren(net, archs).backend == "triton"
    got = af.evaluate_population(net.to(DEVICE), archs, [b.to(DEVICE) for b in batches], return_logits=True).logits
    want = torch.stack([torch.cat([exact(b, a) for b in batches]) for a in archs])
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4 * max(1.0, float(want.abs().max())))


@pytest.mark.parametrize(("layers", "most"), [(1, 3), (2, 6), (3, 50)])
def test_launches_do_not_grow_with_the_children(layers, most):
    """All children of the space at 2048 samples and 92 units."""
    children = torch.tensor(every_child(92, layers))
    k0, names = 92, []
    empty = lambda *shape: torch.empty(shape, device="meta")
    with recording(names):
        out = mlp_population.forward(empty(2048, k0), [empty(k0, k0)] * (layers - 1), [empty(k0)] * (layers - 1),
                                     [empty(k0)] * layers, empty(k0), empty(2048), children)
    assert out.shape == (len(children), 2048)
    assert len(names) <= most, len(names)
