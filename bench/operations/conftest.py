"""What the benchmarks of the operations share: arguments at the shapes of the suite ``alimama``, and a measured step.

    make bench-ops

Each benchmark is one operation forward and backward, or one step of ``embedding_update``, with the reference backend and
with the native one on the same arguments. Groups compare the two.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ameir_fast import native
from ameir_fast.bench.suites import alimama, criteo, lengths

BATCH = 1024


def pytest_collection_modifyitems(items):
    if native.why_not("_C") is not None:
        for item in items:
            item.add_marker(pytest.mark.skip(reason=str(native.why_not("_C"))))


def pytest_benchmark_update_machine_info(config, machine_info):
    """Results say what kind of machine measured, not which one."""
    for name in ("node", "release", "python_build"):
        machine_info.pop(name, None)
    machine_info["cpu"].pop("flags", None)
    machine_info["torch"] = torch.__version__


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """What is stored of each benchmark."""
    kept = ("median", "iqr", "rounds")
    output_json["benchmarks"] = [{"group": one["group"], "name": one["name"], **one["extra_info"],
                                  **{name: one["stats"][name] for name in kept}} for one in output_json["benchmarks"]]
    output_json["groups"] = ratios({(one["group"], one["backend"]): one["median"] for one in output_json["benchmarks"]})


def ratios(medians: dict[tuple[str, str], float]) -> dict[str, float]:
    """Of each group that has both backends, how much faster the native one is."""
    return {group: medians[group, "reference"] / seconds for (group, backend), seconds in medians.items()
            if backend == "cpp" and (group, "reference") in medians}


def pytest_terminal_summary(terminalreporter, config):
    measured = {(one.group, one.extra_info["backend"]): one.stats.median
                for one in config._benchmarksession.benchmarks if one.stats}
    for group, ratio in ratios(measured).items():
        terminalreporter.write_line(f"{group:<40} native {ratio:6.1f} times as fast as the reference")


@pytest.fixture(params=["reference", "cpp"])
def backend(request) -> str:
    return request.param


@pytest.fixture
def draw():
    """Random float32 tensors from one seed."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator) * 0.3


@pytest.fixture(params=["full", "ragged"])
def history(request) -> tuple[str, Tensor, int]:
    """Kind of lengths, offsets [B + 1], the longest."""
    found = torch.from_numpy(lengths(request.param, BATCH, 50))
    return request.param, torch.cat([found.new_zeros(1), found.cumsum(0)]), int(found.max())


@pytest.fixture(params=["alimama", "criteo"])
def shape(request):
    """The suite's case: fields, interactions and width of the embedding."""
    return {"alimama": alimama, "criteo": criteo}[request.param]()[0]


@pytest.fixture
def step(benchmark, backend):
    """Measures ``function(*arguments, backend=...)`` and the gradients of all its floating-point tensors."""

    def run(group: str, function, *arguments):
        def leaf(value):
            if isinstance(value, Tensor) and value.is_floating_point():
                return value.detach().requires_grad_()
            return [leaf(one) for one in value] if isinstance(value, list) else value

        arguments = [leaf(value) for value in arguments]
        leaves = [t for a in arguments for t in (a if isinstance(a, list) else [a])
                  if isinstance(t, Tensor) and t.is_floating_point()]

        def both():
            out = function(*arguments, backend=backend)
            out = out[0] if isinstance(out, tuple) else out
            return torch.autograd.grad(out, leaves, torch.ones_like(out))

        benchmark.group = group
        benchmark.extra_info.update(threads=torch.get_num_threads(), backend=backend)
        benchmark(both)

    return run
