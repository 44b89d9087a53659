"""``ameir-fast bench train --children N``: N children in one pass over the data against one after the other.

Both train with the native operations, by the search's own step (``search.stepper.Stepper``), on the same batches in turn. ``alone``
is one child after the other with all threads, ``side by side`` as many at a time as there are threads (what races do with models of
different blocks), ``together`` all in one step. Cases: ``MLPs``, models that differ in the MLP alone (``ModelGroup``; step 3's race);
``paths``, models with blocks of their own; ``supernet``, paths of one supernet (``forward_children``), where ``alone`` takes a step
for each.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import torch

from .. import Architecture, Batch, FeatureSchema, InputError, Model, ModelGroup, SearchSpace, Supernet, forward_children, native
from ..path_children import FIXED
from ..profile import random_batch
from ..progress import Progress
from ..search.config import SearchConfig
from ..search.objective import make_objective
from ..search.stepper import Stepper
from ..search.together import together
from ..search.training import Task
from .suites import alimama, lengths
from .train import BATCH, _Data, _facts, _labelled

CASES = ("MLPs", "paths", "supernet")
BATCHES, ROUNDS, QUICK_ROUNDS = 4, 5, 1
RATE = 1e-3


class Children:
    """Ways to train the same children for one step each."""

    def __init__(self, schema: FeatureSchema, embedding_dim: int, case: str, count: int):
        self.config = SearchConfig(embedding_dim=embedding_dim, batch_size=BATCH)
        self.task = Task(_Data(schema), make_objective(schema, self.config), self.config, Progress())
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = Supernet(SearchSpace(schema), embedding_dim)
            self.archs = _architectures(self.net.space, case, count)
            if case == "supernet":
                own = self._stepper(self.net)
                self._alone = [lambda b, a=a: own.step(b, RATE, lambda b, i: self.net(b, a)) for a in self.archs]
                self._together = lambda b: own.step(b, RATE, lambda b, i: forward_children(self.net, self.archs, b))
            else:
                self.models = [Model(schema, arch, embedding_dim) for arch in self.archs]
                self.group = ModelGroup(copy.deepcopy(self.models))
                shared = ("embedding.", "behavior.", "pool.") if self.group.shares_front else ("embedding.",)
                first = {k: v for k, v in self.models[0].state_dict().items() if k.startswith(shared)}
                for model in self.models:  # the group starts from the first one's
                    model.load_state_dict(first, strict=False)
                self._alone = [self._of(model) for model in self.models]
                self._together = self._of(self.group)
        self.ways: dict[str, Callable[[Batch], object]] = {"alone": self._one_by_one, "together": self._together}
        if case != "supernet":
            self.ways["side by side"] = self._side_by_side

    def _stepper(self, net: torch.nn.Module) -> Stepper:
        net.train()
        net.dropout, net.generator = self.config.dropout, torch.Generator().manual_seed(0)
        return Stepper(self.task, net)

    def _of(self, net: torch.nn.Module) -> Callable[[Batch], object]:
        own = self._stepper(net)
        return lambda batch: own.step(batch, RATE, lambda b, items: net(b))

    def _one_by_one(self, batch: Batch) -> None:
        for step in self._alone:
            step(batch)

    def _side_by_side(self, batch: Batch) -> None:
        together(self.task, "bench", [lambda task, step=step: step(batch) for step in self._alone])


def _architectures(space: SearchSpace, case: str, count: int) -> list[Architecture]:
    draw = torch.Generator().manual_seed(0)
    if case != "MLPs":
        return [Architecture(space.sample_behavior(draw), (), FIXED, "none").canonical() for _ in range(count)]
    first = space.sample(draw)
    return [Architecture(first.behavior, first.interactions, space.sample_mlp(draw), "se").canonical() for _ in range(count)]


def run(children: int = 16, quick: bool = False, on_row: Callable[[dict], None] = lambda row: None) -> list[dict]:
    """Rows of every case, kind of lengths and way.

    A row has ``samples_per_s``: rows of batches times children; ``ratio``: the median over rounds of a way's over that of ``alone`` in the
    same round. ``quick``: one round of full histories, not for quoting.

    Raises:
        InputError: the native operations are not there, naming the reason.
    """
    if native.why_not("_C") is not None:
        raise InputError(f"bench train compares with the native operations: {native.why_not('_C')}")
    facts, found = _facts(), []
    case_of = alimama()[0]
    for kind in ("full",) if quick else ("full", "ragged"):
        batches = [_labelled(random_batch(case_of.schema, BATCH, lengths(kind, BATCH, case_of.schema.max_history, seed), seed), seed)
                   for seed in range(BATCHES)]
        for case in CASES:
            these = Children(case_of.schema, case_of.embedding_dim, case, children)
            for name, times in _take_turns(these.ways, batches, QUICK_ROUNDS if quick else ROUNDS).items():
                first = times if name == "alone" else first
                ratio = None if name == "alone" else statistics.median(a / b for a, b in zip(first, times, strict=True))
                found.append({"suite": "alimama", "case": case, "children": children, "way": name, "lengths": kind, "batch": BATCH,
                              "samples_per_s": children * BATCH * BATCHES / statistics.median(times), "rounds": len(times),
                              "ratio": ratio, **facts})
                on_row(found[-1])
    return found


def _take_turns(ways: dict[str, Callable], batches: list[Batch], rounds: int) -> dict[str, list[float]]:
    """Seconds of all batches, round by round; one batch of each way goes first and is not counted."""
    for way in ways.values():
        way(batches[0])
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            for batch in batches:
                way(batch)
            taken[name].append(time.perf_counter() - began)
    return taken


def line(row: dict) -> str:
    """A row for people."""
    text = f"{row['children']} {row['case']:<9} {row['lengths']:<7} {row['way']:<13} {row['samples_per_s']:>11,.0f} samples x children/s"
    return text if row["ratio"] is None else f"{text}  {row['ratio']:.1f} times one after the other"


def table(rows: list[dict]) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| 16 children | lengths | side by side ÷ alone | together ÷ alone |".replace("16", str(rows[0]["children"])), "|---" * 4 + "|"]
    for case in CASES:
        for kind in dict.fromkeys(row["lengths"] for row in rows):
            ratio = {row["way"]: row["ratio"] for row in rows if row["case"] == case and row["lengths"] == kind}
            show = lambda way, ratio=ratio: f"{ratio[way]:.1f}" if way in ratio else "–"
            lines.append(f"| {case} | {kind} | {show('side by side')} | {show('together')} |")
    return lines
