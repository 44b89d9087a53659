"""What steps of ``bench population`` share: children all together and one after the other, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from .. import Batch
from ..metrics import auc_columns, log_loss_columns

TOLERANCE = 1e-5


class Turns:
    """``calls``: of each method, the eager one first, functions from a batch to one child's logits; of the first so many
    of ``count`` children. ``together()`` scores and judges all, ``logits(n)`` are those that it finds for the first n."""

    def __init__(self, batches: list[Batch], calls: dict[str, list[Callable]], count: int, together: Callable[[], object],
                 logits: Callable[[int], torch.Tensor]):
        self.batches, self.calls, self.together, self.logits = batches, calls, together, logits
        self.label = torch.cat([batch.label for batch in batches])
        self.sizes = {**{name: len(own) for name, own in calls.items()}, "shared": count}
        self.seconds = dict.fromkeys(self.sizes, 0.0)
        self.found: dict[str, list] = {name: [None] * len(own) for name, own in calls.items()}

    def measure(self, rounds: int) -> None:
        """Each round has all children together, and its part of those that go alone."""
        for own in self.calls.values():
            alone(own[0], self.batches[:1], self.batches[0].label)
        self.together()
        for turn in range(rounds):
            began = time.perf_counter()
            self.together()
            self.seconds["shared"] += (time.perf_counter() - began) / rounds
            for name, own in self.calls.items():
                for i in range(turn, len(own), rounds):
                    began = time.perf_counter()
                    self.found[name][i] = alone(own[i], self.batches, self.label)[0]
                    self.seconds[name] += time.perf_counter() - began

    def rows(self) -> Iterator[dict]:
        """Of the methods, those that go alone first; ``ratios`` are a method's children/s over each of these."""
        rates = {name: self.sizes[name] / self.seconds[name] for name in self.sizes}
        exact = torch.stack(self.found["eager"])
        for name, rate in rates.items():
            row = {"method": name, "children": self.sizes[name], "seconds": self.seconds[name], "children_per_s": rate,
                   "ratio": None, "ratio_plan": None, "max_abs_diff": None, "max_auc_diff": None, "compared": 0,
                   "refused": None, "ratios": {other: rate / rates[other] for other in self.calls if other != name}}
            if name != "eager":
                some = self.logits(len(exact)) if name == "shared" else torch.stack(self.found[name][:len(exact)])
                gap = float((some - exact).abs().max())
                aucs = auc_columns(some, self.label) - auc_columns(exact, self.label)
                row.update(ratio=rate / rates["eager"], max_abs_diff=gap, max_auc_diff=float(np.abs(aucs).max()),
                           compared=len(exact))
                if gap > TOLERANCE:
                    row["refused"] = f"max |logit - eager| is {gap:.3g}, more than {TOLERANCE:g}"
            yield row


@torch.no_grad()
def alone(call: Callable, batches: list[Batch], label: torch.Tensor) -> tuple:
    """One child's logits, AUC and log loss."""
    logits = torch.cat([call(batch) for batch in batches])
    return logits, auc_columns(logits[None], label), log_loss_columns(logits[None], label)
