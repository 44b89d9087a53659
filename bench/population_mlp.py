"""Step 3 of ``bench population``: MLPs over given blocks and interactions, at the ``alimama`` shape without blocks.

Without blocks, because they are computed once by ``shared`` and once a child by the others: what is measured is the
MLPs' own gain and that of a history's pooling, the least there is.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from .. import Architecture, Batch, SearchSpace, Supernet, evaluate_population
from ..metrics import auc_columns, log_loss_columns
from .suites import EMBEDDING_DEVIATION, alimama

METHODS = ("eager", "plan", "shared")
EAGER, PLANS = 24, 48  # children of the methods that take one at a time
QUICK_EAGER, QUICK_PLANS = 6, 12
ROUNDS = 3  # in which the methods take turns
TOLERANCE = 1e-5
FEWER = (1 / 64, 1 / 16, 1 / 4)  # of all children: how the time grows


def rows(layers: int | None, children: int | None, samples: int, quick: bool) -> Iterator[dict]:
    numbers = [layers] if layers else [2] if quick else [2, 3]
    peaks = {number: _peaks(number, children, samples) for number in numbers}  # before there is much here
    for number in numbers:
        yield from _of_layers(number, children, samples, quick, peaks[number])


def _peaks(layers: int, count: int | None, samples: int) -> dict[str, int]:
    """Of the methods, and of all children together where they are a tenth as many."""
    from .population import peak_of

    tenth = max(2, (count or len(_children(layers))) // 10)
    return {"tenth": peak_of(_once, "shared", layers, tenth, samples),
            **{name: peak_of(_once, name, layers, count, samples) for name in METHODS}}


def _of_layers(layers: int, count: int | None, samples: int, quick: bool, peaks: dict[str, int]) -> Iterator[dict]:
    from .population import labelled_batches

    case = _Case(layers, count, labelled_batches(alimama()[0].schema, samples), quick)
    case.measure(1 if quick else ROUNDS)
    common = {"case": f"{layers} layers", "layers": layers, "samples": samples, "k0": case.net.space.k0()}
    for name in METHODS:
        row = {**common, **case.row(name), "peak_bytes": peaks[name]}
        if name == "shared":
            row["peak_bytes_of_a_tenth"] = peaks["tenth"]
        yield row
    for share in () if quick or count else FEWER:
        yield {**common, **case.fewer(max(2, round(len(case.archs) * share))), "peak_bytes": None}


class _Case:
    """All methods on children of so many layers."""

    def __init__(self, layers: int, count: int | None, batches: list[Batch], quick: bool):
        self.layers, self.batches, self.net = layers, batches, _net(layers)
        self.label = torch.cat([batch.label for batch in batches])
        self.archs = _children(layers, count)
        drawn = np.random.default_rng(1).permutation(len(self.archs))
        some = [self.archs[i] for i in drawn[:QUICK_PLANS if quick else PLANS]]
        self.few = some[:QUICK_EAGER if quick else EAGER]
        plain = copy.copy(self.net)  # shares the weights
        plain.backend = "reference"
        began = time.perf_counter()
        plans = [_plan(self.net, arch, batches) for arch in some]
        self.preparation = time.perf_counter() - began
        self.calls = {"eager": [lambda b, arch=arch: plain(b, arch) for arch in self.few], "plan": plans}
        self.sizes = {"shared": len(self.archs), **{name: len(calls) for name, calls in self.calls.items()}}
        self.seconds = dict.fromkeys(METHODS, 0.0)
        self.logits: dict[str, list] = {name: [None] * len(calls) for name, calls in self.calls.items()}

    def measure(self, rounds: int) -> None:
        """The methods take turns: each round has all children together, and its part of those that go alone."""
        self.rounds = rounds
        evaluate_population(self.net, self.archs[:2], self.batches[:1])
        for calls in self.calls.values():
            _alone(calls[0], self.batches[:1], self.batches[0].label)
        for turn in range(rounds):
            self.seconds["shared"] += self._together(self.archs) / rounds
            for name, calls in self.calls.items():
                for i in range(turn, len(calls), rounds):
                    began = time.perf_counter()
                    self.logits[name][i] = _alone(calls[i], self.batches, self.label)[0]
                    self.seconds[name] += time.perf_counter() - began
        self.rates = {name: self.sizes[name] / self.seconds[name] for name in METHODS}

    def _together(self, archs: list[Architecture]) -> float:
        began = time.perf_counter()
        self.shared_work = evaluate_population(self.net, archs, self.batches).shared_work
        return time.perf_counter() - began

    def row(self, name: str) -> dict:
        row = self._row(name, self.sizes[name], self.seconds[name])
        if name == "eager":
            return row
        if name == "plan":  # whose Dice has statistics of its own: such children are timed and not compared
            row["preparation_seconds"] = self.preparation
            which = [i for i, arch in enumerate(self.few) if all(layer.activation != "dice" for layer in arch.mlp)]
            found = torch.stack(self.logits["plan"][:len(self.few)])
        else:
            row["shared_work"] = self.shared_work
            which = list(range(len(self.few)))
            found = evaluate_population(self.net, self.few, self.batches, return_logits=True).logits
        if not which:
            return row
        found, exact = found[which], torch.stack(self.logits["eager"])[which]
        gap = float((found - exact).abs().max())
        return {**row, "max_abs_diff": gap, "compared": len(which),
                "max_auc_diff": float(np.abs(auc_columns(found, self.label) - auc_columns(exact, self.label)).max()),
                "refused": None if gap <= TOLERANCE else f"max |logit - eager| is {gap:.3g}, more than {TOLERANCE:g}"}

    def fewer(self, count: int) -> dict:
        """So many children together."""
        archs = _children(self.layers, count)
        return self._row("shared", count, sum(self._together(archs) for _ in range(self.rounds)) / self.rounds)

    def _row(self, name: str, children: int, seconds: float) -> dict:
        rate = children / seconds
        return {"method": name, "children": children, "seconds": seconds, "children_per_s": rate,
                "ratio": rate / self.rates["eager"] if name != "eager" else None,
                "ratio_plan": rate / self.rates["plan"] if name == "shared" else None,
                "max_abs_diff": None, "max_auc_diff": None, "compared": 0, "refused": None}


def _net(layers: int) -> Supernet:
    case = alimama()[0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Supernet(SearchSpace(case.schema, mlp_layers=layers), case.embedding_dim)
        with torch.no_grad():
            net.embedding.weight.normal_(0, EMBEDDING_DEVIATION)
    return net.eval()


def _children(layers: int, count: int | None = None) -> list[Architecture]:
    """All children, or so many at random."""
    case = alimama()[0]
    base, mlps = case.architecture, list(SearchSpace(case.schema, mlp_layers=layers).enumerate_mlp())
    if count is not None:
        mlps = [mlps[i] for i in np.random.default_rng(0).permutation(len(mlps))[:count]]
    return [Architecture(base.behavior, base.interactions, mlp, base.shortcut) for mlp in mlps]


def _plan(net: Supernet, arch: Architecture, batches: list[Batch]) -> Callable:
    model = net.derive(arch)
    model.recompute_dice(batches)
    return model.eval().compile()


@torch.no_grad()
def _alone(call: Callable, batches: list[Batch], label: torch.Tensor) -> tuple:
    """One child's logits, AUC and log loss."""
    logits = torch.cat([call(batch) for batch in batches])
    return logits, auc_columns(logits[None], label), log_loss_columns(logits[None], label)


def _once(method: str, layers: int, count: int | None, samples: int) -> None:
    """What a process whose memory is measured does: all children together, or one of them alone."""
    from .population import labelled_batches

    net, batches = _net(layers), labelled_batches(alimama()[0].schema, samples)
    archs = _children(layers, count)
    if method == "shared":
        evaluate_population(net, archs, batches)
        return
    label = torch.cat([batch.label for batch in batches])
    if method == "plan":
        plan = _plan(net, archs[0], batches)
        _alone(plan, batches, label)
    else:
        net.backend = "reference"
        _alone(lambda b: net(b, archs[0]), batches, label)
