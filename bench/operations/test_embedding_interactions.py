"""The first layer of the MLP from ids, its weight a slice of a larger matrix."""

import torch

from ameir_fast import ops

from .conftest import BATCH


def test_embedding_interactions(step, draw, shape):
    k, n, m = shape.embedding_dim, shape.schema.num_fields, len(shape.architecture.interactions)
    width = 3 * shape.schema.num_behavior * k
    inputs = width + (n + m) * k
    outputs = shape.architecture.mlp[0].units(inputs)
    weight = draw(inputs, inputs)[:outputs]
    step(f"embedding_interactions, {shape.suite}", ops.embedding_interactions, draw(BATCH * n, k),
         torch.arange(BATCH * n).view(BATCH, n), None, None, [], [list(i) for i in shape.architecture.interactions],
         draw(BATCH, width) if width else None, weight, draw(outputs))
