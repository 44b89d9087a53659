"""Step 3 of ``bench population``: MLPs over given blocks and interactions, at the ``alimama`` shape without blocks.

Without blocks, because they are computed once by ``shared`` and once a child by the others: what is measured is the MLPs'
own gain and that of a history's pooling, the least there is.
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

EAGER, PLANS = 24, 48  # children of the methods that take one at a time
QUICK_EAGER, QUICK_PLANS = 6, 12
ROUNDS = 3  # in which the methods take turns
TOLERANCE = 1e-5
FEWER = (1 / 64, 1 / 16, 1 / 4)  # of all children: how the time grows


def rows(layers: int | None, children: int | None, samples: int, quick: bool) -> Iterator[dict]:
    for number in [layers] if layers else [2] if quick else [2, 3]:
        yield from _of_layers(number, children, samples, quick)


def _of_layers(layers: int, count: int | None, samples: int, quick: bool) -> Iterator[dict]:
    from .population import labelled_batches, peak_of

    rounds = 1 if quick else ROUNDS
    peaks = {name: peak_of(_once, name, layers, count, samples) for name in ("shared", "plan", "eager")}
    tenth = peak_of(_once, "shared", layers, max(1, (count or len(_children(layers))) // 10), samples)
    net, batches = _net(layers), labelled_batches(alimama()[0].schema, samples)
    archs = _children(layers, count)
    some = [archs[i] for i in np.random.default_rng(1).permutation(len(archs))[:QUICK_PLANS if quick else PLANS]]
    few = some[:QUICK_EAGER if quick else EAGER]
    plain = copy.copy(net)  # shares the weights
    plain.backend = "reference"
    began = time.perf_counter()
    plans = [_plan(net, arch, batches) for arch in some]
    preparation = time.perf_counter() - began
    label = torch.cat([batch.label for batch in batches])
    callers = {"plan": [lambda b, plan=plan: plan(b) for plan in plans],
               "eager": [lambda b, arch=arch: plain(b, arch) for arch in few]}
    taken: dict[str, float] = dict.fromkeys(("shared", *callers), 0.0)
    logits: dict[str, list] = {name: [] for name in callers}
    evaluate_population(net, archs[:2], batches[:1])
    for name in callers:
        _alone(callers[name][0], batches[:1], batches[0].label)
    for turn in range(rounds):
        taken["shared"] += _seconds(lambda: evaluate_population(net, archs, batches)) / rounds
        for name, calls in callers.items():
            for call in calls[turn::rounds]:
                taken[name] += _seconds(lambda call=call: logits[name].append(_alone(call, batches, label)[0]))
    # Back in the order of the children.
    found = {name: torch.stack(logits[name])[np.argsort(np.concatenate([np.arange(len(calls))[t::rounds] for t in range(rounds)]))]
             for name, calls in callers.items()}
    together = evaluate_population(net, few, batches, return_logits=True)
    exact = auc_columns(found["eager"], label)
    steady = [i for i, arch in enumerate(few) if all(layer.activation != "dice" for layer in arch.mlp)]
    rates = {"shared": len(archs) / taken["shared"], **{n: len(calls) / taken[n] for n, calls in callers.items()}}
    sizes = {"shared": len(archs), "plan": len(some), "eager": len(few)}
    common = {"case": f"{layers} layers", "layers": layers, "samples": samples, "k0": net.space.k0()}
    for name, theirs, which in (("eager", None, []), ("plan", found["plan"][:len(few)], steady),
                                ("shared", together.logits, range(len(few)))):
        which = list(which)
        gap = float((theirs[which] - found["eager"][which]).abs().max()) if which else None
        row = {**common, "method": name, "children": sizes[name], "seconds": taken[name], "children_per_s": rates[name],
               "ratio": rates[name] / rates["eager"] if name != "eager" else None,
               "ratio_plan": rates[name] / rates["plan"] if name == "shared" else None,
               "max_abs_diff": gap, "compared": len(which),
               "max_auc_diff": float(np.abs(auc_columns(theirs[which], label) - exact[which]).max()) if which else None,
               "peak_bytes": peaks[name], "refused": None}
        if name == "plan":  # statistics of Dice are a model's own in a plan, so children with Dice are timed alone
            row["preparation_seconds"] = preparation
        if name == "shared":
            row["peak_bytes_of_a_tenth"] = tenth
            row["shared_work"] = evaluate_population(net, archs, batches[:1]).shared_work
        if gap is not None and not gap <= TOLERANCE:
            row["refused"] = f"max |logit - eager| is {gap:.3g}, more than {TOLERANCE:g}"
        yield row
    for share in () if quick or count else FEWER:
        part = _children(layers, max(2, round(len(archs) * share)))
        seconds = sum(_seconds(lambda part=part: evaluate_population(net, part, batches)) for _ in range(rounds)) / rounds
        yield {**common, "method": "shared", "children": len(part), "seconds": seconds, "children_per_s": len(part) / seconds,
               "ratio": len(part) / seconds / rates["eager"], "ratio_plan": len(part) / seconds / rates["plan"],
               "max_abs_diff": None, "compared": 0, "max_auc_diff": None, "peak_bytes": None, "refused": None}


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


def _seconds(work: Callable) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
