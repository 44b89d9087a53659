"""The search space: counts by brute force, draws, canonical forms, JSON, and errors that name the part."""

from __future__ import annotations

import copy
import itertools
import json
from collections import Counter
from math import comb

import pytest
import torch

import ameir_fast as af
from ameir_fast.search.samplers import FairSampler, UniformSampler
from ameir_fast.space import width
from tests import oracle
from tests.helpers import block, make_model, make_schema, random_arch, random_batch, random_schema, step1_arch


def space_of(schema: dict, embedding_dim: int | None = None, **sizes) -> af.SearchSpace:
    return af.SearchSpace(af.FeatureSchema.from_dict(schema), embedding_dim=embedding_dim, **sizes)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close_to_uniform(counts: Counter, kinds: int, what: str) -> None:
    """Chi-squared statistic within six of its deviations."""
    total = sum(counts.values())
    assert len(counts) == kinds, f"{what}: {len(counts)} kinds drawn, {kinds} exist"
    expected = total / kinds
    chi = sum((n - expected) ** 2 / expected for n in counts.values())
    freedom = kinds - 1
    assert chi < freedom + 6 * (2 * freedom) ** 0.5 + 6, (
        f"{what}: chi squared {chi:.1f} with {freedom} degrees"
    )


# ---- counts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target, raw, canonical", [(True, 96, 89), (False, 88, 81)])
def test_choices_of_a_block(target, raw, canonical):
    space = space_of(make_schema(target=target), blocks=1, mlp_layers=1, interactions=0)
    assert len(space.behavior_choices) == len(set(space.behavior_choices)) == raw
    assert len({af.Architecture(behavior=(b,)).canonical() for b in space.behavior_choices}) == canonical
    assert space.size(raw=True) == raw * 40 and space.size() == canonical * 40  # 10 ratios, 4 activations


@pytest.mark.parametrize("fields", [1, 2, 3, 4])
@pytest.mark.parametrize("interactions", [0, 1, 2, 5])
@pytest.mark.parametrize("mlp_layers", [1, 2])
def test_size_by_brute_force(fields, interactions, mlp_layers):
    """Every architecture that the space contains, counted one by one over its three subspaces."""
    schema = make_schema(fields=fields, behavior=1, target=False)
    space = space_of(schema, blocks=1, mlp_layers=mlp_layers, interactions=interactions)
    orders = [c for r in range(2, fields + 1) for c in itertools.combinations(range(fields), r)]
    sets = [s for m in range(interactions + 1) for s in itertools.combinations(orders, m)]
    tenths = [
        t for t in itertools.product(range(1, 11), repeat=mlp_layers) if list(t) == sorted(t, reverse=True)
    ]
    mlps = len(tenths) * 4 ** mlp_layers
    assert space.size(raw=True) == 88 * len(sets) * mlps
    assert space.size() == 81 * len(sets) * mlps
    some = af.MlpLayer(0.5, "relu")
    for found in sets[:200]:
        assert space.contains(
            af.Architecture((af.Block("none", "conv1", "relu"),), found, (some,) * mlp_layers)
        )


def test_size_with_two_blocks_and_without_behavior():
    two = space_of(make_schema(fields=2), blocks=2, mlp_layers=1, interactions=1)
    assert two.size(raw=True) == 96 ** 2 * 2 * 40 and two.size() == 89 ** 2 * 2 * 40
    flat = space_of(make_schema(fields=3, behavior=0), blocks=3, mlp_layers=2, interactions=4)
    assert flat.size() == flat.size(raw=True) == 16 * 880
    alone = space_of(
        make_schema(task="retrieval", fields=0, behavior=1), blocks=1, mlp_layers=1, interactions=5
    )
    assert alone.size() == 81 * 40 and alone.size(raw=True) == 88 * 40


def test_880_mlps_in_the_fixed_order():
    mlps = list(space_of(make_schema(), mlp_layers=2).enumerate_mlp())
    assert len(mlps) == len(set(mlps)) == 880
    expected = [tuple(af.MlpLayer(t / 10, a) for t, a in zip(ratios, acts))
                for ratios in itertools.product(range(1, 11), repeat=2) if ratios[0] >= ratios[1]
                for acts in itertools.product(("relu", "swish", "identity", "dice"), repeat=2)]
    assert [tuple(m) for m in mlps] == expected


@pytest.mark.parametrize("layers", [1, 3])
def test_other_numbers_of_mlp_layers(layers):
    mlps = list(space_of(make_schema(), mlp_layers=layers).enumerate_mlp())
    assert len(mlps) == len(set(mlps)) == comb(9 + layers, layers) * 4 ** layers


@pytest.mark.parametrize("embedding_dim, behavior, absent", [
    (1, 1, {"bi_gru", "self_attn2", "self_attn4"}), (3, 1, {"bi_gru", "self_attn2", "self_attn4"}),
    (1, 2, {"self_attn4"}), (2, 1, {"self_attn4"}), (3, 2, {"self_attn4"}), (2, 2, set()), (4, 3, set())])
def test_width_decides_which_layers_there_are(embedding_dim, behavior, absent):
    space = space_of(make_schema(behavior=behavior), embedding_dim)
    assert set(oracle.LAYERS) - set(space.layers) == absent
    assert {b.layer for b in space.behavior_choices} == set(space.layers)
    net = af.Supernet(af.SearchSpace(space.schema), embedding_dim)
    assert set(net.space.layers) == set(space.layers)


def test_no_target_no_target_attention():
    assert "target_attn" not in space_of(make_schema(target=False)).layers
    assert "target_attn" in space_of(make_schema()).layers


# ---- draws --------------------------------------------------------------------------------------


def test_ten_thousand_drawn_architectures_are_valid_and_even():
    schema = make_schema(fields=5, multi=1)
    space = space_of(schema, 4, blocks=2, mlp_layers=2, interactions=2)
    g, counts = generator(0), {k: Counter() for k in ("layer", "interaction", "ratios", "activation")}
    norms, acts = Counter(), Counter()
    for _ in range(10_000):
        arch = space.sample(g)
        assert space.contains(arch) and arch == arch.canonical()
        assert len(arch.behavior) == 2 and len(arch.mlp) == 2 and len(arch.interactions) == 2
        for l, b in enumerate(arch.behavior):
            counts["layer"][l, b.layer] += 1
            if b.layer != "zero":
                norms[b.norm] += 1
                acts[b.activation] += 1
        counts["interaction"].update(arch.interactions)
        counts["ratios"][tuple(m.ratio for m in arch.mlp)] += 1
        counts["activation"][tuple(m.activation for m in arch.mlp)] += 1
    close_to_uniform(counts["layer"], 24, "layers")
    close_to_uniform(norms, 2, "norms")
    close_to_uniform(acts, 4, "activations of blocks")
    close_to_uniform(counts["interaction"], 2 ** 5 - 5 - 1, "interactions")
    close_to_uniform(counts["ratios"], 55, "ratios")
    close_to_uniform(counts["activation"], 16, "activations of the MLP")


@pytest.mark.parametrize("seed", range(25))
def test_draws_are_valid_for_any_schema_and_repeat_with_the_seed(seed):
    schema, embedding_dim = random_schema(seed)
    space = space_of(schema, embedding_dim, interactions=3)
    drawn = [space.sample(generator(seed)) for _ in range(2)]
    assert drawn[0] == drawn[1]
    g = generator(seed)
    several = [space.sample(g) for _ in range(30)]
    assert all(space.validate(a) == a for a in several) and len(set(several)) > 15


def test_drawing_leaves_the_global_generator_alone():
    space = space_of(make_schema())
    before = torch.get_rng_state()
    space.sample(generator(1))
    FairSampler([2, 3]).draw(generator(1))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("choices", [[96, 96, 96], [2, 12, 4], [12], [2, 11, 4, 2, 11, 4], [5, 3], [1, 7]])
def test_fair_rounds_are_exactly_even(choices):
    sampler, g = FairSampler(choices), generator(3)
    every = 1
    for n in choices:
        every = every * n // _gcd(every, n)
    for _ in range(3):
        drawn = [sampler.draw(g) for _ in range(every)]
        for position, n in enumerate(choices):
            counts = Counter(d[position] for d in drawn)
            assert counts == {c: every // n for c in range(n)}, f"position {position}"


def test_fair_rounds_differ_and_positions_are_independent():
    sampler, g = FairSampler([40, 40]), generator(0)
    rounds = [tuple(sampler.draw(g) for _ in range(40)) for _ in range(3)]
    assert len(set(rounds)) == 3
    assert all(len({a - b for a, b in r}) > 5 for r in rounds)
    assert [c for c, _ in rounds[0]] != list(range(40))


def test_fair_sampling_at_the_largest_position_is_a_permutation():
    sampler, g = FairSampler([5, 12]), generator(1)
    for _ in range(10):
        drawn = [sampler.draw(g) for _ in range(12)]
        assert sorted(d[1] for d in drawn) == list(range(12))
        assert max(Counter(d[0] for d in drawn).values()) - min(Counter(d[0] for d in drawn).values()) <= 2


def test_fair_sampling_stays_even_where_the_common_round_is_too_long():
    """Primes whose least common multiple is over a million: counts may differ by a bounded amount only."""
    choices = [97, 101, 103]
    sampler, g = FairSampler(choices), generator(1)
    drawn = [sampler.draw(g) for _ in range(103 * 200)]
    for position, n in enumerate(choices):
        counts = Counter(d[position] for d in drawn)
        assert max(counts.values()) - min(counts[c] for c in range(n)) <= 2, f"position {position}"


def test_uniform_sampler():
    sampler, g = UniformSampler([3, 5]), generator(0)
    drawn = [sampler.draw(g) for _ in range(6000)]
    close_to_uniform(Counter(drawn), 15, "pairs of choices")
    assert UniformSampler([9, 9, 9]).draw(generator(7)) == UniformSampler([9, 9, 9]).draw(generator(7))


def _gcd(a: int, b: int) -> int:
    return a if b == 0 else _gcd(b, a % b)


# ---- widths -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio, k0, expected", [
    (0.1, 1, 1), (0.1, 4, 1), (0.1, 5, 1), (0.5, 1, 1), (0.5, 5, 3), (0.5, 7, 4), (0.3, 5, 2), (0.1, 25, 3),
    (0.1, 15, 2), (0.3, 15, 5), (0.5, 9, 5), (0.9, 15, 14), (1.0, 92, 92), (0.6, 92, 55), (0.3, 92, 28),
    (0.6, 704, 422), (0.3, 704, 211), (0.7, 10, 7), (0.2, 3, 1), (0.1, 14, 1)])
def test_widths_round_half_up(ratio, k0, expected):
    assert width(ratio, k0) == expected == oracle.ratio_width(ratio, k0)


def test_every_width_is_the_integer_formula():
    for k0 in range(1, 400):
        for t in range(1, 11):
            assert width(t / 10, k0) == max(1, (t * k0 + 5) // 10)


# ---- canonical form, equality, JSON -------------------------------------------------------------


def test_canonical_form():
    arch = af.Architecture(
        (af.Block("layer_norm", "zero", "gelu"), af.Block("layer_norm", "conv1", "relu")),
        ((4, 1), (2, 0, 1), (1, 4), (0, 1)), (af.MlpLayer(0.2, "relu"),))
    canonical = arch.canonical()
    assert canonical.behavior == (
        af.Block("none", "zero", "identity"),
        af.Block("layer_norm", "conv1", "relu"),
    )
    assert canonical.interactions == ((0, 1), (1, 4), (0, 1, 2))
    assert canonical.mlp == arch.mlp and canonical.canonical() == canonical
    # A zero block keeps its position, ratios of equal width stay distinct.
    swapped = af.Architecture(arch.behavior[::-1], arch.interactions, arch.mlp)
    assert swapped.canonical() != canonical
    assert af.Architecture((), (), (af.MlpLayer(0.1, "relu"),)) != af.Architecture(
        (), (), (af.MlpLayer(0.2, "relu"),)
    )


@pytest.mark.parametrize("seed", range(12))
def test_canonical_forms_compute_equal_functions(seed):
    schema, embedding_dim = random_schema(100 + seed)
    plain = random_arch(schema, embedding_dim, seed, canonical=False)
    messy = copy.deepcopy(plain)
    for b in messy["behavior"]:
        if b["layer"] == "zero":
            b.update(norm="layer_norm", activation="gelu")
    messy["interactions"] = [i[::-1] for i in messy["interactions"]][::-1]
    one, other = af.Architecture.from_dict(plain), af.Architecture.from_dict(messy)
    assert one.canonical() == other.canonical() and hash(one.canonical()) == hash(other.canonical())
    batch = random_batch(schema, 6, seed)
    a, b = make_model(schema, plain, embedding_dim, seed), make_model(schema, messy, embedding_dim, seed)
    assert a.state_dict().keys() == b.state_dict().keys()
    assert torch.equal(a(batch), b(batch))


@pytest.mark.parametrize("seed", range(30))
def test_json_round_trip(seed, tmp_path):
    schema, embedding_dim = random_schema(seed)
    data = random_arch(schema, embedding_dim, seed, fixed_mlp=seed % 3 == 0)
    arch = af.Architecture.from_dict(data)
    again = af.Architecture.from_dict(json.loads(json.dumps(arch.to_dict())))
    assert again == arch and hash(again) == hash(arch) and len({again, arch}) == 1
    assert arch.to_dict() == data  # the published form, key by key
    arch.save(tmp_path / "architecture.json")
    assert af.Architecture.load(tmp_path / "architecture.json") == arch
    assert json.loads((tmp_path / "architecture.json").read_text()) == data


def test_shortcut_defaults_to_se():
    data = random_arch(make_schema(), 4, 0)
    del data["shortcut"]
    assert af.Architecture.from_dict(data).shortcut == "se"
    assert af.Architecture.from_dict(data).to_dict()["shortcut"] == "se"


def test_frozen():
    arch = af.Architecture.from_dict(random_arch(make_schema(), 4, 0))
    with pytest.raises(AttributeError):
        arch.mlp = ()
    with pytest.raises(AttributeError):
        arch.behavior[0].layer = "zero"


# ---- errors -------------------------------------------------------------------------------------


def part_ids(value) -> str:
    """Test ids: the parts that the error must name."""
    return "-".join(value) if isinstance(value, list) else "change"


def good() -> dict:
    return {
        "version": 1,
        "behavior": [block("conv1"), block("bi_gru"), block("self_attn2")],
        "interactions": [[0, 1], [1, 3]],
        "mlp": [{"ratio": 0.6, "activation": "relu"}, {"ratio": 0.3, "activation": "dice"}],
        "shortcut": "se",
    }


def test_the_good_one_is_good():
    space = space_of(make_schema(), 4)
    arch = af.Architecture.from_dict(good())
    assert space.validate(arch) == arch and space.contains(arch)


@pytest.mark.parametrize("change, names", [
    (lambda d: d["behavior"][1].update(layer="conv9"), ["block 1", "conv9"]),
    (lambda d: d["behavior"][2].update(norm="batch_norm"), ["block 2", "batch_norm"]),
    (lambda d: d["behavior"][0].update(activation="tanh"), ["block 0", "tanh"]),
    (lambda d: d["behavior"][0].update(activation="dice"), ["block 0", "dice"]),
    (lambda d: d["behavior"][0].pop("layer"), ["layer"]),
    (lambda d: d["mlp"][1].update(activation="gelu"), ["layer 1", "gelu"]),
    (lambda d: d["mlp"][0].update(ratio=0.55), ["layer 0", "0.55"]),
    (lambda d: d["mlp"][0].update(ratio=0), ["layer 0", "0"]),
    (lambda d: d["mlp"][0].update(ratio=1.1), ["layer 0", "1.1"]),
    (lambda d: d["mlp"][0].update(ratio="wide"), ["mlp layer 0", "wide"]),
    (lambda d: d["mlp"][0].update(width=200), ["layer 0", "width"]),
    (lambda d: d["mlp"].__setitem__(0, {"activation": "relu"}), ["layer 0", "ratio"]),
    (lambda d: d["mlp"].__setitem__(0, {"width": 0, "activation": "relu"}), ["layer 0", "width", "0"]),
    (lambda d: d["mlp"].__setitem__(0, {"width": 2.5, "activation": "relu"}), ["layer 0", "width", "2.5"]),
    (lambda d: d.update(shortcut="fm"), ["shortcut", "fm"]),
    (lambda d: d.update(version=2), ["version", "2"]),
    (lambda d: d.pop("version"), ["version"]),
    (lambda d: d.pop("mlp"), ["mlp"]),
    (lambda d: d.update(depth=3), ["depth"]),
    (lambda d: d["interactions"].append([0, "1"]), ["interaction 2"]),
    (lambda d: d["interactions"].append([0.0, 1]), ["interaction 2"]),
    (lambda d: d["interactions"].append(3), ["interaction"]),
    (lambda d: d.update(behavior=None), ["architecture"]),
    (lambda d: d["behavior"].__setitem__(0, "conv1"), ["block 0"]),
    (lambda d: d["behavior"][0].update(layer=["conv1"]), ["block 0"]),
    (lambda d: d["behavior"][0].update(kernel=3), ["block 0", "kernel"]),
], ids=part_ids)
def test_reading_names_the_part(change, names):
    data = good()
    change(data)
    with pytest.raises(ValueError) as error:
        af.Architecture.from_dict(data)
    for name in names:
        assert name in str(error.value), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change, names", [
    (lambda d: d["interactions"].append([0, 4]), ["interaction 2", "4"]),
    (lambda d: d["interactions"].append([-1, 2]), ["interaction 2", "-1"]),
    (lambda d: d["interactions"].append([2]), ["interaction 2"]),
    (lambda d: d["interactions"].append([]), ["interaction 2"]),
    (lambda d: d["interactions"].append([2, 2]), ["interaction 2"]),
    (lambda d: d["interactions"].extend([[0, 2], [0, 3], [1, 2], [2, 3]]), ["interactions", "5"]),
    (lambda d: d["behavior"].pop(), ["2", "3", "block"]),
    (lambda d: d.update(behavior=[]), ["0", "3", "block"]),
    (lambda d: d["mlp"].pop(), ["mlp", "1", "2"]),
    (lambda d: d["mlp"].reverse(), ["mlp layer 1", "0.6", "0.3"]),
], ids=part_ids)
def test_validation_names_the_part(change, names):
    data = good()
    change(data)
    space = space_of(make_schema(), 4)
    arch = af.Architecture.from_dict(data)
    with pytest.raises(ValueError) as error:
        space.validate(arch)
    for name in names:
        assert name in str(error.value), str(error.value)
    assert not space.contains(arch)


@pytest.mark.parametrize("layer, embedding_dim, behavior", [
    ("bi_gru", 3, 1), ("self_attn2", 5, 1), ("self_attn4", 2, 1), ("self_attn4", 3, 2)])
def test_a_layer_that_the_width_forbids_names_block_and_width(layer, embedding_dim, behavior):
    schema = make_schema(behavior=behavior)
    data = good() | {"behavior": [block("conv1"), block(layer), block("conv1")]}
    arch = af.Architecture.from_dict(data)
    for build in (lambda: space_of(schema, embedding_dim).validate(arch),
                  lambda: af.Model(af.FeatureSchema.from_dict(schema), arch, embedding_dim),
                  lambda: af.Supernet(space_of(schema), embedding_dim).check(arch)):
        with pytest.raises(ValueError) as error:
            build()
        for name in ("block 1", layer, f"D is {embedding_dim * behavior}"):
            assert name in str(error.value), str(error.value)


def test_target_attention_without_target_names_the_block():
    schema = make_schema(target=False)
    arch = af.Architecture.from_dict(
        good() | {"behavior": [block("conv1"), block("conv1"), block("target_attn")]}
    )
    for build in (lambda: space_of(schema, 4).validate(arch),
                  lambda: af.Model(af.FeatureSchema.from_dict(schema), arch, 4)):
        with pytest.raises(ValueError, match="block 2.*target_attn"):
            build()


def test_an_architecture_of_another_schema():
    arch = af.Architecture.from_dict(good())
    for schema in (make_schema(behavior=0), make_schema(fields=2)):
        with pytest.raises(ValueError, match="architecture"):
            af.Model(af.FeatureSchema.from_dict(schema), arch, 4)
    flat = af.Architecture.from_dict(good() | {"behavior": []})
    with pytest.raises(ValueError, match="behavior"):
        af.Model(af.FeatureSchema.from_dict(make_schema()), flat, 4)


@pytest.mark.parametrize("interaction", [[2], [1, 1], [], [0, 4], [-1, 0]])
def test_a_model_refuses_interactions_that_the_space_refuses(interaction):
    """Not silently dropped or repaired on the way to the canonical form."""
    arch = af.Architecture.from_dict(good() | {"interactions": [[0, 1], interaction]})
    with pytest.raises(ValueError, match="interaction 1"):
        af.Model(af.FeatureSchema.from_dict(make_schema()), arch, 4)


def test_a_space_of_impossible_size():
    for wrong in ({"blocks": -1}, {"mlp_layers": 0}, {"interactions": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            space_of(make_schema(), **wrong)


def test_no_blocks_only_without_history():
    """``behavior`` is [] when N_a = 0 (9.3); a space whose children no Model would take is refused."""
    with pytest.raises(ValueError, match="blocks"):
        space_of(make_schema(), blocks=0)
    assert space_of(make_schema(behavior=0), blocks=0).sample(generator(0)).behavior == ()


def test_the_fixed_mlp_is_in_the_space():
    space = space_of(make_schema(), 4)
    assert space.contains(af.Architecture.from_dict(step1_arch([block("conv1")] * 3)))
