"""Models trained together: the gradients, statistics and scores that each has alone."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

import ameir_fast as af
from ameir_fast import forward
from ameir_fast.embedding_optimizer import EmbeddingAdam
from ameir_fast.group import ModelGroup
from ameir_fast.losses import ctr_loss, retrieval_loss
from tests.helpers import assert_close, assert_gradients, make_model, make_schema, random_arch, random_batch

K = 4


def loss_of(scores: torch.Tensor, batch: af.Batch) -> torch.Tensor:
    return ctr_loss(scores, batch.label) if scores.shape[-1] == len(batch) and scores.dim() < 3 else retrieval_loss(scores)


def alike(schema: dict, archs: list[dict], dtype=torch.float64) -> list[af.Model]:
    """Models with one embedding, and one front as far as their blocks agree: what a race starts from."""
    models = [make_model(schema, arch, K, 1 + i, dtype) for i, arch in enumerate(archs)]
    first = models[0].state_dict()
    for model in models:
        own = model.state_dict()
        model.load_state_dict({k: first[k] if k.startswith(("embedding.", "behavior.", "pool.")) and k in first
                               and first[k].shape == own[k].shape else v for k, v in own.items()})
    return models


def compared(schema: dict, archs: list[dict], batch: af.Batch, items=None, by_rows: bool = False) -> ModelGroup:
    """The group, checked against its models alone: scores, every gradient, statistics."""
    models, group = alike(schema, archs), ModelGroup(alike(schema, archs))
    if by_rows:
        adam = EmbeddingAdam(group.embedding.weight)
        batch_of_group = adam.look_up(group.schema, batch, items)
    else:
        batch_of_group = batch
    group.train()
    scores = group(batch_of_group, items)
    loss_of(scores, batch).backward()
    mean: dict[str, torch.Tensor] = {}
    for i, model in enumerate(models):
        model.train()
        alone = model(batch, items)
        assert_close(scores[i], alone, f"scores of {i}")
        loss_of(alone, batch).backward()
        shared = ("embedding.", "behavior.", "pool.") if group.shares_front else ("embedding.",)
        want = {k: p.grad if p.grad is not None else torch.zeros_like(p) for k, p in model.named_parameters()}
        for name, gradient in want.items():
            if name.startswith(shared):
                mean[name] = mean.get(name, 0) + gradient / len(models)
        got = {k: p.grad if p.grad is not None else torch.zeros_like(p) for k, p in group.members[i].named_parameters()}
        own = {k: v for k, v in want.items() if not k.startswith(shared)}
        assert_gradients({k: got[k] for k in own}, own, f"model {i}")
        for (name, theirs), (_, mine) in zip(model.named_buffers(), group.model(i).named_buffers(), strict=True):
            assert_close(mine, theirs, f"{name} of {i}")
    if by_rows:
        occurrences = torch.zeros_like(group.embedding.weight).index_add_(0, adam.rows, adam.occurrences.grad)
        found = {"embedding.weight": occurrences}
    else:
        found = {"embedding.weight": group.embedding.weight.grad}
    if group.shares_front:
        found.update({k: p.grad for k, p in group.members[0].named_parameters() if k in mean})
    assert_gradients({k: torch.zeros_like(mean[k]) if v is None else v for k, v in found.items()}, mean, "shared")
    return group


def mlps(schema: dict, seed: int, count: int) -> list[dict]:
    """Architectures that differ in the MLP alone."""
    archs = [random_arch(schema, K, seed + i, blocks=2, shortcut="se" if i % 3 else "none") for i in range(count)]
    return [{**arch, "behavior": archs[0]["behavior"], "interactions": archs[0]["interactions"]} for arch in archs]


@pytest.mark.parametrize(("by_rows", "seed"), list(itertools.product([False, True], range(4))))
def test_mlps_over_one_front(by_rows, seed):
    schema = make_schema(fields=4, multi=seed % 2, behavior=2 if seed < 3 else 0, target=seed < 2, seed=seed)
    group = compared(schema, mlps(schema, 10 * seed, 5), random_batch(schema, 37, seed), by_rows=by_rows)
    assert group.shares_front


@pytest.mark.parametrize(("by_rows", "seed"), list(itertools.product([False, True], range(4))))
def test_paths_of_their_own(by_rows, seed):
    schema = make_schema(fields=3, multi=seed % 2, behavior=2, target=seed < 2, seed=seed)
    archs = [random_arch(schema, K, 20 * seed + i, blocks=2, fixed_mlp=i % 2 == 0) for i in range(4)]
    assert not compared(schema, archs, random_batch(schema, 23, seed), by_rows=by_rows).shares_front


@pytest.mark.parametrize(("by_rows", "own"), list(itertools.product([False, True], [False, True])))
def test_retrieval(by_rows, own):
    schema = make_schema(task="retrieval", fields=0, behavior=1, target=False, seed=5)
    archs = [random_arch(schema, K, i, blocks=2, shortcut="none") for i in range(3)]
    if not own:
        archs = [{**arch, "behavior": archs[0]["behavior"]} for arch in archs]
    batch = random_batch(schema, 19, 1)
    items = torch.randint(1, 4, (19, 5), generator=torch.Generator().manual_seed(0))
    compared(schema, archs, batch, items, by_rows)


def test_different_numbers_of_layers_and_one_model(monkeypatch):
    schema = make_schema(fields=3, behavior=2, seed=1)
    archs = [random_arch(schema, K, i, blocks=2, mlp_layers=1 + i % 3) for i in range(5)]
    alone = forward.aggregate
    compared(schema, archs, random_batch(schema, 11, 0))
    archs = [{**arch, "behavior": archs[0]["behavior"], "interactions": archs[0]["interactions"]} for arch in archs]
    assert compared(schema, archs, random_batch(schema, 11, 0)).shares_front
    compared(schema, archs[:1], random_batch(schema, 11, 0))
    # In a race of MLPs of three layers the one by hand, of two, must not make each model go its own way.
    calls = []
    monkeypatch.setattr(forward, "aggregate", lambda *a: calls.append(a) or alone(*a))
    ModelGroup(alike(schema, archs))(random_batch(schema, 11, 0))
    assert not calls


def test_evaluation_uses_the_members_statistics():
    schema = make_schema(fields=3, behavior=2, seed=2)
    archs = mlps(schema, 3, 4)
    for arch in archs[:3]:
        arch["mlp"][0]["activation"] = "dice"
    models, group = alike(schema, archs), ModelGroup(alike(schema, archs)).eval()
    batch = random_batch(schema, 29, 3)
    with torch.no_grad():
        found = group(batch)
        for i, model in enumerate(models):
            assert_close(found[i], model.eval()(batch), f"model {i}")
            assert_close(group.model(i).eval()(batch), found[i], f"copy of {i}")


def test_native_operations_agree():
    schema = make_schema(fields=5, behavior=2, seed=4)
    archs = mlps(schema, 7, 6)
    batch = random_batch(schema, 64, 2)
    exact = ModelGroup(alike(schema, archs)).eval()
    single = ModelGroup(alike(schema, archs, torch.float32)).eval()
    with torch.no_grad():
        batch32 = dataclasses.replace(batch, label=batch.label.float())
        assert_close(single(batch32).double(), exact(batch), "float32", 2e-5)


def test_what_does_not_belong_together():
    schema = make_schema(fields=3, behavior=2, seed=1)
    other = make_schema(fields=4, behavior=2, seed=1)
    make = lambda s: make_model(s, random_arch(s, K, 0, blocks=1), K)
    with pytest.raises(af.InputError, match="at least one"):
        ModelGroup([])
    with pytest.raises(af.InputError, match="one schema"):
        ModelGroup([make(schema), make(other)])
