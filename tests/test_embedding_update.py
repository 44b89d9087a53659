"""Training by the rows that are read: the operations, dense Adam's equal, batches looked up before, ``fit``."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ameir_fast as af
from ameir_fast import forward, native, ops, reference
from ameir_fast.embedded import Embedded
from ameir_fast.embedding_optimizer import EXACT, WINDOW, EmbeddingAdam
from ameir_fast.forward import rows_read
from ameir_fast.progress import Progress
from ameir_fast.search import stepper, train, training
from ameir_fast.search.behavior import over_parts
from ameir_fast.search.objective import make_objective
from ameir_fast.search.store import RunDirectory

from . import tiny
from .helpers import (
    assert_close,
    make_model,
    make_schema,
    make_supernet,
    random_arch,
    random_batch,
    random_schema,
    strided,
)

pytestmark = pytest.mark.usefixtures("poisoned")

STATES = {"sgd": 0, "adagrad": 1, "adam": 2}
WIDTHS = (1, 3, 4, 8, 13, 16, 32, 64, 128)
needs_native = pytest.mark.skipif(not native.ops_loaded(), reason="the native operations are not there")
SETS = torch.ops.ameir_fast.instruction_sets() if native.ops_loaded() else []


@pytest.fixture(params=SETS)
def instruction_set(request):
    torch.ops.ameir_fast.use_instruction_set(request.param)
    yield request.param
    torch.ops.ameir_fast.use_instruction_set("")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def problem(optimizer: str, rows: int, width: int, seed: int,
            size: int = 50) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """Embedding, state, rows (many of them more than once) and gradient in float64."""
    g = torch.Generator().manual_seed(seed)
    state = [torch.rand(size, width, generator=g, dtype=torch.float64) * 1e-2 for _ in range(STATES[optimizer])]
    chosen = (torch.rand(rows, generator=g) ** 3 * size).long()
    return (torch.randn(size, width, generator=g, dtype=torch.float64), state, chosen,
            torch.randn(rows, width, generator=g, dtype=torch.float64) * 0.1)


def updated(case, optimizer: str, dtype: torch.dtype, backend: str) -> list[Tensor]:
    embedding, state, rows, gradient = case
    embedding, *state = (t.to(dtype, copy=True) for t in (embedding, *state))
    ops.embedding_update(embedding, state, rows, gradient.to(dtype), optimizer, 0.01, 7, backend=backend)
    return [embedding, *state]


# ---- the update ---------------------------------------------------------------------------------


@needs_native
@pytest.mark.parametrize("optimizer", STATES)
def test_update_is_as_exact_as_eager_float32(optimizer, instruction_set):
    for width in WIDTHS:
        for rows in (0, 1, 7, 300):
            case = problem(optimizer, rows, width, seed=rows + width)
            want = updated(case, optimizer, torch.float64, "reference")
            eager = updated(case, optimizer, torch.float32, "reference")
            native_ = updated(case, optimizer, torch.float32, "cpp")
            for name, w, e, n in zip(("embedding", "first", "second"), want, eager, native_):
                error, allowed = (float((t.double() - w).abs().max()) for t in (n, e))
                assert error <= 2 * allowed + 1e-8, f"{name}, width {width}, {rows} rows: {error} against {allowed}"
            untouched = torch.ones(50, dtype=torch.bool).index_fill(0, case[2], False)
            for before, after in zip((case[0], *case[1]), native_):
                assert torch.equal(before.float()[untouched], after[untouched])


@needs_native
@pytest.mark.parametrize("optimizer", STATES)
def test_update_does_not_depend_on_threads_or_memory(optimizer, threads):
    case = problem(optimizer, 20_000, 8, seed=1, size=3000)
    threads(1)
    alone = updated(case, optimizer, torch.float32, "cpp")
    for count in (2, 3, 8):
        threads(count)
        for a, b in zip(updated(case, optimizer, torch.float32, "cpp"), alone):
            assert torch.equal(a, b)
    embedding, state, rows, gradient = case
    case = embedding, state, strided(rows), strided(gradient)
    for a, b in zip(updated(case, optimizer, torch.float32, "cpp"), alone):
        assert torch.equal(a, b)


@needs_native
def test_wrong_arguments_change_nothing():
    embedding, state, rows, gradient = problem("adam", 2000, 4, seed=2)
    embedding, first, second, gradient = embedding.float(), state[0].float(), state[1].float(), gradient.float()
    last, sums = torch.zeros(50, dtype=torch.int32), torch.zeros(4, 7, dtype=torch.float64)
    before = [t.clone() for t in (embedding, first, second, last)]

    def wrong(message, error=RuntimeError, embedding=embedding, state=(first, second), rows=rows, gradient=gradient,
              optimizer="adam", step=1):
        with pytest.raises(error, match=message):
            ops.embedding_update(embedding, list(state), rows, gradient, optimizer, 0.1, step, backend="cpp")

    for place, row in ((0, -1), (1999, 50), (1000, 1 << 40)):
        bad = rows.clone()
        bad[place] = row
        wrong(f"row {row} at place {place} is outside 0..49", IndexError, rows=bad)
        with pytest.raises(IndexError, match=f"row {row} at place {place}"):
            ops.embedding_catch_up(embedding, first, second, last, bad, sums, 0, 3, EXACT, WINDOW, backend="cpp")
    wrong("lion", ValueError, optimizer="lion")
    wrong("adagrad needs 1 state tensors, got 2", ValueError, optimizer="adagrad")
    wrong("rows must be int64", rows=rows.int())
    wrong(r"gradient must be float32 \[2000, 4\]", gradient=gradient[:, :3])
    wrong(r"gradient must be float32 \[2000, 4\]", gradient=gradient.double())
    wrong("first must be float32", state=(first.double(), second))
    wrong(r"second must be \[F, K\]", state=(first, second[:-1]))
    wrong("embedding must be contiguous", embedding=embedding.t().contiguous().t())
    wrong("steps count from 1", step=0)
    with pytest.raises(RuntimeError, match="row 3 is from step -2, before 0"):
        ops.embedding_catch_up(embedding, first, second, last.index_fill(0, torch.tensor([3]), -2), None, sums, 0, 3,
                               EXACT, WINDOW, backend="cpp")
    with pytest.raises(RuntimeError, match="steps 0 to 4 are not in the 4 rows of sums"):
        ops.embedding_catch_up(embedding, first, second, last, None, sums, 0, 4, EXACT, WINDOW, backend="cpp")
    assert all(torch.equal(a, b) for a, b in zip(before, (embedding, first, second, last)))


# ---- dense Adam's equal --------------------------------------------------------------------------


class Dense:
    """``torch.optim.Adam`` with the gradient of the whole matrix."""

    def __init__(self, weights: Tensor):
        self.weights = torch.nn.Parameter(weights.clone())
        self.adam = torch.optim.Adam([self.weights], fused=True)

    def step(self, rows: Tensor, gradient: Tensor, rate: float) -> None:
        self.adam.param_groups[0]["lr"] = rate
        self.weights.grad = torch.zeros_like(self.weights).index_add(0, rows, gradient.to(self.weights.dtype))
        self.adam.step()


def random_steps(total: int, size: int, width: int, seed: int):
    """Rows, gradients and learning rates: rows are touched with odds of 0.0003 to 0.5 a step, and have gradients of one
    size each, 1e-9 to 0.1, so that eps is nothing for some and all for others."""
    g = torch.Generator().manual_seed(seed)
    size_of = 10 ** torch.empty(size, 1).uniform_(-9, -1, generator=g)
    odds = 10 ** torch.empty(size).uniform_(-3.5, -0.3, generator=g)
    for step in range(total):
        rows = (torch.rand(size, generator=g) < odds).nonzero()[:, 0]
        rows = torch.cat([rows, rows[:5]])[torch.randperm(len(rows) + len(rows[:5]), generator=g)]
        yield rows, torch.randn(len(rows), width, generator=g) * size_of[rows], \
            2e-3 * 0.5 * (1 + math.cos(math.pi * step / total))


BACKENDS = ["reference", *(["cpp"] if SETS else [])]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("total, flushes", [(40, ()), (300, (3, 127, 128, 250)), (1500, ())])
def test_equals_dense_adam(total, flushes, backend):
    """Nearer to dense Adam in float64 than dense Adam in float32 is, or hardly farther."""
    weights = torch.randn(400, 4, generator=torch.Generator().manual_seed(1)) * 0.05
    exact, eager = Dense(weights.double()), Dense(weights)
    mine = torch.nn.Parameter(weights.clone())
    adam = EmbeddingAdam(mine, backend=backend)
    for step, (rows, gradient, rate) in enumerate(random_steps(total, 400, 4, total)):
        read = adam.gather(rows)
        if step % 50 == 0:
            assert read.requires_grad and float((read.detach() - exact.weights.detach()[rows]).abs().max()) < 3e-7
        adam.step(rows, gradient, rate)
        exact.step(rows, gradient, rate)
        eager.step(rows, gradient, rate)
        if step in flushes:
            adam.flush()
    adam.flush()
    ours, theirs = adam.state, [d.adam.state[d.weights] for d in (eager, exact)]
    assert int(ours["step"]) == total and int(adam._last_step.min()) == total
    for got, float32, want in [(mine, eager.weights, exact.weights),
                               *((ours[k], *(t[k] for t in theirs)) for k in ("exp_avg", "exp_avg_sq"))]:
        error, allowed = (float((t.detach().double() - want.detach()).abs().max()) for t in (got, float32))
        assert error <= 1.5 * allowed, f"{error} against {allowed}"


@needs_native
def test_catch_up_on_every_instruction_set(instruction_set, threads):
    for width in WIDTHS:
        found = []
        for backend, count in (("reference", 1), ("cpp", 1), ("cpp", 4)):
            threads(count)
            mine = torch.nn.Parameter(torch.ones(60, width))
            adam = EmbeddingAdam(mine, backend=backend)
            for rows, gradient, rate in random_steps(260, 60, width, width):
                adam.gather(rows)
                adam.step(rows, gradient, rate)
            before = mine.detach().clone()
            adam.gather(torch.arange(60).repeat(200))
            adam.flush()
            found.append([mine.detach(), adam.state["exp_avg"], adam.state["exp_avg_sq"]])
            assert not torch.equal(before, mine)
        for want, one, four in zip(*found):
            torch.testing.assert_close(one, want, rtol=3e-6, atol=2e-7)
            assert torch.equal(one, four)


def test_rows_that_were_never_touched_stay(tmp_path):
    mine = torch.nn.Parameter(torch.randn(10, 4))
    before, adam = mine.detach().clone(), EmbeddingAdam(mine)
    for _ in range(300):
        adam.gather(torch.tensor([2, 2]))
        adam.step(torch.tensor([2, 2]), torch.ones(2, 4), 0.01)
    adam.flush()
    others = torch.arange(10) != 2
    assert torch.equal(mine.detach()[others], before[others]) and not torch.equal(mine.detach()[2], before[2])


def test_lazy_rows_keep_still():
    weights = torch.randn(30, 4, dtype=torch.float64)
    mine = torch.nn.Parameter(weights.clone())
    adam, state = EmbeddingAdam(mine, lazy=True), [torch.zeros(30, 4, dtype=torch.float64) for _ in range(2)]
    for step, (rows, gradient, rate) in enumerate(random_steps(50, 30, 4, 1), start=1):
        adam.gather(rows)
        adam.step(rows, gradient.double(), rate)
        reference.embedding_update(weights, state, rows, gradient.double(), "adam", rate, step)
    adam.flush()
    assert_close(mine.detach(), weights, "weights")


def test_state_goes_to_and_from_torch():
    """Half of the steps here, half there, in both orders."""
    weights = torch.randn(80, 3, dtype=torch.float64) * 0.1
    steps = list(random_steps(200, 80, 3, 3))
    whole = Dense(weights)
    for one in steps:
        whole.step(*one)
    first = Dense(weights)
    for one in steps[:100]:
        first.step(*one)
    adam = EmbeddingAdam(first.weights, first.adam.state[first.weights])
    for rows, gradient, rate in steps[100:150]:
        adam.gather(rows)
        adam.step(rows, gradient.double(), rate)
    adam.flush()
    for one in steps[150:]:
        first.step(*one)
    # In float64 what the expansion and the window leave out shows.
    assert_close(first.weights, whole.weights, "weights", 1e-8)
    for key in ("exp_avg", "exp_avg_sq", "step"):
        assert_close(first.adam.state[first.weights][key].double(), whole.adam.state[whole.weights][key].double(), key)


# ---- batches looked up before --------------------------------------------------------------------


def looked_up(schema: af.FeatureSchema, embedding: Tensor, batch: af.Batch, items: Tensor | None):
    parts = rows_read(schema, batch, items)
    rows = torch.cat([p.flatten() for p in parts if p is not None])
    leaf = embedding.detach()[rows].requires_grad_()
    return rows, leaf, replace(batch, embedded=Embedded.of(leaf, parts))


def same_with_rows_looked_up(net, schema: af.FeatureSchema, batch: af.Batch, items, call) -> None:
    """Scores, and gradients of all parameters."""
    rows, leaf, embedded = looked_up(schema, net.embedding.weight, batch, items)
    found = []
    for one in (batch, embedded):
        net.zero_grad(set_to_none=True)
        scores = call(one, items)
        if scores.requires_grad:
            (scores * torch.linspace(-1, 1, scores.numel(), dtype=scores.dtype).view_as(scores)).sum().backward()
        found.append((scores.detach(), {n: p.grad for n, p in net.named_parameters()}))
    (plain, want), (scores, got) = found
    assert_close(scores, plain, "scores")
    occurrences = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    combined = torch.zeros_like(net.embedding.weight).index_add(0, rows, occurrences)
    assert got["embedding.weight"] is None, "the matrix itself was read"
    got["embedding.weight"] = combined
    for name, gradient in want.items():
        mine = got[name]
        zero = torch.zeros_like(combined if gradient is None and mine is None else gradient if mine is None else mine)
        assert_close(zero if mine is None else mine, zero if gradient is None else gradient, name)


@pytest.mark.parametrize("seed", range(30))
def test_embedded_batches_give_the_same(seed):
    data, width = random_schema(seed)
    schema, rng = af.FeatureSchema.from_dict(data), random.Random(seed)
    rows = rng.choice([0, 1, 9, 20]) if seed % 3 else 12
    batch = random_batch(data, rows, seed)
    items = None
    if data["task"] == "retrieval":
        g = torch.Generator().manual_seed(seed)
        items = torch.randint(schema.size(schema.item_vocabulary), (rows, 3), generator=g)
    archs = [af.Architecture.from_dict(random_arch(data, width, seed + i)) for i in range(3)]
    model = make_model(data, archs[0].to_dict(), width, seed)
    same_with_rows_looked_up(model, schema, batch, items, lambda b, i: model(b, items=i))
    net = make_supernet(data, width, seed)
    if rows:  # parts of a batch may not be empty for every architecture
        same_with_rows_looked_up(net, schema, batch, items, lambda b, i: over_parts(net, archs, b, i))
    if schema.num_fields:
        pairs = [tuple(rng.sample(range(schema.num_fields), min(2, schema.num_fields))) for _ in range(3)]
        pairs = [tuple(sorted(p)) for p in pairs]
        net.add_interactions(pairs)
        same_with_rows_looked_up(net, schema, batch, items, lambda b, i: net.interaction_logit(b, pairs, i))


def test_slices_of_embedded_batches():
    for seed in range(12):
        data, width = random_schema(seed)
        schema = af.FeatureSchema.from_dict(data)
        batch = random_batch(data, 11, seed)
        table = torch.randn(schema.num_embeddings, width)
        _, _, embedded = looked_up(schema, table, batch, None)
        for a, b in ((0, 4), (3, 11), (5, 5), (0, 11)):
            part = embedded.slice(a, b)
            _, _, want = looked_up(schema, table, batch.slice(a, b), None)
            for got, expected in zip(vars(part.embedded).values(), vars(want.embedded).values()):
                assert (got is None) == (expected is None) and (got is None or torch.equal(got, expected))
        for part, (a, b) in zip(embedded.split([4, 0, 6, 1]), ((0, 4), (4, 4), (4, 10), (10, 11)), strict=True):
            want = embedded.slice(a, b)
            for got, expected in zip((*vars(part).values(), *vars(part.embedded).values()),
                                     (*vars(want).values(), *vars(want.embedded).values())):
                assert not isinstance(got, Tensor) or torch.equal(got, expected)
        moved = embedded.to("cpu").embedded
        assert torch.equal(moved.fields, embedded.embedded.fields)


# ---- fit -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict:
    directory = tmp_path_factory.mktemp("data")
    return {"clicks": tiny.prepared(directory / "clicks"), "fields": tiny.prepared_fields(directory / "fields"),
            "sequences": tiny.prepared_sequences(directory / "sequences")}


def trained(data, directory: Path, frozen: range = range(0)) -> tuple[dict, list, dict]:
    """A supernet's weights after 40 steps, its losses, and the optimizer's state; its embedding is frozen in some."""
    config = tiny.CONFIG.changed(embedding_l2=0.05, unknown_rate=0.1, dropout=0.1, batch_size=128)
    torch.manual_seed(0)
    net = af.Supernet(af.SearchSpace(data.schema), 4)
    draw = torch.Generator().manual_seed(3)
    archs = [net.sample(draw) for _ in range(160)]

    def forward(step, batch, items):
        net.embedding.weight.requires_grad_(step not in frozen)
        return over_parts(net, archs[4 * step:4 * step + 4], batch, items)

    task = training.Task(data, make_objective(data.schema, config), config, Progress())
    with RunDirectory(directory, {"version": 1}) as run:
        scope = run.scope(0, "train")
        found = training.fit(task, net, scope, total=40, learning_rate=2e-3, forward=forward, validate=None,
                             keep_best=False)
        saved = scope.load_tensors("training")[0]
    return net.state_dict(), found.curve, saved


@pytest.mark.parametrize("name", ["clicks", "sequences", "fields"])
@pytest.mark.parametrize("frozen", [range(0), range(15, 40), range(40), range(12, 30), range(0, 9)], ids=str)
def test_fit_by_rows_equals_fit_of_the_matrix(sets, name, frozen, tmp_path, monkeypatch):
    found = []
    for limit in (math.inf, 0.0):
        monkeypatch.setattr(stepper, "SPARSE_FROM", limit)
        found.append(trained(sets[name], tmp_path / str(limit), frozen))
    (want, losses, dense), (got, curve, saved) = found
    for a, b in zip(curve, losses, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    assert saved.keys() == dense.keys()
    for tensors, others in ((got, want), (saved, dense)):
        for key, value in others.items():
            near = 2e-3 * float(value.abs().max()) if others is dense and value.numel() else 2e-4
            torch.testing.assert_close(tensors[key], value, rtol=2e-3, atol=near, msg=lambda m, key=key: f"{key}: {m}")
    torch.testing.assert_close(got["embedding.weight"], want["embedding.weight"], rtol=1e-4, atol=3e-5)


def test_which_trainings_go_by_rows(sets, monkeypatch):
    monkeypatch.setattr(stepper, "REFERENCE_TIMES", 1.0)
    data = sets["clicks"]
    net = af.Supernet(af.SearchSpace(data.schema), 4)

    def goes(**changes) -> bool:
        config = tiny.CONFIG.changed(**changes)
        return stepper.trains_by_rows(training.Task(data, None, config, Progress()), net)

    assert goes(batch_size=1) and not goes(batch_size=4096) and not goes(batch_size=1, weight_decay=1e-3)


def test_killed_training_by_rows_resumes_to_the_same(sets, tmp_path, monkeypatch):
    """Killed in a step after each of the first validations; the model is the same to the last bit."""
    monkeypatch.setattr(stepper, "SPARSE_FROM", 0.0)
    data = sets["clicks"]
    arch = af.Architecture(tuple(af.Block("none", "zero", "identity") for _ in range(3)), ((0, 1),),
                           af.space.architecture.fixed_mlp(8), "se")
    config = tiny.CONFIG.changed(epochs=3.0, batch_size=128, patience=50)
    whole = train(data, tmp_path / "whole", arch, config)

    class Killed(Exception):
        pass

    class Killing(Progress):
        def __init__(self, after: int):
            super().__init__()
            self.after = after

        def update(self, done, **metrics):
            super().update(done, **metrics)
            if done == self.after:
                raise Killed

    for after in (5, 9, 13):
        with pytest.raises(Killed):
            train(data, tmp_path / "killed", arch, config, resume=True, progress=Killing(after))
    again = train(data, tmp_path / "killed", arch, config, resume=True)
    assert again["variants"]["model"]["auc"] == whole["variants"]["model"]["auc"]
    uninterrupted, resumed = (af.Model.load(tmp_path / run / "model").state_dict() for run in ("whole", "killed"))
    for name, value in uninterrupted.items():
        assert torch.equal(resumed[name], value), name


def test_a_frozen_matrix_costs_nothing(sets):
    """No backward pass makes its gradient, and no step the moments of a matrix that has not been trained."""
    data = sets["clicks"]
    net = af.Supernet(af.SearchSpace(data.schema), 4)
    net.embedding.weight.requires_grad_(False)
    batch, arch = next(data.batches("train", 32, seed=0)), net.sample(torch.Generator().manual_seed(0))
    inputs = forward.prepare(data.schema, net.embedding.weight, batch)
    assert inputs.embedding.shape[0] <= batch.fields.numel() + (0 if batch.bag_ids is None else len(batch.bag_ids))
    net(batch, arch).sum().backward()
    assert net.embedding.weight.grad is None and net.head.weight.grad is not None
    with torch.no_grad():  # where none is made the matrix is read as it is
        assert forward.prepare(data.schema, net.embedding.weight, batch).embedding is net.embedding.weight
    adam = EmbeddingAdam(net.embedding.weight)
    adam.look_up(data.schema, batch)
    adam.update(0.1)
    assert adam.state == {} and adam.steps == 0


def test_lazy_rows_in_the_place_of_bags_keep_still():
    schema = af.FeatureSchema.from_dict(make_schema(fields=3, multi=2, behavior=0, sizes=None, seed=2))
    net = af.Supernet(af.SearchSpace(schema), 4)
    adam, draw = EmbeddingAdam(net.embedding.weight, lazy=True), torch.Generator().manual_seed(0)
    for step in range(3):
        batch = random_batch(schema.to_dict(), 12, step)
        if step:  # ids of bags are others than 0 from now on, whose rows got momentum before
            batch = replace(batch, bag_ids=batch.bag_ids.clamp(min=1))
            rows = [schema.field_offsets[place] for place in schema.multi_fields]
            before = net.embedding.weight[rows].detach().clone()
        batch = adam.look_up(schema, batch)
        net(batch, net.sample(draw)).sum().backward()
        adam.update(0.1)
        if step:
            assert torch.equal(net.embedding.weight[rows], before)


def test_each_look_up_serves_one_update(sets):
    data = sets["clicks"]
    net = af.Supernet(af.SearchSpace(data.schema), 4)
    adam, batch = EmbeddingAdam(net.embedding.weight), next(data.batches("train", 32, seed=0))
    net(adam.look_up(data.schema, batch), net.sample(torch.Generator().manual_seed(0))).sum().backward()
    for _ in range(2):
        adam.update(0.1)
        assert adam.steps == 1
