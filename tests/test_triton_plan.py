"""A GPU plan's own kernels: looking a batch up, and the head; and the sizes of its buckets."""

from __future__ import annotations

import pytest
import torch

import ameir_fast as af
from ameir_fast import forward, gpu_plan
from ameir_fast.bench.suites import cases
from ameir_fast.gpu_plan import least_of, rounded_up
from ameir_fast.kernels import _launch, plan_head, plan_inputs
from ameir_fast.kernels._launch import KERNELS, interpreting
from tests.helpers import make_schema, random_batch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(DEVICE == "cpu" and not interpreting(), reason="needs a GPU, or TRITON_INTERPRET=1")


def test_what_is_looked_up_fills_its_buffers():
    """Against PyTorch's indexing: the batch's part, what follows it, and what takes the place of wrong ids and offsets."""
    schema = af.FeatureSchema.from_dict(make_schema(fields=5, multi=2, behavior=2, max_history=6, seed=3))
    embedding = torch.randn(schema.num_embeddings, 4, device=DEVICE)
    tables = gpu_plan._tables(schema, embedding)
    for seed, rows in enumerate((1, 3, 16, 40)):
        batch = random_batch(schema.to_dict(), rows, seed).to(DEVICE)
        sizes = gpu_plan._Sizes.of(batch, schema, False, True)
        state = gpu_plan._State(sizes, schema, 4, 1, torch.device(DEVICE))
        found, given = state.buffers, [batch.fields, batch.history, batch.history_offsets, batch.bag_ids, batch.bag_offsets]
        plan_inputs.fill(*given, tables, found, state.fault)
        assert int(state.fault) == 0
        want, bags, _ = forward.field_rows(schema, batch)
        single = [i for i in range(schema.num_fields) if i not in schema.multi_fields]
        assert torch.equal(found.rows[:rows, single], want[:, single])
        assert torch.equal(found.bag_rows[:len(bags)], bags)
        start = torch.tensor(schema.behavior_offsets, device=DEVICE)
        assert torch.equal(found.x[:len(batch.history)], embedding[batch.history.long() + start].flatten(1))
        assert torch.equal(found.target, embedding[found.rows[:, list(schema.target_positions)]].flatten(1))
        assert torch.equal(found.rows[rows:, single], torch.tensor(schema.field_offsets, device=DEVICE)[single].expand(state.rows - rows, -1))
        for offsets, own, filled, longest in ((found.history_offsets, batch.history_offsets, sizes.elements, 6),
                                              (found.bag_offsets, batch.bag_offsets, sizes.ids, sizes.ids)):
            assert torch.equal(offsets[:len(own)], own)
            assert_partition(offsets, filled, longest)
        for which, place, wrong in ((0, (rows - 1, 0), -1), (1, (0, 1), 2**31 - 1), (3, (0,), 10**6), (2, rows, 10**12), (2, 0, -2**62),
                                    (4, 1, 2**62), (4, 2 * rows, 0)):
            if not given[which].numel():
                continue
            bad = [t.clone() for t in given]
            bad[which][place] = wrong
            state.fault.zero_()
            plan_inputs.fill(*bad, tables, found, state.fault)
            assert int(state.fault) == int(not torch.equal(bad[which], given[which]))
            assert_partition(found.history_offsets, sizes.elements, 6)
            assert_partition(found.bag_offsets, sizes.ids, sizes.ids)
            for looked_up in (found.rows[:, single], found.bag_rows):
                assert bool(((looked_up >= 0) & (looked_up < schema.num_embeddings)).all())


def assert_partition(offsets: torch.Tensor, values: int, longest: int) -> None:
    assert int(offsets[0]) == 0 and int(offsets[-1]) == values
    assert bool(((offsets.diff() >= 0) & (offsets.diff() <= longest)).all())


def test_many_bags_are_found_by_halves():
    schema = af.FeatureSchema.from_dict(make_schema(fields=3, multi=1, behavior=0, seed=3))
    rows, generator = 2500, torch.Generator().manual_seed(0)
    lengths = torch.randint(4, (rows,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(DEVICE)
    size = schema.field_sizes[schema.multi_fields[0]]
    ids = torch.randint(size, (int(offsets[-1]),), dtype=torch.int32, generator=generator).to(DEVICE)
    batch = af.Batch(torch.zeros(rows, 3, dtype=torch.int32, device=DEVICE), bag_ids=ids, bag_offsets=offsets)
    state = gpu_plan._State(gpu_plan._Sizes.of(batch, schema, False, True), schema, 4, 1, torch.device(DEVICE))
    tables = gpu_plan._tables(schema, torch.randn(schema.num_embeddings, 4, device=DEVICE))
    plan_inputs.fill(batch.fields, None, None, ids, offsets, tables, state.buffers, state.fault)
    assert int(state.fault) == 0
    assert torch.equal(state.buffers.bag_rows[:len(ids)], forward.field_rows(schema, batch)[1])
    assert torch.equal(state.buffers.bag_offsets[:rows + 1], offsets)


@pytest.mark.parametrize("samples, width, more", [(1, 1, 0), (37, 130, 4), (16, 64, 64), (5, 200, 3)])
def test_the_head(samples, width, more):
    h, weight, bias = torch.randn(samples, width), torch.randn(1, width + more), torch.randn(1)
    shortcut = torch.randn(more, samples).t() if more else None
    out = torch.full((samples,), torch.nan, device=DEVICE)
    there = lambda t: None if t is None else t.to(DEVICE)
    plan_head.logits(there(h), there(shortcut), there(weight), there(bias), out)
    want = torch.nn.functional.linear(torch.cat([h, shortcut], 1) if more else h, weight, bias)[:, 0]
    torch.testing.assert_close(out.cpu(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 16, 17, 100, 1000, 1025, 65536])
def test_buckets(count):
    up = rounded_up(count)
    assert count <= up <= max(2 * count, 1.25 * count) and (count <= 16 or up <= 1.25 * count + 1)
    assert rounded_up(up) == up
    least = least_of(up)
    assert rounded_up(least) == up and (least == 0 or rounded_up(least - 1) < least)


def test_memory_of_a_bucket():
    schema = cases(["alimama"], ["din"])[0].schema
    rows = 65536
    sizes = gpu_plan._Sizes(rows, rounded_up(rows * schema.max_history), 0, False, True)
    assert 115 <= gpu_plan._State(sizes, schema, 4, 1, torch.device("meta")).bytes / 2**20 <= 125  # as docs/gpu.md says


def test_whole_numbers_are_declared_as_a_launch_makes_them():
    kernel = KERNELS["plan_head_kernel"]
    with pytest.raises(ValueError, match="whole numbers are declared as i32"):
        _launch.Kernel(kernel.function, "forward", {**kernel.signature, "samples": "i64"}, kernel.configs, kernel.specimens)
