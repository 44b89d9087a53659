"""Triton kernels of embedding_update and embedding_catch_up against the reference and dense Adam."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from ameir_fast import reference
from ameir_fast.embedding_optimizer import EXACT, WINDOW, EmbeddingAdam, _Sums

pytest.importorskip("triton")
from ameir_fast.kernels import embedding_catch_up, embedding_update
from ameir_fast.kernels._launch import interpreting

from .helpers import strided
from .test_embedding_update import STATES, Dense, problem, random_steps

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(DEVICE == "cpu" and not interpreting(), reason="neither a GPU nor TRITON_INTERPRET=1")

WIDTHS = (1, 3, 4, 13, 16, 64, 128)


def updated(case, optimizer: str, dtype: torch.dtype, kernels: bool) -> list[Tensor]:
    """Embedding and state after a step; on the CPU."""
    embedding, state, rows, gradient = case
    embedding, *state = (t.to(device=DEVICE, dtype=dtype, copy=True) for t in (embedding, *state))
    rows = rows.to(DEVICE)
    gradient = gradient.to(device=DEVICE, dtype=dtype) if gradient.dtype != dtype else gradient.to(DEVICE)
    numbers = (0.01, 7, 0.9, 0.999, 1e-8)
    if kernels:
        first, second = (*state, None, None)[:2]
        assert embedding_update.forward(embedding, first, second, rows, gradient, optimizer, *numbers) is None
    else:
        reference.embedding_update(embedding, state, rows, gradient, optimizer, *numbers)
    return [t.cpu() for t in (embedding, *state)]


@pytest.mark.parametrize("optimizer", STATES)
@pytest.mark.parametrize("width", WIDTHS)
def test_update_is_as_exact_as_eager_float32(optimizer, width):
    for rows in (0, 1, 7, 33, 300):
        case = problem(optimizer, rows, width, seed=rows + width)
        want = updated(case, optimizer, torch.float64, kernels=False)
        eager = updated(case, optimizer, torch.float32, kernels=False)
        got = updated(case, optimizer, torch.float32, kernels=True)
        for name, w, e, t in zip(("embedding", "first", "second"), want, eager, got):
            error, allowed = (float((a.double() - w).abs().max()) for a in (t, e))
            assert error <= 2 * allowed + 1e-7, f"{name}, {rows} rows: {error} against {allowed}"
        untouched = torch.ones(50, dtype=torch.bool).index_fill(0, case[2], False)
        for before, after in zip((case[0], *case[1]), got):
            assert torch.equal(before.float()[untouched], after[untouched])


@pytest.mark.parametrize("count, distinct", [*itertools.product((31, 32, 33, 64, 97), (1, 3, 40)), (1100, 3)])
def test_sums_across_the_edges_of_chunks(count, distinct):
    """Few rows, so that segments cover many chunks, and begin and end at their edges."""
    g = torch.Generator().manual_seed(count * distinct)
    rows = torch.randint(distinct, (count,), generator=g)
    for chosen in (rows, rows.sort().values, torch.arange(count) // 32, (torch.arange(count) + 1) // 32):
        gradient = torch.randn(count, 2, generator=g, dtype=torch.float64)
        case = torch.zeros(80, 2, dtype=torch.float64), [], chosen, gradient
        want = updated(case, "sgd", torch.float64, kernels=False)[0]
        got = updated(case, "sgd", torch.float32, kernels=True)[0]
        assert float((got.double() - want).abs().max()) <= 2e-6 * max(1.0, float(want.abs().max()))


def test_update_does_not_depend_on_memory_or_order_of_rows():
    embedding, state, rows, gradient = problem("adam", 500, 8, seed=1, size=60)
    case = embedding, state, rows, gradient.float()
    once = updated(case, "adam", torch.float32, kernels=True)
    again = updated((embedding, state, strided(rows), strided(gradient.float())), "adam", torch.float32, kernels=True)
    assert all(torch.equal(a, b) for a, b in zip(once, again))


def test_a_gradient_that_is_not_finite_stays_in_its_row():
    rows, gradient = torch.arange(40) // 2, torch.ones(40, 4, dtype=torch.float64)
    gradient[7] = float("inf")
    got = updated((torch.zeros(50, 4, dtype=torch.float64), [], rows, gradient), "sgd", torch.float32, kernels=True)[0]
    wrong = ~torch.isfinite(got).all(1)
    assert wrong[3] and int(wrong.sum()) == 1


def test_wrong_arguments_change_nothing():
    embedding, state, rows, gradient = problem("adam", 20, 4, seed=2)
    embedding, first, second, gradient = (t.float().to(DEVICE) for t in (embedding, *state, gradient))
    rows, before = rows.to(DEVICE), embedding.clone()
    numbers = (0.1, 1, 0.9, 0.999, 1e-8)
    with pytest.raises(ValueError, match="lion"):
        embedding_update.forward(embedding, first, second, rows, gradient, "lion", *numbers)
    with pytest.raises(ValueError, match="adagrad needs 1 state tensors, got 2"):
        embedding_update.forward(embedding, first, second, rows, gradient, "adagrad", *numbers)
    with pytest.raises(RuntimeError, match="embedding must be contiguous"):
        embedding_update.forward(embedding.t().contiguous().t(), first, second, rows, gradient, "adam", *numbers)
    last = torch.zeros(50, dtype=torch.int32, device=DEVICE)
    sums = torch.zeros(4, 7, dtype=torch.float64, device=DEVICE)
    with pytest.raises(RuntimeError, match="steps 0 to 4 are not in the 4 rows of sums"):
        embedding_catch_up.forward(embedding, first, second, last, None, sums, 0, 4, EXACT, WINDOW, 0.9, 0.999, 1e-8)
    assert torch.equal(embedding, before)


class KernelAdam(EmbeddingAdam):
    """The optimizer with kernels called directly, so that the interpreter computes on tensors of the CPU."""

    def step(self, rows, gradient, learning_rate):
        self._begin()
        self.steps += 1
        self.state["step"].fill_(self.steps)
        embedding_update.forward(self.embedding.detach(), self.state["exp_avg"], self.state["exp_avg_sq"], rows,
                                 gradient, "adam", learning_rate, self.steps, 0.9, 0.999, 1e-8)
        self._last_step.index_fill_(0, rows, self.steps)
        self._sums.add(learning_rate)

    def _catch_up(self, rows):
        if self._sums.base == self.steps:
            return
        embedding_catch_up.forward(self.embedding.detach(), self.state["exp_avg"], self.state["exp_avg_sq"],
                                   self._last_step, rows, self._sums.table.to(self.embedding.device), self._sums.base,
                                   self.steps, EXACT, WINDOW, 0.9, 0.999, 1e-8)


@pytest.mark.parametrize("total, size, flushes", [(40, 100, ()), (170, 40, (3, 127, 128, 150))])
def test_equals_dense_adam(total, size, flushes):
    """As near to dense Adam in float64 as dense Adam in float32 is; thrice as far, because the rows are few."""
    weights = torch.randn(size, 4, generator=torch.Generator().manual_seed(1)) * 0.05
    exact, eager = Dense(weights.double()), Dense(weights)
    mine = torch.nn.Parameter(weights.to(DEVICE, copy=True))
    adam = KernelAdam(mine)
    for step, (rows, gradient, rate) in enumerate(random_steps(total, size, 4, total)):
        read = adam.gather(rows.to(DEVICE))
        if step % 50 == 0:
            assert float((read.detach().cpu() - exact.weights.detach()[rows]).abs().max()) < 3e-7
        adam.step(rows.to(DEVICE), gradient.to(DEVICE), rate)
        exact.step(rows, gradient, rate)
        eager.step(rows, gradient, rate)
        if step in flushes:
            adam.flush()
    adam.flush()
    ours, theirs = adam.state, [d.adam.state[d.weights] for d in (eager, exact)]
    assert int(adam._last_step.min()) == total
    for got, float32, want in [(mine, eager.weights, exact.weights),
                               *((ours[k], *(t[k] for t in theirs)) for k in ("exp_avg", "exp_avg_sq"))]:
        error, allowed = (float((t.detach().cpu().double() - want.detach()).abs().max()) for t in (got, float32))
        assert error <= 3 * allowed, f"{error} against {allowed}"


@pytest.mark.parametrize("width", (1, 4, 13, 16, 64))
def test_catch_up_as_the_reference(width):
    g = torch.Generator().manual_seed(width)
    size, base, step = 29, 100, 240
    sums = _Sums(base)
    for _ in range(step - base):
        sums.add(1e-3 * float(torch.rand(1, generator=g)))
    last = torch.randint(base, step + 1, (size,), generator=g, dtype=torch.int32)
    last[:5] = torch.tensor([base, base + 1, EXACT - 1, EXACT, step])
    tensors = [torch.randn(size, width, generator=g), torch.randn(size, width, generator=g) * 1e-4,
               torch.rand(size, width, generator=g) ** 8 * 1e-6]
    tensors[1][7:9], tensors[2][7:8] = 0, 0
    for rows in (None, torch.randint(size, (50,), generator=g), torch.zeros(0, dtype=torch.int64)):
        results = []
        plain, kernel = reference.embedding_catch_up, embedding_catch_up.forward
        for call, dtype in ((plain, torch.float64), (plain, torch.float32), (kernel, torch.float32)):
            copies = [*(t.to(device=DEVICE, dtype=dtype, copy=True) for t in tensors), last.to(DEVICE, copy=True)]
            call(*copies, None if rows is None else rows.to(DEVICE), sums.table.to(DEVICE), base, step, EXACT,
                 WINDOW, 0.9, 0.999, 1e-8)
            results.append([t.cpu() for t in copies])
        want, eager, got = results
        assert torch.equal(want[3], got[3])
        for w, e, t in zip(want[:3], eager, got):
            error, allowed = (float((a.double() - w).abs().max()) for a in (t, e))
            assert error <= 2 * allowed + 1e-7 * float(w.abs().max()), f"{error} against {allowed}"
