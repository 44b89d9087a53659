"""The rows of the result table: found models and controls; hand-made ones are in fixed.py. All are trained alike."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from ..baselines import AmeirI
from ..ranking import rank_counts
from ..space import Architecture
from .context import Context, derives, outside_embedding, train_model
from .race import Standing, trained_finalist
from .seeds import seeded_initialization
from .store import Scope
from .together import together
from .training import Outcome, Task

FOUND = ("AMEIR-A", "AMEIR-B", "AMEIR-C")
DEEPFM_FOUND = "AMEIR-I"
WITHOUT, RANDOM = "AMEIR-B without interactions", "AMEIR-B random interactions"
INHERITED, CHILDREN = "DIN inherited", "random children"
CONTROLS = (WITHOUT, RANDOM, INHERITED, CHILDREN)


def test_row(task: Task, model: nn.Module) -> dict:
    """Test metrics, sizes and speed of a trained model; Dice statistics are recomputed on training data first."""
    recompute_dice(task, model)
    row = task.test(lambda b, items: model(b, items=items), "test")
    total = model.parameter_counts()[0]
    return {**row, "parameters": total, "parameters_outside_embedding": outside_embedding(model),
            "samples_per_s": samples_per_second(task, model)}


def recompute_dice(task: Task, model: nn.Module) -> None:
    """Dice's statistics from all training rows, where the model has any; leaves the model ready for evaluation."""
    if hasattr(model, "recompute_dice"):
        model.recompute_dice(_Again(task))
    model.eval()


class _Again:
    """The training rows as a re-iterable."""

    def __init__(self, task: Task):
        self.task = task

    def __iter__(self):
        return iter(self.task.data.batches("train", 4096, device=self.task.device))


@torch.inference_mode()
def samples_per_second(task: Task, model: nn.Module, rows: int = 1024, repeats: int = 15) -> float:
    """Median rate of ``model(batch)`` on the first ``rows`` test rows, on the device at hand; of retrieval, of
    ranking their items among all."""
    batch = next(iter(task.data.batches("test", rows, device=task.device)))
    items = None if task.data.task == "ctr" else lambda users, table: rank_counts(users, table, batch.items)
    cuda = str(task.device).startswith("cuda")
    spent = []
    for _ in range(repeats + 3):
        if cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        model(batch, items=items)
        if cuda:
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - began)
    return len(batch) / float(np.median(spent[3:]))


def full_runs(task: Task, scope: Scope, build: Callable[[Scope], nn.Module], inherit: bool = False) -> dict:
    """``runs`` full trainings from different seeds; validation picks one, whose test row is returned."""
    def train(task: Task, place: Scope) -> tuple[nn.Module, Outcome]:
        model = build(place)
        return model, train_model(task, model, place, inherit)

    def run() -> dict:
        done = together(task, scope.stage, [lambda task, place=scope.scope(number): train(task, place)
                                            for number in range(task.config.runs)])
        model, outcome = max(done, key=lambda one: one[1].score)
        return {**test_row(task, model), "valid": outcome.score,
                "seconds": sum(o.seconds for _, o in done),
                "device_seconds": sum(o.device_seconds for _, o in done)}
    return scope.result("row", run)


def race_row(context: Context, scope: Scope, standings: list[Standing]) -> dict:
    """Test row of a race's winner, whose full training the race has already done; its weights are stored as
    ``winner``. The seconds are those of the whole race."""
    def run() -> dict:
        winner = standings[0]
        model = trained_finalist(context, scope, winner)
        row = test_row(context.task, model)
        scope.save_tensors("winner", model.state_dict(), {"architecture": winner.arch.to_dict()})
        return {**row, "valid": winner.score, "seconds": sum(s.seconds for s in standings),
                "device_seconds": sum(s.device_seconds for s in standings)}
    return scope.result("row", run)


def complete(context: Context, name: str, arch: Architecture, inherit: bool | None = None) -> dict:
    """A model of the search space under a name of its own."""
    inherit = context.config.inherit_retraining if inherit is None else inherit
    return full_runs(context.task, context.scope.scope("retrain", name),
                     lambda place: context.build(arch, inherit, place), inherit and derives(arch))


def ameir_i(context: Context, interactions: tuple) -> dict:
    """The found interactions in a DeepFM, without behaviour."""
    task, config = context.task, context.config

    def build(place: Scope) -> nn.Module:
        with seeded_initialization(config.seed, *place.names, "model"):
            model = AmeirI(task.data.schema, interactions, config.embedding_dim)
        return model.to(task.device)

    return full_runs(task, context.scope.scope("retrain", DEEPFM_FOUND), build)
