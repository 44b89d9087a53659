"""Supernet: names, paths against the oracle and against derived models, steps 1 and 2, the verbs."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch

import ameir_fast as af
from tests import oracle
from tests.helpers import (
    assert_close,
    assert_gradients,
    block,
    gradients,
    leaves,
    make_schema,
    make_supernet,
    random_arch,
    random_batch,
    random_like,
    random_schema,
    randomise,
    select_rows,
    step1_arch,
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def candidates_of(schema: dict, most: int = 3) -> list[tuple[int, ...]]:
    n = len(schema["fields"])
    return [c for r in range(1, min(n, most) + 1) for c in itertools.combinations(range(n), r)]


# ---- names and shapes ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(25))
def test_state_dict_has_exactly_the_documented_names_and_shapes(seed):
    schema, embedding_dim = random_schema(seed)
    n = len(schema["fields"])
    most = min(seed % 4, 2 ** n - n - 1)
    sizes = {"blocks": seed % 3 + 1, "mlp_layers": seed % 3 + 1, "interactions": most}
    net = make_supernet(schema, embedding_dim, dtype=torch.float32, **sizes)
    grown = "step2.interactions."
    shapes = {k: tuple(v.shape) for k, v in net.state_dict().items() if not k.startswith(grown)}
    expected = oracle.supernet_shapes(schema, embedding_dim, **sizes)
    assert shapes == expected
    assert {k for k in expected if not oracle.is_buffer(k)} == {
        k for k, _ in net.named_parameters() if not k.startswith(grown)}


def test_names_of_the_search_only_weights():
    net = make_supernet(make_schema(fields=4, behavior=1, target=True), 4)
    net.add_interactions([(0,), (2,), (0, 1), (3, 1), (0, 1, 3)])
    state = {k: tuple(v.shape) for k, v in net.state_dict().items() if k.startswith(("step1", "step2"))}
    assert state == {
        "step1.mlp.0.weight": (200, 12 + 16), "step1.mlp.0.bias": (200,),
        "step1.mlp.1.weight": (80, 200), "step1.mlp.1.bias": (80,),
        "step1.head.weight": (1, 80), "step1.head.bias": (1,),
        "step2.fields.weight": (200, 16), "step2.mlp.0.bias": (200,),
        "step2.mlp.1.weight": (80, 200), "step2.mlp.1.bias": (80,),
        "step2.head.weight": (1, 80), "step2.head.bias": (1,),
        **{f"step2.interactions.{name}.weight": (200, 4) for name in ("0", "2", "0_1", "1_3", "0_1_3")}}
    assert all(v.dtype == torch.float64 for v in net.state_dict().values())


def test_embedding_dim_of_the_space_is_the_supernets():
    schema = af.FeatureSchema.from_dict(make_schema(behavior=1))
    net = af.Supernet(af.SearchSpace(schema), embedding_dim=3)
    assert "bi_gru" not in net.space.layers
    g = generator(0)
    drawn = {b.layer for _ in range(60) for b in net.sample(g).behavior}
    assert not drawn & {"bi_gru", "self_attn2", "self_attn4"}


# ---- a path of the supernet ---------------------------------------------------------------------


def check_child(schema, arch, embedding_dim, net, batch, seed, items=None):
    """Output and gradients of ``net(batch, arch)`` against the oracle on the supernet's own state dict."""
    state = leaves(net)
    cotangent = None
    for mode in (True, False):  # Dice uses the statistics of the batch at hand in both
        got = net.train(mode)(batch, af.Architecture.from_dict(arch), items=items)
        want = oracle.supernet_output(schema, arch, embedding_dim, state, batch, items=items)
        assert_close(got, want, f"training {mode}")
        cotangent = random_like(want, seed)
        assert_gradients(gradients(got, dict(net.named_parameters()), cotangent),
                         gradients(want, state, cotangent), f"training {mode}")


@pytest.mark.parametrize("seed", range(25))
def test_outputs_and_gradients_of_random_children(seed):
    schema, embedding_dim = random_schema(2000 + seed)
    n = len(schema["fields"])
    most = min(3, 2 ** n - n - 1)
    net = make_supernet(schema, embedding_dim, seed, blocks=2, mlp_layers=seed % 3 + 1, interactions=most)
    arch = random_arch(schema, embedding_dim, seed, blocks=2, mlp_layers=seed % 3 + 1, interactions=most)
    batch = random_batch(schema, [4, 2, 6][seed % 3], seed)
    some_items = schema["task"] == "retrieval" and seed % 2
    items = torch.zeros(len(batch), 2, dtype=torch.int32) if some_items else None
    check_child(schema, arch, embedding_dim, net, batch, seed, items)


@pytest.mark.parametrize("seed", range(6))
def test_outputs_and_gradients_of_the_fixed_mlp(seed):
    """Step 1's path, through the oracle's child and through its separate step-1 function."""
    schema, embedding_dim = random_schema(2100 + seed, task="retrieval" if seed == 5 else "ctr")
    net = make_supernet(schema, embedding_dim, seed, blocks=2, interactions=0)
    arch = step1_arch(random_arch(schema, embedding_dim, seed, blocks=2)["behavior"])
    batch = random_batch(schema, 4, seed)
    check_child(schema, arch, embedding_dim, net, batch, seed)
    want = oracle.step1_output(schema, arch["behavior"], leaves(net), batch)
    assert_close(net(batch, af.Architecture.from_dict(arch)), want, "step 1")


@pytest.mark.parametrize("change", [
    lambda d: d["mlp"][0].update(width=199), lambda d: d["mlp"][1].update(width=200),
    lambda d: d["mlp"][1].update(activation="dice"), lambda d: d.update(shortcut="se"),
    lambda d: d.update(interactions=[[0, 1]])])
def test_other_fixed_widths_exist_only_as_a_model(change):
    schema = make_schema()
    net, data = make_supernet(schema, 4), step1_arch([block("conv1")] * 3)
    change(data)
    arch, batch = af.Architecture.from_dict(data), random_batch(schema, 3, 0)
    for use in (lambda: net(batch, arch), lambda: net.derive(arch), lambda: net.set_active_subnet(arch)):
        with pytest.raises(ValueError, match="width"):
            use()
    af.Model(net.schema, arch, 4)(batch)


# ---- derived models -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_supernet_path_equals_derived_model(seed):
    """Outputs and gradients; in training mode a model's Dice uses the batch, as a supernet's always does."""
    schema, embedding_dim = random_schema(2200 + seed)
    n = len(schema["fields"])
    most = min(3, 2 ** n - n - 1)
    net = make_supernet(schema, embedding_dim, seed, interactions=most)
    data = (step1_arch(random_arch(schema, embedding_dim, seed)["behavior"]) if seed % 5 == 0 else
            random_arch(schema, embedding_dim, seed, interactions=most))
    arch = af.Architecture.from_dict(data)
    model = net.derive(arch)
    assert model.arch == arch.canonical() and model.schema == net.schema
    child = oracle.child_state(
        schema, data, embedding_dim, {k: v.detach() for k, v in net.state_dict().items()}
    )
    state = model.state_dict()
    assert state.keys() == child.keys()
    assert all(torch.equal(state[k], child[k]) and state[k].dtype == torch.float64 for k in child)
    batch = random_batch(schema, 5, seed)
    mine, theirs = net.train()(batch, arch), model.train()(batch)
    assert_close(theirs, mine, "outputs")
    cotangent = random_like(mine, seed)
    from_net = gradients(mine, dict(net.named_parameters()), cotangent)
    from_model = gradients(theirs, dict(model.named_parameters()), cotangent)
    cut = oracle.child_state(schema, data, embedding_dim, from_net | {
        k: v for k, v in net.state_dict().items() if oracle.is_buffer(k)})
    for name, gradient in from_model.items():
        assert_close(cut[name], gradient, f"gradient of {name}")
    # Outside the child's slices nothing moves.
    for name, gradient in from_net.items():
        total = float(gradient.abs().sum())
        inside = {k: float(v.abs().sum()) for k, v in from_model.items()}
        own = name.removeprefix("step1.") if oracle.is_step1(data) and name.startswith("step1.") else name
        if oracle.is_step1(data) and name.split(".")[0] in ("mlp", "head", "se"):
            own = "not read"
        assert total == pytest.approx(inside.get(own, 0.0), rel=1e-9, abs=1e-12), name


def test_derived_model_is_independent_of_the_supernet():
    schema = make_schema()
    net = make_supernet(schema, 4)
    arch = net.sample(generator(3))
    model, batch = net.derive(arch), random_batch(schema, 5, 0)
    before, net_before = model.train()(batch).detach().clone(), net(batch, arch).detach().clone()
    pointers = {t.untyped_storage().data_ptr() for t in net.state_dict().values()}
    assert not pointers & {t.untyped_storage().data_ptr() for t in model.state_dict().values()}
    for tensor in model.state_dict().values():  # a slice must not keep the maximal matrix alive
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    randomise(net, 77)
    assert torch.equal(model(batch), before)
    net = make_supernet(schema, 4)
    randomise(model, 78)
    assert torch.equal(net(batch, arch), net_before)
    assert all(p.requires_grad for p in model.parameters())


def test_derived_dice_statistics_start_at_zero_and_one():
    schema = make_schema()
    net = make_supernet(schema, 4)  # whose own buffers are random here, and never read
    data = random_arch(schema, 4, 0)
    data["mlp"] = [{"ratio": 0.6, "activation": "dice"}, {"ratio": 0.4, "activation": "dice"}]
    model = net.derive(af.Architecture.from_dict(data))
    for l in "01":
        assert not model.mlp[l].dice.running_mean.any()
        assert torch.equal(model.mlp[l].dice.running_var, torch.ones_like(model.mlp[l].dice.running_var))
    batch = random_batch(schema, 5, 0)
    assert_close(model.eval()(batch), oracle.model_output(schema, data, leaves(model), batch), "0 and 1")
    model.recompute_dice([batch])
    assert_close(model.eval()(batch), net(batch, af.Architecture.from_dict(data)), "after recomputation")


def test_the_supernets_own_statistics_are_never_written():
    schema = make_schema()
    net = make_supernet(schema, 4)
    data = random_arch(schema, 4, 0)
    data["mlp"] = [{"ratio": 0.6, "activation": "dice"}, {"ratio": 0.6, "activation": "dice"}]
    before = copy.deepcopy(net.state_dict())
    for mode in (True, False):
        net.train(mode)(random_batch(schema, 5, 0), af.Architecture.from_dict(data))
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_slices_read_in_place_equal_extracted_matrices():
    """The maximal matrices, filled with NaN outside the child's slices, give the same numbers."""
    schema = make_schema(fields=4, multi=1)
    net = make_supernet(schema, 4, mlp_layers=3, interactions=3)
    data = random_arch(schema, 4, 5, mlp_layers=3, interactions=2, shortcut="se")
    data["mlp"] = [{"ratio": 0.7, "activation": "dice"}, {"ratio": 0.4, "activation": "relu"},
                   {"ratio": 0.2, "activation": "swish"}]
    data["interactions"] = [[0, 1]]
    arch, batch = af.Architecture.from_dict(data), random_batch(schema, 6, 1)
    clean = net(batch, arch)
    widths = oracle.mlp_widths(schema, data, 4)
    inputs = [oracle.Sizes(schema, 4).k0(1), *widths]
    poisoned = copy.deepcopy(net)
    with torch.no_grad():
        for l, out in enumerate(widths):
            unit = poisoned.mlp[str(l)]
            unit.weight[out:] = unit.weight[:, inputs[l]:] = torch.nan
            unit.bias[out:] = unit.dice.alpha[out:] = torch.nan
        poisoned.se.squeeze.weight[2:] = poisoned.se.squeeze.weight[:, 5:] = torch.nan
        poisoned.se.excite.weight[5:] = poisoned.se.excite.weight[:, 2:] = torch.nan
        poisoned.head.weight[:, widths[-1]:-4] = torch.nan
        for name, parameter in poisoned.named_parameters():
            if name.startswith(("step1", "step2")):
                parameter.fill_(torch.nan)
    assert torch.equal(poisoned(batch, arch), clean)
    assert_close(net.derive(arch).train()(batch), clean, "extracted")


def test_fewer_interactions_only_shorten_k0():
    schema = make_schema(fields=4)
    net = make_supernet(schema, 4, interactions=3)
    batch = random_batch(schema, 5, 0)
    for count in range(4):
        data = random_arch(schema, 4, 1)
        data["interactions"] = [[0, 1], [1, 2], [0, 2, 3]][:count]
        check_child(schema, data, 4, net, batch, count)


def test_empty_batches_and_single_rows():
    for task in ("ctr", "retrieval"):
        schema = make_schema(task=task, fields=3, multi=1, target=task == "ctr")
        net = make_supernet(schema, 4)
        data = random_arch(schema, 4, 2)
        data["mlp"] = [{"ratio": 0.6, "activation": "dice"}, {"ratio": 0.5, "activation": "dice"}]
        out = net(random_batch(schema, 0, 0), af.Architecture.from_dict(data))
        assert out.shape[0] == 0
        out.sum().backward()
        assert all(p.grad is None or not p.grad.any() for p in net.parameters())
        check_child(schema, data, 4, net, random_batch(schema, 1, 0), 0)
        if task == "ctr":
            net.add_interactions([(0, 1)])
            assert net.interaction_logit(random_batch(schema, 0, 0), (0, 1)).shape == (0,)


def test_row_order_and_duplicates():
    schema = make_schema(fields=3, multi=1)
    net = make_supernet(schema, 4)
    batch = random_batch(schema, 6, 0)
    order = [5, 0, 0, 3, 2, 1, 4, 4]
    for seed in range(6):
        arch = af.Architecture.from_dict(random_arch(schema, 4, seed, dice=False))
        assert_close(net(select_rows(batch, order), arch), net(batch, arch)[order], "order and duplicates")
    dice = af.Architecture.from_dict(
        random_arch(schema, 4, 0) | {"mlp": [{"ratio": 0.5, "activation": "dice"}] * 2}
    )
    permuted = [5, 0, 3, 2, 1, 4]
    assert_close(
        net(select_rows(batch, permuted), dice), net(batch, dice)[permuted], "a permutation, with Dice"
    )


# ---- step 2 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_step2_outputs_and_gradients(seed):
    schema = make_schema(fields=4, multi=seed % 2, behavior=seed % 3, seed=seed)
    net = make_supernet(schema, 3, seed)
    net.add_interactions(candidates_of(schema))
    randomise(net, seed)
    batch = random_batch(schema, 6, seed)
    state = leaves(net)
    for candidate in [None, (0,), (3,), (0, 2), (3, 1), (1, 2, 3)]:
        got = net.interaction_logit(batch, candidate)
        want = oracle.step2_output(schema, candidate, state, batch)
        assert_close(got, want, f"candidate {candidate}")
        cotangent = random_like(want, seed)
        assert_gradients(
            gradients(got, dict(net.named_parameters()), cotangent),
            gradients(want, state, cotangent),
            f"candidate {candidate}",
        )


def test_step2_for_retrieval():
    schema = make_schema(task="retrieval", fields=3, behavior=1, shared=False)
    net = make_supernet(schema, 4)
    net.add_interactions([(0, 2)])
    randomise(net, 1)
    assert "step2.head.bias" not in net.state_dict() and net.state_dict()["step2.head.weight"].shape == (
        4,
        80,
    )
    batch = random_batch(schema, 4, 0)
    assert_close(
        net.interaction_logit(batch, (0, 2)), oracle.step2_output(schema, (0, 2), leaves(net), batch), "all"
    )


def test_additive_first_layer_equals_concatenation():
    """Σ W_i e_i + W_p p + b = [W_1 … W_N W_p] [e_1 … e_N p] + b, the identity of paper section 2.3."""
    schema = make_schema(fields=4, multi=1, behavior=0)
    net = make_supernet(schema, 3)
    net.add_interactions([(0, 2)])
    randomise(net, 2)
    state, batch = net.state_dict(), random_batch(schema, 7, 0)
    h0 = []
    for b in range(7):
        e = oracle.field_embeddings(schema, state["embedding.weight"], batch, b)
        h0.append(torch.cat([e.flatten(), e[0] * e[2]]))
    weight = torch.cat([state["step2.fields.weight"], state["step2.interactions.0_2.weight"]], dim=1)
    h = torch.relu(torch.stack(h0) @ weight.t() + state["step2.mlp.0.bias"])
    h = torch.relu(h @ state["step2.mlp.1.weight"].t() + state["step2.mlp.1.bias"])
    assert_close(net.interaction_logit(batch, (0, 2)),
                 (h @ state["step2.head.weight"].t() + state["step2.head.bias"])[:, 0], "concatenated")


def test_adding_interactions_keeps_what_was_trained():
    net = make_supernet(make_schema(fields=4), 4)
    net.add_interactions([(0, 1), (2,)])
    randomise(net, 3)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.add_interactions([(1, 0), (0, 1), (1, 2)])
    after = net.state_dict()
    assert set(after) - set(before) == {"step2.interactions.1_2.weight"}
    assert all(torch.equal(after[k], v) for k, v in before.items())
    names = {n for n, _ in net.named_parameters()}
    assert {"step2.interactions.0_1.weight", "step2.interactions.1_2.weight"} <= names


def test_adding_interactions_from_a_generator_repeats():
    nets = [make_supernet(make_schema(fields=4), 4) for _ in range(2)]
    torch.manual_seed(0)
    for i, net in enumerate(nets):
        torch.manual_seed(i)
        net.add_interactions([(0, 1), (0, 2)], generator(5))
    name = "step2.interactions.0_2.weight"
    assert torch.equal(nets[0].state_dict()[name], nets[1].state_dict()[name])
    assert not torch.equal(nets[0].state_dict()[name], nets[0].state_dict()["step2.interactions.0_1.weight"])
    assert float(nets[0].state_dict()[name].abs().max()) <= 0.5


def test_an_unknown_interaction_says_so():
    schema = make_schema(fields=3)
    net = make_supernet(schema, 4)
    with pytest.raises((ValueError, KeyError), match="0_1|0, 1"):
        net.interaction_logit(random_batch(schema, 2, 0), (0, 1))


def test_a_model_never_has_search_only_weights():
    net = make_supernet(make_schema(), 4)
    net.add_interactions([(0, 1)])
    for arch in (net.sample(generator(0)), af.Architecture.from_dict(step1_arch([block("conv1")] * 3))):
        assert not any(k.startswith("step") for k in net.derive(arch).state_dict())


# ---- the verbs ----------------------------------------------------------------------------------


def test_once_for_alls_verbs():
    schema = make_schema()
    net, batch = make_supernet(schema, 4), random_batch(schema, 4, 0)
    with pytest.raises(ValueError, match="active"):
        net(batch)
    drawn = net.sample_active_subnet(generator(1))
    assert drawn == net.sample(generator(1)) == net.get_active_net_config()
    assert torch.equal(net(batch), net(batch, drawn))
    model = net.get_active_subnet()
    assert isinstance(model, af.Model) and model.arch == drawn
    assert_close(model.train()(batch), net(batch), "active subnet")
    other = net.sample(generator(2))
    net(batch, other)
    assert net.get_active_net_config() == drawn  # a stateless forward leaves the active one
    net.set_active_subnet(other)
    assert net.get_active_net_config() == other and torch.equal(net(batch), net(batch, other))


def test_the_max_net():
    schema = make_schema(fields=4)
    net = make_supernet(schema, 4, interactions=3)
    net.set_max_net()
    arch = net.get_active_net_config()
    assert net.space.contains(arch)
    assert [m.ratio for m in arch.mlp] == [1.0, 1.0] and len(arch.interactions) == 3
    g = generator(0)
    most = net.derive(arch).parameter_counts()[0]
    assert all(net.derive(net.sample(g)).parameter_counts()[0] <= most + 2 * 36 for _ in range(60))
    assert_close(
        net(random_batch(schema, 3, 0)), net.get_active_subnet().train()(random_batch(schema, 3, 0)), "max"
    )


def test_sampling_repeats_with_the_seed_and_leaves_the_global_generator_alone():
    net = make_supernet(make_schema(), 4)
    state = torch.get_rng_state()
    a, b = ([net.sample(g) for _ in range(10)] for g in (generator(9), generator(9)))
    assert a == b and len(set(a)) == 10 and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("change, names", [
    (lambda d: d["behavior"].pop(), ["block"]), (lambda d: d["interactions"].append([0, 9]), ["9"]),
    (lambda d: d["mlp"].pop(), ["mlp"])])
def test_an_architecture_outside_the_space(change, names):
    schema = make_schema()
    net, data = make_supernet(schema, 4), random_arch(schema, 4, 0)
    change(data)
    with pytest.raises(ValueError) as error:
        net(random_batch(schema, 2, 0), af.Architecture.from_dict(data))
    assert all(name in str(error.value) for name in names)


def test_double_and_dtype():
    space = af.SearchSpace(af.FeatureSchema.from_dict(make_schema()))
    assert af.Supernet(space, 4).embedding.weight.dtype == torch.float32
    assert all(p.dtype == torch.float64 for p in af.Supernet(space, 4, dtype=torch.float64).parameters())
    net = af.Supernet(space, 4, backend="reference").double()
    net.add_interactions([(0, 1)])
    assert all(p.dtype == torch.float64 for p in net.parameters())
    batch = random_batch(make_schema(), 3, 0)
    assert net(batch, net.sample(generator(0))).dtype == torch.float64


def test_a_seeded_supernet_repeats():
    space = af.SearchSpace(af.FeatureSchema.from_dict(make_schema()))
    states = []
    for _ in range(2):
        torch.manual_seed(11)
        states.append(af.Supernet(space, 4).state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


# ---- many children on the same samples ----------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_population_equals_one_by_one(seed):
    schema = make_schema(fields=4, multi=1, behavior=seed % 3, seed=seed)
    net = make_supernet(schema, 4, seed)
    archs = [af.Architecture.from_dict(random_arch(schema, 4, s)) for s in range(12)]
    archs += [af.Architecture.from_dict(step1_arch([b.__dict__ for b in a.behavior])) for a in archs[:4]]
    archs += archs[3:5]
    batches = [random_batch(schema, n, seed + n) for n in (7, 1, 0, 9)]
    result = af.evaluate_population(net, archs, batches, return_logits=True)
    assert result.logits.shape == (len(archs), 17) and result.auc.shape == result.log_loss.shape == (
        len(archs),
    )
    label = torch.cat([b.label for b in batches]).double()
    with torch.no_grad():
        for i, arch in enumerate(archs):
            logit = torch.cat([net(b, arch) for b in batches])
            assert_close(result.logits[i], logit, f"child {i}")
            assert result.log_loss[i] == pytest.approx(float(oracle.ctr_loss(logit, label)), rel=1e-9)
            positive, negative = logit[label == 1], logit[label == 0]
            wins = (positive[:, None] > negative).double() + 0.5 * (positive[:, None] == negative).double()
            assert result.auc[i] == pytest.approx(float(wins.mean()), abs=1e-12)
    without = af.evaluate_population(net, archs, batches)
    assert without.logits is None and np.array_equal(without.auc, result.auc)
