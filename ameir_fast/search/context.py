"""What the steps of one search share, and how children are scored, trained and raced."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from torch import nn

from ..model import Model
from ..population import evaluate_population
from ..space import Architecture, SearchSpace
from ..space.architecture import ZERO, Block, fixed_mlp
from ..supernet import FIXED_WIDTHS, Supernet, reads_step1
from .config import SearchConfig
from .objective import CtrObjective
from .seeds import seeded_initialization
from .store import Scope
from .strategy import Strategy
from .training import Outcome, Task, fit

FIXED = fixed_mlp(*FIXED_WIDTHS)


@dataclass
class Context:
    """One repeat of a search."""

    task: Task
    space: SearchSpace
    net: Supernet
    scope: Scope
    strategy: Strategy

    @property
    def config(self) -> SearchConfig:
        return self.task.config

    @property
    def primary(self) -> str:
        return self.task.objective.primary

    def zero_path(self) -> tuple[Block, ...]:
        return (ZERO,) * self.space.num_blocks

    def behavior_child(self, behavior: tuple[Block, ...]) -> Architecture:
        """Step 1's child (AMEIR-A): the fixed MLP over [h_a, e_b]."""
        return Architecture(tuple(behavior), (), FIXED, "none")

    # ---- scores with the supernet's weights ------------------------------------------------------

    def score_children(self, archs: Sequence[Architecture], limit: int | None) -> list[dict[str, float]]:
        """Validation metrics of children with the shared weights."""
        batches = self.task.held_out("valid", limit)
        if isinstance(self.task.objective, CtrObjective):
            found = evaluate_population(self.net, archs, batches)
            return [{"auc": float(a), "log_loss": float(b)} for a, b in zip(found.auc, found.log_loss, strict=True)]
        self.net.eval()
        return [self.task.objective.evaluate(lambda b, items, arch=arch: self.net(b, arch, items), batches)
                for arch in archs]

    def monitor(self, archs: Sequence[Architecture]) -> Callable[[], dict[str, float]]:
        """A supernet's validation: the mean over a fixed set of children."""
        def validate() -> dict[str, float]:
            found = self.score_children(archs, self.config.validation_subset)
            return {k: sum(f[k] for f in found) / len(found) for k in found[0]}
        return validate

    def epochs(self, count: float) -> int:
        """Training steps in so many epochs."""
        return max(1, round(count * self.task.steps_per_epoch))

    # ---- models of their own -----------------------------------------------------------------------

    def max_parameters(self) -> int:
        """Most parameters outside the embedding that a found model may have."""
        if self.config.max_parameters is not None:
            return self.config.max_parameters
        plain = self.behavior_child(self.zero_path())
        return outside_embedding(Model(self.space.schema, plain, self.config.embedding_dim))

    def build(self, arch: Architecture, inherit: bool, scope: Scope) -> Model:
        """A model of ``arch``; weights that are not inherited are a function of the seed and the scope."""
        config = self.config
        with seeded_initialization(config.seed, *scope.names, "model"):
            if inherit and derives(arch):
                return self.net.derive(arch)
            model = Model(self.space.schema, arch, config.embedding_dim).to(self.task.device)
            if inherit:
                model.inherit(self.net)
        return model


def outside_embedding(model: nn.Module) -> int:
    return model.parameter_counts()[1]


def derives(arch: Architecture) -> bool:
    """Whether the supernet has weights for all of ``arch``; fixed MLPs beside step 1's start fresh."""
    return not arch.has_fixed_mlp or reads_step1(arch)


def train_model(task: Task, model: nn.Module, scope: Scope, inherit: bool = False,
                epochs: float | None = None) -> Outcome:
    """Trains a model of its own: dropout, early stop on all of validation, best weights kept.

    One that starts from inherited weights has a schedule of its own, shorter and gentler; ``epochs`` sets
    another length.
    """
    config = task.config
    model.dropout = config.dropout
    if epochs is None:
        epochs = config.inherited_epochs if inherit else config.epochs
    return fit(task, model, scope, total=max(1, round(epochs * task.steps_per_epoch)),
               learning_rate=config.inherited_learning_rate if inherit else config.learning_rate,
               forward=lambda step, batch, items: model(batch, items=items),
               validate=lambda: task.objective.evaluate(lambda b, items: model(b, items=items),
                                                        task.held_out("valid")))


@dataclass
class Standing:
    """A finalist after a race."""

    arch: Architecture
    order: int
    score: float = -math.inf
    rounds: list[dict] = field(default_factory=list)
    parameters: int = 0
    seconds: float = 0.0


FULL = "full"  # the scope of a finalist's full training


def race(context: Context, scope: Scope, finalists: Sequence[Architecture]) -> list[Standing]:
    """Successive halving by validation, standings best first.

    In each round all that are left start from the shared weights again, train for one of ``race_epochs`` with
    a schedule that ends there, and the better half by the mean of its rounds' scores goes on. The last ``runs``
    of them get one full training each, as many as any hand-made model has, and the best of these wins. Those
    that left earlier stand after those that left later.
    """
    config = context.config
    alive = [Standing(arch, order) for order, arch in enumerate(finalists)]
    out: list[Standing] = []
    for epochs in (*config.race_epochs, None):
        if epochs is None or len(alive) > config.runs:
            for standing in alive:
                train_finalist(context, scope.scope(standing.order), standing, epochs)
            alive.sort(key=lambda s: (-s.score, s.parameters, s.order))
            if epochs is not None:
                keep = config.runs if epochs == config.race_epochs[-1] else max(config.runs, math.ceil(len(alive) / 2))
                out = alive[keep:] + out
                alive = alive[:keep]
    return alive + out


def train_finalist(context: Context, place: Scope, standing: Standing, epochs: float | None) -> None:
    """One more training of a finalist, noted in its standing; ``epochs`` None: the full one.

    Single short trainings of neighbouring children differ by less than their noise: hence the mean of rounds.
    """
    inherit = context.config.inherit_retraining if epochs is None else context.config.inherit
    name = FULL if epochs is None else f"{epochs:g}"

    def run() -> dict:
        model = context.build(standing.arch, inherit, place.scope(name))
        outcome = train_model(context.task, model, place.scope(name), inherit, epochs)
        return {"score": outcome.score, "steps": outcome.steps, "seconds": outcome.seconds,
                "parameters": outside_embedding(model)}

    found = place.result(name, run)
    standing.parameters = found["parameters"]
    standing.seconds += found["seconds"]
    standing.rounds.append({"steps": found["steps"], context.primary: found["score"]})
    standing.score = found["score"] if epochs is None else fmean(r[context.primary] for r in standing.rounds)


def trained_finalist(context: Context, scope: Scope, standing: Standing) -> Model:
    """The model of a finalist that had its full training, with its best weights (no training is done)."""
    place = scope.scope(standing.order).scope(FULL)
    inherit = context.config.inherit_retraining
    model = context.build(standing.arch, inherit, place)
    train_model(context.task, model, place, inherit)
    return model


def spread(ranking: Sequence, top: int, count: int) -> list:
    """``count`` entries: the first ``top`` and others evenly spaced over the rest of the ranking."""
    if count >= len(ranking):
        return list(ranking)
    top = min(top, count)
    rest = count - top
    picks = list(range(top))
    if rest:
        gap = (len(ranking) - top) / rest
        picks += [top + int(gap * (i + 0.5)) for i in range(rest)]
    return [ranking[i] for i in dict.fromkeys(picks)]
