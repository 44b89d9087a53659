"""Races between finalists: short trainings, halving, full trainings of the last ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from ..group import ModelGroup
from ..model import Model
from ..space import Architecture
from .context import Context, derives, outside_embedding, train_model
from .store import Scope
from .together import together
from .training import Outcome

GROUP = 32  # models in memory together
FULL = "full"  # the name of a finalist's full training; that of a short one is its length


@dataclass
class Standing:
    """A finalist in a race; ``order`` is its place among those that started."""

    arch: Architecture
    order: int
    score: float = -math.inf
    rounds: list[dict] = field(default_factory=list)
    parameters: int = 0          # outside the embedding
    seconds: float = 0.0
    device_seconds: float = 0.0


def race(context: Context, scope: Scope, finalists: Sequence[Architecture], rounds: Sequence[float], inherit: bool,
         max_parameters: int | None = None, in_one_pass: bool = False, sure: Architecture | None = None) -> list[Standing]:
    """Successive halving by validation, standings best first.

    In each round all that are left are trained for so many epochs with a schedule that ends there, from the
    shared weights (``inherit``) or from scratch, and the better half by the mean of its rounds' scores goes on.
    The last ``runs`` of them get one full training each, as many as any hand-made model has, and the best of
    these wins. Those that left earlier stand after those that left later. Finalists with more than
    ``max_parameters`` outside the embedding race for comparison: they leave before the full trainings, or stand
    behind all others. ``in_one_pass``: the short trainings of a round are one of a ``ModelGroup``. ``sure``: this one
    gets its full training even if it left before, in addition to the others.
    """
    runs = context.config.runs
    alive = [Standing(arch, order) for order, arch in enumerate(finalists)]
    out: list[Standing] = []

    def sort(deciding: bool) -> None:
        def key(s: Standing) -> tuple:
            too_large = max_parameters is not None and s.parameters > max_parameters
            return deciding and too_large, -s.score, s.parameters, s.order
        alive.sort(key=key)

    for number, epochs in enumerate(rounds, start=1):
        if len(alive) <= runs:
            break
        keep = runs if number == len(rounds) else max(runs, math.ceil(len(alive) / 2))
        if in_one_pass:
            train_together(context, scope, alive, epochs, inherit)
        else:
            _side_by_side(context, scope, f"{epochs:g}", alive, lambda c, s, epochs=epochs: train_shortly(
                c, scope, s, epochs, inherit))
        sort(deciding=keep == runs)
        alive, out = alive[:keep], alive[keep:] + out
    back = [s for s in out if s.arch == sure]
    alive, out = alive + back, [s for s in out if s.arch != sure]
    _side_by_side(context, scope, FULL, alive, lambda c, s: _train_fully(c, scope, s))
    sort(deciding=True)
    return alive + out


def train_shortly(context: Context, scope: Scope, standing: Standing, epochs: float, inherit: bool) -> None:
    """One more round of a finalist. Single short trainings of neighbouring children differ by less than their
    noise: hence the score is the mean over rounds."""
    name = f"{epochs:g}"
    _result(context, scope, standing, name, epochs, inherit)
    scope.scope(standing.order, name).forget_tensors("training")
    standing.score = _mean_score(context, standing)


def _mean_score(context: Context, standing: Standing) -> float:
    return fmean(r[context.primary] for r in standing.rounds)


def train_together(context: Context, scope: Scope, standings: Sequence[Standing], epochs: float, inherit: bool) -> None:
    """``train_shortly`` of all of them in one pass over the data (``ModelGroup``), ``GROUP`` at most.

    Groups are as large and as good as each other: an embedding is what the mean over its group makes of it, and scores of
    all groups are compared.
    """
    name, groups = f"{epochs:g}", math.ceil(len(standings) / GROUP)
    for number in range(groups):
        some = standings[number::groups]
        place = scope.scope(f"group-{number}", name)
        found = place.result("models", lambda some=some, place=place: _group_result(
            context, scope.scope(name), place, [s.arch for s in some], epochs, inherit))
        place.forget_tensors("training")
        for standing, own in zip(some, found["models"], strict=True):
            _note(context, standing, own)
            standing.score = _mean_score(context, standing)


def _group_result(context: Context, seeds: Scope, scope: Scope, archs: Sequence[Architecture], epochs: float,
                  inherit: bool) -> dict:
    """Each model's best validation. All groups of a round see the same batches and start alike."""
    models: list[Model] = []
    for arch in archs:
        models.append(context.build(arch, inherit, seeds))
        models[-1].embedding = models[0].embedding  # as the group will have it: one matrix in memory
    sizes = [outside_embedding(model) for model in models]
    group = ModelGroup(models)
    gently = inherit and all(derives(arch) for arch in archs)  # one learning rate for all
    outcome = train_model(context.task, group, scope, gently, epochs, seeds)
    best = [max(column) for column in zip(*(entry["valid_models"] for entry in outcome.curve), strict=True)]
    share = {key: getattr(outcome, key) / len(archs) for key in ("seconds", "device_seconds")}
    return {"models": [{"score": score, "steps": outcome.steps, "parameters": size, **share}
                       for score, size in zip(best, sizes, strict=True)]}


def _train_fully(context: Context, scope: Scope, standing: Standing) -> None:
    found = _result(context, scope, standing, FULL, None, context.config.inherit_retraining)
    standing.score = found["score"]


def _side_by_side(context: Context, scope: Scope, name: str, standings: list[Standing],
                  train: Callable[[Context, Standing], None]) -> None:
    together(context.task, f"{scope.stage}.{name}",
             [lambda task, s=s: train(replace(context, task=task), s) for s in standings])


def trained_finalist(context: Context, scope: Scope, standing: Standing) -> Model:
    """The model of a finalist that had its full training, with its best weights (no training is done)."""
    return _train(context, scope, standing, FULL, None, context.config.inherit_retraining)[0]


def _result(context: Context, scope: Scope, standing: Standing, name: str, epochs: float | None,
            inherit: bool) -> dict:
    """One training's result, noted in the standing."""
    def run() -> dict:
        model, outcome = _train(context, scope, standing, name, epochs, inherit)
        return {"score": outcome.score, "steps": outcome.steps, "seconds": outcome.seconds,
                "device_seconds": outcome.device_seconds, "parameters": outside_embedding(model)}

    found = scope.scope(standing.order).result(name, run)
    _note(context, standing, found)
    return found


def _note(context: Context, standing: Standing, found: dict) -> None:
    standing.parameters = found["parameters"]
    standing.seconds += found["seconds"]
    standing.device_seconds += found["device_seconds"]
    standing.rounds.append({"steps": found["steps"], context.primary: found["score"]})


def _train(context: Context, scope: Scope, standing: Standing, name: str, epochs: float | None,
           inherit: bool) -> tuple[Model, Outcome]:
    """All finalists of a round see the same batches, and start alike as far as their shapes agree: what sets them
    apart is what they are."""
    shared = scope.scope(name)
    model = context.build(standing.arch, inherit, shared)
    outcome = train_model(context.task, model, scope.scope(standing.order, name), inherit and derives(standing.arch),
                          epochs, shared)
    return model, outcome


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
    return [ranking[i] for i in picks]
