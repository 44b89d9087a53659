"""Metrics against scikit-learn and against their definitions; the native AUC against the one in PyTorch."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from ameir_fast import metrics, native
from ameir_fast.errors import InputError

NATIVE = pytest.param(
    "native", marks=pytest.mark.skipif(native.why_not("_C") is not None, reason=str(native.why_not("_C")))
)
ENGINES = [NATIVE, "torch"]


@pytest.fixture(params=ENGINES)
def engine(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setenv("AMEIR_FAST_NATIVE", "0")
    return request.param


def random_problem(seed: int, columns: int, samples: int, dtype=torch.float32, levels: int | None = None):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(columns, samples, generator=generator, dtype=dtype)
    if levels:
        scores = (scores * levels).round() / levels
    label = (torch.rand(samples, generator=generator) < 0.4).float()
    label[0], label[1] = 1, 0
    return scores, label


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("samples", [2, 3, 17, 511, 1200, 5003])
@pytest.mark.parametrize("levels", [None, 1, 8])
def test_auc_equals_scikit_learn(engine, dtype, samples, levels):
    scores, label = random_problem(samples, 5, samples, dtype, levels)
    ours = metrics.auc_columns(scores, label)
    assert ours.dtype == np.float64
    assert ours.shape == (5,)
    theirs = [roc_auc_score(label.numpy(), column.numpy()) for column in scores]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    assert metrics.auc(scores[2], label) == ours[2]


@pytest.mark.skipif(native.why_not("_C") is not None, reason="_C is not built")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_native_auc_equals_torch_bit_for_bit(dtype, scale):
    for seed in range(12):
        scores, label = random_problem(seed, 3, 400 + 373 * seed, dtype, [None, 3][seed % 2])
        scores = scores * scale
        scores[0, ::7] = math.inf
        scores[1, ::5] = -math.inf
        scores[2, ::3] = -0.0
        scores[2, 1::3] = 0.0
        assert native.ops_loaded()
        assert torch.equal(
            torch.ops.ameir_fast.auc_columns(scores, label), metrics.auc_columns_torch(scores, label)
        )


def test_auc_by_definition(engine):
    scores, label = np.array([0.1, 0.4, 0.4, 0.8, 0.4]), np.array([0, 0, 1, 1, 1])
    pairs = [(p > q) + 0.5 * (p == q) for p in scores[label == 1] for q in scores[label == 0]]
    assert metrics.auc(scores, label) == np.mean(pairs)
    assert metrics.auc(np.zeros(5), label) == 0.5
    assert metrics.auc(np.array([0.0, -0.0, 0.0, -0.0, 0.0]), label) == 0.5
    assert metrics.auc(label.astype(np.float32), label) == 1.0
    assert metrics.auc(-label.astype(np.float32), label.astype(bool)) == 0.0


def test_auc_takes_strided_and_half_precision_scores(engine):
    scores, label = random_problem(5, 4, 999)
    expected = metrics.auc_columns(scores, label)
    assert np.array_equal(metrics.auc_columns(scores.T.contiguous().T, label), expected)
    wide = torch.zeros(4, 2 * 999)
    wide[:, ::2] = scores
    spread = torch.zeros(2 * 999)
    spread[::2] = label
    assert np.array_equal(metrics.auc_columns(wide[:, ::2], spread[::2]), expected)
    half = scores.bfloat16()
    assert np.array_equal(metrics.auc_columns(half, label), metrics.auc_columns(half.float(), label))
    assert metrics.auc_columns(scores[:0], label).shape == (0,)


def test_auc_does_not_depend_on_threads(engine):
    scores, label = random_problem(1, 64, 700)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(metrics.auc_columns(scores, label))
    torch.set_num_threads(before)
    assert all(np.array_equal(r, results[0]) for r in results)


@pytest.mark.parametrize("function", [metrics.auc_columns, metrics.log_loss_columns])
def test_bad_input_is_named(engine, function):
    scores, label = random_problem(0, 3, 50)
    broken = scores.clone()
    broken[1, 7] = math.nan
    with pytest.raises(InputError, match="column 1, sample 7 is NaN"):
        function(broken, label)
    for value in (0.5, -1.0, 2.0, math.nan):
        wrong = label.clone()
        wrong[9] = value
        with pytest.raises(InputError, match="label of sample 9 is .*, neither 0 nor 1"):
            function(scores, wrong)
    with pytest.raises(InputError, match="not \\[n, S\\] and \\[S\\]"):
        function(scores, label[:-1])
    with pytest.raises(InputError, match="not floating point"):
        function(scores.int(), label)
    with pytest.raises(InputError, match="no samples"):
        function(scores[:, :0], label[:0])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_auc_needs_both_classes(engine, value):
    with pytest.raises(InputError, match=f"all 20 labels are {int(value)}"):
        metrics.auc_columns(torch.zeros(2, 20), torch.full((20,), value))


@pytest.mark.skipif(native.why_not("_C") is not None, reason="_C is not built")
class TestOperation:
    def test_opcheck(self):
        assert native.ops_loaded()
        scores, label = random_problem(3, 4, 600)
        # Not differentiable: a step function of the scores.
        torch.library.opcheck(
            torch.ops.ameir_fast.auc_columns.default,
            (scores, label),
            test_utils=("test_schema", "test_faketensor"),
        )

    def test_compiles_without_a_graph_break(self):
        assert native.ops_loaded()
        scores, label = random_problem(3, 4, 600)
        compiled = torch.compile(
            lambda s, y: torch.ops.ameir_fast.auc_columns(s * 2, y), fullgraph=True, backend="aot_eager"
        )
        assert torch.equal(compiled(scores, label), torch.ops.ameir_fast.auc_columns(scores * 2, label))

    def test_wrong_tensors_raise(self):
        assert native.ops_loaded()
        scores, label = random_problem(3, 4, 600)
        op = torch.ops.ameir_fast.auc_columns
        for arguments in (
            (scores[0], label),
            (scores, label[:-1]),
            (scores, label.double()),
            (scores.half(), label),
            (scores, label[None]),
        ):
            with pytest.raises(RuntimeError, match="auc_columns"):
                op(*arguments)
        assert op(scores, torch.ones(600)).isnan().all()


def test_log_loss_equals_scikit_learn():
    logits, label = random_problem(4, 3, 500, torch.float64)
    ours = metrics.log_loss_columns(logits, label)
    theirs = [sklearn_log_loss(label.numpy(), torch.sigmoid(column).numpy()) for column in logits]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert metrics.log_loss(logits[1], label) == ours[1]


def test_log_loss_is_accurate_for_extreme_logits():
    label = np.array([1.0, 0.0])
    assert metrics.log_loss(np.array([40.0, -40.0]), label) == pytest.approx(math.exp(-40), rel=1e-12)
    assert metrics.log_loss(np.array([-1e4, 1e4]), label) == pytest.approx(1e4)
    assert metrics.log_loss(np.array([3.0]), np.array([1])) == pytest.approx(
        math.log1p(math.exp(-3)), rel=1e-12
    )


@pytest.mark.parametrize("levels", [None, 2])
def test_standard_error_by_definition(levels):
    scores, label = random_problem(8, 1, 300, torch.float64, levels)
    x, y = scores[0].numpy(), label.numpy()
    wins = (x[y == 1][:, None] > x[y == 0]) + 0.5 * (x[y == 1][:, None] == x[y == 0])
    expected = math.sqrt(wins.mean(1).var(ddof=1) / wins.shape[0] + wins.mean(0).var(ddof=1) / wins.shape[1])
    assert metrics.auc_standard_error(x, y) == pytest.approx(expected, rel=1e-12)


def test_standard_error_predicts_the_spread_of_new_samples():
    generator = np.random.default_rng(0)
    values, errors = [], []
    for _ in range(300):
        label = (generator.random(400) < 0.3).astype(np.float32)
        scores = generator.normal(size=400) + label
        values.append(metrics.auc(scores, label))
        errors.append(metrics.auc_standard_error(scores, label))
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.15)


def test_standard_error_needs_two_of_each_class():
    with pytest.raises(InputError, match="at least two samples of each class"):
        metrics.auc_standard_error(np.zeros(3), np.array([1, 0, 0]))
    with pytest.raises(InputError, match="sample 1 is NaN"):
        metrics.auc_standard_error(np.array([0, math.nan, 1, 2.0]), np.array([1, 0, 0, 1]))


def test_paired():
    result = metrics.paired([0.75, 0.76, 0.74], [0.74, 0.76, 0.75])
    assert result.difference == pytest.approx(0.0, abs=1e-12)
    assert result.standard_error == pytest.approx(0.01 / math.sqrt(3))
    assert (result.wins, result.n) == (1, 3)
    assert math.isnan(metrics.paired([1.0], [0.5]).standard_error)
    for a, b in (([], []), ([1.0], [1.0, 2.0])):
        with pytest.raises(InputError, match="same number of runs"):
            metrics.paired(a, b)


@pytest.mark.skipif(native.why_not("_C") is not None, reason="_C is not built")
@pytest.mark.parametrize("instruction_set", ["portable", "avx2", "avx512"])
def test_native_log_loss_to_the_rounding_of_float64(instruction_set):
    assert native.ops_loaded()
    from ameir_fast import ops  # noqa: F401 - which declares instruction sets

    if instruction_set not in torch.ops.ameir_fast.instruction_sets():
        pytest.skip(f"this processor has no {instruction_set}")
    torch.ops.ameir_fast.use_instruction_set(instruction_set)
    try:
        for scale, samples in itertools.product((1e-3, 1.0, 8.0, 40.0, 700.0), (1, 2, 7, 8, 9, 511, 512, 1025, 5000)):
            logits, label = (t[..., :samples] for t in random_problem(samples, 3, samples + 1, torch.float64))
            logits = logits * scale
            for given in (logits, logits.float()):
                want = metrics.log_loss_columns_torch(given, label)
                got = torch.ops.ameir_fast.log_loss_columns(given, label)
                torch.testing.assert_close(got, want, rtol=2e-15 * math.sqrt(samples) + 2e-15, atol=0)
            # One sample, of which only the tiny loss is left.
            sure = (logits[:, :1].abs() + 1) * 8
            torch.testing.assert_close(torch.ops.ameir_fast.log_loss_columns(sure, label[:1]),
                                       metrics.log_loss_columns_torch(sure, label[:1]), rtol=4e-15, atol=1e-300)
        infinite = torch.tensor([[math.inf, -math.inf], [-math.inf, 0.0], [math.nan, 1.0]])
        found = torch.ops.ameir_fast.log_loss_columns(infinite, torch.tensor([1.0, 0.0]))
        assert found[0] < 1e-300 and found[1] == math.inf and found[2].isnan()
    finally:
        torch.ops.ameir_fast.use_instruction_set("")
