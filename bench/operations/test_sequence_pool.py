"""Sum, last and attended history, D = 8."""

from ameir_fast import ops
from ameir_fast.modules import LocalActivation

from .conftest import BATCH


def test_sequence_pool(step, draw, history):
    kind, offsets, longest = history
    step(f"sequence_pool, {kind}", ops.sequence_pool, draw(int(offsets[-1]), 8), offsets, draw(BATCH, 8),
         LocalActivation(8).tensors(), longest)
