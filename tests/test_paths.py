"""Several children of a supernet on one batch: scores and the mean gradient."""

from __future__ import annotations

import pytest
import torch

import ameir_fast as af
from ameir_fast import forward
from ameir_fast.losses import ctr_loss, retrieval_loss
from ameir_fast.space.architecture import fixed_mlp
from tests.helpers import assert_close, assert_gradients, make_schema, make_supernet, random_arch, random_batch

K = 4


def mean_gradients(net, archs, loss) -> dict[str, torch.Tensor]:
    total = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    for arch in archs:
        net.zero_grad(set_to_none=True)
        loss(net, arch).backward()
        for name, p in net.named_parameters():
            if p.grad is not None:
                total[name] += p.grad / len(archs)
    return total


@pytest.mark.parametrize("kind", ["paths", "whole", "mlps"])
@pytest.mark.parametrize("behavior", [0, 2])
def test_the_mean_of_the_children(kind, behavior):
    schema = make_schema(fields=4, multi=1, behavior=behavior, target=behavior > 0, seed=behavior)
    net = make_supernet(schema, K, 3, blocks=3)
    whole = [af.Architecture.from_dict(random_arch(schema, K, seed)) for seed in range(8)]
    if kind == "paths":
        archs = [af.Architecture(a.behavior, (), fixed_mlp(200, 80), "none") for a in whole]
        archs += [af.Architecture(archs[0].behavior[:2] + archs[1].behavior[2:], (), fixed_mlp(200, 80), "none")]
    else:
        archs = whole if kind == "whole" else [
            af.Architecture(whole[0].behavior, whole[0].interactions, a.mlp, "se") for a in whole]
    archs.append(archs[0])
    batch = random_batch(schema, 31, 1)
    net.train()
    scores = af.forward_children(net, archs, batch)
    for i, arch in enumerate(archs):
        assert_close(scores[i], net(batch, arch), f"child {i}")
    net.zero_grad(set_to_none=True)
    ctr_loss(scores, batch.label).backward()
    got = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in net.named_parameters()}
    assert_gradients(got, mean_gradients(net, archs, lambda n, a: ctr_loss(n(batch, a), batch.label)), kind)


def test_retrieval_scores_of_items():
    schema = make_schema(task="retrieval", fields=0, behavior=1, target=False, seed=5)
    net = make_supernet(schema, K, 3, blocks=2).train()
    draw = torch.Generator().manual_seed(0)
    archs = [af.Architecture(net.space.sample_behavior(draw), (), fixed_mlp(200, 80), "none") for _ in range(4)]
    batch = random_batch(schema, 13, 1)
    items = torch.randint(1, 4, (13, 5), generator=draw)
    retrieval_loss(af.forward_children(net, archs, batch, items)).backward()
    got = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in net.named_parameters()}
    assert_gradients(got, mean_gradients(net, archs, lambda n, a: retrieval_loss(n(batch, a, items))), "retrieval")


def test_no_children():
    schema = make_schema(fields=3, behavior=2, seed=1)
    with pytest.raises(af.InputError, match="at least one"):
        af.forward_children(make_supernet(schema, K, 3), [], random_batch(schema, 5, 0))


def test_shared_beginnings_are_computed_once(monkeypatch):
    schema = make_schema(fields=3, behavior=2, seed=1)
    net = make_supernet(schema, K, 3, blocks=3)
    one, two = (af.Block("none", layer, "relu") for layer in ("conv1", "max_pool3"))
    paths = [(one, two, one), (one, two, two), (one, one, one)]
    archs = [af.Architecture(p, (), fixed_mlp(200, 80), "none") for p in paths]
    calls = []
    original = forward.run_block
    monkeypatch.setattr(forward, "run_block", lambda *a: calls.append(a[1]) or original(*a))
    af.forward_children(net, archs, random_batch(schema, 5, 0))
    assert sorted(calls) == [0, 1, 1, 2, 2, 2]
