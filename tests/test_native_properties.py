"""Native operations on shapes that Hypothesis draws, and shrinks when one fails: forward and every gradient against fp64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ameir_fast import native
from tests.test_embedding_update import STATES, problem, updated
from tests.test_native_fields import NAMES, compute, drawn, error
from tests.test_native_sequences import (
    ACTIVATIONS,
    LAYERS,
    Maker,
    block_arguments,
    errors,
    offsets_of,
    unit,
)

pytestmark = pytest.mark.skipif(native.why_not("_C") is not None, reason=str(native.why_not("_C")))
shapes = settings(max_examples=150, deadline=None, derandomize=True, database=None)

WIDTHS = st.one_of(st.integers(1, 20), st.sampled_from([31, 64, 97, 128]))
LENGTHS = st.lists(st.sampled_from([0, 0, 1, 1, 2, 3, 5, 7, 13, 31, 50]), max_size=23)


def assert_right(op: str, arguments: list, what: str) -> None:
    """Four times the error of eager float32, and what a unit near the kink of its activation makes of its last bit; over
    many cases together it is twice (test_native_sequences).

    A gradient that is one number, such as a bias, is a sum over all rows that may cancel, and one error of it is luck: eager
    mode may have hit it to the last bit. So where one cotangent says no, the errors over many decide."""
    for draws in (1, 32):
        wrong = [(place, found) for place, found in enumerate(errors(op, arguments, what, draws))
                 if found[0] ** 0.5 > 4 * found[1] ** 0.5 + 1e-5 * max(1e-3, found[2])]
        if not wrong:
            return
    raise AssertionError(f"{what}: {wrong}")


@shapes
@given(layer=st.sampled_from(LAYERS), norm=st.booleans(), activation=st.sampled_from(ACTIVATIONS), width=WIDTHS,
       lengths=LENGTHS, seed=st.integers(0, 99))
def test_sequence_block(layer, norm, activation, width, lengths, seed):
    multiple = {"bi_gru": 2, "self_attn2": 2, "self_attn4": 4}.get(layer, 1)
    width = -(-width // multiple) * multiple
    arguments = block_arguments(layer, norm, activation, width, lengths, seed)
    arguments[3] = [w * width ** -0.5 for w in arguments[3]]  # or wide recurrent layers would be chaotic
    assert_right("sequence_block", arguments, layer)


@shapes
@given(target=st.booleans(), width=WIDTHS, lengths=LENGTHS, seed=st.integers(0, 99))
def test_sequence_pool(target, width, lengths, seed):
    make = Maker(seed, grad=False)
    arguments = [make(sum(lengths), width), offsets_of(lengths), make(len(lengths), width) if target else None,
                 unit(make, width) if target else [], max(lengths, default=0)]
    assert_right("sequence_pool", arguments, "pool")


@pytest.mark.parametrize("name", NAMES)
@shapes
@given(seed=st.integers(1000, 2**31))
def test_fields(name, seed):
    """Shapes, bags, orders, repeated factors and strides all follow from the seed."""
    want = compute(name, drawn(name, seed, torch.float64), native=False)
    eager = compute(name, drawn(name, seed), native=False)
    got = compute(name, drawn(name, seed), native=True)
    for ours, theirs, right in zip(got, eager, want, strict=True):
        assert ours.shape == right.shape and bool(torch.isfinite(ours).all())
        scale = max(1.0, float(right.abs().max())) if right.numel() else 1.0
        assert error(ours, right) <= 8 * error(theirs, right) + 2e-6 * scale


@shapes
@given(optimizer=st.sampled_from(sorted(STATES)), rows=st.integers(0, 130), width=WIDTHS, size=st.integers(1, 60),
       seed=st.integers(0, 99))
def test_embedding_update(optimizer, rows, width, size, seed):
    case = problem(optimizer, rows, width, seed, size)
    want = updated(case, optimizer, torch.float64, "reference")
    eager = updated(case, optimizer, torch.float32, "reference")
    for right, theirs, ours in zip(want, eager, updated(case, optimizer, torch.float32, "cpp"), strict=True):
        gap, allowed = (float((t.double() - right).abs().max()) for t in (ours, theirs))
        assert gap <= 2 * allowed + 1e-7
