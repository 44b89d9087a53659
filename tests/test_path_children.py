"""Step 1's children, computed together: evaluate_population on behaviour paths."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ameir_fast as af
from ameir_fast import ops, path_children, population
from ameir_fast.metrics import auc_columns, log_loss_columns
from ameir_fast.space import ACTIVATIONS
from ameir_fast.space.architecture import fixed_mlp
from tests.helpers import make_schema, make_supernet, random_batch

pytestmark = pytest.mark.usefixtures("poisoned")

SIZES = (70, 1, 0, 53)


def children(net, count: int, seed: int = 0, activation: str = "relu") -> list[af.Architecture]:
    """Random paths as drawn, not in canonical form, with step 1's MLP."""
    g = torch.Generator().manual_seed(seed)
    return [af.Architecture(net.space.sample_behavior(g), (), fixed_mlp(200, 80, activation=activation), "none")
            for _ in range(count)]


@torch.no_grad()
def compared(net, archs, batches) -> population.PopulationResult:
    """The result, checked against one child at a time."""
    found = af.evaluate_population(net, archs, batches, return_logits=True)
    net.eval()
    alone = torch.stack([torch.cat([net(b, a) for b in batches]) for a in archs])
    assert float((found.logits - alone).abs().max()) <= 1e-5 * max(1.0, float(alone.abs().max()))
    label = torch.cat([b.label for b in batches])
    np.testing.assert_allclose(found.auc, auc_columns(found.logits, label), atol=0)
    np.testing.assert_allclose(found.auc, auc_columns(alone, label), atol=1e-2)  # rounding breaks ties
    theirs = log_loss_columns(alone, label)
    np.testing.assert_allclose(found.log_loss, theirs, rtol=1e-5, atol=1e-6)
    assert (np.diff(theirs[np.argsort(found.log_loss)]) >= -2e-6 * max(1.0, theirs.max())).all()
    return found


@pytest.mark.parametrize("backend", [None, "reference", "cpp"])
@pytest.mark.parametrize("target", [True, False])
def test_paths_equal_one_at_a_time(backend, target):
    if backend == "cpp" and "interaction_population" in ops.missing("cpp"):
        pytest.skip("no native kernel here")
    schema = make_schema(fields=4, multi=1, behavior=2, target=target, seed=1)
    net = make_supernet(schema, 4, 1, torch.float32, blocks=2, backend=backend)
    archs = children(net, 40) + children(net, 3, 1, "identity")
    ratios = (af.MlpLayer(0.5, "relu"), af.MlpLayer(0.2, "dice"))
    archs += [af.Architecture(archs[0].behavior, (), ratios, "none")] + archs[:5]
    found = compared(net, archs, [random_batch(schema, n, n) for n in SIZES])
    assert torch.equal(found.logits[-5:], found.logits[:5])


def test_double_precision():
    schema = make_schema(fields=3, behavior=2, seed=2)
    net = make_supernet(schema, 4, 2, torch.float64, blocks=2, backend=None)
    batches = [random_batch(schema, 30, 0)]
    archs = children(net, 10)
    found = af.evaluate_population(net, archs, batches, return_logits=True)
    with torch.no_grad():
        alone = torch.stack([net(batches[0], a) for a in archs])
    torch.testing.assert_close(found.logits, alone, rtol=1e-9, atol=1e-9)


def test_each_prefix_and_each_child_once(monkeypatch):
    """Layers are computed once a batch for every beginning and norm that children have in common, equal children once."""
    schema = make_schema(fields=3, behavior=2, seed=3)
    net = make_supernet(schema, 4, 3, torch.float32, blocks=3, backend=None)
    one, many, pooled = [], [], []
    forward = population.forward
    block, activations, pool = forward.run_block, forward.run_activations, forward.pool
    monkeypatch.setattr(forward, "run_block", lambda *a: one.append(a[2].layer != "zero") or block(*a))
    monkeypatch.setattr(forward, "run_activations", lambda *a: many.append(len(a[4])) or activations(*a))
    monkeypatch.setattr(forward, "pool", lambda *a: pooled.append(0) or pool(*a))
    archs = children(net, 30)
    archs += [archs[0], *(af.Architecture(archs[0].behavior[:2] + a.behavior[2:], (), a.mlp, "none") for a in archs[:9])]
    archs += [af.Architecture((*archs[0].behavior[:1], af.Block("none", "conv3", act), *archs[0].behavior[2:]), (),
                              archs[0].mlp, "none") for act in ACTIVATIONS]
    batches = [random_batch(schema, 40, 0), random_batch(schema, 9, 1), random_batch(schema, 0, 0)]
    compared(net, archs, batches)
    for calls in (one, many, pooled):
        calls.clear()
    shared = af.evaluate_population(net, archs + archs, batches).shared_work
    paths = {a.canonical().behavior for a in archs}
    prefixes = {p[:n] for p in paths for n in range(1, 4) if p[n - 1].layer != "zero"}
    layers = {(p[:-1], p[-1].norm, p[-1].layer) for p in prefixes}
    assert sum(one) + len(many) == 3 * len(layers) and len(pooled) == 3 * len(paths)
    assert sum(one) + sum(many) == 3 * len(prefixes) and many.count(4) >= 3
    alone = 2 * sum(block.layer != "zero" for a in archs for block in a.behavior)
    assert shared == alone / len(layers) > 2


@pytest.mark.parametrize("norm", [True, False])
@torch.no_grad()
def test_activations_together_equal_blocks(norm):
    """The same operations on the same numbers: no bit differs, whatever computes them."""
    schema = make_schema(fields=3, behavior=2, seed=5)
    net = make_supernet(schema, 4, 5, torch.float32, blocks=1, backend=None)
    inputs = population.forward.prepare(net.schema, net.embedding.weight, random_batch(schema, 50, 0))
    weights = net.eval().weights(children(net, 1)[0])
    sets = torch.ops.ameir_fast.instruction_sets() if "sequence_activations" not in ops.missing("cpp") else []
    try:
        for name in [*sets, None]:
            weights.backend = "reference" if name is None else "cpp"
            if name is not None:
                torch.ops.ameir_fast.use_instruction_set(name)
            for layer in net.space.layers:
                if layer == "zero":
                    continue
                kind = "layer_norm" if norm else "none"
                acts = ["identity", "gelu", "relu"]
                found = population.forward.run_activations(weights, 0, kind, layer, acts, inputs.history, inputs)
                for act, got in zip(acts, found, strict=True):
                    want = population.forward.run_block(weights, 0, af.Block(kind, layer, act), inputs.history, inputs)
                    assert torch.equal(got, want), (name, layer, act)
    finally:
        if sets:
            torch.ops.ameir_fast.use_instruction_set("")


def test_hidden_states_kept_do_not_grow_with_the_children(monkeypatch):
    schema = make_schema(fields=3, behavior=2, seed=3)
    net = make_supernet(schema, 4, 3, torch.float32, blocks=3, backend=None)
    seen = []
    original = path_children.PathChildren.logits
    monkeypatch.setattr(path_children.PathChildren, "logits",
                        lambda self, pooled: seen.append(len(pooled)) or original(self, pooled))
    walks = []
    visit = population._Walk.behavior
    monkeypatch.setattr(population._Walk, "behavior",
                        lambda self, *a: (visit(self, *a), walks.append(len(self.states)))[0])
    found = af.evaluate_population(net, children(net, 150), [random_batch(schema, 20, 0)])
    assert max(seen) == path_children.TOGETHER and sum(seen) == len(walks) <= 150
    assert max(walks) == 4 and found.logits is None


def test_blocks_of_scores(monkeypatch):
    schema = make_schema(fields=3, behavior=2, seed=4)
    net = make_supernet(schema, 4, 4, torch.float32, blocks=2, backend=None)
    batches, archs, told = [random_batch(schema, 30, 0)], children(net, 50), []
    whole = af.evaluate_population(net, archs, batches)
    monkeypatch.setattr(population, "BLOCK_BYTES", 8 * 30 * 7)
    parts = af.evaluate_population(net, archs, batches, on_child=told.append)
    assert np.array_equal(whole.auc, parts.auc) and np.array_equal(whole.log_loss, parts.log_loss)
    assert told[-1] == 50 and len(told) >= 7


def test_a_child_without_a_score_is_named_by_its_place():
    schema = make_schema(fields=3, behavior=2, seed=4)
    net = make_supernet(schema, 4, 4, torch.float32, blocks=1, backend=None)
    plain = af.Architecture((af.Block("none", "zero", "identity"),), (), fixed_mlp(200, 80), "none")
    broken = af.Architecture((af.Block("none", "conv1", "relu"),), (), fixed_mlp(200, 80), "none")
    with torch.no_grad():
        net.behavior["0"]["conv1"].weight.fill_(float("nan"))
    batch = random_batch(schema, 30, 0)
    with pytest.raises(af.InputError, match="score of child 2, "):
        af.evaluate_population(net, [plain, plain, broken, broken], [batch])
