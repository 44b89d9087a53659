"""Supernet, training step and search by Triton kernels against the fp64 reference."""

from __future__ import annotations

import pytest
import torch

import ameir_fast as af
from ameir_fast.bench.suites import cases
from ameir_fast.cost import GPUS, forward_work, gpu_of, launches, predict
from ameir_fast.data import Dataset, prepare_movielens
from ameir_fast.kernels._launch import KERNELS, interpreting
from ameir_fast.losses import ctr_loss
from ameir_fast.search import search
from ameir_fast.space.architecture import fixed_mlp
from tests import tiny
from tests.helpers import make_schema

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(DEVICE == "cpu" and not interpreting(), reason="needs a GPU, or TRITON_INTERPRET=1")
GROUPS, EACH = 10, 6  # one of each group with a fixed MLP, no products and no shortcut


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.prepared(tmp_path_factory.mktemp("ml"))


def nets(data, seed: int) -> tuple[af.Supernet, af.Supernet]:
    """The same weights, large enough to matter, for the kernels in float32 and for the reference in float64."""
    space = af.SearchSpace(data.schema)
    torch.manual_seed(seed)
    exact = af.Supernet(space, 4, "reference", torch.float64)
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter.copy_((parameter + 0.2 * torch.randn(parameter.shape)).float())
    net = af.Supernet(space, 4, "triton")
    net.load_state_dict({k: v.float() for k, v in exact.state_dict().items()})
    return net.to(DEVICE), exact


@pytest.mark.parametrize("group", range(GROUPS))
def test_random_children_forward_and_backward(data, group):
    net, exact = nets(data, group)
    generator = torch.Generator().manual_seed(group)
    batch = list(data.batches("valid", 6))[group]  # late rows, whose histories are not empty
    for number in range(EACH):
        arch = exact.sample(generator)
        if number == 0:
            arch = af.Architecture(arch.behavior, (), fixed_mlp(200, 80), "none")
        found = []
        for one, device in ((net, DEVICE), (exact, "cpu")):
            one.zero_grad(set_to_none=True)
            moved = batch.to(device)
            logits = one(moved, arch)
            ctr_loss(logits, moved.label.to(logits.dtype)).backward()
            found.append((logits.detach().cpu().double(),
                          {k: p.grad.cpu().double() for k, p in one.named_parameters() if p.grad is not None}))
        (got, got_gradients), (want, want_gradients) = found
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
        assert got_gradients.keys() == want_gradients.keys()
        for name, gradient in want_gradients.items():
            scale = float(gradient.abs().max())
            torch.testing.assert_close(got_gradients[name], gradient, rtol=1e-3, atol=1e-3 * scale + 1e-7,
                                       msg=lambda text, name=name: f"{name} of {arch}: {text}")


def test_a_whole_search(tmp_path):
    raw = tiny.write_raw(tmp_path / "raw", users=9, items=12, ratings=50)
    prepare_movielens(raw, tmp_path / "data", max_history=4)
    data = Dataset.open(tmp_path / "data")
    config = tiny.CONFIG.changed(backend="triton", blocks=1, batch_size=20, warmup_epochs=0.5, behavior_epochs=0.5, behavior_children=2,
                                 paths_per_step=1, interaction_warmup_epochs=0.5, cycles=1, updates_per_interaction=1,
                                 interactions_per_step=32, mlp_epochs=0.5, mlp_children=2, epochs=0.5, evaluate_every=0.5,
                                 finalists=2, race_epochs=(0.5,), mlp_finalists=2, mlp_race_epochs=(0.5,), top_k=1,
                                 validation_subset=5, runs=1)
    metrics = search(data, tmp_path / "run", config, variants=["AMEIR-C"], device=DEVICE)
    assert metrics["environment"]["backend"] == "triton" and 0 < metrics["variants"]["AMEIR-C"]["auc"]["mean"] < 1
    assert af.Model.load(tmp_path / "run" / "model").schema == data.schema


def flat(launched: dict[str, list[str]]) -> list[str]:
    """Without what poisons these tests' memory."""
    return [name for names in launched.values() for name in names if name != "torch.fill_"]


def test_each_part_of_a_prediction_has_its_launches(data):
    """Every part that computes has kernels, and every kernel a part, whatever the architecture."""
    generator = torch.Generator().manual_seed(2)
    spaces = [af.SearchSpace(data.schema, mlp_layers=layers) for layers in (1, 2, 3)]
    for arch in (space.sample(generator) for space in spaces for _ in range(6)):
        found = predict(data.schema, arch, 4, 64, gpu_of("h100"))
        parts = [part["part"] for part in found["parts"]]
        assert sum(len(part["launches"]) for part in found["parts"]) == len(found["launches"])
        assert parts[0] == "look up" and found["parts"][0]["launches"][-1] == "plan_inputs_kernel"
        assert found["parts"][-1]["launches"][-1] == "plan_head_kernel"
        for part in found["parts"]:
            chained = part["part"].startswith("MLP") and any("chained_kernel" in p["launches"] for p in found["parts"])
            assert part["launches"] or chained, part


def test_a_prediction_for_retrieval_scores_all_items():
    schema = af.FeatureSchema.from_dict(make_schema(task="retrieval", fields=0, behavior=1, max_history=6, seed=2))
    arch = af.Architecture((af.Block("none", "zero", "identity"),), (), fixed_mlp(9, 7), "none")
    last = predict(schema, arch, 4, 20, gpu_of("h100"))["parts"][-1]
    assert last["part"] == "score all items" and [n for n in last["launches"] if n != "torch.fill_"] == ["torch.mm", "torch.mm"]


def test_predictions_note_what_would_be_launched(data):
    arch = af.Supernet(af.SearchSpace(data.schema), 4).sample(torch.Generator().manual_seed(1))
    noted = flat(launches(data.schema, arch, 4, 64))
    own = [name for name in noted if not name.startswith("torch.")]
    assert set(own) <= set(KERNELS) and noted[0] == "plan_inputs_kernel" and noted[-1] == "plan_head_kernel"
    assert noted == flat(launches(data.schema, arch, 4, 4096)), "launches do not depend on the batch"
    for case, count in zip(cases(["alimama"], ["din", "mixed"]), (6, 12), strict=True):  # as docs/gpu.md says
        assert len(flat(launches(case.schema, case.architecture, case.embedding_dim, 256))) == count
    small, large = (predict(data.schema, arch, 4, rows, gpu_of("h100")) for rows in (64, 6400))
    assert small["prediction"] is True and large["total"]["flops"] == 100 * small["total"]["flops"]
    assert large["total"]["seconds"] == pytest.approx(sum(p["seconds"] for p in large["parts"]))


def test_a_prediction_by_hand():
    """Two fields, no history: the first layer's bytes and operations written out."""
    schema = af.FeatureSchema.from_dict({"version": 1, "task": "ctr", "max_history": 0,
                                         "vocabularies": [{"name": n, "size": 10} for n in "ab"],
                                         "fields": [{"name": n, "kind": "categorical", "vocabulary": n} for n in "ab"],
                                         "behavior": [], "target": []})
    arch = af.Architecture.from_dict({"version": 1, "behavior": [], "interactions": [[0, 1]],
                                      "mlp": [{"width": 5, "activation": "relu"}], "shortcut": "none"})
    first, head = forward_work(schema, arch, 4, [0] * 100)
    assert first.flops == 2 * 100 * 12 * 5 + 100 * 4
    assert first.bytes == 4 * (100 * 5 + 12 * 5 + 5) + 100 * 2 * (8 + 32)  # a row of 16 bytes is a sector of 32
    assert (head.flops, head.bytes) == (2 * 100 * 5, 4 * (100 * 5 + 5 + 100))
    h100 = GPUS["h100"]
    assert first.seconds(h100) == max(first.flops / 67e12, first.bytes / 3350e9)
    with pytest.raises(af.InputError, match="device 'h9000'"):
        gpu_of("h9000")
