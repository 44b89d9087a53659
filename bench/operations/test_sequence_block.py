"""A behaviour block, D = 8, with norm, relu and residual."""

import pytest

from ameir_fast import ops
from ameir_fast.modules import layer_tensors, make_layer
from ameir_fast.space.choices import LAYERS

from .conftest import BATCH


@pytest.mark.parametrize("layer", [name for name in LAYERS if name != "zero"])
def test_sequence_block(step, draw, history, layer):
    kind, offsets, longest = history
    target = draw(BATCH, 8) if layer == "target_attn" else None
    step(f"sequence_block {layer}, {kind}", ops.sequence_block, draw(int(offsets[-1]), 8), offsets, [draw(8), draw(8)],
         layer_tensors(make_layer(layer, 8)), target, layer, "relu", longest)
