"""Model against the oracle: names, outputs, gradients, Dice, losses, files, and what must not matter."""

from __future__ import annotations

import copy
import itertools
import json

import pytest
import torch
import torch.nn.functional as F

import ameir_fast as af
from ameir_fast import forward
from ameir_fast.losses import ctr_loss, retrieval_loss
from ameir_fast.model import ModelWeights
from tests import oracle
from tests.helpers import (
    assert_close,
    assert_gradients,
    block,
    gradients,
    hand_schema,
    leaves,
    make_model,
    make_schema,
    random_arch,
    random_batch,
    random_like,
    random_schema,
    select_rows,
    step1_arch,
    strided,
)

MLP = [{"ratio": 0.6, "activation": "relu"}, {"ratio": 0.3, "activation": "swish"}]


def arch_of(behavior=(), interactions=(), mlp=MLP, shortcut="se") -> dict:
    return {"version": 1, "behavior": list(behavior), "interactions": [list(i) for i in interactions],
            "mlp": mlp, "shortcut": shortcut}


def compare(
    schema: dict,
    arch: dict,
    embedding_dim: int,
    batch: af.Batch,
    seed: int,
    what: str,
    *,
    items=None,
    training: bool | None = None,
) -> None:
    """Output and the gradient of every parameter, in evaluation and in training mode."""
    for mode in (False, True) if training is None else (training,):
        model = make_model(schema, arch, embedding_dim, seed).train(mode)
        state = leaves(model)
        got = model(batch, items=items) if items is not None else model(batch)
        want = oracle.model_output(schema, arch, state, batch, items=items, batch_statistics=mode)
        assert got.dtype == want.dtype
        assert_close(got, want, f"{what}, training {mode}")
        cotangent = random_like(want, seed)
        parameters = dict(model.named_parameters())
        assert_gradients(gradients(got, parameters, cotangent), gradients(want, state, cotangent),
                         f"{what}, training {mode}")


# ---- names, shapes, counts ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_state_dict_has_exactly_the_documented_names_and_shapes(seed):
    schema, embedding_dim = random_schema(seed)
    arch = random_arch(schema, embedding_dim, seed, blocks=seed % 4 or 1, mlp_layers=seed % 3 + 1,
                       fixed_mlp=seed % 5 == 0, canonical=seed % 2 == 0)
    model = af.Model(af.FeatureSchema.from_dict(schema), af.Architecture.from_dict(arch), embedding_dim)
    expected = oracle.model_shapes(schema, arch, embedding_dim)
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == expected
    assert {k for k in expected if not oracle.is_buffer(k)} == {k for k, _ in model.named_parameters()}
    assert model.parameter_counts() == oracle.count_parameters(expected)
    assert all(v.dtype == torch.float32 for v in model.state_dict().values())


def test_names_by_hand():
    """Not through the oracle: one model written out."""
    arch = arch_of(
        [
            block("conv3"),
            block("avg_pool3"),
            block("zero", "none", "identity"),
            block("bi_gru", "none"),
            block("self_attn2"),
            block("target_attn", "none"),
        ],
        [(0, 1), (0, 1, 2)],
        [{"ratio": 0.6, "activation": "dice"}, {"ratio": 0.3, "activation": "relu"}],
    )
    model = af.Model(af.FeatureSchema.from_dict(hand_schema().dict), af.Architecture.from_dict(arch), 4)
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    # D 8, h_a 24, K0 24 + 5·4 = 44, widths 26 and 13, SE 5 → 2
    assert shapes == {
        "embedding.weight": (15, 4),
        "behavior.0.norm.weight": (8,),
        "behavior.0.norm.bias": (8,),
        "behavior.0.conv3.weight": (8, 8, 3),
        "behavior.0.conv3.bias": (8,),
        "behavior.1.norm.weight": (8,),
        "behavior.1.norm.bias": (8,),
        "behavior.3.bi_gru.weight_ih_l0": (12, 8),
        "behavior.3.bi_gru.weight_hh_l0": (12, 4),
        "behavior.3.bi_gru.bias_ih_l0": (12,),
        "behavior.3.bi_gru.bias_hh_l0": (12,),
        "behavior.3.bi_gru.weight_ih_l0_reverse": (12, 8),
        "behavior.3.bi_gru.weight_hh_l0_reverse": (12, 4),
        "behavior.3.bi_gru.bias_ih_l0_reverse": (12,),
        "behavior.3.bi_gru.bias_hh_l0_reverse": (12,),
        "behavior.4.norm.weight": (8,),
        "behavior.4.norm.bias": (8,),
        "behavior.4.self_attn2.in_proj_weight": (24, 8),
        "behavior.4.self_attn2.in_proj_bias": (24,),
        "behavior.4.self_attn2.out_proj.weight": (8, 8),
        "behavior.4.self_attn2.out_proj.bias": (8,),
        "behavior.5.target_attn.attention.0.weight": (36, 32),
        "behavior.5.target_attn.attention.0.bias": (36,),
        "behavior.5.target_attn.attention.prelu.weight": (1,),
        "behavior.5.target_attn.attention.1.weight": (1, 36),
        "behavior.5.target_attn.attention.1.bias": (1,),
        "pool.attention.0.weight": (36, 32),
        "pool.attention.0.bias": (36,),
        "pool.attention.prelu.weight": (1,),
        "pool.attention.1.weight": (1, 36),
        "pool.attention.1.bias": (1,),
        "mlp.0.weight": (26, 44),
        "mlp.0.bias": (26,),
        "mlp.0.dice.alpha": (26,),
        "mlp.0.dice.running_mean": (26,),
        "mlp.0.dice.running_var": (26,),
        "mlp.1.weight": (13, 26),
        "mlp.1.bias": (13,),
        "se.project.weight": (1, 4),
        "se.squeeze.weight": (2, 5),
        "se.excite.weight": (5, 2),
        "head.weight": (1, 17),
        "head.bias": (1,),
    }


def test_initial_values():
    """Section 9.25."""
    torch.manual_seed(0)
    schema = hand_schema().dict
    schema["vocabularies"][0]["size"] = 20_000
    arch = arch_of([block("target_attn"), block("bi_gru"), block("self_attn2")], [(0, 2)],
                   [{"ratio": 0.5, "activation": "dice"}])
    state = af.Model(af.FeatureSchema.from_dict(schema), af.Architecture.from_dict(arch), 4).state_dict()
    assert float(state["embedding.weight"].std()) == pytest.approx(0.01, rel=0.02)
    assert abs(float(state["embedding.weight"].mean())) < 2e-4
    for name, tensor in state.items():
        if name.endswith("norm.weight"):
            assert torch.equal(tensor, torch.full_like(tensor, 0.03)), name
        elif name.endswith("prelu.weight"):
            assert torch.equal(tensor, torch.full_like(tensor, 0.25)), name
        elif name.endswith(("norm.bias", "alpha", "running_mean", "in_proj_bias", "out_proj.bias")):
            assert not tensor.any(), name
        elif name.endswith("running_var"):
            assert torch.equal(tensor, torch.ones_like(tensor)), name
        elif "bi_gru" in name:
            assert 0 < float(tensor.abs().max()) <= 4 ** -0.5, name
        elif name.startswith(("mlp", "head", "se")) and tensor.dim() == 2:
            assert 0 < float(tensor.abs().max()) <= tensor.shape[1] ** -0.5, name


# ---- the oracle checks itself -------------------------------------------------------------------


@pytest.mark.parametrize("target", [True, False])
@pytest.mark.parametrize("layer", oracle.LAYERS)
def test_the_two_oracles_agree(layer, target):
    """Row by row over true elements, and padded with masks: written twice, equal."""
    if layer == "target_attn" and not target:
        pytest.skip("needs a target")
    schema = make_schema(target=target)
    arch = arch_of([block(layer), block(layer, "none", "gelu"), block(layer, "layer_norm", "swish")])
    state = make_model(schema, arch, 4).state_dict()
    batch = random_batch(schema, 9, 1, lengths=[0, 1, 2, 7, 3, 0, 5, 7, 4])
    padded, mask = batch.to_padded()
    rows = torch.stack([oracle.row_features(schema, arch, state, batch, b)[0] for b in range(9)])
    for junk in (0, 1):  # whatever the padding holds
        filled = torch.where(mask[..., None], padded, torch.full_like(padded, junk))
        assert_close(oracle.padded_representation(schema, arch, state, batch, filled, mask), rows, layer)


# ---- outputs and gradients ----------------------------------------------------------------------


@pytest.mark.parametrize("layer", oracle.LAYERS)
@pytest.mark.parametrize("norm", oracle.NORMS)
def test_every_layer_norm_and_activation(layer, norm):
    """Lengths 0, 1, the longest and between; the other blocks make errors at the edges travel."""
    schema = make_schema(fields=3, max_history=8)
    batch = random_batch(schema, 6, 2, lengths=[0, 1, 8, 2, 5, 3])
    for i, activation in enumerate(oracle.BLOCK_ACTIVATIONS):
        arch = arch_of([block("conv1", "none", "identity"), block(layer, norm, activation)], [(0, 2)])
        compare(schema, arch, 4, batch, i, f"{norm} {layer} {activation}", training=True)


@pytest.mark.parametrize("seed", range(40))
def test_random_schemas_architectures_and_batches(seed):
    schema, embedding_dim = random_schema(1000 + seed)
    arch = random_arch(schema, embedding_dim, seed, blocks=seed % 3 + 1, mlp_layers=seed % 3 + 1,
                       fixed_mlp=seed % 4 == 0)
    # Dice divides by a deviation: B = 1 (where it is zero) has its own test below.
    batch = random_batch(schema, [5, 2, 7, 3][seed % 4], seed)
    items = None
    if schema["task"] == "retrieval" and seed % 2:
        g = torch.Generator().manual_seed(seed)
        size = {v["name"]: v["size"] for v in schema["vocabularies"]}[oracle.item_vocabulary(schema)]
        items = torch.randint(size, (len(batch), 3), generator=g, dtype=torch.int32)
    compare(schema, arch, embedding_dim, batch, seed, f"seed {seed}", items=items)


@pytest.mark.parametrize("activation", oracle.MLP_ACTIVATIONS)
@pytest.mark.parametrize("rows", [1, 6])
def test_every_mlp_activation_and_a_single_row(activation, rows):
    schema = make_schema(fields=3, multi=1)
    arch = arch_of([block("conv3")], [(0, 1), (0, 1, 2)], [{"ratio": 0.7, "activation": activation},
                                                           {"ratio": 0.4, "activation": activation}])
    compare(schema, arch, 3, random_batch(schema, rows, 3), 4, activation)


@pytest.mark.parametrize("task", ["ctr", "retrieval"])
@pytest.mark.parametrize("multi", [0, 1])
def test_no_rows(task, multi):
    """B = 0: the right shape, no error, zero gradients, statistics as they were."""
    schema = make_schema(task=task, fields=3, multi=multi, behavior=2)
    arch = arch_of([block("bi_gru"), block("self_attn2"), block("max_pool3")], [(0, 1)],
                   [{"ratio": 0.5, "activation": "dice"}])
    model = make_model(schema, arch, 2)
    before = copy.deepcopy(model.state_dict())
    batch = random_batch(schema, 0, 0)
    for mode in (True, False):
        out = model.train(mode)(batch)
        size = model.schema.size(model.schema.item_vocabulary) if task == "retrieval" else None
        assert out.shape == ((0,) if size is None else (0, size))
        out.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or not parameter.grad.any(), name
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("layer", [layer for layer in oracle.LAYERS if layer != "zero"])
def test_only_empty_histories(layer):
    """No bias of a behaviour layer reaches h_a; gradients are finite (9.23)."""
    schema = make_schema(fields=3)
    arch = arch_of([block(layer), block("conv3"), block(layer, "none", "gelu")])
    batch = random_batch(schema, 4, 0, lengths=[0, 0, 0, 0])
    compare(schema, arch, 4, batch, 0, layer, training=True)
    model = make_model(schema, arch, 4)
    first = model(batch)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("behavior", "pool")):
                parameter.add_(3.0)
        model.mlp["0"].weight[:, :24] += 1.0  # the columns of h_a
    assert torch.equal(model(batch), first)


def test_a_history_of_one_element_with_every_layer():
    schema = make_schema(fields=2, max_history=1, behavior=2)
    for i, layer in enumerate(oracle.LAYERS):
        batch = random_batch(schema, 3, i, lengths=[1, 1, 1])
        compare(schema, arch_of([block(layer), block(layer)]), 4, batch, i, layer, training=False)


def test_only_full_histories():
    schema = make_schema(fields=2, max_history=5)
    for i, layer in enumerate(oracle.LAYERS):
        batch = random_batch(schema, 3, i, lengths=[5, 5, 5])
        compare(schema, arch_of([block(layer), block(layer)]), 4, batch, i, layer, training=False)


@pytest.mark.parametrize("seed", range(8))
def test_memory_that_is_not_contiguous(seed):
    schema, embedding_dim = random_schema(seed)
    arch = random_arch(schema, embedding_dim, seed)
    batch = random_batch(schema, 6, seed)
    spread = af.Batch(**{k: strided(getattr(batch, k)) for k in batch.__dataclass_fields__})
    assert not spread.fields.is_contiguous() or spread.fields.numel() < 2
    spread.check(af.FeatureSchema.from_dict(schema))
    model = make_model(schema, arch, embedding_dim, seed).eval()
    assert_close(model(spread), model(batch), "strided batch")
    # A weight that is a transposed view.
    other = make_model(schema, arch, embedding_dim, seed).eval()
    other.mlp["0"].weight.data = other.mlp["0"].weight.data.t().contiguous().t()
    assert_close(other(batch), model(batch), "strided weight")


@pytest.mark.parametrize("embedding_dim, behavior", [(1, 1), (3, 1), (5, 1), (7, 1), (1, 3)])
def test_odd_widths(embedding_dim, behavior):
    schema = make_schema(fields=5, behavior=behavior)
    for seed in range(3):
        arch = random_arch(schema, embedding_dim, seed)
        compare(schema, arch, embedding_dim, random_batch(schema, 5, seed), seed, "odd", training=False)


def test_many_interactions_of_all_orders():
    schema = make_schema(fields=5, multi=2, behavior=0)
    every = [c for r in range(2, 6) for c in itertools.combinations(range(5), r)]
    compare(schema, arch_of([], every), 3, random_batch(schema, 7, 0), 0, "all orders")


def test_single_precision_is_as_good_as_eager_pytorch():
    """Error against the fp64 oracle at most twice that of the fp32 oracle, plus a tiny floor."""
    for seed in range(12):
        schema, embedding_dim = random_schema(500 + seed)
        arch = random_arch(schema, embedding_dim, seed, dice=False)
        batch = random_batch(schema, 5, seed)
        model = make_model(schema, arch, embedding_dim, seed, torch.float32)
        exact_state = {k: v.detach().double() for k, v in model.state_dict().items()}
        exact = oracle.model_output(schema, arch, exact_state, batch)
        eager = oracle.model_output(schema, arch, leaves(model), batch).double()
        got = model(batch)
        assert got.dtype == torch.float32
        floor = 4 * torch.finfo(torch.float32).eps * max(1.0, float(exact.abs().max()))
        allowed = 2 * float((eager.detach() - exact).abs().max()) + floor
        error = float((got.detach().double() - exact).abs().max())
        assert error <= allowed, f"seed {seed}: error {error:.3g}, allowed {allowed:.3g}"


# ---- what must not matter -----------------------------------------------------------------------


@pytest.mark.parametrize("target", [True, False])
@pytest.mark.parametrize("layer", oracle.LAYERS)
def test_padded_and_jagged_agree(layer, target):
    if layer == "target_attn" and not target:
        pytest.skip("needs a target")
    schema = make_schema(target=target, fields=3)
    arch = arch_of([block(layer), block("dconv3", "none", "gelu"), block(layer, "none", "swish")])
    batch = random_batch(schema, 8, 3, lengths=[0, 1, 7, 2, 0, 4, 7, 3])
    model = make_model(schema, arch, 4).eval()
    state = leaves(model)
    padded, mask = batch.to_padded()
    h_a = oracle.padded_representation(schema, arch, state, batch, padded, mask)
    rest = [oracle.row_features(schema, arch, state, batch, b)[1] for b in range(8)]
    hidden = torch.stack([torch.cat([a, e.flatten()]) for a, e in zip(h_a, rest)])
    for l in (0, 1):
        hidden = oracle.activate(MLP[l]["activation"],
                                 F.linear(hidden, state[f"mlp.{l}.weight"], state[f"mlp.{l}.bias"]))
    se = torch.stack([oracle.squeeze_excite(state, e) for e in rest])
    logit = F.linear(torch.cat([hidden, se], 1), state["head.weight"], state["head.bias"])[:, 0]
    assert_close(model(batch), logit, layer)


@pytest.mark.parametrize("seed", range(12))
def test_row_order_neighbours_and_duplicates_do_not_matter(seed):
    schema, embedding_dim = random_schema(200 + seed)
    arch = random_arch(schema, embedding_dim, seed, dice=seed % 2 == 0)
    model = make_model(schema, arch, embedding_dim, seed).eval()
    batch = random_batch(schema, 7, seed)
    whole = model(batch)
    order = [3, 3, 0, 6, 1, 1, 1, 5, 2, 4, 3]
    assert_close(model(select_rows(batch, order)), whole[order], "order and duplicates")
    for row in range(7):
        assert_close(model(batch.slice(row, row + 1)), whole[row:row + 1], f"row {row} alone")
    assert_close(torch.cat([model(batch.slice(0, 3)), model(batch.slice(3, 7))]), whole, "two halves")


def test_duplicated_rows_only_matter_through_dice_statistics():
    schema = make_schema(fields=3)
    arch = arch_of([block("conv3")], [(0, 1)], [{"ratio": 0.6, "activation": "dice"}])
    batch = random_batch(schema, 5, 0)
    twice = select_rows(batch, [0, 1, 2, 3, 4] * 2)
    thrice = select_rows(batch, [0, 1, 2, 3, 4, 0, 0])
    model = make_model(schema, arch, 4).train()
    assert_close(model(twice)[:5], model(batch), "the same statistics")
    assert float((model(thrice)[:5] - model(batch)).detach().abs().max()) > 1e-4
    plain = make_model(schema, arch_of([block("conv3")], [(0, 1)]), 4).train()
    assert_close(plain(thrice)[:5], plain(batch), "no statistics")


@pytest.mark.parametrize("seed", range(6))
def test_zero_blocks_equal_a_shallower_net(seed):
    schema = make_schema(fields=3)
    shallow = random_arch(schema, 4, seed, blocks=2)
    zero = {"norm": "none", "layer": "zero", "activation": "identity"}
    deep = copy.deepcopy(shallow)
    deep["behavior"] = [zero, shallow["behavior"][0], zero, zero, shallow["behavior"][1]]
    a, b = make_model(schema, shallow, 4, seed).eval(), make_model(schema, deep, 4, seed).eval()
    moved = {name.replace("behavior.0.", "behavior.1.", 1) if name.startswith("behavior.0.") else
             name.replace("behavior.1.", "behavior.4.", 1) if name.startswith("behavior.1.") else name: tensor
             for name, tensor in a.state_dict().items()}
    b.load_state_dict(moved)
    batch = random_batch(schema, 6, seed)
    assert torch.equal(a(batch), b(batch))
    assert a.parameter_counts() == b.parameter_counts()


def test_dilated_layers_see_what_they_should():
    """By impulse: element j of the history changes element i of the output only at the taps."""
    taps = {"conv1": [0], "conv3": [-1, 0, 1], "dconv3": [-2, 0, 2], "dconv5": [-4, -2, 0, 2, 4],
            "dconv7": [-6, -4, -2, 0, 2, 4, 6]}
    from ameir_fast.reference import sequence_block
    for layer, reach in taps.items():
        kernel = len(reach)
        weight = torch.randn(2, 2, kernel, dtype=torch.float64)
        offsets = torch.tensor([0, 13, 20])
        base = torch.zeros(20, 2, dtype=torch.float64)
        for j in (0, 6, 12, 15):
            x = base.clone()
            x[j] = 1.0
            out = sequence_block(x, offsets, [], [weight, torch.zeros(2, dtype=torch.float64)], None, layer,
                                 "identity", 13) - x
            begin, end = (0, 13) if j < 13 else (13, 20)
            expected = {j + r for r in reach if begin <= j + r < end}
            assert set(out.abs().sum(1).nonzero()[:, 0].tolist()) == expected, (layer, j)


# ---- multi-categorical fields, embedding rows ---------------------------------------------------


def test_bags_are_means_with_multiplicity_and_columns_are_ignored():
    schema = hand_schema().dict
    arch = arch_of([block("zero", "none", "identity")], [(0, 1)])
    model = make_model(schema, arch, 2).eval()
    batch = random_batch(schema, 2, 0, lengths=[1, 2])
    same = {"fields": batch.fields, "history": batch.history, "history_offsets": batch.history_offsets}

    def logits(bags: list[list[int]], fields=batch.fields):
        ids = torch.tensor([i for bag in bags for i in bag], dtype=torch.int32)
        sizes = torch.tensor([0] + [len(b) for b in bags]).cumsum(0)
        return model(af.Batch(**{**same, "fields": fields}, bag_ids=ids, bag_offsets=sizes))

    assert_close(logits([[1, 1, 2], [3]]), logits([[2, 1, 1], [3, 3, 3]]), "multiplicity, not order")
    assert float((logits([[1, 1, 2], [3]]) - logits([[1, 2], [3]])).detach()[0].abs()) > 1e-6
    state = {k: v.clone() for k, v in model.state_dict().items()}
    state["embedding.weight"][8:12] = 0.0
    zeroed = make_model(schema, arch, 2).eval()
    zeroed.load_state_dict(state)
    empty = logits([[], []])
    kept = af.Batch(
        **same, bag_ids=torch.tensor([1, 2], dtype=torch.int32), bag_offsets=torch.tensor([0, 1, 2])
    )
    assert_close(empty, zeroed(kept), "an empty bag is the zero vector")


def test_only_looked_up_rows_get_a_gradient():
    schema = hand_schema().dict
    arch = arch_of([block("self_attn2")], [(0, 2)])
    model = make_model(schema, arch, 2).train()
    batch = af.Batch(fields=torch.tensor([[1, 0, 2]], dtype=torch.int32),
                     history=torch.tensor([[3, 1]], dtype=torch.int32), history_offsets=torch.tensor([0, 1]),
                     bag_ids=torch.tensor([2], dtype=torch.int32), bag_offsets=torch.tensor([0, 1]))
    model(batch).sum().backward()
    touched = model.embedding.weight.grad.abs().sum(1).nonzero()[:, 0].tolist()
    assert touched == [1, 3, 6, 10, 14]


def test_the_target_order_is_that_of_the_behavior_fields():
    """Swapping ``target`` swaps the halves of t, and nothing else."""
    schema = hand_schema().dict
    swapped = {**schema, "target": ["city", "item"]}
    arch = arch_of([block("target_attn")])
    batch = random_batch(schema, 6, 0, lengths=[3, 2, 1, 3, 0, 2])
    compare(swapped, arch, 3, batch, 0, "swapped target", training=False)
    a, b = make_model(schema, arch, 3).eval(), make_model(swapped, arch, 3).eval()
    b.load_state_dict(a.state_dict())
    assert float((a(batch) - b(batch)).detach().abs().max()) > 1e-3


# ---- retrieval ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [0, 2])
def test_retrieval_scores(fields):
    schema = make_schema(task="retrieval", fields=fields, behavior=2, shared=False, max_history=6)
    arch = arch_of([block("self_attn2"), block("bi_gru", "none", "gelu")], [(0, 1)] if fields else [])
    model = make_model(schema, arch, 4).eval()
    batch = random_batch(schema, 5, 1)
    whole = model(batch)
    name = schema["behavior"][0]["vocabulary"]
    size = model.schema.size(name)
    assert whole.shape == (5, size)
    items = torch.randint(size, (5, 4), dtype=torch.int32)
    assert_close(model(batch, items=items), whole.gather(1, items.long()), "chosen items")
    assert_close(model(batch, items=items.long()), whole.gather(1, items.long()), "items as int64")
    assert model(batch, items=items[:, :0]).shape == (5, 0)
    compare(schema, arch, 4, batch, 2, "all items")
    compare(schema, arch, 4, batch, 2, "some items", items=items)


def test_retrieval_of_another_vocabulary_than_the_first():
    schema = make_schema(task="retrieval", fields=1, behavior=2, shared=False)
    schema["item"] = schema["behavior"][1]["vocabulary"]
    batch = random_batch(schema, 4, 0)
    compare(schema, arch_of([block("conv3")]), 4, batch, 0, "item vocabulary", training=False)


# ---- Dice ---------------------------------------------------------------------------------------


def test_running_statistics_move_by_a_tenth_towards_the_biased_batch_statistics():
    schema = make_schema(fields=3)
    arch = arch_of([block("conv1")], [(0, 2)], [{"ratio": 0.7, "activation": "dice"},
                                                {"ratio": 0.7, "activation": "dice"}])
    model = make_model(schema, arch, 4).train()
    state, seen = leaves(model), {}
    batch = random_batch(schema, 6, 0)
    oracle.model_output(schema, arch, state, batch, batch_statistics=True, seen=seen)
    model(batch)
    for l, (mean, variance) in seen.items():
        dice = model.mlp[str(l)].dice
        assert_close(dice.running_mean, 0.9 * state[f"mlp.{l}.dice.running_mean"] + 0.1 * mean, "mean")
        assert_close(dice.running_var, 0.9 * state[f"mlp.{l}.dice.running_var"] + 0.1 * variance, "variance")
    moved = copy.deepcopy(model.state_dict())
    model.eval()(batch)
    assert all(torch.equal(moved[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("splits", [[0, 23], [0, 5, 6, 23], [0, 0, 11, 23, 23], [0, *range(1, 24)]])
def test_recomputed_statistics_are_exact_over_all_rows(splits):
    """Whatever the batches: equal sizes or not, empty ones, single rows (9.13)."""
    schema = make_schema(fields=4, multi=1)
    arch = arch_of([block("conv3"), block("bi_gru")], [(0, 1)],
                   [{"ratio": 0.8, "activation": "dice"}, {"ratio": 0.6, "activation": "swish"},
                    {"ratio": 0.6, "activation": "dice"}])
    model = make_model(schema, arch, 4).train()
    rows = random_batch(schema, 23, 3)
    batches = [rows.slice(a, b) for a, b in itertools.pairwise(splits)]
    want = oracle.dice_statistics(schema, arch, {k: v.clone() for k, v in model.state_dict().items()}, [rows])
    others = {k: v.clone() for k, v in model.state_dict().items() if not oracle.is_buffer(k)}
    model.recompute_dice(batches)
    state = model.state_dict()
    for name, tensor in want.items():
        assert_close(state[name], tensor, name)
    assert all(torch.equal(state[k], v) for k, v in others.items())
    assert model.training
    # Evaluated on these very rows, the model is now what batch statistics over all of them would give.
    model.eval()
    want = oracle.model_output(schema, arch, leaves(model), rows, batch_statistics=True)
    assert_close(model(rows), want, "evaluation after recomputation")


def test_recomputation_of_float32_models_is_exact_for_large_means():
    """A mean far from zero cancels in E[s²] − E[s]²; a two-pass or pairwise form must be used."""
    schema = make_schema(fields=2, behavior=0)
    arch = arch_of([], [], [{"ratio": 1.0, "activation": "dice"}], "none")
    model = make_model(schema, arch, 2, dtype=torch.float32)
    with torch.no_grad():
        model.mlp["0"].bias.add_(1000.0)
    rows = random_batch(schema, 64, 0)
    exact = oracle.dice_statistics(
        schema, arch, {k: v.double() for k, v in model.state_dict().items()}, [rows]
    )
    model.recompute_dice([rows.slice(i, i + 9) for i in range(0, 64, 9)])
    got = model.mlp["0"].dice.running_var.double()
    want = exact["mlp.0.dice.running_var"]
    # The pre-activations themselves carry an error of 1000 · eps each.
    assert float((got - want).abs().max()) < 5e-3 * float(want.max().clamp(min=1.0))


def test_recomputation_needs_rows():
    model = make_model(make_schema(behavior=0), arch_of([], [], [{"ratio": 0.5, "activation": "dice"}]), 2)
    with pytest.raises(ValueError, match="rows"):
        model.recompute_dice([])
    without = make_model(make_schema(behavior=0), arch_of(), 2)
    without.recompute_dice([])  # nothing to do


def test_evaluation_before_recomputation_uses_zero_and_one():
    schema = make_schema(behavior=0)
    arch = arch_of([], [(0, 1)], [{"ratio": 0.5, "activation": "dice"}])
    model = af.Model(af.FeatureSchema.from_dict(schema), af.Architecture.from_dict(arch), 3).double().eval()
    batch = random_batch(schema, 5, 0)
    state = leaves(model)
    assert not state["mlp.0.dice.running_mean"].any() and bool((state["mlp.0.dice.running_var"] == 1).all())
    assert_close(model(batch), oracle.model_output(schema, arch, state, batch), "fresh statistics")


# ---- losses -------------------------------------------------------------------------------------


def test_losses_by_hand():
    logit = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
    label = torch.tensor([1.0, 0.0, 0.0])
    assert_close(ctr_loss(logit, label), oracle.ctr_loss(logit, label.double()), "ctr")
    # σ(0) = 1/2: one positive and two negatives at score 0 cost 3·log 2 each row: a sum over negatives.
    zeros = torch.zeros(4, 3, dtype=torch.float64)
    assert float(retrieval_loss(zeros)) == pytest.approx(3 * 0.6931471805599453, abs=1e-14)
    scores = random_like(torch.empty(5, 7, dtype=torch.float64), 0)
    assert_close(retrieval_loss(scores), oracle.retrieval_loss(scores[:, 0], scores[:, 1:]), "retrieval")


def test_losses_are_finite_for_extreme_scores():
    logit = torch.tensor([1e4, -1e4, 1e4, -1e4], requires_grad=True)
    loss = ctr_loss(logit, torch.tensor([1.0, 0.0, 0.0, 1.0]))
    loss.backward()
    assert loss.item() == pytest.approx(5e3) and bool(torch.isfinite(logit.grad).all())
    scores = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    loss = retrieval_loss(scores)
    loss.backward()
    assert loss.item() == pytest.approx(1e4) and bool(torch.isfinite(scores.grad).all())


# ---- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_saved_and_loaded(seed, tmp_path):
    schema, embedding_dim = random_schema(300 + seed)
    arch = random_arch(schema, embedding_dim, seed, fixed_mlp=seed == 0)
    model = make_model(schema, arch, embedding_dim, seed, torch.float32).eval()
    model.save(tmp_path / "model")
    loaded = af.Model.load(tmp_path / "model").eval()
    assert loaded.arch == model.arch and loaded.schema == model.schema
    assert loaded.embedding_dim == embedding_dim
    batch = random_batch(schema, 5, seed)
    assert torch.equal(loaded(batch), model(batch))
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["model.json", "model.safetensors"]
    model.save(tmp_path / "model")  # over an existing one
    assert torch.equal(af.Model.load(tmp_path / "model").eval()(batch), model(batch))


def test_double_precision_survives_saving(tmp_path):
    schema = make_schema(behavior=0)
    model = make_model(schema, arch_of(), 3).eval()
    model.save(tmp_path)
    batch = random_batch(schema, 4, 0)
    with torch.no_grad():
        saved, loaded = model(batch), af.Model.load(tmp_path).eval()(batch)
    assert loaded.dtype == torch.float64 and torch.equal(loaded, saved)


def test_damaged_files_are_named(tmp_path):
    model = make_model(make_schema(behavior=0), arch_of([], [(0, 1)]), 3, dtype=torch.float32)
    model.save(tmp_path)
    weights, about = (tmp_path / "model.safetensors").read_bytes(), (tmp_path / "model.json").read_text()
    for cut in (0, 4, 20, len(weights) // 2, len(weights) - 1):
        (tmp_path / "model.safetensors").write_bytes(weights[:cut])
        with pytest.raises(ValueError, match="model.safetensors"):
            af.Model.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    data = json.loads(about)
    for wrong in ({**data, "version": 99}, {k: v for k, v in data.items() if k != "architecture"}, [], "x"):
        (tmp_path / "model.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="model.json|architecture"):
            af.Model.load(tmp_path)
    (tmp_path / "model.json").write_text(about[:-10])
    with pytest.raises(ValueError, match="model.json"):
        af.Model.load(tmp_path)
    (tmp_path / "model.json").unlink()
    with pytest.raises(ValueError, match="model.json"):
        af.Model.load(tmp_path)


def test_weights_of_another_architecture(tmp_path):
    schema = make_schema(behavior=0)
    one, other = (
        make_model(schema, arch_of([], i), 3, dtype=torch.float32) for i in ([(0, 1)], [(0, 1), (1, 2)])
    )
    one.save(tmp_path / "one")
    other.save(tmp_path / "other")
    (tmp_path / "one" / "model.safetensors").write_bytes(
        (tmp_path / "other" / "model.safetensors").read_bytes()
    )
    with pytest.raises(ValueError, match="model.safetensors"):
        af.Model.load(tmp_path / "one")


# ---- an equivalent plain module -----------------------------------------------------------------


def test_a_state_dict_loads_into_pytorchs_own_modules():
    """A Model loads into an equivalent plain-PyTorch module written by anyone from the documented names and shapes."""
    schema = make_schema(fields=3)
    arch = arch_of([block("dconv5"), block("bi_gru"), block("self_attn4")])
    state = make_model(schema, arch, 4).state_dict()
    own = {
        "dconv5": torch.nn.Conv1d(8, 8, 5, padding=4, dilation=2),
        "bi_gru": torch.nn.GRU(8, 4, bidirectional=True),
        "self_attn4": torch.nn.MultiheadAttention(8, 4),
        "norm": torch.nn.LayerNorm(8),
    }
    for l, b in enumerate(arch["behavior"]):
        for name in (b["layer"], "norm"):
            prefix = f"behavior.{l}.{name}."
            part = {k[len(prefix):]: v for k, v in state.items() if k.startswith(prefix)}
            own[name].load_state_dict(part, strict=True)


def test_the_fixed_mlp_as_a_model():
    schema = make_schema(fields=2)
    arch = step1_arch([block("conv1"), block("target_attn"), block("max_pool3")])
    compare(schema, arch, 4, random_batch(schema, 4, 0), 0, "fixed MLP", training=False)


def test_dropout_is_for_training_only_and_follows_its_generator():
    schema = make_schema(behavior=0)
    model = make_model(schema, arch_of([], [(0, 1)]), 4)
    batch = random_batch(schema, 30, 0)
    plain = model.eval()(batch)
    model.dropout = 0.5
    assert torch.equal(model.eval()(batch), plain)
    outputs = []
    for seed in (1, 1, 2):
        model.generator = torch.Generator().manual_seed(seed)
        outputs.append(model.train()(batch))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    assert bool(torch.isfinite(outputs[0]).all())


def test_dropout_of_blocks_leaves_the_input_alone():
    """What a block adds is dropped or scaled, number by number; its input and zero blocks are not."""
    schema = make_schema(behavior=1, fields=1, max_history=6, target=False)
    blocks = [block("conv1", "layer_norm", "identity"), block("zero", "none", "identity")]
    model = make_model(schema, {**arch_of(blocks, []), "shortcut": "none"}, 4).train()
    batch = random_batch(schema, 40, 0)
    inputs = forward.prepare(model.schema, model.embedding.weight, batch)
    weights = ModelWeights(model)
    plain = forward.run_block(weights, 0, model.arch.behavior[0], inputs.history, inputs)
    model.block_dropout, model.generator = 0.5, torch.Generator().manual_seed(1)
    weights = ModelWeights(model)
    dropped = forward.run_block(weights, 0, model.arch.behavior[0], inputs.history, inputs)
    branch = (plain - inputs.history).detach()
    kept = (dropped - inputs.history).detach()
    gone = kept.abs() < 1e-6
    assert 0.3 < float(gone.double().mean()) < 0.7
    assert_close(kept[~gone], 2 * branch[~gone], "branch")
    assert forward.run_block(weights, 1, model.arch.behavior[1], inputs.history, inputs) is inputs.history
    model.eval()
    assert torch.equal(forward.run_block(ModelWeights(model), 0, model.arch.behavior[0], inputs.history, inputs), plain)
