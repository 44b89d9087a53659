"""Optimizer steps on the rows that a batch read, 1024 x 39 of a million."""

import pytest
import torch

from ameir_fast import ops


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam"])
def test_embedding_update(benchmark, draw, backend, optimizer):
    table = draw(1_000_000, 16)
    state = [torch.zeros_like(table) for _ in range({"sgd": 0, "adagrad": 1, "adam": 2}[optimizer])]
    rows = (torch.rand(1024 * 39, generator=torch.Generator().manual_seed(0)) ** 3 * len(table)).long()
    gradient = draw(len(rows), 16)
    benchmark.group = f"embedding_update {optimizer}"
    benchmark.extra_info.update(threads=torch.get_num_threads(), backend=backend)
    benchmark(ops.embedding_update, table, state, rows, gradient, optimizer, 1e-3, 1, backend=backend)
