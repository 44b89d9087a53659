"""Triton kernels of embedding_interactions, squeeze_excite and sliced_mlp against the reference in float64."""

from __future__ import annotations

import importlib
import itertools
import random

import numpy as np
import pytest
import torch
from torch import Tensor

from ameir_fast import ops

pytest.importorskip("triton")
from ameir_fast.kernels._launch import interpreting

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(DEVICE == "cpu" and not interpreting(), reason="neither a GPU nor TRITON_INTERPRET=1")

FLOOR = 2e-6  # of the result's scale: where eager float32 happens to be exact


class Draw:
    """Random arguments from one seed, the same in any dtype; some lie in memory with gaps or the other way round."""

    def __init__(self, seed: int, dtype: torch.dtype):
        self.rng, self.g, self.dtype = random.Random(seed), torch.Generator().manual_seed(seed), dtype

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        kind = self.rng.choice(["plain", "slice", "transposed"]) if len(shape) == 2 else "plain"
        rows, columns = (0, 0) if kind != "slice" else (self.rng.randrange(4), self.rng.randrange(1, 5))
        full = (shape[0] + rows, shape[1] + columns) if len(shape) == 2 else shape
        t = torch.randn(full, generator=self.g, dtype=torch.float64) * scale
        t = t.to(torch.float32).to(device=DEVICE, dtype=self.dtype)
        if kind == "slice":
            t = t[rows:, columns:]
        if kind == "transposed":
            t = t.t().contiguous().t()
        return t.requires_grad_()

    def ids(self, limit: int, *shape: int) -> Tensor:
        return torch.randint(limit, shape, generator=self.g).to(DEVICE)


def draw_lookup(draw: Draw) -> tuple[list, int, int, int]:
    """The arguments both lookups start with; samples, columns and K. A field may occur twice in a product."""
    rng = draw.rng
    samples, fields = rng.choice([0, 1, 2, 5, 17, 67, 128]), rng.choice([0, 1, 2, 3, 6, 13])
    k = rng.choice([1, 2, 3, 4, 5, 8, 12, 16, 24, 64] if fields < 6 and samples < 60 else [1, 3, 4, 8, 16])
    size = rng.choice([1, 7, 30, 200])
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
        bag_offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        bag_rows = draw.ids(size, int(sizes.sum()) + rng.choice([0, 3]))[:int(sizes.sum())]
    return [draw(size, k), rows, bag_rows, bag_offsets, multi, factors, orders], samples, fields + len(orders), k


def draw_interactions(draw: Draw) -> list:
    lookup, samples, columns, k = draw_lookup(draw)
    width = draw.rng.choice([1, 5, 24, 33]) if columns == 0 or draw.rng.random() < 0.5 else 0
    inputs, outputs = width + columns * k, draw.rng.choice([1, 3, 16, 31, 55, 100])
    return [*lookup, draw(samples, width) if width else None, draw(outputs, inputs, scale=max(1, inputs) ** -0.5),
            draw(outputs), draw.rng.choice(["identity", "relu", "swish", "gelu"])]


def draw_excite(draw: Draw) -> list:
    lookup, _, columns, k = draw_lookup(draw)
    hidden = max(1, columns // 2)
    scale = max(1, columns) ** -0.5  # or every excitation would be 0 or 1
    return [*lookup, draw(1, k, scale=k ** -0.5), draw(hidden, columns, scale=scale),
            draw(columns, hidden, scale=scale)]


def draw_mlp(draw: Draw) -> list:
    rng = draw.rng
    samples, layers = rng.choice([0, 1, 2, 31, 128, 200, 300]), rng.choice([1, 1, 2, 3])
    units = [rng.choice([1, 3, 16, 55, 70]) for _ in range(layers)]
    names = [rng.choice(["relu", "swish", "identity", "dice", "dice", "gelu"]) for _ in units]
    dice = []
    for n, name in zip(units, names, strict=True):
        if name == "dice":
            alpha, fixed = draw(n), rng.random() < 0.5
            given = torch.stack([alpha, draw(n), draw(n).abs() + 0.5]) if fixed else alpha
            dice.append(given.detach().requires_grad_())
    weights = [draw(b, a, scale=a ** -0.5) for a, b in itertools.pairwise(units)]
    return [draw(samples, units[0]), weights, [draw(n) for n in units[1:]], names, dice]


DRAWN = {"embedding_interactions": draw_interactions, "squeeze_excite": draw_excite, "sliced_mlp": draw_mlp}
CASES = {"embedding_interactions": range(26), "squeeze_excite": range(16), "sliced_mlp": range(24)}


def leaves(arguments: list) -> list[Tensor]:
    flat = [t for a in arguments for t in (a if isinstance(a, list) else [a])]
    return [t for t in flat if isinstance(t, Tensor) and t.requires_grad]


def detached(arguments: list) -> list:
    one = lambda t: t.detach() if isinstance(t, Tensor) else t
    return [[one(t) for t in a] if isinstance(a, list) else one(a) for a in arguments]


def cotangent(like: Tensor, seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    t = torch.randn(like.shape, generator=g, dtype=torch.float64).to(torch.float32)
    return (t.t().contiguous().t() if seed % 2 else t).to(device=like.device, dtype=like.dtype)


def by_reference(name: str, arguments: list, seed: int = 1) -> list[Tensor]:
    """Outputs and the gradients of all leaves."""
    out = ops.OPS[name].reference(*arguments)
    out = list(out) if isinstance(out, tuple) else [out]
    wanted = leaves(arguments)
    found = torch.autograd.grad(out[0], wanted, cotangent(out[0], seed), allow_unused=True) \
        if out[0].requires_grad else [None] * len(wanted)
    found = [torch.zeros_like(t) if d is None else d for t, d in zip(wanted, found, strict=True)]
    return [o.detach() for o in out] + found


def by_kernels(name: str, arguments: list, seed: int = 1) -> list[Tensor]:
    module = importlib.import_module(f"ameir_fast.kernels.{name}")
    wanted, arguments = leaves(arguments), detached(arguments)
    out = module.forward(*arguments)
    out = list(out) if isinstance(out, tuple) else [out]
    found = module.backward(cotangent(out[0], seed), *arguments)
    assert [t.shape for t in found] == [t.shape for t in wanted]
    assert all(t.is_contiguous() for t in (*out, *found))
    held = [t.untyped_storage().data_ptr() for t in found if t.numel()]
    assert len(set(held)) == len(held), "gradients share memory"
    return out + found


def error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).abs().max()) if want.numel() else 0.0


def compare(name: str, make, seed: int = 1) -> tuple[list[float], list[float]]:
    """Errors of the kernels and of eager float32, by the scale of each result; ``make`` gives arguments of a dtype."""
    want, eager, got = (by_reference(name, make(torch.float64), seed), by_reference(name, make(torch.float32), seed),
                        by_kernels(name, make(torch.float32), seed))
    ours, theirs = [], []
    for i, (a, b, c) in enumerate(zip(got, eager, want, strict=True)):
        assert a.shape == c.shape and a.dtype == torch.float32
        assert bool(torch.isfinite(a).all()), f"result {i}: not finite"
        scale = max(1.0, float(c.abs().max())) if c.numel() else 1.0
        mine, eagers = error(a, c), error(b, c)
        assert mine <= 8 * eagers + 2 * FLOOR * scale, f"result {i}: {mine}, in eager mode {eagers}"
        ours.append(mine / scale)
        theirs.append(eagers / scale)
    return ours, theirs


def rms(errors: list[float]) -> float:
    return (sum(x * x for x in errors) / max(1, len(errors))) ** 0.5


@pytest.mark.parametrize("name", DRAWN)
def test_as_exact_as_eager_float32(name):
    """Over all cases at most twice the error of eager float32; of a single result, where luck is much, eight times."""
    ours, theirs = [], []
    for seed in CASES[name]:
        try:
            mine, eagers = compare(name, lambda dtype, seed=seed: DRAWN[name](Draw(seed, dtype)), seed)
        except AssertionError as failure:
            raise AssertionError(f"case {seed}: {failure}") from failure
        ours += mine
        theirs += eagers
    assert rms(ours) <= 2 * rms(theirs) + FLOOR


def test_no_inputs_at_all():
    """Neither fields nor dense features: the bias alone."""
    from ameir_fast.kernels.embedding_interactions import backward, forward
    g = torch.Generator().manual_seed(0)
    embedding, bias = torch.randn(3, 4, generator=g).to(DEVICE), torch.randn(2, generator=g).to(DEVICE)
    rows = torch.zeros(5, 0, dtype=torch.int64, device=DEVICE)
    arguments = (embedding, rows, None, None, [], [], [], None, torch.zeros(2, 0, device=DEVICE), bias, "relu")
    assert torch.equal(forward(*arguments), bias.relu().expand(5, 2))
    d_embedding, d_weight, d_bias = backward(torch.ones(5, 2, device=DEVICE), *arguments)
    assert not d_embedding.any() and d_weight.shape == (2, 0) and torch.equal(d_bias, 5.0 * (bias > 0))


# ---- memory traffic -----------------------------------------------------------------------------


class Counter:
    """Bytes that kernels load and store in the interpreter: each address once for all programs that ``group`` puts
    together (a program's own rereading, and its neighbours', is the caches' work), by the tensor it lies in."""

    def __init__(self, monkeypatch, group):
        from triton.runtime import interpreter
        self.group, self.at = group, (0, 0, 0)
        self.loaded, self.stored = {}, {}
        builder = interpreter.InterpreterBuilder
        place, load, store = builder.set_grid_idx, builder.create_masked_load, builder.create_masked_store

        def set_grid_idx(this, *at):
            self.at = at
            place(this, *at)

        def create_masked_load(this, ptrs, mask, *rest):
            self._count(self.loaded, ptrs, mask)
            return load(this, ptrs, mask, *rest)

        def create_masked_store(this, ptrs, value, mask, *rest):
            self._count(self.stored, ptrs, mask)
            return store(this, ptrs, value, mask, *rest)

        for function in (set_grid_idx, create_masked_load, create_masked_store):
            monkeypatch.setattr(builder, function.__name__, function)

    def _count(self, seen: dict, ptrs, mask) -> None:
        width = max(8, ptrs.get_element_ty().primitive_bitwidth) // 8
        addresses = seen.setdefault((self.group(*self.at), width), set())
        addresses.update(np.unique(ptrs.data[mask.data]).tolist())

    def bytes(self, seen: dict) -> int:
        return sum(width * len(addresses) for (_, width), addresses in seen.items())


CRITEO_FACTORS, CRITEO_ORDERS = [0, 13, 5, 20, 2, 17, 25, 13, 14, 30, 8, 19, 26, 33], [2, 2, 3, 3, 4]


@pytest.mark.skipif(DEVICE != "cpu", reason="counted in the interpreter")
def test_device_memory_traffic(monkeypatch):
    """The first layer and what follows, at the shapes of Criteo but for the batch: at most 1.15 of the least."""
    from ameir_fast.kernels import _dense, embedding_interactions, sliced_mlp
    g = torch.Generator().manual_seed(0)
    samples, fields, k, outputs, last = 70, 39, 16, 422, 211
    columns = (fields + len(CRITEO_ORDERS)) * k
    embedding = torch.randn(20_000, k, generator=g)
    rows = torch.randint(20_000, (samples, fields), generator=g)
    largest = torch.randn(columns, columns, generator=g) * columns ** -0.5
    first, second, bias = largest[:outputs, :columns], largest[:last, :outputs], torch.randn(columns, generator=g)
    arguments = (embedding, rows, None, None, [], CRITEO_FACTORS, CRITEO_ORDERS, None, first, bias[:outputs], "relu")

    with monkeypatch.context() as patch:
        block_b = embedding_interactions.INTERACTIONS.configs[0].blocks["BLOCK_B"]
        tiles = -(-outputs // _dense.output_block(outputs))
        counter = Counter(patch, lambda x, y, z: x // tiles)
        h1 = embedding_interactions.forward(*arguments)
        loaded, stored = counter.bytes(counter.loaded), counter.bytes(counter.stored)
        distinct = sum(len(part.unique()) for part in rows.split(block_b))
        said = embedding_interactions.traffic(samples, fields, columns, outputs, 0, k, distinct,
                                              len(CRITEO_ORDERS) * max(CRITEO_ORDERS))
        assert (loaded, stored) == (said["loaded"], said["stored"])
        assert loaded + stored <= 1.15 * said["minimum"]
    with monkeypatch.context() as patch:
        block_b = _dense.LINEAR.configs[0].blocks["BLOCK_B"]
        tiles = -(-last // _dense.output_block(last))
        counter = Counter(patch, lambda x, y, z: x // tiles)
        out, _ = sliced_mlp.forward(h1, [second], [bias[:last]], ["identity", "relu"], [])
        loaded, stored = counter.bytes(counter.loaded), counter.bytes(counter.stored)
        row_tiles = -(-samples // block_b)
        least = 4 * (samples * (outputs + last) + row_tiles * last * (outputs + 1))
        assert loaded + stored <= 1.15 * least, (loaded + stored, least)
    want = ops.OPS["embedding_interactions"].reference(*arguments)
    want = (want @ second.t() + bias[:last]).relu()
    assert error(out, want.double()) <= 1e-4


# ---- determinism, precision, slices -------------------------------------------------------------


def usual(seed: int = 0, samples: int = 70) -> list:
    """Six fields, one of them a bag, with hot ids; from the middle of a larger matrix."""
    draw = Draw(seed, torch.float32)
    rows = draw.ids(6, samples, 6)
    sizes = draw.ids(4, samples)
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    weight = draw(60, 130, scale=0.1).detach()[5:50, 20:20 + 7 + 8 * 8].requires_grad_()
    return [draw(40, 8), rows, draw.ids(40, int(sizes.sum())), offsets, [4], [0, 1, 3, 4, 5], [2, 3], draw(samples, 7),
            weight, draw(45), "swish"]


def test_equal_bits_every_time():
    first, second = (by_kernels("embedding_interactions", usual()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_atomics_add_up_to_the_same(monkeypatch):
    want = by_kernels("embedding_interactions", usual())
    monkeypatch.setenv("AMEIR_FAST_TRITON_ATOMICS", "1")
    got = by_kernels("embedding_interactions", usual())
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_sample_is_the_same_in_any_batch():
    """Bit by bit on a GPU. The interpreter's products are NumPy's, whose rounding depends on a row's place in its tile
    with some of OpenBLAS's kernels (those it takes on Zen 5)."""
    def same(part, whole):
        if DEVICE != "cpu":
            return torch.equal(part, whole)
        return torch.allclose(part, whole, rtol=1e-6, atol=1e-6)

    from ameir_fast.kernels import embedding_interactions, squeeze_excite
    embedding, rows, _, _, _, factors, orders, dense, weight, bias, _ = detached(usual())
    v, w1, w2 = detached([Draw(1, torch.float32)(*shape) for shape in ((1, 8), (4, 8), (8, 4))])
    for begin, end in ((0, 1), (5, 12), (30, 70)):
        few = rows[begin:end]
        lookup = ([], factors, orders)
        whole = embedding_interactions.forward(embedding, rows, None, None, *lookup, dense, weight, bias, "swish")
        part = embedding_interactions.forward(embedding, few, None, None, *lookup, dense[begin:end], weight, bias,
                                              "swish")
        assert same(part, whole[begin:end])
        whole = squeeze_excite.forward(embedding, rows, None, None, *lookup, v, w1, w2)
        assert same(squeeze_excite.forward(embedding, few, None, None, *lookup, v, w1, w2), whole[begin:end])


@pytest.mark.parametrize("precision, tolerance", [("tf32", 0.02), ("bf16", 0.1)])
def test_lower_precision(monkeypatch, precision, tolerance):
    """Chosen by the environment, for all matrix products; near enough to the exact ones."""
    if precision == "bf16" and interpreting():
        pytest.skip("the interpreter has no products of bfloat16")
    want = by_kernels("embedding_interactions", usual())
    monkeypatch.setenv("AMEIR_FAST_TRITON_PRECISION", precision)
    for a, b in zip(by_kernels("embedding_interactions", usual()), want, strict=True):
        assert error(a, b.double()) <= tolerance * max(1.0, float(b.abs().max()))
    monkeypatch.setenv("AMEIR_FAST_TRITON_PRECISION", "fp8")
    with pytest.raises(ValueError, match="fp8"):
        by_kernels("embedding_interactions", usual())


def test_plans_are_made_once():
    from ameir_fast.kernels._plan import plan_of
    rows = torch.zeros(3, 4, dtype=torch.int64, device=DEVICE)
    plan = plan_of(rows, [2], [0, 1, 1, 2, 3], [2, 3])
    assert plan_of(rows[:1], [2], [0, 1, 1, 2, 3], [2, 3]) is plan
    assert plan.parts == 6 and plan.factors.tolist() == [[0, 1, -1], [1, 2, 3]]
    assert plan.slots.tolist() == [-1, -1, 0, -1]
    assert plan.involved.tolist() == [0, 1, 2, 3] and plan.entries.tolist() == [0, 1, 3, 4, 5]
    assert plan.starts.tolist() == [0, 1, 3, 4, 5]
