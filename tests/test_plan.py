"""Plans against the fp64 reference, on every instruction set that this processor has."""

from __future__ import annotations

import copy
import os
import pickle
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

import ameir_fast as af
from ameir_fast import native
from ameir_fast import plan as plan_module
from ameir_fast.cost import forward_work
from tests.helpers import (
    block,
    make_model,
    make_schema,
    random_arch,
    random_batch,
    random_schema,
    select_rows,
    strided,
)

pytestmark = pytest.mark.skipif(native.why_not("_plan") is not None, reason=str(native.why_not("_plan")))
SETS = native.plan().instruction_sets() if native.why_not("_plan") is None else []
LAYERS = ("conv1", "conv3", "dconv3", "dconv5", "dconv7", "avg_pool3", "max_pool3", "bi_gru", "self_attn2",
          "self_attn4", "target_attn", "zero")
MLP = [{"ratio": 0.6, "activation": "swish"}, {"ratio": 0.3, "activation": "dice"}]


def arch_of(*layers: str, activation="relu", norm="layer_norm", mlp=MLP, interactions=((0, 1),)) -> dict:
    blocks = [block("zero", "none", "identity") if name == "zero" else block(name, norm, activation) for name in layers]
    return {"version": 1, "behavior": blocks, "interactions": [list(i) for i in interactions], "mlp": mlp,
            "shortcut": "se"}


def pair(schema: dict, arch: dict, k: int, seed: int = 0) -> tuple[af.Model, af.Model]:
    """A float32 model and its float64 twin with the same, float32-rounded weights, both in eval mode."""
    single = make_model(schema, arch, k, seed, torch.float32).eval()
    single.backend = "reference"
    return single, copy.deepcopy(single).double().eval()


def assert_right(single: af.Model, exact: af.Model, batch: af.Batch, plan: af.Plan, what: str) -> None:
    """As near to the fp64 result as eager float32, up to a factor of two and rounding's own luck."""
    with torch.no_grad():
        want, got, eager = exact(batch), plan(batch), single(batch)
    assert got.shape == want.shape and got.dtype == torch.float32, what
    if want.numel():
        scale = max(1.0, float(want.abs().max()))
        ours, theirs = ((one.double() - want).square().mean().sqrt() for one in (got, eager))
        assert float(ours) <= 2 * float(theirs) + 3e-6 * scale, what


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_with_every_activation_and_norm(layer, isa):
    schema = make_schema(fields=4, behavior=2, max_history=9, seed=3)
    for activation in ("relu", "gelu", "swish", "identity"):
        for norm in ("layer_norm", "none"):
            single, exact = pair(schema, arch_of(layer, activation=activation, norm=norm), 4)
            plan = single.compile(instruction_set=isa)
            assert plan.instruction_set == isa
            for lengths in (None, [0, 1, 9], [9] * 16, [7] * 16):
                rows = 61 if lengths is None else len(lengths)
                batch = random_batch(schema, rows, 5, lengths=lengths)
                assert_right(single, exact, batch, plan, f"{layer} {activation} {norm} {lengths}")


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("seed", range(24))
def test_random_models(seed, isa):
    """Bags, odd widths, no history, no target, no fields, both tasks; batches of every size class."""
    schema, k = random_schema(seed)
    rng = random.Random(seed)
    arch = random_arch(schema, k, seed, fixed_mlp=rng.random() < 0.3, mlp_layers=rng.choice([1, 2, 3]))
    single, exact = pair(schema, arch, k, seed)
    plan = single.compile(instruction_set=isa)
    for rows in (0, 1, 2, 5, 17, 48, 131):
        assert_right(single, exact, random_batch(schema, rows, rows + seed), plan, f"{schema} {arch} {rows} rows")


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("k", [1, 3, 5, 16, 64, 128])
def test_widths(k, isa):
    schema = make_schema(fields=3, behavior=1, max_history=5, seed=1)
    layers = ["conv3", "max_pool3", "target_attn"] + (["bi_gru", "self_attn2"] if k % 2 == 0 else [])
    single, exact = pair(schema, arch_of(*layers, interactions=((0, 1, 2),)), k)
    assert_right(single, exact, random_batch(schema, 37, 2), single.compile(instruction_set=isa), f"K {k}")


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("multi, behavior, interactions", [(0, 0, ((0, 1), (1, 2, 3))), (2, 1, ((0, 2),)), (0, 2, ()), (0, 0, ())])
def test_folded_fields(multi, behavior, interactions, dtype, isa):
    """Sums looked up in place of products: right, the same in any company, for candidates, and after a journey."""
    schema = make_schema(fields=5, multi=multi, behavior=behavior, max_history=5, seed=multi)
    mlp = [{"width": 37, "activation": "relu"}, {"width": 9, "activation": "dice"}]
    single, exact = pair(schema, arch_of(*["conv1"] * min(behavior, 1), mlp=mlp, interactions=interactions), 8)
    plan, without = (single.compile(instruction_set=isa, dtype=dtype, fold_bytes=b) for b in (2**20, 0))
    assert plan.folded == [f["name"] for f in schema["fields"] if f["kind"] == "categorical"] and without.folded == []
    batch = random_batch(schema, 70, 3)
    if dtype == "float32":
        assert_right(single, exact, batch, plan, "folded")
    torch.testing.assert_close(plan(batch), without(batch), rtol=2e-2, atol=2e-2)
    assert torch.equal(torch.cat([plan(batch.slice(r, r + 1)) for r in range(len(batch))]), plan(batch))
    sizes = {v["name"]: v["size"] for v in schema["vocabularies"]}
    names = [f["name"] for f in schema["fields"] if f["kind"] == "categorical"][:2]
    candidates = torch.stack([torch.arange(60) % sizes[name] for name in names], 1).int()
    user = batch.slice(0, 1)
    rows = select_rows(user, [0] * 60)
    rows.fields[:, [[f["name"] for f in schema["fields"]].index(name) for name in names]] = candidates
    assert torch.equal(plan.score(user, candidates, names), plan(rows))
    assert torch.equal(pickle.loads(pickle.dumps(plan))(batch), plan(batch))
    bad = batch.fields.clone()
    bad[2, 0] = 10**6
    with pytest.raises(af.InputError, match="row 2"):
        plan(replace(batch, fields=bad))


def test_what_is_folded():
    """The smallest vocabularies that fit the budget together; nothing of narrow embeddings."""
    schema = make_schema(fields=4, behavior=0, seed=0)
    sizes = {v["name"]: v["size"] for v in schema["vocabularies"]}
    single, _ = pair(schema, arch_of(mlp=[{"width": 20, "activation": "relu"}]), 16)
    smallest = min(sizes, key=sizes.get)
    assert single.compile(fold_bytes=4 * 32 * sizes[smallest]).folded == [smallest]
    assert single.compile(fold_bytes=4 * 32 * sizes[smallest] - 1).folded == []
    narrow, _ = pair(schema, arch_of(), 4)
    assert narrow.compile().folded == []
    with pytest.raises(af.InputError, match="fold_bytes is -1"):
        single.compile(fold_bytes=-1)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("k, behavior", [(64, 5), (3, 4), (128, 3)])
def test_wide_histories(k, behavior, isa):
    """D up to 384; sums of many inputs are no worse than eager's."""
    schema = make_schema(fields=6, behavior=behavior, max_history=6, seed=1)
    single, exact = pair(schema, arch_of("conv3", "target_attn", *(["bi_gru"] if k % 2 == 0 else ["conv1"])), k)
    plan, batch = single.compile(instruction_set=isa), random_batch(schema, 70, 2)
    assert_right(single, exact, batch, plan, f"K {k}, {behavior} behaviour fields")
    assert torch.equal(torch.cat([plan(batch.slice(r, r + 1)) for r in range(len(batch))]), plan(batch))


@pytest.mark.parametrize("isa", SETS)
def test_attention_with_scores_of_any_size(isa):
    """Rows whose exponentials could overflow share a group with rows whose cannot."""
    schema = make_schema(fields=4, behavior=2, max_history=9, sizes=None, seed=3)
    single, exact = pair(schema, arch_of("self_attn2", "self_attn4", norm="none", activation="identity"), 4)
    with torch.no_grad():
        for model in (single, exact):
            model.embedding.weight[::2] *= 30
    plan, batch = single.compile(instruction_set=isa), random_batch(schema, 90, 2)
    with torch.no_grad():
        want, got, eager = exact(batch), plan(batch), single(batch)
    assert torch.isfinite(got).all() and float(want.abs().max()) > 100
    assert float((got - want).abs().max()) <= 3 * float((eager - want).abs().max()) + 1e-3
    assert torch.equal(torch.cat([plan(batch.slice(r, r + 1)) for r in range(len(batch))]), got)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("layer", [name for name in LAYERS if name != "zero"])
def test_numbers_that_are_none_stay_so(layer, isa):
    schema = make_schema(fields=4, behavior=2, max_history=9, seed=3)
    single, _ = pair(schema, arch_of(layer, mlp=[{"ratio": 0.6, "activation": "identity"}]), 4)
    with torch.no_grad():
        single.embedding.weight[single.schema.offset("f0") + 1, 1] = torch.nan
    batch = random_batch(schema, 60, 5)
    with torch.no_grad():
        assert torch.equal(single(batch).isnan(), single.compile(instruction_set=isa)(batch).isnan())


@pytest.mark.parametrize("isa", SETS)
def test_a_row_s_result_depends_on_nothing_else(isa):
    """Bit for bit: whatever shares the batch, wherever the row lies, however many threads work."""
    schema = make_schema(fields=5, multi=1, behavior=2, max_history=11, seed=2)
    arch = arch_of("bi_gru", "self_attn4", "dconv5", "avg_pool3", "max_pool3", "target_attn", activation="gelu")
    plan = pair(schema, arch, 4)[0].compile(instruction_set=isa)
    batch = random_batch(schema, 203, 1)
    whole = plan(batch)
    assert torch.equal(torch.cat([plan(batch.slice(r, r + 1)) for r in range(len(batch))]), whole)
    order = list(range(203))
    random.Random(0).shuffle(order)
    for part in (order, order[:3], order[:5], order[:40], order[:97]):
        assert torch.equal(plan(select_rows(batch, part)), whole[part])
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(plan(batch), whole)
    finally:
        torch.set_num_threads(threads)


def test_several_threads_may_call_a_plan_and_others_between():
    schema = make_schema(fields=4, behavior=2, max_history=9, seed=3)
    plans = [pair(schema, arch_of(*layers), 4, seed)[0].compile()
             for seed, layers in enumerate([("max_pool3", "conv3"), ("dconv7", "bi_gru"), ("zero", "self_attn2")])]
    batches = [random_batch(schema, rows, rows) for rows in (1, 30, 150)]
    wanted = [[plan(batch) for batch in batches] for plan in plans]

    def call(number: int) -> bool:
        p, b = number % 3, number // 3 % 3
        return torch.equal(plans[p](batches[b]), wanted[p][b])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(180)))


# ---- bfloat16 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("seed", range(8))
def test_bfloat16_is_near_float32_and_depends_on_the_row_alone(seed, isa):
    schema = make_schema(fields=5, behavior=2, max_history=9, seed=seed)
    widths = [[{"width": w, "activation": a} for w, a in zip(sizes, ("relu", "dice", "swish"), strict=False)]
              for sizes in ((1,), (17, 16), (33, 5, 64), (300, 31))]
    single, _ = pair(schema, arch_of("conv3", "max_pool3", mlp=widths[seed % 4]), (4, 3, 16)[seed % 3], seed)
    batch = random_batch(schema, 83, seed)
    rounded, full = single.compile(dtype="bfloat16", instruction_set=isa), single.compile(instruction_set=isa)
    got, want = rounded(batch), full(batch)
    error = float((got - want).abs().max()) / max(1.0, float(want.abs().max()))
    assert 0 < error < 0.05 and rounded.dtype == "bfloat16"
    assert torch.equal(torch.cat([rounded(batch.slice(r, r + 1)) for r in range(len(batch))]), got)


@pytest.mark.parametrize("isa", SETS)
def test_bfloat16_rounds_weights_and_inputs_of_the_first_layer_alone(isa):
    """Identity layers over fields alone: the result from rounded numbers in float64."""
    schema = make_schema(fields=4, behavior=0, seed=3)
    layers = [{"width": width, "activation": "identity"} for width in (40, 24)]
    single, exact = pair(schema, arch_of(mlp=layers, interactions=()) | {"shortcut": "none"}, 16)
    batch = random_batch(schema, 70, 2)

    def rounded(t: torch.Tensor) -> torch.Tensor:
        return t.float().bfloat16().double()

    with torch.no_grad():
        rows = batch.fields.long() + torch.tensor(single.schema.field_offsets)
        x = rounded(exact.embedding.weight[rows].flatten(1))
        unit, head = exact.mlp["0"], exact.head
        want = exact.mlp["1"](x @ rounded(unit.weight).T + unit.bias) @ head.weight.T + head.bias
        got = single.compile(dtype="bfloat16", instruction_set=isa, fold_bytes=0)(batch)
    torch.testing.assert_close(got.double(), want[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not SETS or SETS[0] != "avx512", reason="products of bfloat16 numbers come with AVX-512")
@pytest.mark.parametrize("products", ["amx", "avx512_bf16"])
def test_special_and_plain_products_agree(products):
    schema = make_schema(fields=5, behavior=2, max_history=9, seed=1)
    model = pair(schema, arch_of("conv3", mlp=[{"width": 300, "activation": "swish"}, {"width": 45, "activation": "dice"}]),
                 16)[0]
    plan, batch = model.compile(dtype="bfloat16"), random_batch(schema, 150, 1)

    def by(name: str):
        plan._native = plan_module._compile(plan._model, "avx512", True, name)
        plan._run = plan._native.run
        return plan._native.products

    if by(products) != products:
        pytest.skip(f"this processor has no {products}, or the system does not grant it")
    for rows in (150, 48, 33, 17, 5):  # lanes of three, two and one vectors
        part = batch.slice(0, rows)
        assert by(products) == products
        got = plan(part)
        assert by("none") == "none"
        torch.testing.assert_close(plan(part), got, rtol=1e-3, atol=1e-3)


def test_plans_travel_to_other_processes():
    schema = make_schema(seed=5)
    plan, batch = pair(schema, arch_of("conv1"), 4)[0].compile(), random_batch(schema, 20, 3)
    for other in (copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        assert torch.equal(other(batch), plan(batch)) and other.instruction_set == plan.instruction_set


def test_memory_of_any_layout_is_taken():
    schema = make_schema(fields=4, multi=1, behavior=2, seed=4)
    plan = pair(schema, arch_of("conv3"), 4)[0].compile()
    batch = random_batch(schema, 20, 3)
    loose = af.Batch(*(strided(getattr(batch, name)) for name in ("fields", "history", "history_offsets")), None,
                     strided(batch.bag_ids), strided(batch.bag_offsets))
    assert not loose.fields.is_contiguous() and not loose.history.is_contiguous()
    assert torch.equal(plan(loose), plan(batch))


def test_the_model_may_change_afterwards():
    schema = make_schema(seed=5)
    model = pair(schema, arch_of("conv1"), 4)[0].train()
    plan, batch = model.compile(), random_batch(schema, 20, 3)
    before = plan(batch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(plan(batch), before) and model.training and before.abs().max() > 0


def test_items_of_retrieval_are_scored_as_by_the_model():
    schema, k = make_schema(task="retrieval", fields=0, behavior=1, seed=6), 4
    single, _ = pair(schema, arch_of("conv3", interactions=()), k)
    plan, batch = single.compile(), random_batch(schema, 9, 1)
    items = torch.randint(2, (9, 3))
    with torch.no_grad():
        torch.testing.assert_close(plan(batch, items=items), single(batch, items=items))
        torch.testing.assert_close(plan(batch), single(batch))
    size = single.schema.size(single.schema.item_vocabulary)
    for wrong, says in ((torch.full((9, 1), size), f"items, row 0: id {size} is outside 0..{size - 1}"),
                        (torch.tensor([[0]] * 8 + [[-1]]), "items, row 8: id -1"),
                        (items[:3], "items has 3 entries, not 9"), (items.float(), "items is torch.float32"),
                        (items[:, 0], "items is torch.int64 with 1 dimensions")):
        with pytest.raises(af.InputError, match=says):
            plan(batch, items=wrong)


# ---- bad input -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checked() -> tuple[af.Plan, af.Batch]:
    schema = make_schema(fields=4, multi=1, behavior=2, max_history=7, seed=7)
    return pair(schema, arch_of("conv3"), 4)[0].compile(), random_batch(schema, 100, 1, lengths=[3] * 100)


def changed(batch: af.Batch, name: str, place, value) -> af.Batch:
    tensor = getattr(batch, name).clone()
    tensor[place] = value
    return af.Batch(**{**{n: getattr(batch, n) for n in batch.__dataclass_fields__}, name: tensor})


@pytest.mark.parametrize("name, place, value, says", [
    ("fields", (60, 1), 999, "field 'f1', row 60: id 999 is outside 0"),
    ("fields", (99, 2), -1, "field 'f2', row 99: id -1 is outside 0"),
    ("fields", (0, 0), 2**31 - 1, "field 'f0', row 0"),
    ("history", (3 * 41 + 2, 1), 7777, "field 'history1', row 41: id 7777"),
    ("bag_ids", 0, 12345, "field 'f3'"),
    ("history_offsets", 5, 2**40, "history_offsets does not rise"),
    ("history_offsets", 0, 1, "history_offsets does not rise"),
    ("history_offsets", 100, 299, "history_offsets does not rise from 0 to 300"),
    ("history_offsets", slice(50, 53), 159, "history of row 49 has 12 elements, more than max_history 7"),
    ("bag_offsets", -1, -3, "bag_offsets does not rise"),
])
def test_numbers_that_cannot_be_are_named_and_nothing_is_read_outside(checked, name, place, value, says):
    plan, batch = checked
    good = plan(batch)
    with pytest.raises(af.InputError, match=says):
        plan(changed(batch, name, place, value))
    assert torch.equal(plan(batch), good)


def test_the_first_of_several_faults_is_named(checked):
    plan, batch = checked
    bad = changed(changed(batch, "fields", (80, 0), 999), "fields", (33, 1), 999)
    with pytest.raises(af.InputError, match="row 33"):
        plan(bad)


@pytest.mark.parametrize("name, value, says", [
    ("fields", torch.zeros(100, 4, dtype=torch.int64), "fields is torch.int64"),
    ("fields", torch.zeros(100, 3, dtype=torch.int32), "fields has 3 columns, not 4"),
    ("fields", torch.zeros(100, dtype=torch.int32), "fields is torch.int32 with 1 dimensions"),
    ("history", None, "history is missing"),
    ("history", torch.zeros(300, 2), "history is torch.float32"),
    ("history_offsets", torch.zeros(100, dtype=torch.int64), "history_offsets has 100 entries, not 101"),
    ("bag_offsets", None, "bag_offsets is missing"),
    ("history", [[1, 2]], "history is a list, not a tensor"),
])
def test_tensors_of_a_wrong_kind_are_named(checked, name, value, says):
    plan, batch = checked
    with pytest.raises(af.InputError, match=says):
        plan(af.Batch(**{**{n: getattr(batch, n) for n in batch.__dataclass_fields__}, name: value}))


def test_what_there_is_no_plan_for(monkeypatch):
    model = pair(make_schema(seed=5), arch_of("conv1"), 4)[0]
    for arguments, says in (({"device": "meta"}, "for cpu and cuda only"), ({"dtype": "float16"}, "dtype 'float16'"),
                            ({"device": "cuda", "dtype": "bfloat16"}, "plans for GPUs are float32"),
                            ({"instruction_set": "sse9"}, "instruction set 'sse9'")):
        with pytest.raises(af.InputError, match=says):
            model.compile(**arguments)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="plans for GPUs need one: no CUDA device"):
            model.compile(device="cuda")
    monkeypatch.setenv("AMEIR_FAST_NATIVE", "0")
    with pytest.raises(RuntimeError, match="turned off by AMEIR_FAST_NATIVE=0"):
        model.compile()


# ---- whatever surrounds a call -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_the_default_type_changes_nothing(checked, kind):
    plan, batch = checked
    user, candidates = batch.slice(0, 1), torch.zeros(50, 2, dtype=torch.int32)
    scores, logits = plan.score(user, candidates), plan(batch)
    torch.set_default_dtype(kind)
    try:
        assert torch.equal(plan.score(user, candidates), scores) and torch.equal(plan(batch), logits)
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_default_device_changes_nothing(checked):
    plan, batch = checked
    user, candidates = batch.slice(0, 1), torch.zeros(50, 2, dtype=torch.int32)
    scores, logits = plan.score(user, candidates), plan(batch)
    with torch.device("meta"):
        assert torch.equal(plan.score(user, candidates), scores) and torch.equal(plan(batch), logits)


def test_the_parts_of_a_call(checked):
    plan, batch = checked
    parts = plan.profile(batch, repeats=3)
    assert len({part["part"] for part in parts}) == len(parts) and all(part["seconds"] >= 0 for part in parts)
    assert sum(part["seconds"] for part in parts) > 0
    names = [part["part"] for part in parts]
    assert names[:3] == ["order rows", "look up fields", "look up history"] and names[-2:] == ["squeeze-and-excitation", "head"]
    assert [n for n in names if n.startswith("block")] == [
        f"block {i}: {b.layer}" for i, b in enumerate(plan.arch.behavior) if b.layer != "zero"]
    works = forward_work(plan.schema, plan.arch, plan._model.embedding_dim, batch.lengths.numpy())
    assert sum(part["flops"] for part in parts) == sum(work.flops for work in works)
    with pytest.raises(af.InputError, match="row 33"):
        plan.profile(changed(batch, "fields", (33, 1), 999))
    for repeats in (0, -1, 1.5):
        with pytest.raises(af.InputError, match="not an integer >= 1"):
            plan.profile(batch, repeats)


def test_the_parts_of_scoring_all_items():
    plan = pair(make_schema(task="retrieval", fields=0, behavior=1), arch_of("conv1", interactions=()), 4)[0].compile()
    batch = random_batch(plan.schema.to_dict(), 9, 1)
    parts = {part["part"]: part for part in plan.profile(batch, 2)}
    assert list(parts)[-3:] == ["MLP 1", "head", "score all items"]
    works = forward_work(plan.schema, plan.arch, 4, batch.lengths.numpy())
    assert sum(part["flops"] for part in parts.values()) == sum(work.flops for work in works)
    assert parts["score all items"]["flops"] == 2 * 9 * 4 * plan.schema.size(plan.schema.item_vocabulary)


def test_no_number_is_read_before_it_is_written():
    """Scratch memory is NaN before every tile here, so a small tile after a large one has nothing of it."""
    assert os.environ["AMEIR_FAST_POISON"]
    schema = make_schema(fields=5, multi=1, behavior=2, max_history=21, seed=2)
    for layer in LAYERS:
        plan = pair(schema, arch_of(layer, "conv3"), 8)[0].compile()
        large = plan(random_batch(schema, 100, 1))
        small = random_batch(schema, 3, 2, lengths=[0, 1, 2])
        assert large.isfinite().all() and plan(small).isfinite().all(), layer


_IN_TURN = """
import torch
from tests.helpers import make_schema, random_batch
from tests.test_plan import LAYERS, arch_of, pair
torch.set_num_threads(1)
schemas = [make_schema(fields=5, multi=1, behavior=n, max_history=longest, seed=2) for n, longest in ((2, 21), (1, 9))]
plans = [(schema, pair(schema, arch_of(layer, "conv3"), 8)[0].compile()) for layer in LAYERS for schema in schemas]
for turn in range(3):
    for schema, plan in plans if turn % 2 else plans[::-1]:
        for rows in (70, 2):
            print(plan(random_batch(schema, rows, turn)).tolist())
"""


def test_memory_that_is_used_again_is_as_good():
    """Plans in turn on one thread, whose scratch memory is NaN before every tile or is what the last one left."""
    found = [subprocess.run([sys.executable, "-c", _IN_TURN], capture_output=True, text=True, check=True,
                            env={**os.environ, "AMEIR_FAST_POISON": poison}).stdout for poison in ("", "1")]
    assert found[0] == found[1] and found[0].count("\n") == 3 * 2 * 2 * len(LAYERS) and "nan" not in found[0]


# ---- one user, many candidates -------------------------------------------------------------------------


def repeated(user: af.Batch, schema: dict, names: list[str], candidates: torch.Tensor) -> af.Batch:
    """The rows that the candidates stand for."""
    rows = select_rows(user, [0] * len(candidates))
    order = [f["name"] for f in schema["fields"]]
    for column, name in enumerate(names):
        rows.fields[:, order.index(name)] = candidates[:, column]
    return rows


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("layers", [("bi_gru", "self_attn4", "target_attn"), ("target_attn", "max_pool3", "conv3"),
                                    ("zero", "dconv5", "avg_pool3")])
def test_candidates_score_as_the_rows_they_stand_for(layers, isa):
    schema = make_schema(fields=5, multi=1, behavior=2, max_history=21, seed=2)
    plan = pair(schema, arch_of(*layers, interactions=((0, 1), (1, 2, 4))), 4)[0].compile(instruction_set=isa)
    for length in (0, 1, 13, 21):
        user = random_batch(schema, 1, length, lengths=[length])
        for count in (0, 1, 3, 16, 50, 131):
            for names in (None, ["f3", "f0"]):
                used = names or schema["target"]
                candidates = torch.randint(2, (count, len(used)), dtype=torch.int32)
                got = plan.score(user, candidates, names)
                assert torch.equal(got, plan(repeated(user, schema, used, candidates))), (length, count, names)


def test_candidates_without_a_history():
    schema = make_schema(fields=4, behavior=0, seed=3)
    plan = pair(schema, arch_of(), 4)[0].compile()
    user, candidates = random_batch(schema, 1, 1), torch.randint(2, (20, 1), dtype=torch.int32)
    assert torch.equal(plan.score(user, candidates, ["f2"]), plan(repeated(user, schema, ["f2"], candidates)))


def test_candidates_that_cannot_be(checked):
    plan, batch = checked
    user, good = batch.slice(0, 1), torch.zeros(5, 2, dtype=torch.int32)
    bad = good.clone()
    bad[3, 1] = 999
    for arguments, says in (
            ((batch, good), "the user is one row, not 100"),
            ((user, good.long()), "candidates is torch.int64"),
            ((user, good[:, :1]), "candidates has 1 columns, not 2"),
            ((replace(user, fields=user.fields[:, :1]), good), "fields has 1 columns, not 4"),
            ((replace(user, fields=user.fields[:, :3]), good), "fields has 3 columns, not 4"),
            ((user, good, "f9"), "'f9' is no categorical field"),
            ((user, good, ["f3", "f0"]), "'f3' is no categorical field"),
            ((user, good, ["f0", "f0"]), "not one or more different fields"),
            ((user, good, []), "not one or more different fields"),
            ((user, good, 3), "fields is 3, not names of fields"),
            ((user, good.tolist()), "candidates is a list, not a tensor"),
            ((user, good.numpy()), "candidates is a ndarray, not a tensor"),
            ((user, good.to_sparse()), "candidates is a tensor of layout torch.sparse_coo, not a dense one"),
            ((changed(user, "fields", (0, 2), 999), good[:0]), "field 'f2', row 0: id 999"),
            ((user, bad), "field 'f0', row 3: id 999"),
            ((changed(user, "history", (1, 0), -5), good), "field 'history0', row 0: id -5")):
        with pytest.raises(af.InputError, match=says):
            plan.score(*arguments)
    retrieval = pair(make_schema(task="retrieval", fields=0, behavior=1), arch_of("conv1", interactions=()), 4)[0].compile()
    with pytest.raises(af.InputError, match="a retrieval model has no candidates"):
        retrieval.score(user, good)
    with pytest.raises(af.InputError, match="items are of retrieval"):
        plan(batch, items=good)
    without = pair(make_schema(fields=4, behavior=0, seed=3), arch_of(), 4)[0].compile()
    with pytest.raises(af.InputError, match="no target fields, so `fields` must name"):
        without.score(user, good)
