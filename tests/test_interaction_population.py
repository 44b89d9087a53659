"""Step 2's candidates, computed together: the operation and ``InteractionCandidates``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ameir_fast import ops, reference
from ameir_fast.interaction_candidates import InteractionCandidates
from ameir_fast.metrics import auc_columns
from ameir_fast.search.interactions import expand
from tests.helpers import assert_as_exact_as_eager, make_schema, make_supernet, random_batch
from tests.test_native_fields import SETS, Draw

pytestmark = pytest.mark.usefixtures("poisoned")

native = pytest.mark.skipif("interaction_population" in ops.missing("cpp"), reason="no native kernel here")
CASES = range(40)


@pytest.fixture(params=SETS)
def instruction_set(request) -> Iterator[str]:
    if request.param not in torch.ops.ameir_fast.instruction_sets():
        pytest.skip(f"this processor has no {request.param}")
    yield torch.ops.ameir_fast.use_instruction_set(request.param)
    torch.ops.ameir_fast.use_instruction_set("")


def drawn(seed: int, dtype: torch.dtype = torch.float32) -> list:
    """Random arguments, some of them with gaps in memory; products of up to four fields."""
    draw = Draw(seed, dtype)
    rng = draw.rng
    samples, fields, k = rng.choice([0, 1, 2, 31, 32, 33, 97, 211]), rng.choice([1, 2, 5, 13]), rng.choice([1, 3, 4, 8, 17])
    hidden, outputs, count = rng.choice([1, 7, 16, 113, 200]), rng.choice([1, 5, 16, 80, 131, 200]), rng.choice([0, 1, 2, 5, 20])
    interactions = [[rng.randrange(fields) for _ in range(rng.randint(1, 4))] for _ in range(count)]
    e, projections = draw(samples, fields, k), draw(count, hidden, k)
    if rng.random() < 0.5:
        e, projections = e.permute(2, 1, 0).contiguous().permute(2, 1, 0), projections.mT.contiguous().mT
    return [e, draw(samples, hidden), interactions, projections, draw(outputs, hidden, scale=hidden ** -0.5),
            draw(outputs), draw(outputs, scale=outputs ** -0.5), draw(1)]


def one_at_a_time(e, base, interactions, projections, weight, bias, head, head_bias) -> torch.Tensor:
    rows = [base.new_empty(0, len(base))]
    for fields, projection in zip(interactions, projections, strict=True):
        p = e[:, fields].prod(1)
        h = torch.relu(torch.relu(base + p @ projection.T) @ weight.T + bias)
        rows.append((h @ head + head_bias)[None])
    return torch.cat(rows)


@torch.no_grad()
def test_the_reference_equals_one_candidate_at_a_time():
    for seed in CASES:
        arguments = drawn(seed, torch.float64)
        torch.testing.assert_close(reference.interaction_population(*arguments), one_at_a_time(*arguments), rtol=1e-9,
                                   atol=1e-9)


@native
@torch.no_grad()
def test_as_exact_as_eager_float32(instruction_set):
    """Over all cases at most twice the error of eager float32; of a single result, where luck is much, eight times."""
    assert_as_exact_as_eager((one_at_a_time(*drawn(seed, torch.float64)), one_at_a_time(*drawn(seed)),
                              ops.interaction_population(*drawn(seed), backend="cpp")) for seed in CASES)


@native
@torch.no_grad()
def test_threads_and_other_candidates_change_no_bit(instruction_set):
    before = torch.get_num_threads()
    try:
        for seed in CASES:
            arguments, found = drawn(seed), []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                found.append(ops.interaction_population(*arguments))
            assert all(torch.equal(found[0], other) for other in found[1:]), f"case {seed}"
            e, base, interactions, projections, *rest = arguments
            for some in (list(range(len(interactions)))[::-1], list(range(0, len(interactions), 3))):
                got = ops.interaction_population(e, base, [interactions[i] for i in some], projections[some], *rest)
                assert torch.equal(got, found[0][some]), f"case {seed}"
    finally:
        torch.set_num_threads(before)


@native
@torch.no_grad()
def test_what_is_no_number_stays_so(instruction_set):
    """As in eager mode, and only where it is."""
    e, base = torch.ones(70, 3, 4), torch.randn(70, 20, generator=torch.Generator().manual_seed(0))
    base[33, 7] = float("nan")
    got = ops.interaction_population(e, base, [[0], [1, 2], [0, 2]], torch.ones(3, 20, 4), torch.ones(9, 20), torch.ones(9),
                                     torch.ones(9), torch.zeros(1))
    assert got.isnan().nonzero().tolist() == [[c, 33] for c in range(3)]


@native
def test_wrong_arguments_are_named():
    good = [torch.zeros(4, 3, 2), torch.zeros(4, 6), [0, 1, 2], [1, 2], torch.zeros(2, 6, 2), torch.zeros(5, 6),
            torch.zeros(5), torch.zeros(5), torch.zeros(1)]
    torch.ops.ameir_fast.interaction_population(*good)
    for place, value, says in [
        (0, torch.zeros(4, 3, 2, dtype=torch.float64), "e: dtype"), (0, torch.zeros(4, 6), "e: 2 dim"),
        (1, torch.zeros(3, 6), "base"), (2, [0, 1], "interaction_fields: 2"), (2, [0, 1, 3], "interaction_fields: 3 of 3"),
        (2, [0, 1, -1], "interaction_fields: -1"), (3, [3, 0], "orders: 0"), (4, torch.zeros(3, 6, 2), "projections"),
        (5, torch.zeros(5, 7), "base"), (6, torch.zeros(4), "bias"), (7, torch.zeros(4), "head"),
        (8, torch.zeros(2), "head_bias"),
    ]:
        with pytest.raises(RuntimeError, match=says):
            torch.ops.ameir_fast.interaction_population(*[value if i == place else a for i, a in enumerate(good)])


@pytest.mark.parametrize("backend", [None, "reference", "cpp"])
@torch.no_grad()
def test_candidates_equal_one_at_a_time(backend):
    if backend == "cpp" and "interaction_population" in ops.missing("cpp"):
        pytest.skip("no native kernel here")
    schema = make_schema(fields=5, multi=1, behavior=2, seed=1)
    net = make_supernet(schema, 4, 1, torch.float32, backend=backend).eval()
    candidates = expand(expand([(f,) for f in range(5)], 5), 5)
    net.add_interactions(candidates, torch.Generator().manual_seed(0))
    together = InteractionCandidates(net, candidates)
    batches = [random_batch(schema, n, n) for n in (70, 1, 0, 53)]
    found = torch.cat([together.logits(b) for b in batches], 1)
    alone = torch.stack([torch.cat([net.interaction_logit(b, c) for b in batches]) for c in candidates])
    assert float((found - alone).abs().max()) <= 1e-5 * max(1.0, float(alone.abs().max()))
    label = torch.cat([b.label for b in batches])
    mine, theirs = auc_columns(found, label), auc_columns(alone, label)
    assert abs(mine - theirs).max() <= 1e-3  # pairs nearer to each other than rounding may change places
    assert InteractionCandidates(net, []).logits(batches[0]).shape == (0, 70)


@native
@torch.no_grad()
def test_memory_beside_the_scores_does_not_grow_with_the_candidates():
    """Nothing of a candidate is stored but its logits and its projection."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            out = function(*arguments, **(keywords or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.numel())
            return out

    schema = make_schema(fields=6, behavior=0, seed=1)
    net = make_supernet(schema, 4, 1, torch.float32, backend="cpp").eval()
    candidates = expand(expand([(f,) for f in range(6)], 6), 6)
    net.add_interactions(candidates, torch.Generator().manual_seed(0))
    together, batch = InteractionCandidates(net, candidates), random_batch(schema, 300, 0)
    sizes: list[int] = []
    with Sizes():
        together.logits(batch)
    assert max(sizes) == max(300 * 200, len(candidates) * 300)
