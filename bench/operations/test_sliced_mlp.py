"""One activation, as the model has it, and a whole MLP on slices."""

import pytest

from ameir_fast import ops

from .conftest import BATCH

UNITS = (422, 211)  # of the suite `criteo`


@pytest.mark.parametrize("activation", ["relu", "swish", "dice"])
def test_activation(step, draw, activation):
    step(f"sliced_mlp {activation}", ops.sliced_mlp, draw(BATCH, UNITS[0]), [], [], [activation],
         [draw(UNITS[0])] if activation == "dice" else [])


def test_sliced_mlp(step, draw):
    whole = draw(704, 704)
    step("sliced_mlp relu, relu", ops.sliced_mlp, draw(BATCH, UNITS[0]), [whole[:UNITS[1], :UNITS[0]]], [draw(UNITS[1])],
         ["relu", "relu"])
