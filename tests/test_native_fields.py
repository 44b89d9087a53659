"""Native embedding_interactions, squeeze_excite and sliced_mlp against the reference, with every instruction set."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ameir_fast import ops

NAMES = ("embedding_interactions", "squeeze_excite", "sliced_mlp")
pytestmark = pytest.mark.skipif(any(name in ops.missing("cpp") for name in NAMES), reason="no native kernels here")
CASES = range(40)
FLOOR = 1e-6  # of the result's scale: where eager float32 happens to be exact
SETS = ("portable", "avx2", "avx512")


@pytest.fixture(params=SETS)
def instruction_set(request) -> Iterator[str]:
    if request.param not in torch.ops.ameir_fast.instruction_sets():
        pytest.skip(f"this processor has no {request.param}")
    yield torch.ops.ameir_fast.use_instruction_set(request.param)
    torch.ops.ameir_fast.use_instruction_set("")


class Draw:
    """Random arguments from one seed, the same in any dtype; some lie in memory with gaps or the other way round."""

    def __init__(self, seed: int, dtype: torch.dtype):
        self.rng, self.g, self.dtype = random.Random(seed), torch.Generator().manual_seed(seed), dtype

    def __call__(self, *shape: int, gaps: bool = True, scale: float = 1.0) -> Tensor:
        kind = self.rng.choice(["plain", "slice", "transposed"]) if gaps and len(shape) == 2 else "plain"
        rows, columns = (0, 0) if kind != "slice" else (self.rng.randrange(4), self.rng.randrange(1, 5))
        full = (shape[0] + rows, shape[1] + columns) if len(shape) == 2 else shape
        t = (torch.randn(full, generator=self.g, dtype=torch.float64) * scale).to(torch.float32).to(self.dtype)
        if kind == "slice":
            t = t[:shape[0], :shape[1]]
        if kind == "transposed":
            t = t.t().contiguous().t()
        return t.requires_grad_()

    def ids(self, limit: int, *shape: int) -> Tensor:
        return torch.randint(limit, shape, generator=self.g)


def draw_lookup(draw: Draw) -> tuple[list, int, int, int]:
    """The arguments both lookups start with; samples, columns and K. A field may occur twice in a product."""
    rng = draw.rng
    samples = rng.choice([0, 1, 2, 5, 17, 127, 128, 129, 300, 700])
    fields, k = rng.choice([0, 1, 2, 3, 6, 13]), rng.choice([1, 2, 3, 4, 5, 8, 12, 16, 24, 128])
    size = rng.choice([7, 30, 200])
    multi = sorted(rng.sample(range(fields), rng.randrange(fields + 1))) if fields and rng.random() < 0.5 else []
    rng.shuffle(multi)
    products = [rng.sample(range(fields), min(fields, rng.choice([1, 2, 2, 3, 4, 5]))) for _ in range(rng.randrange(6))]
    products = [p if rng.random() < 0.8 else p + p[:1] for p in products if p]
    orders, factors = [len(p) for p in products], [f for p in products for f in p]
    rows, bag_rows, bag_offsets = draw.ids(size, samples, fields), None, None
    if rng.random() < 0.5:
        rows = torch.stack([rows, rows], 2)[..., 0]
    if multi:
        sizes = draw.ids(4, samples * len(multi))
        bag_offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
        bag_rows = draw.ids(size, int(sizes.sum()))
    return [draw(size, k), rows, bag_rows, bag_offsets, multi, factors, orders], samples, fields + len(orders), k


def draw_interactions(draw: Draw) -> list:
    lookup, samples, columns, k = draw_lookup(draw)
    width = draw.rng.choice([1, 5, 24, 33]) if columns == 0 or draw.rng.random() < 0.5 else 0
    inputs, outputs = width + columns * k, draw.rng.choice([1, 3, 16, 31, 48, 55, 100])
    return [*lookup, draw(samples, width) if width else None, draw(outputs, inputs, scale=max(1, inputs) ** -0.5),
            draw(outputs), draw.rng.choice(["identity", "identity", "relu", "swish", "gelu"])]


def draw_excite(draw: Draw) -> list:
    lookup, _, columns, k = draw_lookup(draw)
    hidden = max(1, columns // 2)
    scale = max(1, columns) ** -0.5  # or every excitation would be 0 or 1
    return [*lookup, draw(1, k, scale=k ** -0.5), draw(hidden, columns, scale=scale),
            draw(columns, hidden, scale=scale)]


def draw_mlp(draw: Draw) -> list:
    rng = draw.rng
    samples, layers = rng.choice([0, 1, 2, 31, 128, 200, 500]), rng.choice([1, 1, 2, 3])
    units = [rng.choice([1, 3, 16, 55, 70]) for _ in range(layers)]
    names = [rng.choice(["relu", "swish", "identity", "dice", "dice", "gelu"]) for _ in units]
    dice = []
    for n, name in zip(units, names, strict=True):
        if name == "dice":
            alpha, fixed = draw(n), rng.random() < 0.5
            given = torch.stack([alpha, draw(n), draw(n).abs() + 0.5]) if fixed else alpha
            dice.append(given.detach().requires_grad_())
    pairs = list(itertools.pairwise(units))
    weights = [draw(b, a, scale=a ** -0.5) for a, b in pairs]
    return [draw(samples, units[0]), weights, [draw(n) for n in units[1:]], names, dice]


DRAWN = {"embedding_interactions": draw_interactions, "squeeze_excite": draw_excite, "sliced_mlp": draw_mlp}


def leaves(arguments: list) -> list[Tensor]:
    flat = [t for a in arguments for t in (a if isinstance(a, list) else [a])]
    return [t for t in flat if isinstance(t, Tensor) and t.requires_grad]


def compute(name: str, arguments: list, native: bool) -> list[Tensor]:
    """Outputs and the gradients of all leaves."""
    out = getattr(torch.ops.ameir_fast, name)(*arguments) if native else ops.OPS[name].reference(*arguments)
    out = list(out) if isinstance(out, tuple) else [out]
    g = torch.Generator().manual_seed(1)
    cotangent = torch.randn(out[0].shape, generator=g, dtype=torch.float64).to(torch.float32).to(out[0].dtype)
    wanted = leaves(arguments)
    found = torch.autograd.grad(out[0], wanted, cotangent, allow_unused=True) if out[0].requires_grad else \
        [None] * len(wanted)
    found = [torch.zeros_like(t) if d is None else d for t, d in zip(wanted, found, strict=True)]
    return [o.detach() for o in out] + found


def drawn(name: str, seed: int, dtype: torch.dtype = torch.float32) -> list:
    return DRAWN[name](Draw(seed, dtype))


def error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).abs().max()) if want.numel() else 0.0


@pytest.mark.parametrize("name", NAMES)
def test_as_exact_as_eager_float32(name, instruction_set, poisoned):
    """Over all cases at most twice the error of eager float32; of a single result, where luck is much, eight times."""
    ours, theirs = [], []
    for seed in CASES:
        want = compute(name, drawn(name, seed, torch.float64), native=False)
        eager = compute(name, drawn(name, seed), native=False)
        got = compute(name, drawn(name, seed), native=True)
        for i, (a, b, c) in enumerate(zip(got, eager, want, strict=True)):
            assert a.shape == c.shape and a.dtype == torch.float32
            assert bool(torch.isfinite(a).all()), f"case {seed}, result {i}: not finite"
            scale = max(1.0, float(c.abs().max())) if c.numel() else 1.0
            mine, eagers = error(a, c), error(b, c)
            assert mine <= 8 * eagers + 2 * FLOOR * scale, f"case {seed}, result {i}: {mine}, in eager mode {eagers}"
            ours.append(mine / scale)
            theirs.append(eagers / scale)
    assert sum(x * x for x in ours) ** 0.5 <= 2 * sum(x * x for x in theirs) ** 0.5


@pytest.mark.parametrize("name", NAMES)
def test_threads_change_no_bit(name):
    before = torch.get_num_threads()
    try:
        for seed in CASES:
            if name == "sliced_mlp" and drawn(name, seed)[1]:
                continue  # whose matrix products are torch's
            results = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(compute(name, drawn(name, seed), native=True))
            for other in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True)), f"case {seed}"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ("embedding_interactions", "squeeze_excite"))
def test_every_row_once(name):
    """The gradient of an embedding as small as the batch, wide enough for several threads."""
    def arguments(dtype: torch.dtype) -> list:
        draw, rows = Draw(0, dtype), torch.arange(1000 * 12).view(1000, 12)
        lookup = [draw(12000, 4, gaps=False), rows, None, None, [], [0, 1, 2, 3, 4], [2, 3]]
        if name == "squeeze_excite":
            return [*lookup, draw(1, 4), draw(7, 14, scale=0.3), draw(14, 7, scale=0.3)]
        return [*lookup, None, draw(40, 56, scale=0.1), draw(40), "identity"]

    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(compute(name, arguments(torch.float32), native=True))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    for a, b in zip(results[0], compute(name, arguments(torch.float64), native=False), strict=True):
        assert error(a, b) <= 3e-6 * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_opcheck_of_the_backward_pass(name):
    """Gradients are new tensors, none a part of another, shaped as the fake says."""
    for seed in range(8):
        arguments = [a.detach() if isinstance(a, Tensor) else
                     [t.detach() if isinstance(t, Tensor) else t for t in a] if isinstance(a, list) else a
                     for a in drawn(name, seed)]
        out = getattr(torch.ops.ameir_fast, name)(*arguments)
        grad = torch.randn_like(out[0] if isinstance(out, tuple) else out)
        operation = getattr(torch.ops.ameir_fast, f"{name}_backward").default
        torch.library.opcheck(operation, (grad, *arguments), test_utils=("test_schema", "test_faketensor"))
        found = operation(grad, *arguments)
        held = [t.untyped_storage().data_ptr() for t in found if t.numel()]
        assert len(set(held)) == len(held)
        assert all(t.is_contiguous() and t.untyped_storage().nbytes() == t.numel() * 4 for t in found)


def test_no_inputs_at_all():
    """Neither fields nor dense features: the bias alone."""
    embedding, rows, bias = torch.randn(3, 4), torch.zeros(5, 0, dtype=torch.int64), torch.randn(2)
    arguments = (embedding, rows, None, None, [], [], [], None, torch.zeros(2, 0), bias, "relu")
    out = torch.ops.ameir_fast.embedding_interactions(*arguments)
    assert torch.equal(out, bias.relu().expand(5, 2))
    d_embedding, d_weight, d_bias = torch.ops.ameir_fast.embedding_interactions_backward(torch.ones(5, 2), *arguments)
    assert not d_embedding.any() and d_weight.shape == (2, 0) and torch.equal(d_bias, 5.0 * (bias > 0))


def test_a_sample_is_the_same_in_any_batch():
    g = torch.Generator().manual_seed(0)
    embedding, rows = torch.randn(50, 4, generator=g), torch.randint(50, (300, 5), generator=g)
    weight, bias = torch.randn(37, 28, generator=g), torch.randn(37, generator=g)
    rest = (None, None, [], [0, 1, 2, 3, 4], [2, 3], None, weight, bias, "swish")
    operation = torch.ops.ameir_fast.embedding_interactions
    whole = operation(embedding, rows, *rest)
    for begin, end in ((0, 1), (5, 12), (100, 300)):
        assert torch.equal(operation(embedding, rows[begin:end], *rest), whole[begin:end])


def lookups(rows: Tensor, bag_rows: Tensor | None = None, bag_offsets: Tensor | None = None) -> Iterator:
    """Both operations, forward and backward, on an embedding [5, 2]; the bags are the last field's."""
    start = (torch.zeros(5, 2), rows, bag_rows, bag_offsets, [] if bag_offsets is None else [rows.shape[1] - 1], [], [])
    n = rows.shape[1]
    first = (*start, None, torch.zeros(3, 2 * n), torch.zeros(3), "identity")
    second = (*start, torch.zeros(1, 2), torch.zeros(1, n), torch.zeros(n, 1))
    yield lambda: torch.ops.ameir_fast.embedding_interactions(*first)
    yield lambda: torch.ops.ameir_fast.embedding_interactions_backward(torch.zeros(len(rows), 3), *first)
    yield lambda: torch.ops.ameir_fast.squeeze_excite(*second)
    yield lambda: torch.ops.ameir_fast.squeeze_excite_backward(torch.zeros(len(rows), 2), *second)


@pytest.mark.parametrize("wrong", [-1, 5, 2 ** 40, -2 ** 40])
def test_ids_outside_the_embedding(wrong):
    rows = torch.zeros(4, 3, dtype=torch.int64)
    rows[2, 1] = wrong
    for call in lookups(rows):
        with pytest.raises(IndexError, match=f"rows: id {wrong} of sample 2, field 1 "):
            call()
    for call in lookups(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([1, 4, wrong]), torch.tensor([0, 2, 3])):
        with pytest.raises(IndexError, match=f"bag_rows: id {wrong} of sample 1, field 2 "):
            call()


@pytest.mark.parametrize("offsets", [[0, 2, 1], [1, 2, 3], [0, 2, 9], [0, -5, 3], [0, 3], [0, 1, 2, 3]])
def test_corrupt_bag_offsets(offsets):
    for call in lookups(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([1, 4, 0]), torch.tensor(offsets)):
        with pytest.raises(RuntimeError, match="bag_offsets"):
            call()


def test_an_empty_bag_at_the_end_of_its_ids():
    for call in lookups(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([1]), torch.tensor([0, 1, 1])):
        call()


def replaced(arguments: list, place: int, value) -> list:
    return [value if i == place else a for i, a in enumerate(arguments)]


def test_wrong_arguments_are_named():
    rows = torch.zeros(4, 2, dtype=torch.int64)
    start = [torch.zeros(5, 3), rows, None, None, [], [0, 1], [2]]
    first = [*start, torch.zeros(4, 2), torch.zeros(6, 11), torch.zeros(6), "relu"]
    second = [*start, torch.zeros(1, 3), torch.zeros(2, 3), torch.zeros(3, 2)]
    third = [torch.zeros(4, 6), [torch.zeros(3, 6)], [torch.zeros(3)], ["relu", "dice"], [torch.zeros(3)]]
    wrong = [
        ("embedding_interactions", first, 0, torch.zeros(5, 3, dtype=torch.float64), "embedding"),
        ("embedding_interactions", first, 0, torch.zeros(15), "embedding"),
        ("embedding_interactions", first, 1, rows.int(), "rows"),
        ("embedding_interactions", first, 4, [0], "multi_fields"),
        ("embedding_interactions", first, 5, [0, 2], "interaction_fields"),
        ("embedding_interactions", first, 5, [0], "interaction_fields"),
        ("embedding_interactions", first, 6, [2, 0], "orders"),
        ("embedding_interactions", first, 7, torch.zeros(3, 2), "dense"),
        ("embedding_interactions", first, 8, torch.zeros(6, 12), "weight"),
        ("embedding_interactions", first, 9, torch.zeros(7), "bias"),
        ("squeeze_excite", second, 7, torch.zeros(3, 1), "project"),
        ("squeeze_excite", second, 8, torch.zeros(2, 4), "squeeze"),
        ("squeeze_excite", second, 9, torch.zeros(2, 3), "excite"),
        ("sliced_mlp", third, 0, torch.zeros(4, 6, dtype=torch.float64), "x"),
        ("sliced_mlp", third, 1, [torch.zeros(3, 5)], "weights"),
        ("sliced_mlp", third, 2, [torch.zeros(4)], "biases"),
        ("sliced_mlp", third, 3, ["relu"], "activations"),
        ("sliced_mlp", third, 4, [torch.zeros(2, 3)], "dice"),
        ("sliced_mlp", third, 4, [], "dice"),
    ]
    for name, arguments, place, value, told in wrong:
        getattr(torch.ops.ameir_fast, name)(*arguments)
        with pytest.raises(RuntimeError, match=told):
            getattr(torch.ops.ameir_fast, name)(*replaced(arguments, place, value))
    for name, arguments, place in (("embedding_interactions", first, 10), ("sliced_mlp", third, 3)):
        with pytest.raises(ValueError, match="tanh"):
            value = "tanh" if place == 10 else ["tanh", "dice"]
            getattr(torch.ops.ameir_fast, name)(*replaced(arguments, place, value))


def test_one_identity_is_a_copy():
    x, grad = torch.randn(3, 4), torch.randn(3, 4)
    out, _ = torch.ops.ameir_fast.sliced_mlp(x, [], [], ["identity"], [])
    assert torch.equal(out, x) and out.data_ptr() != x.data_ptr()
    dx, = torch.ops.ameir_fast.sliced_mlp_backward(grad, x, [], [], ["identity"], [])
    assert torch.equal(dx, grad) and dx.data_ptr() != grad.data_ptr()


def test_numbers_beyond_the_ordinary():
    """Infinities and NaN come out as of the reference; Dice of a constant column has no spread."""
    x = torch.tensor([[float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e30, -1e30, 1e-40]])
    for name in ("relu", "swish", "identity"):
        got = torch.ops.ameir_fast.sliced_mlp(x, [], [], [name], [])[0]
        want = ops.OPS["sliced_mlp"].reference(x, [], [], [name], [])[0]
        assert torch.allclose(got, want, rtol=1e-6, atol=1e-30, equal_nan=True), f"{name}: {got}, {want}"
    constant = torch.full((300, 3), 0.5)
    out, statistics = torch.ops.ameir_fast.sliced_mlp(constant, [], [], ["dice"], [torch.zeros(3)])
    assert torch.allclose(out, 0.5 * constant) and torch.equal(statistics[3:], torch.zeros(3))
