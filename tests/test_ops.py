"""The operation table: references by oracle and gradcheck, registration by opcheck, compilation, backends."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from ameir_fast import ops, reference
from ameir_fast.ops import OPS, Backend, _triton
from tests import oracle
from tests.helpers import assert_close

NAMES = ("embedding_interactions", "sliced_mlp", "sequence_block", "sequence_pool", "squeeze_excite",
         "embedding_update", "embedding_catch_up", "mlp_population", "interaction_population", "sequence_activations")
IN_PLACE = ("embedding_update", "embedding_catch_up")
WITHOUT_GRADIENT = (*IN_PLACE, "mlp_population", "interaction_population", "sequence_activations")
LENGTHS = [3, 0, 1, 5, 2]
TARGETS = (True, False)


class Maker:
    """Random tensors of one dtype from one seed; leaves that require gradients where asked."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64, grad: bool = True):
        self.g, self.dtype, self.grad = torch.Generator().manual_seed(seed), dtype, grad

    def __call__(self, *shape: int) -> Tensor:
        t = torch.randn(shape, generator=self.g, dtype=torch.float64).to(self.dtype)
        return t.requires_grad_(self.grad)

    def ids(self, limit: int, *shape: int) -> Tensor:
        return torch.randint(limit, shape, generator=self.g)


def offsets_of(lengths) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)


def unit(make: Maker, width: int) -> list[Tensor]:
    """The five tensors of a local activation unit."""
    hidden = oracle.HIDDEN
    return [make(hidden, 4 * width), make(hidden), make(1), make(1, hidden), make(1)]


def layer_weights(make: Maker, layer: str, width: int) -> list[Tensor]:
    if layer == "target_attn":
        return unit(make, width)
    return [make(*shape) for shape in oracle.layer_shapes("x", layer, width).values()]


def lookup(make: Maker, multi: bool, rows: int = 4, width: int = 3) -> tuple:
    """embedding, rows, bag_rows, bag_offsets, multi_fields of three fields; the second and third are bags."""
    embedding, ids = make(9, width), make.ids(9, rows, 3)
    if not multi:
        return embedding, ids, None, None, []
    sizes = [(2 * b + j) % 3 for b in range(rows) for j in range(2)]
    return embedding, ids, make.ids(9, sum(sizes)), offsets_of(sizes), [1, 2]


def block_args(layer: str, norm: str, activation: str, make: Maker, width: int = 4, lengths=LENGTHS) -> tuple:
    target = make(len(lengths), width) if layer == "target_attn" else None
    norms = [make(width), make(width)] if norm == "layer_norm" else []
    return (
        make(sum(lengths), width),
        offsets_of(lengths),
        norms,
        layer_weights(make, layer, width),
        target,
        layer,
        activation,
        max(lengths, default=0),
    )


# The cases of each operation in the order of its schema's arguments: ``(name, make -> arguments)``.

def _lookup_cases():
    for multi, (fields, orders), dense in itertools.product(
            (False, True), (([], []), ([0, 1, 0, 1, 2], [2, 3])), (False, True)):
        def build(make, multi=multi, fields=fields, orders=orders, dense=dense):
            table = lookup(make, multi)
            inputs = (5 if dense else 0) + (3 + len(orders)) * 3
            return (*table, fields, orders, make(4, 5) if dense else None, make(6, inputs), make(6), "swish")
        yield f"{'bags' if multi else 'ids'}-{len(orders)}-{'dense' if dense else 'alone'}", build


def _mlp_cases():
    for names in (
        ["dice", "relu"],
        ["swish", "dice", "dice"],
        ["identity"],
        ["dice"],
        ["relu", "swish", "identity"],
    ):
        for fixed in (False, True):
            if fixed and "dice" not in names:
                continue

            def build(make, names=names, fixed=fixed):
                units = [6, 5, 3][:len(names)]
                dice = []
                for n, name in zip(units, names):
                    if name == "dice" and fixed:
                        stacked = torch.stack(
                            [make(n).detach(), make(n).detach(), make(n).detach().abs() + 0.5]
                        )
                        dice.append(stacked.requires_grad_(make.grad))
                    elif name == "dice":
                        dice.append(make(n))
                return (
                    make(7, 6),
                    [make(a, b) for b, a in itertools.pairwise(units)],
                    [make(n) for n in units[1:]],
                    names,
                    dice,
                )
            yield "-".join(names) + ("-fixed" if fixed else ""), build


def _block_cases():
    for layer in oracle.LAYERS:
        yield f"{layer}-layer_norm", lambda make, layer=layer: block_args(layer, "layer_norm", "gelu", make)
        yield f"{layer}-none", lambda make, layer=layer: block_args(layer, "none", "swish", make)


def _pool_cases():
    for target in TARGETS:
        def build(make, target=target):
            return (make(sum(LENGTHS), 4), offsets_of(LENGTHS), make(len(LENGTHS), 4) if target else None,
                    unit(make, 4) if target else [], max(LENGTHS))
        yield "target" if target else "alone", build


def _excite_cases():
    for multi, (fields, orders) in itertools.product((False, True), (([], []), ([0, 1, 0, 1, 2], [2, 3]))):
        def build(make, multi=multi, fields=fields, orders=orders):
            n = 3 + len(orders)
            return (*lookup(make, multi), fields, orders, make(1, 3), make(n // 2, n), make(n, n // 2))
        yield f"{'bags' if multi else 'ids'}-{len(orders)}", build


def _update_cases():
    for optimizer, states in (("sgd", 0), ("adagrad", 1), ("adam", 2)):
        def build(make, optimizer=optimizer, states=states):
            state = [make(9, 3).abs().detach() for _ in range(states)] + [None, None]
            return (
                make(9, 3).detach(),
                state[0],
                state[1],
                torch.tensor([4, 0, 4, 7]),
                make(4, 3).detach(),
                optimizer,
                0.1,
                3,
                0.9,
                0.999,
                1e-8,
            )
        yield optimizer, build


def _catch_up_cases():
    """Rows from before and after the step from which the expansion holds, and from several gaps."""
    for some in (True, False):
        def build(make, some=some):
            sums = torch.rand(8, 7, generator=make.g, dtype=torch.float64) * 0.1 + 0.5
            return (
                make(9, 3).detach(),
                make(9, 3).detach(),
                make(9, 3).abs().detach(),
                torch.tensor([10, 11, 12, 13, 14, 15, 16, 17, 10], dtype=torch.int32),
                torch.tensor([4, 0, 4, 7, 8]) if some else None,
                sums,
                10,
                17,
                13,
                200,
                0.9,
                0.999,
                1e-8,
            )
        yield "rows" if some else "all", build


def _population_cases():
    for layers in (1, 2, 3):
        def build(make, layers=layers):
            children = [[6, 3, 4, 0, 2, 1], [6, 3, 4, 3, 4, 3], [5, 1, 4, 0, 2, 1], [6, 3, 4, 0, 1, 2]]
            return (make(7, 6).detach(), [make(6, 6).detach() for _ in range(layers - 1)],
                    [make(6).detach() for _ in range(layers - 1)], [make(6).detach() for _ in range(layers)],
                    make(6).detach(), make(7).detach(), torch.tensor(children)[:, :2 * layers].contiguous())
        yield f"{layers}-layers", build


def _candidate_cases():
    for name, orders in (("none", []), ("orders", [1, 2, 1, 4])):
        def build(make, orders=orders):
            fields = [(3 * i + i // 4) % 3 if i % 5 else 2 for i in range(sum(orders))]
            return (make(7, 3, 4).detach(), make(7, 6).detach(), fields, orders, make(len(orders), 6, 4).detach(),
                    make(5, 6).detach(), make(5).detach(), make(5).detach(), make(1).detach())
        yield name, build


def _activations_cases():
    for layer, norm in (("conv3", "layer_norm"), ("bi_gru", "none"), ("target_attn", "layer_norm")):
        def build(make, layer=layer, norm=norm):
            plain = Maker(make.g.initial_seed(), make.dtype, grad=False)
            *before, _, longest = block_args(layer, norm, "relu", plain)
            return (*before, ["swish", "identity", "gelu", "relu"], longest)
        yield f"{layer}-{norm}", build


CASES = {"embedding_interactions": list(_lookup_cases()), "sliced_mlp": list(_mlp_cases()),
         "sequence_block": list(_block_cases()), "sequence_pool": list(_pool_cases()),
         "squeeze_excite": list(_excite_cases()), "embedding_update": list(_update_cases()),
         "embedding_catch_up": list(_catch_up_cases()), "mlp_population": list(_population_cases()),
         "interaction_population": list(_candidate_cases()),
         "sequence_activations": list(_activations_cases())}
ALL = [pytest.param(op, build, id=f"{op}-{name}") for op, cases in CASES.items() for name, build in cases]
DIFFERENTIABLE = [case for case in ALL if case.values[0] not in WITHOUT_GRADIENT]


FLOAT32 = 2e-5


def dtype_for(op: str) -> torch.dtype:
    """In what the dispatcher is asked: native kernels compute in float32 only."""
    return torch.float64 if op in ops.missing(Backend.CPP) else torch.float32


def assert_same(op: str, got: Tensor, want: Tensor, what: str) -> None:
    """``got`` in ``dtype_for(op)`` against ``want`` in float64."""
    assert got.dtype == dtype_for(op), f"{what}: {got.dtype}"
    assert_close(got.double(), want, what, **{} if got.dtype == torch.float64 else {"tolerance": FLOAT32})


def op_of(name: str):
    return getattr(torch.ops.ameir_fast, name).default


def tuple_of(value) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def flat_leaves(arguments) -> list[Tensor]:
    """Every tensor that requires a gradient, lists included, in order."""
    flat = [t for a in arguments for t in (a if isinstance(a, list) else [a])]
    return [t for t in flat if isinstance(t, Tensor) and t.requires_grad]


def rebuild(arguments, new: list[Tensor]) -> list:
    """The arguments with the tensors of ``flat_leaves`` replaced."""
    fresh = iter(new)
    swap = lambda t: next(fresh) if isinstance(t, Tensor) and t.requires_grad else t
    return [[swap(t) for t in a] if isinstance(a, list) else swap(a) for a in arguments]


# ---- the table ----------------------------------------------------------------------------------


def test_the_table_has_the_documented_operations():
    assert tuple(sorted(OPS)) == tuple(sorted(NAMES)), "an operation was added: give it cases in this file"
    assert {b.value for b in Backend} == {"reference", "cpp", "triton"}
    for name in OPS:
        assert callable(getattr(ops, name)), f"no public function {name}"
        assert callable(getattr(reference, name)), f"no reference of {name}"
        assert op_of(name) is not None
        assert CASES[name], f"no test cases of {name}"


def test_what_each_backend_lacks(capsys, record_property):
    """Lists the kernels that are missing; the table and the dispatcher must tell the same."""
    table = ops.backends()
    assert set(table) == set(OPS)
    for backend in Backend:
        lacking = ops.missing(backend)
        record_property(f"missing_{backend.value}", ", ".join(lacking))
        with capsys.disabled():
            print(
                f"\n  {backend.value}: {'no kernel for ' + ', '.join(lacking) if lacking else 'complete'}",
                end="",
            )
        assert set(lacking) <= set(OPS)
        for name in OPS:
            reason = table[name][backend.value]
            if name in lacking:
                assert isinstance(reason, str) and name in reason
            elif backend is Backend.REFERENCE:
                assert reason is None
    assert ops.missing("reference") == []


def test_asking_for_a_backend_that_is_not_there_raises_with_the_reason(monkeypatch):
    monkeypatch.setattr(_triton, "interpreting", lambda: False)
    for name in OPS:
        for backend in (Backend.CPP, Backend.TRITON):
            if name in ops.missing(backend):
                with pytest.raises(RuntimeError, match=backend.value):
                    ops.resolve(name, backend, torch.device("cpu"))
        assert ops.resolve(name, "reference", torch.device("cpu")) is Backend.REFERENCE
        assert ops.resolve(name, None, torch.device("cpu")) in (Backend.REFERENCE, Backend.CPP)
        with pytest.raises(RuntimeError, match="triton.*cpu"):
            ops.resolve(name, "triton", torch.device("cpu"))
    with pytest.raises(ValueError, match="cuda_graphs"):
        ops.resolve("sliced_mlp", "cuda_graphs", torch.device("cpu"))


# ---- references against the oracle --------------------------------------------------------------


@pytest.mark.parametrize("activation", oracle.BLOCK_ACTIVATIONS)
@pytest.mark.parametrize("layer", oracle.LAYERS)
def test_sequence_block_by_the_oracle(layer, activation):
    for seed, (width, lengths) in enumerate(
        [(4, LENGTHS), (8, [1]), (4, [6, 6]), (4, [0, 0]), (4, []), (12, [13, 1, 0])]
    ):
        for norm in oracle.NORMS:
            args = block_args(layer, norm, activation, Maker(seed, grad=False), width, lengths)
            x, offsets, norms, weights, target, *_ = args
            state = dict(zip(oracle.layer_shapes(f"behavior.0.{layer}", layer, width), weights))
            if norms:
                state |= {"behavior.0.norm.weight": norms[0], "behavior.0.norm.bias": norms[1]}
            want = [oracle.behavior_blocks(state, [{"norm": norm, "layer": layer, "activation": activation}],
                                           x[a:b], None if target is None else target[i])
                    for i, (a, b) in enumerate(itertools.pairwise(offsets.tolist())) if b > a]
            want = torch.cat(want) if want else x
            assert_close(reference.sequence_block(*args), want, f"{layer} {norm} {lengths}")
            longer = (*args[:-1], args[-1] + 3)  # max_length is only a size for scratch memory
            assert_close(reference.sequence_block(*longer), want, f"{layer} {norm} {lengths}, longer")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("lengths", [LENGTHS, [1], [4, 4], [0, 0], [], [0, 9]])
def test_sequence_pool_by_the_oracle(target, lengths):
    make = Maker(1, grad=False)
    x, t = make(sum(lengths), 4), make(len(lengths), 4) if target else None
    attention = unit(make, 4) if target else []
    state = dict(zip(oracle._attention_shapes("pool.attention", 4), attention))
    offsets = offsets_of(lengths)
    want = [oracle.pool(state, x[a:b], t[i] if target else None)
            for i, (a, b) in enumerate(itertools.pairwise(offsets.tolist()))]
    want = torch.stack(want) if want else x.new_zeros(0, 12 if target else 8)
    longest = max(lengths, default=0)
    for spare in (0, 2):
        assert_close(reference.sequence_pool(x, offsets, t, attention, longest + spare), want, str(lengths))


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 4])
def test_lookup_operations_by_hand(multi, rows):
    """Concatenation written out row by row, for both operations that look fields up."""
    make = Maker(rows, grad=False)
    table = embedding, ids, bag_rows, bag_offsets, multi_fields = lookup(make, multi, rows)
    interactions = [[0, 1], [0, 1, 2], [1, 2]]
    dense, weight, bias = make(rows, 5), make(6, 5 + 6 * 3), make(6)
    state = {"se.project.weight": make(1, 3), "se.squeeze.weight": make(3, 6), "se.excite.weight": make(6, 3)}
    first, shortcut = [], []
    for b in range(rows):
        e = []
        for i in range(3):
            if i in multi_fields:
                j = b * len(multi_fields) + multi_fields.index(i)
                bag = bag_rows[int(bag_offsets[j]):int(bag_offsets[j + 1])]
                e.append(embedding[bag].sum(0) / max(1, len(bag)))
            else:
                e.append(embedding[ids[b, i]])
        q = torch.stack(e + [torch.stack([e[i] for i in fields]).prod(0) for fields in interactions])
        first.append(torch.nn.functional.silu(weight @ torch.cat([dense[b], q.flatten()]) + bias))
        shortcut.append(oracle.squeeze_excite(state, q))
    got = reference.embedding_interactions(*table, interactions, dense, weight, bias, "swish")
    assert_close(got, torch.stack(first) if first else bias.new_zeros(0, 6), "first layer")
    got = reference.squeeze_excite(*table, interactions, *state.values())
    assert_close(got, torch.stack(shortcut) if shortcut else bias.new_zeros(0, 3), "shortcut")


def test_sliced_mlp_by_hand_and_on_slices():
    make = Maker(0, grad=False)
    whole, bias = make(9, 9), make(9)
    x, alpha, second = make(6, 7), make(7), make(4)
    out, statistics = reference.sliced_mlp(x, [whole[:4, :7]], [bias[:4]], ["dice", "dice"], [alpha, second])
    h = oracle.dice(x, alpha, x.mean(0), x.var(0, unbiased=False))
    s = h @ whole[:4, :7].clone().t() + bias[:4]
    assert_close(out, oracle.dice(s, second, s.mean(0), s.var(0, unbiased=False)), "output")
    want = torch.cat([x.mean(0), x.var(0, unbiased=False), s.mean(0), s.var(0, unbiased=False)])
    assert_close(statistics, want, "statistics")
    fixed = torch.stack([alpha, make(7), make(7).abs() + 0.1])
    out, statistics = reference.sliced_mlp(x, [], [], ["dice"], [fixed])
    assert_close(out, oracle.dice(x, *fixed), "fixed statistics")
    assert_close(statistics, fixed[1:].flatten(), "the statistics used")


OPTIMIZERS = {"sgd": lambda p: torch.optim.SGD([p], lr=0.1),
              "adagrad": lambda p: torch.optim.Adagrad([p], lr=0.1, eps=1e-8),
              "adam": lambda p: torch.optim.Adam([p], lr=0.1)}


def update_states(optimizer: str) -> list[Tensor]:
    return [
        torch.zeros(9, 3, dtype=torch.float64) for _ in range({"sgd": 0, "adagrad": 1, "adam": 2}[optimizer])
    ]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_embedding_update_equals_torch_optim_when_every_row_is_touched(optimizer):
    make = Maker(0, grad=False)
    table, state = make(9, 3), update_states(optimizer)
    parameter = torch.nn.Parameter(table.clone())
    theirs = OPTIMIZERS[optimizer](parameter)
    for step in range(1, 5):
        rows = torch.cat([torch.arange(9), make.ids(9, 6)])
        gradient = make(15, 3)
        parameter.grad = torch.zeros(9, 3, dtype=torch.float64).index_add(0, rows, gradient)
        theirs.step()
        reference.embedding_update(table, state, rows, gradient, optimizer, 0.1, step)
        assert_close(table, parameter.data, f"{optimizer}, step {step}")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_embedding_update_leaves_other_rows_alone(optimizer):
    """A row follows its own gradients; the lazy Adam corrects its bias by the step counted over all rows."""
    make = Maker(1, grad=False)
    table, state = make(9, 3), update_states(optimizer)
    for step, rows in enumerate([[4, 0, 4, 7], [1], [0, 0, 0, 8], [4, 2], []], start=1):
        rows, gradient, before = torch.tensor(rows, dtype=torch.int64), make(len(rows), 3), table.clone()
        kept = [s.clone() for s in state]
        assert reference.embedding_update(table, state, rows, gradient, optimizer, 0.1, step) is None
        for r in range(9):
            total = sum(
                (g for g, i in zip(gradient, rows.tolist()) if i == r), torch.zeros(3, dtype=torch.float64)
            )
            if r not in rows.tolist():
                assert torch.equal(table[r], before[r]) and all(
                    torch.equal(a[r], b[r]) for a, b in zip(state, kept)
                )
            elif optimizer == "sgd":
                assert_close(table[r], before[r] - 0.1 * total, "sgd")
            elif optimizer == "adagrad":
                squares = kept[0][r] + total ** 2
                assert_close(table[r], before[r] - 0.1 * total / (squares.sqrt() + 1e-8), "adagrad")
            else:
                first, second = 0.9 * kept[0][r] + 0.1 * total, 0.999 * kept[1][r] + 0.001 * total ** 2
                change = first / (1 - 0.9 ** step) / ((second / (1 - 0.999 ** step)).sqrt() + 1e-8)
                assert_close(table[r], before[r] - 0.1 * change, "adam")


def test_embedding_update_refuses_what_it_does_not_know():
    table, rows, gradient = torch.zeros(3, 2), torch.tensor([0]), torch.ones(1, 2)
    with pytest.raises(ValueError, match="lion"):
        reference.embedding_update(table, [], rows, gradient, "lion", 0.1, 1)
    with pytest.raises(ValueError, match="adam"):
        reference.embedding_update(table, [], rows, gradient, "adam", 0.1, 1)
    assert not table.any()


# ---- gradients, registrations, compilation ------------------------------------------------------


@pytest.mark.parametrize("op, build", DIFFERENTIABLE)
def test_gradcheck_of_the_reference(op, build):
    arguments = build(Maker(3))
    wanted = flat_leaves(arguments)

    def function(*tensors):
        out = tuple_of(OPS[op].reference(*rebuild(arguments, list(tensors))))
        return tuple(o for o in out if o.requires_grad)

    assert torch.autograd.gradcheck(function, wanted, eps=1e-6, atol=1e-6, rtol=1e-5, fast_mode=True)


@pytest.mark.parametrize("op, build", DIFFERENTIABLE)
def test_the_registered_operation_equals_the_reference(op, build):
    """Through the dispatcher, on whatever kernel it picks here; outputs and gradients."""
    here, there = build(Maker(4, dtype_for(op))), build(Maker(4))
    got, want = tuple_of(op_of(op)(*here)), tuple_of(OPS[op].reference(*there))
    assert len(got) == len(want)
    for i, (a, b) in enumerate(zip(got, want)):
        assert_same(op, a, b, f"output {i}")
    make = Maker(5, grad=False)
    cotangent = make(*want[0].shape)
    mine = torch.autograd.grad(got[0], flat_leaves(here), cotangent.to(got[0].dtype), allow_unused=True)
    theirs = torch.autograd.grad(want[0], flat_leaves(there), cotangent, allow_unused=True)
    for i, (a, b) in enumerate(zip(mine, theirs)):
        mine_or_zero = torch.zeros_like(flat_leaves(here)[i]) if a is None else a
        assert_same(op, mine_or_zero, torch.zeros_like(flat_leaves(there)[i]) if b is None else b, f"gradient {i}")


# opcheck's dynamic AOT test traces forward and backward, which takes seconds for a recurrent layer: it runs
# on one case of each kind, the three cheap ones on every case.
CHEAP = ("test_schema", "test_autograd_registration", "test_faketensor")
TRACED = {"embedding_interactions": ["bags-2-dense"], "squeeze_excite": ["bags-2"],
          "sliced_mlp": ["swish-dice-dice", "dice-fixed", "identity"],
          "sequence_block": ["conv3-layer_norm", "max_pool3-none", "target_attn-layer_norm", "zero-none"],
          "sequence_pool": ["target"], "embedding_update": ["sgd", "adam"], "embedding_catch_up": ["rows"],
          "interaction_population": ["orders"], "sequence_activations": ["conv3-layer_norm"],
          "mlp_population": []}  # the reference asks its table for numbers, which is no graph


def some(wanted: dict[str, list[str]]) -> list:
    return [
        case for case in ALL for op in [case.values[0]] if case.id in [f"{op}-{name}" for name in wanted[op]]
    ]


@pytest.mark.parametrize("op, build", ALL)
def test_opcheck(op, build):
    torch.library.opcheck(op_of(op), build(Maker(6, dtype_for(op))), test_utils=CHEAP)


@pytest.mark.parametrize("op, build", some(TRACED))
def test_opcheck_traced(op, build):
    torch.library.opcheck(op_of(op), build(Maker(6, dtype_for(op))), test_utils="test_aot_dispatch_dynamic")


@pytest.mark.parametrize("op, build", ALL)
def test_opcheck_without_gradients_in_float32(op, build):
    torch.library.opcheck(op_of(op), build(Maker(7, torch.float32, grad=False)), test_utils=CHEAP)


@pytest.mark.parametrize("op", [name for name in NAMES if name not in WITHOUT_GRADIENT])
def test_empty_batches_through_the_dispatcher(op):
    make = Maker(0, dtype_for(op))
    arguments = {
        "embedding_interactions": lambda: (
            *lookup(make, True, 0),
            [0, 1],
            [2],
            make(0, 5),
            make(6, 17),
            make(6),
            "relu",
        ),
        "squeeze_excite": lambda: (*lookup(make, True, 0), [0, 1], [2], make(1, 3), make(2, 4), make(4, 2)),
        "sliced_mlp": lambda: (make(0, 6), [make(3, 6)], [make(3)], ["dice", "relu"], [make(6)]),
        "sequence_block": lambda: block_args("self_attn2", "layer_norm", "relu", make, 4, []),
        "sequence_pool": lambda: (make(0, 4), offsets_of([]), make(0, 4), unit(make, 4), 0),
    }[op]()
    torch.library.opcheck(op_of(op), arguments, test_utils=CHEAP)
    out = tuple_of(op_of(op)(*arguments))
    assert out[0].shape[0] == 0 and bool(torch.isfinite(out[0]).all())
    out[0].sum().backward()
    assert all(t.grad is None or not t.grad.any() for t in flat_leaves(arguments))


def test_transposed_memory_through_the_dispatcher():
    """The fakes promise strides; inputs that are dense but not row-major must not break the promise."""
    for layer in ("zero", "conv3", "avg_pool3", "bi_gru"):
        args = list(block_args(layer, "none", "relu", Maker(0, dtype_for("sequence_block"))))
        args[0] = args[0].detach().t().contiguous().t().requires_grad_()
        torch.library.opcheck(op_of("sequence_block"), tuple(args), test_utils=CHEAP)
        want = reference.sequence_block(*block_args(layer, "none", "relu", Maker(0)))
        assert_same("sequence_block", op_of("sequence_block")(*args), want, layer)


PUBLIC = {
    "embedding_interactions": lambda a, backend: ops.embedding_interactions(
        *a[:5], reference_nested(a[5], a[6]), *a[7:], backend=backend
    ),
    "squeeze_excite": lambda a, backend: ops.squeeze_excite(
        *a[:5], reference_nested(a[5], a[6]), *a[7:], backend=backend
    ),
    "sliced_mlp": lambda a, backend: ops.sliced_mlp(*a, backend=backend),
    "sequence_block": lambda a, backend: ops.sequence_block(*a, backend=backend),
    "sequence_pool": lambda a, backend: ops.sequence_pool(*a, backend=backend),
    "embedding_update": lambda a, backend: ops.embedding_update(
        a[0], [s for s in a[1:3] if s is not None], *a[3:], backend=backend
    ),
    "embedding_catch_up": lambda a, backend: ops.embedding_catch_up(*a, backend=backend),
    "mlp_population": lambda a, backend: ops.mlp_population(*a, backend=backend),
    "sequence_activations": lambda a, backend: ops.sequence_activations(*a, backend=backend),
    "interaction_population": lambda a, backend: ops.interaction_population(
        *a[:2], reference_nested(a[2], a[3]), *a[4:], backend=backend
    ),
}


def reference_nested(fields, orders) -> list[list[int]]:
    ends = list(itertools.accumulate(orders))
    return [fields[e - n:e] for e, n in zip(ends, orders)]


@pytest.mark.parametrize("op, build", ALL)
def test_public_functions_equal_the_reference(op, build):
    cases = [(None, torch.float64), ("reference", torch.float64)]
    if op not in ops.missing(Backend.CPP):
        cases += [(None, torch.float32), ("cpp", torch.float32)]
    for backend, dtype in cases:
        here, there = build(Maker(8, dtype)), build(Maker(8))
        got, want = PUBLIC[op](here, backend), OPS[op].reference(*there)
        if op in IN_PLACE:
            for a, b in zip(here[:3], there[:3]):
                if dtype == torch.float64:
                    assert a is None or torch.equal(a, b)
                elif a is not None:
                    assert_close(a.double(), b, op, tolerance=FLOAT32)
            assert got is None and want is None
        else:
            for a, b in zip(tuple_of(got), tuple_of(want)):
                assert a.dtype == dtype
                assert_close(a.double(), b, op, **{} if dtype == torch.float64 else {"tolerance": FLOAT32})


COMPILED = {
    "embedding_interactions": ["bags-2-dense"],
    "squeeze_excite": ["bags-2"],
    "sliced_mlp": ["swish-dice-dice"],
    "sequence_block": ["conv3-layer_norm", "self_attn2-none", "max_pool3-none", "target_attn-layer_norm"],
    "sequence_pool": ["target"],
    "embedding_update": ["adam"],
    "embedding_catch_up": [],  # opcheck traces it; its reference asks tensors for numbers, which breaks a graph
    "mlp_population": [],
    "interaction_population": [],
    "sequence_activations": [],
}


@pytest.mark.parametrize("through", ["dispatcher", "public"])
@pytest.mark.parametrize("op, build", some(COMPILED))
def test_compiles_in_one_graph(op, build, through):
    """``fullgraph=True``: no graph break inside; outputs and gradients as in eager mode."""
    torch._dynamo.reset()

    def function(*arguments):
        return op_of(op)(*arguments) if through == "dispatcher" else PUBLIC[op](arguments, None)

    eager, compiled = build(Maker(9, dtype_for(op))), build(Maker(9, dtype_for(op)))
    want = function(*eager)
    got = torch.compile(function, fullgraph=True, backend="aot_eager")(*compiled)
    if op in IN_PLACE:
        for a, b in zip(compiled[:3], eager[:3]):
            assert_close(a, b, op)
        return
    got, want = tuple_of(got), tuple_of(want)
    assert_close(got[0], want[0], op)
    mine = torch.autograd.grad(got[0].sum(), flat_leaves(compiled), allow_unused=True)
    theirs = torch.autograd.grad(want[0].sum(), flat_leaves(eager), allow_unused=True)
    for a, b in zip(mine, theirs):
        assert (a is None) == (b is None) or not (b if a is None else a).any()
        if a is not None and b is not None:
            assert_close(a, b, f"{op}: gradient")


def test_inputs_are_left_alone():
    """No operation but those on an optimizer's state writes into what it is given, forward or backward."""
    for case in DIFFERENTIABLE:
        op, build = case.values
        arguments = build(Maker(10, dtype_for(op)))
        tensors = [t for a in arguments for t in (a if isinstance(a, list) else [a]) if isinstance(t, Tensor)]
        before = [t.detach().clone() for t in tensors]
        tuple_of(op_of(op)(*arguments))[0].sum().backward()
        assert all(torch.equal(a, b) for a, b in zip(before, tensors)), case.id
