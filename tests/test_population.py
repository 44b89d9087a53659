"""Children that differ in the MLP alone, computed together: the operation, evaluate_population, the search's ranking."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

import ameir_fast as af
from ameir_fast import mlp_children, ops, population, reference
from ameir_fast.mlp_children import MlpChildren
from ameir_fast.progress import Progress
from ameir_fast.search import RandomStrategy, SearchConfig, proposals
from ameir_fast.search.driver import make_context
from ameir_fast.search.mlp import MlpStep
from ameir_fast.search.store import RunDirectory
from ameir_fast.space.choices import MLP_ACTIVATIONS, RATIOS, width
from tests import tiny
from tests.helpers import assert_as_exact_as_eager, make_schema, make_supernet, random_arch, random_batch
from tests.test_native_fields import SETS, Draw

pytestmark = pytest.mark.usefixtures("poisoned")

native = pytest.mark.skipif("mlp_population" in ops.missing("cpp"), reason="no native kernel here")
CASES = range(40)


@pytest.fixture(params=SETS)
def instruction_set(request) -> Iterator[str]:
    if request.param not in torch.ops.ameir_fast.instruction_sets():
        pytest.skip(f"this processor has no {request.param}")
    yield torch.ops.ameir_fast.use_instruction_set(request.param)
    torch.ops.ameir_fast.use_instruction_set("")


def drawn(seed: int, dtype: torch.dtype = torch.float32) -> list:
    """Random arguments; a small K0 makes several ratios one width, and widths may also grow from layer to layer."""
    draw = Draw(seed, dtype)
    rng = draw.rng
    samples, k0 = rng.choice([0, 1, 2, 31, 47, 48, 49, 97, 300, 701]), rng.choice([1, 2, 7, 20, 33, 92])
    layers, count = rng.choice([1, 2, 2, 3, 4]), rng.choice([1, 2, 10, 60])
    full = max(width(r, k0) for r in RATIOS)
    shape = (full + rng.randrange(3), full + rng.randrange(3))
    children = []
    for _ in range(count):
        ratios = sorted(rng.choices(RATIOS, k=layers), reverse=rng.random() < 0.9)
        children.append([n for r in ratios for n in (width(r, k0), rng.randrange(len(MLP_ACTIVATIONS)))])
    return [draw(samples, full), [draw(*shape, scale=full ** -0.5) for _ in range(layers - 1)],
            [draw(shape[0]) for _ in range(layers - 1)], [draw(full + rng.randrange(2)) for _ in range(layers)],
            draw(full + 3, scale=full ** -0.5), draw(samples), torch.tensor(children, dtype=torch.int64)]


def one_at_a_time(x, weights, biases, dice, head, common, children) -> Tensor:
    rows = []
    for row in children.tolist():
        units, names = row[::2], [MLP_ACTIVATIONS[a] for a in row[1::2]]
        pairs = list(zip(weights, biases, itertools.pairwise(units), strict=True))
        alphas = [alpha[:n] for alpha, n, name in zip(dice, units, names, strict=True) if name == "dice"]
        h, _ = reference.sliced_mlp(x[:, :units[0]], [w[:b, :a] for w, _, (a, b) in pairs],
                                    [shift[:b] for _, shift, (_, b) in pairs], names, alphas)
        rows.append(h @ head[:units[-1]] + common)
    return torch.stack(rows)


# ---- the operation --------------------------------------------------------------------------------


def test_the_reference_equals_one_child_at_a_time():
    for seed in CASES:
        arguments = drawn(seed, torch.float64)
        torch.testing.assert_close(reference.mlp_population(*arguments), one_at_a_time(*arguments), rtol=1e-9, atol=1e-9)


@native
@torch.no_grad()
def test_as_exact_as_eager_float32(instruction_set):
    """Over all cases at most twice the error of eager float32; of a single result, where luck is much, eight times."""
    assert_as_exact_as_eager((one_at_a_time(*drawn(seed, torch.float64)), one_at_a_time(*drawn(seed)),
                              ops.mlp_population(*drawn(seed), backend="cpp")) for seed in CASES)


@native
@torch.no_grad()
def test_dice_far_from_zero():
    """Statistics of a unit whose mean is large beside its deviation."""
    g = torch.Generator().manual_seed(0)
    x = 100 + torch.randn(1000, 5, generator=g)
    arguments = [x, [torch.eye(5)], [torch.zeros(5)], [torch.randn(5, generator=g) for _ in range(2)],
                 torch.randn(5, generator=g), torch.zeros(1000), torch.tensor([[5, 3, 5, 3], [4, 2, 5, 3]])]
    exact = [[t.double() for t in a] if isinstance(a, list) else a.double() if a.is_floating_point() else a
             for a in arguments]
    want = one_at_a_time(*exact)
    torch.testing.assert_close(ops.mlp_population(*arguments).double(), want, rtol=1e-5, atol=1e-3)


@native
@torch.no_grad()
def test_threads_and_other_children_change_no_bit():
    before = torch.get_num_threads()
    try:
        for seed in CASES:
            arguments, found = drawn(seed), []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                found.append(ops.mlp_population(*arguments))
            assert all(torch.equal(found[0], other) for other in found[1:]), f"case {seed}"
            order = torch.randperm(len(found[0]), generator=torch.Generator().manual_seed(seed))
            for some in (order, order[:len(order) // 2]):
                assert torch.equal(ops.mlp_population(*arguments[:-1], arguments[-1][some]), found[0][some])
    finally:
        torch.set_num_threads(before)


@native
def test_wrong_arguments_are_named():
    good = [torch.zeros(4, 6), [torch.zeros(6, 6)], [torch.zeros(6)], [torch.zeros(6), torch.zeros(6)], torch.zeros(6),
            torch.zeros(4), torch.tensor([[6, 0, 6, 3]])]
    ops.mlp_population(*good)
    for place, value, says in [
        (0, torch.zeros(4, 6, dtype=torch.float64), "x: dtype"), (0, torch.zeros(4), "x: 1 dim"), (1, [], "biases"),
        (2, [torch.zeros(5)], "biases"), (3, [torch.zeros(6)], "dice"), (4, torch.zeros(1, 6), "head"),
        (5, torch.zeros(5), "common"), (6, torch.tensor([[6, 0]]), "children"),
        (6, torch.tensor([[6, 0, 6, 3]]).int(), "children"),
        (6, torch.tensor([[7, 0, 6, 3]]), "7 units in layer 0"), (6, torch.tensor([[6, 0, 0, 3]]), "0 units in layer 1"),
        (6, torch.tensor([[6, 4, 6, 3]]), "activation 4"), (4, torch.zeros(5), "6 units in layer 1 of 5"),
    ]:
        with pytest.raises(RuntimeError, match=says):
            torch.ops.ameir_fast.mlp_population(*[value if i == place else a for i, a in enumerate(good)])


# ---- evaluate_population --------------------------------------------------------------------------


def all_children(net, arch, count: int | None = None, seed: int = 0) -> list[af.Architecture]:
    """``arch`` with every MLP of the space, or with so many."""
    mlps = list(net.space.enumerate_mlp())
    if count is not None:
        mlps = [mlps[i] for i in np.random.default_rng(seed).permutation(len(mlps))[:count]]
    return [af.Architecture(arch.behavior, arch.interactions, mlp, arch.shortcut) for mlp in mlps]


@torch.no_grad()
def compared(net, archs, batches) -> population.PopulationResult:
    """The result, checked against one child at a time."""
    found = af.evaluate_population(net, archs, batches, return_logits=True)
    net.eval()
    alone = torch.stack([torch.cat([net(b, a) for b in batches]) for a in archs])
    assert float((found.logits - alone).abs().max()) <= 1e-5 * max(1.0, float(alone.abs().max()))
    label = torch.cat([b.label for b in batches])
    # Few different rows: rounding breaks their ties, and AUC counts ties by halves.
    np.testing.assert_allclose(found.auc, population.auc_columns(alone, label), atol=1e-2)
    np.testing.assert_allclose(found.log_loss, population.log_loss_columns(alone, label), rtol=1e-5, atol=1e-6)
    # The same ranking by log loss, up to ties within rounding.
    mine, theirs = found.log_loss, population.log_loss_columns(alone, label)
    order = np.argsort(mine)
    assert (np.diff(theirs[order]) >= -2e-6 * max(1.0, theirs.max())).all()
    return found


@pytest.mark.parametrize("backend", [None, "reference", "cpp"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_population_equals_one_at_a_time(layers, backend, monkeypatch):
    if backend == "cpp" and "mlp_population" in ops.missing("cpp"):
        pytest.skip("no native kernel here")
    schema = make_schema(fields=4, multi=1, behavior=2, seed=layers)
    net = make_supernet(schema, 4, 1, torch.float32, mlp_layers=layers, backend=backend)
    first, second = (af.Architecture.from_dict(random_arch(schema, 4, seed, mlp_layers=layers)) for seed in (1, 2))
    archs = all_children(net, first, 200) + all_children(net, second, 5)  # of one the fronts are kept, of the other not
    archs += [second, af.Architecture(first.behavior, first.interactions, first.mlp, "none")] + archs[:2]
    batches = [random_batch(schema, n, n) for n in (70, 1, 0, 53)]
    monkeypatch.setattr(population, "BLOCK_BYTES", 8 * 124 * 60)  # several blocks
    told = []
    found = compared(net, archs, batches)
    again = af.evaluate_population(net, archs, batches, on_child=told.append)
    assert again.logits is None and np.array_equal(again.auc, found.auc)
    assert np.array_equal(again.log_loss, found.log_loss)
    assert told[-1] == len(archs) and (layers == 1 or len(told) > 2)
    assert found.shared_work > 1 if layers > 1 else found.shared_work >= 1
    assert net.training is False


def test_children_are_told_batch_by_batch():
    schema = make_schema(fields=4, behavior=2, seed=1)
    net = make_supernet(schema, 4, 1, torch.float32, backend=None)
    archs = [af.Architecture.from_dict(random_arch(schema, 4, seed)) for seed in range(9)]  # alone in their groups
    batches, told = [random_batch(schema, 20, n) for n in range(8)], []
    found = af.evaluate_population(net, (arch for arch in archs), batches, on_child=told.append)
    assert told[-1] == 9 and told == sorted(told) and len(set(told)) > 4
    one = af.evaluate_population(net, archs[0], batches[0])
    assert one.auc.shape == (1,) and found.auc.shape == (9,)


@native
def test_without_history_and_without_fields_beside():
    schema = make_schema(fields=3, behavior=0, seed=3)
    net = make_supernet(schema, 5, 3, torch.float32, backend=None)
    arch = af.Architecture.from_dict(random_arch(schema, 5, 3))
    compared(net, all_children(net, arch), [random_batch(schema, 150, 0)])


def test_scores_that_are_no_numbers_are_named():
    schema = make_schema(fields=4, behavior=2, seed=0)
    net = make_supernet(schema, 4, 0, torch.float32, backend=None)
    arch = af.Architecture.from_dict(random_arch(schema, 4, 0))
    archs = all_children(net, arch)
    used = [i for i, a in enumerate(archs) if a.mlp[-1].ratio == 1.0]
    with torch.no_grad():
        net.head.weight[0, net.space.k0(len(arch.interactions)) - 1] = float("nan")
    with pytest.raises(af.InputError, match=r"score of child (\d+), sample 0 is NaN") as caught:
        af.evaluate_population(net, archs, [random_batch(schema, 30, 0)])
    assert int(str(caught.value).split("child ")[1].split(",")[0]) in used


def test_what_is_kept_of_a_batch_does_not_grow_with_the_children(monkeypatch):
    """However many children there are, blocks of scores are as large as allowed, and no larger."""
    sizes = []
    original = ops.mlp_population
    monkeypatch.setattr(mlp_children.ops, "mlp_population",
                        lambda *a, **kw: sizes.append(original(*a, **kw)) or sizes[-1])
    schema = make_schema(fields=4, behavior=2, seed=0)
    net = make_supernet(schema, 4, 0, torch.float32, backend=None)
    arch = af.Architecture.from_dict(random_arch(schema, 4, 0))
    monkeypatch.setattr(population, "BLOCK_BYTES", 8 * 100 * 130)
    for count in (200, 880):
        sizes.clear()
        af.evaluate_population(net, all_children(net, arch, count), [random_batch(schema, n, n) for n in (60, 40)])
        assert max(t.shape[0] for t in sizes) == 130 and sum(t.numel() for t in sizes) == count * 100


PEAK = """
import resource, sys, torch
sys.path.insert(0, {root!r})
from tests.helpers import *
from tests.test_population import all_children
import ameir_fast as af
from ameir_fast import population
torch.set_num_threads(1)
population.BLOCK_BYTES = 2 ** 23
schema = make_schema(fields=4, behavior=2, seed=0)
net = make_supernet(schema, 4, 0, torch.float32, backend=None)
arch = af.Architecture.from_dict(random_arch(schema, 4, 0))
batches = [random_batch(schema, 2048, seed) for seed in range(8)]
peaks = []
for count in (100, 880):
    af.evaluate_population(net, all_children(net, arch, count), batches)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[1] - peaks[0])
"""


@native
@pytest.mark.skipif(sys.platform != "linux", reason="counts in KiB on Linux")
def test_peak_memory(request):
    """880 children's scores of 16,384 samples are 58 MB; a hundred's take as much memory as all do."""
    out = subprocess.run([sys.executable, "-c", PEAK.format(root=str(request.config.rootpath))], capture_output=True,
                         text=True, check=True, cwd=request.config.rootpath)
    assert int(out.stdout) < 20 * 1024


def test_work():
    """The counts by hand: K0 = 10, where a ratio is as many units as tenths."""
    schema = make_schema(fields=5, behavior=0, seed=0)
    net = make_supernet(schema, 2, 0, torch.float32, mlp_layers=2)
    children = all_children(net, af.Architecture(mlp=(af.MlpLayer(1.0, "relu"),) * 2))
    alone, together = MlpChildren(net, children).work()
    assert net.space.k0(0) == 10
    pairs = [(a, b) for a in range(1, 11) for b in range(1, a + 1)]
    assert alone == 16 * sum(a * b + b for a, b in pairs)
    assert together == 4 * 100 + 16 * sum(range(1, 11))
    net = make_supernet(schema, 2, 0, torch.float32, mlp_layers=3)
    children = all_children(net, af.Architecture(mlp=(af.MlpLayer(1.0, "relu"),) * 3))
    assert MlpChildren(net, children).work()[1] == 4 * 100 + 16 * sum(a * a for a in range(1, 11)) + \
        64 * sum(b for a, b in pairs)


# ---- the search -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.prepared(tmp_path_factory.mktemp("tiny"))


def ranked(data, run, config: SearchConfig) -> list[dict]:
    context = make_context(data, config, run.scope(0), RandomStrategy(), Progress(), "cpu")
    return MlpStep(context, context.zero_path(), ((0, 1),)).rank()


@pytest.mark.parametrize(("layers", "count"), [(1, 40), (2, 880), (3, 14080)])
def test_all_children_are_ranked(data, tmp_path, layers, count):
    config = tiny.CONFIG.changed(mlp_children=None, mlp_layers=layers, max_parameters=10 ** 9)
    if layers == 3:  # fewer samples, for time
        config = config.changed(validation_subset=30)
    with RunDirectory(tmp_path / "run", {"version": 1}) as run:
        ranking = ranked(data, run, config)
    assert len({json.dumps(r["mlp"]) for r in ranking}) == len(ranking) == count
    lines = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert all(line["children_per_s"] > 0 for line in lines) and lines[-1]["step"] == count
    assert len(lines) == -(-count // proposals.POPULATION)
    if layers > 1:
        assert lines[0]["shared_work"] > 5


def test_larger_spaces_are_sampled(data, tmp_path):
    config = tiny.CONFIG.changed(mlp_layers=4)
    with RunDirectory(tmp_path / "run", {"version": 1}) as run:
        context = make_context(data, config.changed(mlp_children=None), run.scope(0), None, Progress(), "cpu")
        assert MlpStep(context, context.zero_path(), ())._most_children() == 2000
        assert len(ranked(data, run, config)) == 64


class Killed(Exception):
    pass


def test_a_ranking_resumes_inside_a_population(data, tmp_path, monkeypatch):
    config = tiny.CONFIG.changed(mlp_children=None, max_parameters=10 ** 9)
    monkeypatch.setattr(proposals, "POPULATION", 200)
    with RunDirectory(tmp_path / "whole", {"version": 1}) as run:
        whole = ranked(data, run, config)
    scored = []
    original = population.evaluate_population

    def dying(net, archs, batches, **more):
        if len(scored) == 2:
            raise Killed
        scored.append(len(archs))
        return original(net, archs, batches, **more)

    monkeypatch.setattr("ameir_fast.search.context.evaluate_population", dying)
    with RunDirectory(tmp_path / "killed", {"version": 1}) as run, pytest.raises(Killed):
        ranked(data, run, config)
    monkeypatch.setattr("ameir_fast.search.context.evaluate_population",
                        lambda net, archs, batches, **more: scored.append(len(archs)) or original(net, archs, batches, **more))
    with RunDirectory(tmp_path / "killed", {"version": 1}, resume=True) as run:
        again = ranked(data, run, config)
    assert scored == [200, 200, 200, 200, 80, config.top_k]
    assert again == whole
    # However many are scored together by the one that goes on: what is stored is not scored again.
    scores = next((tmp_path / "killed").glob("checkpoint/**/scores.json"))
    about = json.loads(scores.read_text())
    scores.write_text(json.dumps({**about, "result": about["result"][:333]} if isinstance(about, dict) else about[:333]))
    scored.clear()
    with RunDirectory(tmp_path / "killed", {"version": 1}, resume=True) as run:
        assert ranked(data, run, config) == whole
    assert scored == [67, 200, 200, 80]


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "all"])
def test_wrong_numbers_of_children_are_named(value):
    with pytest.raises(af.InputError, match="mlp_children"):
        SearchConfig().changed(mlp_children=value)
