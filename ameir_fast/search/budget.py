"""What a search may cost, and how that is split: ``--budget 30m`` or ``--budget 40x``.

The unit is one full training of a model by hand. Full trainings of each race's last finalists come first, then training and
ranking with shared weights up to a share and to twice their default, and all that is left goes into races: scores of shared
weights rank badly where data is small, and short trainings of their own do not (docs/population.md).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import InputError
from ..space import Architecture
from .context import Context, train_model
from .seeds import generator
from .store import Scope
from .together import together
from .training import Outcome, Task

SECONDS = {"s": 1, "m": 60, "h": 3600}
#: Of what full trainings leave: the most that each gets. The rest is for races, three quarters of it for step 1's.
SHARES = {"behavior": 0.20, "interactions": 0.12, "mlp": 0.05}
LEAST_SHARED = 0.5   # epochs of a supernet's training
FIRST_ROUND, FIRST_MLP_ROUND = 0.5, 1.0  # epochs of a race's first trainings; each round doubles them
#: A model of step 3's race costs so much of one that is trained alone, where all are trained together.
TOGETHER = 0.4
#: An epoch of training shared weights over one of a model's own, two of which run side by side: on MovieLens-100K, two threads.
COSTS = {"behavior": 2.3, "interactions": 0.6, "mlp": 0.7}
TIMED, TIMED_EPOCHS = 4, 0.25  # trainings that tell how long one takes
MOST_FINALISTS = 4096


@dataclass(frozen=True)
class Budget:
    """``trainings`` of one model, or ``seconds``; ``text`` as it was given."""

    text: str
    trainings: float | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``90s``, ``30m``, ``1.5h`` or ``40x``; ``InputError`` for anything else."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhx])", text.strip().lower())
        if not found or float(found[1]) == 0:
            raise InputError(f"budget {text!r} is neither a time such as 90s, 30m or 1.5h nor a multiple of one model's training "
                             "such as 40x")
        amount, unit = float(found[1]), found[2]
        return cls(text, trainings=amount) if unit == "x" else cls(text, seconds=amount * SECONDS[unit])


def split(budget: Budget, context: Context) -> dict:
    """The settings that the budget pays for and what each part gets, as JSON: ``asked``, ``trainings``,
    ``seconds_per_training`` (None where nothing was timed), ``settings``, ``parts`` (in trainings). ``search`` adds ``spent_seconds``.

    A budget in time is turned into trainings by timing the plain path, once: a resumed run uses the stored answer.

    Raises:
        InputError: a budget that does not pay for the full trainings and the smallest races, naming what would.
    """
    unit = None if budget.seconds is None else seconds_per_training(context)
    trainings = budget.trainings if unit is None else budget.seconds / unit
    return {"asked": budget.text, "trainings": trainings, "seconds_per_training": unit, **allocate(trainings, context, unit)}


def allocate(trainings: float, context: Context, unit: float | None = None) -> dict:
    """``settings`` and ``parts`` of so many trainings, of ``unit`` seconds each where that is known."""
    found = _allocation(trainings, context)
    if found is None:
        least = next(n for n in itertools.count(math.ceil(trainings)) if _allocation(n, context) is not None)
        time = "" if unit is None else f", here {math.ceil(least * unit)}s"
        raise InputError(f"budget: {trainings:.3g} trainings are too few; {context.config.runs} full trainings a race and the smallest "
                         f"races need {least}x{time} (runs=1 needs less, --quick least)")
    return found


def _allocation(trainings: float, context: Context) -> dict | None:
    """``allocate``'s; None where it is not enough."""
    config, schema = context.config, context.space.schema
    races = {"behavior": bool(schema.behavior), "mlp": bool(schema.fields)}
    full = config.runs * sum(races.values())
    left = (trainings - full) * config.epochs  # in epochs from here on
    shared = _shared(context, races, left)
    racing = left - sum(shared.values())
    weight = {"behavior": 3.0 * races["behavior"], "mlp": 1.0 * races["mlp"]}
    racing = {step: racing * weight[step] / sum(weight.values()) for step in weight}
    settings: dict = {}
    if races["behavior"]:
        finalists, rounds = schedule(racing["behavior"], config.runs, FIRST_ROUND)
        epochs = shared["behavior"] / COSTS["behavior"]
        warmup = min(config.warmup_epochs, epochs / 2)
        settings.update(finalists=finalists, race_epochs=rounds, warmup_epochs=warmup, behavior_epochs=epochs - warmup,
                        behavior_children=max(config.behavior_children, 4 * finalists))
    if races["mlp"]:
        together = TOGETHER if config.mlp_race_together and schema.task == "ctr" else 1.0
        finalists, rounds = schedule(racing["mlp"] / together, config.runs + 1, FIRST_MLP_ROUND)
        share = shared["interactions"] / COSTS["interactions"] / max(_interaction_epochs(context), 1e-9)
        updates = config.updates_per_interaction * share
        settings.update(mlp_finalists=finalists, mlp_race_epochs=rounds, mlp_epochs=shared["mlp"] / COSTS["mlp"],
                        updates_per_interaction=max(1, round(updates)))
    least = full + _LEAST / config.epochs * sum(races.values())
    if trainings < least or min(n for name, n in settings.items() if name.endswith("finalists")) < config.runs + 1:
        return None
    parts = {"full trainings": full, **{f"shared weights, {step}": cost / config.epochs for step, cost in shared.items()},
             **{f"race, {step}": cost / config.epochs for step, cost in racing.items() if races[step]}}
    return {"settings": {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()},
            "parts": {name: round(cost, 3) for name, cost in parts.items()}}


#: Epochs a race, of shared weights and of the race, below which nothing can be told apart.
_LEAST = 4.0


def _shared(context: Context, races: dict[str, bool], left: float) -> dict[str, float]:
    """What the shared weights of each step that there is may cost, in epochs of a model."""
    config = context.config
    default = {"behavior": config.warmup_epochs + config.behavior_epochs, "interactions": _interaction_epochs(context),
               "mlp": config.mlp_epochs}
    step = {"behavior": races["behavior"], "interactions": races["mlp"], "mlp": races["mlp"]}
    return {name: COSTS[name] * max(LEAST_SHARED, min(SHARES[name] * left / COSTS[name], 2 * default[name]))
            for name in SHARES if step[name]}


def _interaction_epochs(context: Context) -> float:
    """What step 2's cycles take by default, about: the candidates of a later cycle are not known before."""
    config, fields = context.config, context.space.schema.num_fields
    if context.ranks_by_crosses:
        return config.interaction_warmup_epochs
    first = fields + fields * (fields - 1) // 2
    later = min(config.keep_interactions * max(1, fields) // 2, 2**min(fields, 20))
    steps = config.updates_per_interaction * (first + (config.cycles - 1) * later) / max(1, config.interactions_per_step)
    return config.interaction_warmup_epochs + steps / context.task.steps_per_epoch


def schedule(epochs: float, last: int, first: float) -> tuple[int, tuple[float, ...]]:
    """Finalists and the rounds of a race of successive halving that takes so many epochs in all.

    Rounds double from ``first``, and with half the finalists left cost alike. There are as many as leave at least twice
    ``last`` finalists in the last one, three at most. No more than ``MOST_FINALISTS`` start, whatever is left.
    """
    for rounds in (3, 2, 1):
        finalists = int(epochs / (rounds * first))
        if finalists / 2 ** (rounds - 1) >= 2 * last or rounds == 1:
            break
    return min(finalists, MOST_FINALISTS), tuple(first * 2**r for r in range(rounds))


def seconds_per_training(context: Context) -> float:
    """Of a full training of a random path's model, one of those that run side by side, from short ones of a few."""
    scope, config = context.scope.scope("budget"), context.config
    draw = generator(config.seed, *scope.names)
    archs = [Architecture(context.space.sample_behavior(draw), (), context.fixed, "none") for _ in range(TIMED)]
    epochs = min(TIMED_EPOCHS, config.epochs)

    def job(arch: Architecture, place: Scope) -> Callable[[Task], Outcome]:
        return lambda task: train_model(task, context.build(arch, False, scope), place, epochs=epochs)

    done = together(context.task, scope.stage, [job(arch, scope.scope(i)) for i, arch in enumerate(archs)])
    # By steps: where an epoch has few, a quarter of one is rounded.
    return sum(o.seconds for o in done) / sum(o.steps for o in done) * context.epochs(config.epochs)


def describe_budget(plan: dict) -> str:
    """One line for people: what the budget is and where it goes."""
    unit = plan["seconds_per_training"]
    each = "" if unit is None else f" of {unit:.1f} s"
    parts = ", ".join(f"{name} {cost:.1f}" for name, cost in plan["parts"].items())
    settings = plan["settings"]
    races = [f"{settings[name]} finalists of {step} over {', '.join(f'{e:g}' for e in settings[rounds])} epochs"
             for step, name, rounds in (("step 1", "finalists", "race_epochs"), ("step 3", "mlp_finalists", "mlp_race_epochs"))
             if name in settings]
    return f"budget {plan['asked']}: {plan['trainings']:.1f} trainings{each} = {parts}; {'; '.join(races)}"
