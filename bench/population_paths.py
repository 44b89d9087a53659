"""Step 1 of ``bench population``: random behaviour paths at the ``alimama`` shape, histories of jagged lengths.

``native`` is one child after the other through the native operations: ``native`` over ``eager`` is what kernels bring,
``shared`` over ``native`` what sharing does.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from .. import Architecture, SearchSpace, Supernet, evaluate_population
from ..path_children import FIXED
from .population_turns import Turns, alone
from .suites import EMBEDDING_DEVIATION, alimama

PATHS = 2000
SAMPLES, QUICK_SAMPLES = 4096, 2048  # as many as the search ranks by
EAGER, QUICK_EAGER, NATIVE = 24, 4, 192  # paths that are also evaluated one after the other
ROUNDS = 2


def rows(layers: int | None, children: int | None, samples: int, quick: bool) -> Iterator[dict]:
    from .population import labelled_batches, peak_of

    count = children or PATHS
    peaks = {"tenth": peak_of(_once, "shared", max(1, count // 10), samples),
             **{name: peak_of(_once, name, count, samples) for name in ("eager", "native", "shared")}}
    net = _net()
    batches = labelled_batches(net.schema, samples, "ragged")
    archs = _paths(net, count)
    plain = copy.copy(net)  # shares the weights
    plain.backend = "reference"
    calls = {"eager": [lambda b, a=a: plain(b, a) for a in archs[:QUICK_EAGER if quick else EAGER]],
             "native": [lambda b, a=a: net(b, a) for a in archs[:NATIVE]]}
    turns = Turns(batches, calls, len(archs), lambda: evaluate_population(net, archs, batches),
                  lambda n: evaluate_population(net, archs[:n], batches, return_logits=True).logits)
    turns.measure(1 if quick else ROUNDS)
    places = [(a.behavior[:n], block) for a in archs for n, block in enumerate(a.behavior) if block.layer != "zero"]
    layers_computed = {(before, block.norm, block.layer) for before, block in places}
    for row in turns.rows():
        row["peak_bytes"] = peaks[row["method"]]
        if row["method"] == "shared":
            row.update(peak_bytes_of_a_tenth=peaks["tenth"], distinct=len(set(archs)), blocks_alone=len(places),
                       blocks_shared=len(set(places)), layers_shared=len(layers_computed))
        yield {"case": f"{net.space.num_blocks} blocks", "samples": samples, "lengths": "ragged", **row}


def _net() -> Supernet:
    case = alimama()[0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Supernet(SearchSpace(case.schema), case.embedding_dim)
        with torch.no_grad():
            net.embedding.weight.normal_(0, EMBEDDING_DEVIATION)
    return net.eval()


def _paths(net: Supernet, count: int) -> list[Architecture]:
    draw = torch.Generator().manual_seed(0)
    return [Architecture(net.space.sample_behavior(draw), (), FIXED, "none").canonical() for _ in range(count)]


def _once(method: str, count: int, samples: int) -> None:
    """What a process whose memory is measured does: all children together, or one of them alone."""
    from .population import labelled_batches

    net = _net()
    batches, archs = labelled_batches(net.schema, samples, "ragged"), _paths(net, count)
    if method == "shared":
        evaluate_population(net, archs, batches)
        return
    net.backend = "reference" if method == "eager" else None
    alone(lambda b: net(b, archs[0]), batches, torch.cat([b.label for b in batches]))
