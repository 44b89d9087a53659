"""The SE shortcut from ids."""

import torch

from ameir_fast import ops

from .conftest import BATCH


def test_squeeze_excite(step, draw, shape):
    k, n, m = shape.embedding_dim, shape.schema.num_fields, len(shape.architecture.interactions)
    columns = n + m
    step(f"squeeze_excite, {shape.suite}", ops.squeeze_excite, draw(BATCH * n, k), torch.arange(BATCH * n).view(BATCH, n),
         None, None, [], [list(i) for i in shape.architecture.interactions], draw(1, k), draw(columns // 2, columns),
         draw(columns, columns // 2))
