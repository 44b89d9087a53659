"""Plans for GPUs: on a GPU as they are, elsewhere their kernels interpreted and without graphs."""

from __future__ import annotations

import pytest
import torch

import ameir_fast as af
from ameir_fast import gpu_plan
from ameir_fast.gpu_plan import GpuPlan, least_of, rounded_up
from ameir_fast.kernels._launch import interpreting
from tests.helpers import make_schema, random_batch
from tests.test_plan import arch_of, pair

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(DEVICE == "cpu" and not interpreting(), reason="needs a GPU, or TRITON_INTERPRET=1")


def exact(twin: af.Model, batch: af.Batch, items=None) -> torch.Tensor:
    with torch.no_grad():
        return twin(batch, items)


def assert_near(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got.double(), want, rtol=2e-4, atol=2e-5)


@pytest.fixture(params=["from the host", "on the device"], autouse=True)
def where(request, monkeypatch):
    """Both ways in which batches come; without a GPU, too."""
    resident = request.param == "on the device"
    if DEVICE == "cpu":
        monkeypatch.setattr(gpu_plan, "_resident", lambda batch: resident)
    elif resident:
        call, score = GpuPlan.__call__, GpuPlan.score
        there = lambda value: value.to(DEVICE) if isinstance(value, af.Batch | torch.Tensor) else value
        monkeypatch.setattr(GpuPlan, "__call__", lambda plan, *given: call(plan, *map(there, given)).cpu())
        monkeypatch.setattr(GpuPlan, "score", lambda plan, *given: score(plan, *map(there, given)).cpu())


CASES = {
    "zero": (dict(fields=4, behavior=2), ("zero", "zero"), {}),
    "layers": (dict(fields=4, behavior=2), ("conv3", "bi_gru"), {}),
    "attention": (dict(fields=5, behavior=2), ("self_attn2", "target_attn"), {}),
    "no target": (dict(fields=3, behavior=2, target=False), ("dconv3", "max_pool3"), {}),
    "bags": (dict(fields=5, multi=2, behavior=2), ("avg_pool3",), {}),
    "no history": (dict(fields=5, behavior=0), (), {}),
    "dice first": (dict(fields=4, behavior=2), ("zero",), {"mlp": [{"width": 9, "activation": "dice"}, {"width": 5, "activation": "swish"}]}),
    "dice later": (dict(fields=4, behavior=2), ("zero",), {"mlp": [{"width": 9, "activation": "relu"}, {"width": 5, "activation": "dice"}]}),
    "one layer": (dict(fields=4, behavior=0), (), {"mlp": [{"width": 7, "activation": "identity"}], "interactions": []}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_plan_gives_what_the_model_gives(name):
    about, layers, more = CASES[name]
    schema = make_schema(**about, max_history=6, seed=3)
    arch = arch_of(*layers) | more
    model, twin = pair(schema, arch, 4)
    plan = GpuPlan(model, DEVICE)
    for rows, seed in ((1, 0), (7, 1), (19, 2), (7, 3)):
        batch = random_batch(schema, rows, seed)
        assert_near(plan(batch), exact(twin, batch))
    lengths = [0] * 5
    empty = random_batch(schema, 5, 4, lengths=lengths if schema["behavior"] else None)
    assert_near(plan(empty), exact(twin, empty))
    assert plan(random_batch(schema, 0, 5)).shape == (0,)
    assert len(plan._states) >= 3
    before = dict(plan._states)
    plan(random_batch(schema, 7, 1))
    assert plan._states == before  # the bucket there was


@pytest.mark.parametrize("first, then", [(True, False), (False, True)])
def test_calls_in_inference_mode_and_outside_share_buffers(first, then):
    schema = make_schema(fields=4, behavior=2, max_history=6, seed=3)
    model, _ = pair(schema, arch_of("zero"), 4)
    with torch.inference_mode(first):
        plan = GpuPlan(model, DEVICE)
        found = plan(random_batch(schema, 7, 1)).clone()
    with torch.inference_mode(then):
        assert torch.equal(plan(random_batch(schema, 7, 1)), found)


def test_retrieval_scores_items():
    schema = make_schema(task="retrieval", fields=0, behavior=2, max_history=6, seed=2)
    model, twin = pair(schema, arch_of("conv1") | {"interactions": [], "shortcut": "none"}, 4)
    plan, batch = GpuPlan(model, DEVICE), random_batch(schema, 6, 1)
    items = torch.randint(2, (6, 3), dtype=torch.int32)
    assert_near(plan(batch), exact(twin, batch))
    assert_near(plan(batch, items), exact(twin, batch, items))
    with pytest.raises(af.InputError, match="items, row 0: id 99"):
        plan(batch, torch.full((6, 1), 99))


@pytest.mark.parametrize("layers, target, multi", [(("conv3", "target_attn"), True, 0), (("bi_gru",), True, 1), (("conv3",), False, 0)])
def test_candidates_of_one_user(layers, target, multi):
    schema = make_schema(fields=4 + multi, multi=multi, behavior=2, target=target, max_history=6, seed=3)
    model, twin = pair(schema, arch_of(*layers), 4)
    plan, fields = GpuPlan(model, DEVICE), ["f1", "f0"]
    sizes = {v["name"]: v["size"] for v in schema["vocabularies"]}
    for length in (5, 0):
        user = random_batch(schema, 1, 2, lengths=[length])
        candidates = torch.stack([torch.randint(sizes[f], (11,), dtype=torch.int32) for f in fields], 1)
        rows = [af.Batch(user.fields.clone(), user.history, user.history_offsets, None, user.bag_ids, user.bag_offsets)
                for _ in candidates]
        for row, candidate in zip(rows, candidates, strict=True):
            row.fields[0, 1], row.fields[0, 0] = candidate[0], candidate[1]
        want = torch.cat([exact(twin, row) for row in rows])
        assert_near(plan.score(user, candidates, fields), want)
    candidates[3, 0] = 999
    with pytest.raises(af.InputError, match="field 'f1', row 3: id 999"):
        plan.score(user, candidates, fields)


def test_users_with_bags_of_other_sizes_share_a_bucket():
    schema = make_schema(fields=5, multi=2, behavior=0, seed=3)
    model, twin = pair(schema, arch_of(), 4)
    plan = GpuPlan(model, DEVICE)
    candidates = torch.zeros(3, 1, dtype=torch.int32)
    for first, count in ((2, 5), (0, 6), (8, 8), (0, 0)):
        ids, offsets = torch.arange(count, dtype=torch.int32) % 2, torch.tensor([0, first, count])
        user = af.Batch(random_batch(schema, 1, 2).fields, bag_ids=ids, bag_offsets=offsets)
        row = af.Batch(user.fields.clone(), bag_ids=ids, bag_offsets=offsets)
        row.fields[0, 0] = 0
        assert_near(plan.score(user, candidates, ["f0"]), exact(twin, row).expand(3))
    assert len(plan._states) == 2  # of 5 to 8 ids, and of none
    user = af.Batch(user.fields, bag_ids=torch.tensor([1, 99], dtype=torch.int32), bag_offsets=torch.tensor([0, 1, 2]))
    with pytest.raises(af.InputError, match="field 'f4', row 0: id 99"):
        plan.score(user, candidates, ["f0"])


def test_bad_input_is_named_and_nothing_is_read_outside():
    schema = make_schema(fields=4, multi=1, behavior=2, max_history=6, seed=3)
    plan, batch = GpuPlan(pair(schema, arch_of("conv1"), 4)[0], DEVICE), random_batch(schema, 9, 1)
    good = plan(batch)
    for change, says in (({"fields": (4, 1)}, "field 'f1', row 4"), ({"history": (2, 0)}, "field 'history0'"),
                         ({"bag_ids": (1,)}, "field 'f3'")):
        (name, place), = change.items()
        values = getattr(batch, name).clone()
        for wrong in (-1, 2**31 - 1):
            values[place] = wrong
            bad = af.Batch(**{**vars(batch), name: values})
            with pytest.raises(af.InputError, match=says):
                plan(bad)
    with pytest.raises(af.InputError, match="history is on meta, but fields on"):
        plan._check(af.Batch(**{**vars(batch), "history": batch.history.to("meta")}))
    offsets = batch.history_offsets.clone()
    offsets[3] = 10**6
    with pytest.raises(af.InputError, match="history_offsets"):
        plan(af.Batch(**{**vars(batch), "history_offsets": offsets}))
    assert torch.equal(plan(batch), good)


def test_offsets_are_checked_at_once():
    schema = make_schema(fields=4, multi=1, behavior=2, max_history=6, seed=3)
    plan = GpuPlan(pair(schema, arch_of("zero"), 4)[0], DEVICE)
    for rows in (0, 1, 9):
        batch = random_batch(schema, rows, 1)
        assert plan._partitions(batch, rows)
        for name in ("history_offsets", "bag_offsets"):
            right = getattr(batch, name)
            for change in (lambda t: t + 1, lambda t: t[:-1], lambda t: t.flip(0) + 1, lambda t: torch.cat([t[:-1], t[-1:] + 1])):
                wrong = af.Batch(**{**vars(batch), name: change(right)})
                assert not plan._partitions(wrong, rows)
                with pytest.raises(af.InputError, match=name):
                    plan(wrong)
    long = random_batch(schema, 2, 1, lengths=[6, 6])
    assert plan._partitions(long, 2)
    assert not plan._partitions(af.Batch(**{**vars(long), "history_offsets": torch.tensor([0, 7, 12])}), 2)


def test_the_rows_of_faults_in_parts(monkeypatch):
    monkeypatch.setattr(gpu_plan, "LARGEST", 8)
    schema = make_schema(fields=3, behavior=2, max_history=4, seed=1)
    plan, batch = GpuPlan(pair(schema, arch_of("avg_pool3"), 4)[0], DEVICE), random_batch(schema, 21, 1)
    fields = batch.fields.clone()
    fields[17, 0] = 99
    with pytest.raises(af.InputError, match="field 'f0', row 17: id 99"):
        plan(af.Batch(**{**vars(batch), "fields": fields}))
    candidates = torch.zeros(21, 1, dtype=torch.int32)
    candidates[15] = 99
    with pytest.raises(af.InputError, match="field 'f0', row 15: id 99"):
        plan.score(random_batch(schema, 1, 1), candidates, ["f0"])


def test_what_many_buffers_hold_is_bounded(monkeypatch):
    schema = make_schema(fields=3, behavior=2, max_history=4, seed=1)
    model, twin = pair(schema, arch_of("avg_pool3"), 4)
    plan, batches = GpuPlan(model, DEVICE), [random_batch(schema, rows, rows) for rows in (3, 9, 17, 30)]
    for batch in batches:
        plan(batch)
    held = [state.bytes for state in plan._states.values()]
    assert len(held) == 4 and min(held) > 0
    monkeypatch.setattr(gpu_plan, "BUFFERS", sum(held[1:]))
    plan(batches[3])
    assert [state.bytes for state in plan._states.values()] == held[1:]
    monkeypatch.setattr(gpu_plan, "BUFFERS", 1)
    assert_near(plan(batches[0]), exact(twin, batches[0]))
    assert len(plan._states) == 1  # of the last call, however large


def test_larger_batches_go_in_parts_and_old_graphs_are_forgotten(monkeypatch):
    monkeypatch.setattr(gpu_plan, "LARGEST", 8)
    schema = make_schema(fields=3, behavior=2, max_history=4, seed=1)
    model, twin = pair(schema, arch_of("avg_pool3"), 4)
    plan, batch = GpuPlan(model, DEVICE, graphs=2), random_batch(schema, 21, 1)
    assert_near(plan(batch), exact(twin, batch))
    for rows in (1, 2, 3, 5):
        plan(random_batch(schema, rows, rows))
    assert len(plan._states) <= 2


def test_saved_plans_are_those_of_the_cpu(tmp_path):
    schema = make_schema(fields=4, behavior=2, max_history=4, seed=1)
    model, twin = pair(schema, arch_of("conv1"), 4)
    plan, batch = GpuPlan(model, DEVICE), random_batch(schema, 5, 1)
    plan.save(tmp_path)
    assert torch.equal(GpuPlan.load(tmp_path, DEVICE)(batch), plan(batch))
    if af.native.plan() is not None:
        assert_near(af.Plan.load(tmp_path)(batch), exact(twin, batch))


def test_no_more_spare_rows_than_a_batch_can_leave_elements():
    """Every row is computed, spare ones too."""
    schema = make_schema(fields=4, behavior=2, max_history=4, seed=3)
    model, twin = pair(schema, arch_of("conv3", "target_attn"), 4)
    plan = GpuPlan(model, DEVICE)
    for total in (33, 40, 41, 48, 64):  # the least and the most of a bucket, in a batch that fills its rows
        lengths = [4] * (total // 4) + ([total % 4] if total % 4 else [])
        batch = random_batch(schema, 16, total, lengths=lengths + [0] * (16 - len(lengths)))
        assert_near(plan(batch), exact(twin, batch))
    found = {state.sizes.elements: state.rows - 16 for state in plan._states.values()}
    assert found == {40: 2, 48: 2, 64: 2}
    full = rounded_up(4096 * 50)
    assert -(-(full - least_of(full)) // 50) == 656  # as docs/gpu.md says


@pytest.mark.gpu
def test_graphs_keep_the_tables_that_they_read():
    from ameir_fast.kernels import _plan

    schema = make_schema(fields=4, behavior=2, max_history=6, seed=3)
    model, twin = pair(schema, arch_of("zero"), 4)
    plan, batch = GpuPlan(model, "cuda"), random_batch(schema, 7, 1)
    plan(batch)
    _plan._plan.cache_clear()
    for _ in range(100):  # what is freed is written over
        torch.full((16,), 2**30, dtype=torch.int32, device="cuda")
    assert_near(plan(batch), exact(twin, batch))


@pytest.mark.gpu
def test_threads_with_streams_of_their_own():
    from concurrent.futures import ThreadPoolExecutor

    schema = make_schema(fields=4, behavior=2, max_history=6, seed=3)
    model, twin = pair(schema, arch_of("conv3"), 4)
    plan = GpuPlan(model, "cuda")
    batches = [random_batch(schema, 5 + i % 9, i) for i in range(64)]

    def call(batch: af.Batch) -> torch.Tensor:
        with torch.cuda.stream(torch.cuda.Stream()):
            return plan(batch.to("cuda")).cpu()

    with ThreadPoolExecutor(4) as pool:
        for batch, got in zip(batches, pool.map(call, batches), strict=True):
            assert_near(got, exact(twin, batch))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_the_current_one():
    schema = make_schema(fields=4, behavior=2, max_history=6, seed=3)
    model, twin = pair(schema, arch_of("conv3"), 4)
    batch = random_batch(schema, 7, 1)
    for graphs in (0, 4):
        first, second = GpuPlan(model, "cuda:0", graphs), GpuPlan(model, "cuda:1", graphs)
        for seed in (1, 2, 3):  # the later ones replay what the first one captured
            batch = random_batch(schema, 7, seed, lengths=[6, 0, 3, 1, 6, 2, 5])
            for plan in (first, second):
                assert_near(plan(batch), exact(twin, batch))
    assert_near(model.to("cuda:1")(batch.to("cuda:1")).cpu(), exact(twin, batch))


@pytest.mark.gpu
@pytest.mark.parametrize("multi", [0, 2])
def test_the_eager_model_can_be_captured(multi):
    from ameir_fast.bench.gpu import _captured

    schema = make_schema(fields=4 + multi, multi=multi, behavior=2, max_history=6, seed=3)
    model, twin = pair(schema, arch_of("bi_gru", "target_attn"), 4)
    model, batch = model.cuda(), random_batch(schema, 7, 1)
    for model.backend in ("reference", "triton"):
        with torch.inference_mode():
            assert_near(_captured(model, batch.to("cuda"))().cpu(), exact(twin, batch))


@pytest.mark.gpu
def test_graphs_are_replayed_and_agree_with_launches():
    schema = make_schema(fields=4, behavior=2, max_history=6, seed=3)
    model, twin = pair(schema, arch_of("conv3", "bi_gru"), 4)
    captured, launched = GpuPlan(model, "cuda"), GpuPlan(model, "cuda", graphs=0)
    for rows in (1, 40, 40, 333):
        batch = random_batch(schema, rows, rows)
        assert torch.equal(captured(batch), launched(batch))
        assert torch.equal(captured(batch.to("cuda")).cpu(), captured(batch))
    assert all(state.graph is not None for state in captured._states.values())
