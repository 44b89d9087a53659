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
from dataclasses import dataclass, replace

from ..errors import InputError
from ..progress import count
from ..space import Architecture
from .config import SearchConfig
from .context import Context, train_model
from .seeds import generator
from .store import Scope
from .together import together
from .training import Outcome, Task

STEPS = {"behavior": "step 1", "mlp": "step 3"}
SECONDS = {"s": 1, "m": 60, "h": 3600}
#: Of what full trainings leave: the most that each gets. The rest is for races, three quarters of it for step 1's.
SHARES = {"behavior": 0.20, "interactions": 0.12, "mlp": 0.05}
RANKING = 0.05  # of the same, for step 1's ranking
#: An epoch of training shared weights over one of a model's own, two of which run side by side: on MovieLens-100K, two threads.
COSTS = {"behavior": 2.3, "interactions": 0.6, "mlp": 0.7}
#: And scoring a child on a row over training a model on one: where children are scored together, and where they go alone.
SCORING, SCORING_ALONE = 0.25, 1.0
#: A model of step 3's race costs so much of one that is trained alone, where all are trained together.
TOGETHER = 0.4
#: In trainings: the first round of a race, of which each round is twice the one before, and what shared weights have at least.
FIRST = {"behavior": 1 / 6, "mlp": 1 / 3}
LEAST_SHARED = 1 / 6
MOST_FINALISTS, MOST_CHILDREN = 4096, 10_000  # of a race, and of step 1's ranking
TIMED, TIMED_EPOCHS = 4, 0.25  # trainings that tell how long one takes


@dataclass(frozen=True)
class Budget:
    """``trainings`` of one model, or ``seconds``; ``text`` as it was given."""

    text: str
    trainings: float | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``90s``, ``30m``, ``1.5h`` or ``40x``; ``InputError`` for anything else."""
        text = text.strip().lower()
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhx])", text)
        if not found or float(found[1]) == 0:
            raise InputError(f"budget {text!r} is neither a time such as 90s, 30m or 1.5h nor a multiple of one model's training "
                             "such as 40x")
        amount, unit = float(found[1]), found[2]
        return cls(text, trainings=amount) if unit == "x" else cls(text, seconds=amount * SECONDS[unit])


def split(budget: Budget, context: Context) -> dict:
    """The settings that the budget pays for and what each part gets, as JSON: ``asked``, ``trainings``,
    ``seconds_per_training`` (None where nothing was timed), ``settings``, ``parts`` (in trainings). ``search`` adds ``spent_seconds``,
    and under a budget in time ``paced``: by repeat's seed the settings of races that ``paced`` put in the place of the plan's.

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
        raise InputError(f"budget: {count_of(trainings)} too few; {count(context.config.runs, 'full training')} a race and the smallest "
                         f"races need {least}x{time}" + (" (runs=1 needs less, --quick least)" if context.config.runs > 1 else ""))
    return found


def count_of(trainings: float) -> str:
    """``1 training is``, ``2.5 trainings are``."""
    return "1 training is" if trainings == 1 else f"{trainings:.3g} trainings are"


def _allocation(trainings: float, context: Context) -> dict | None:
    """``allocate``'s; None where it is not enough."""
    config, races = context.config, _races(context)
    full = config.runs * len(races) + (config.plain_trains_fully and "behavior" in races)
    left = trainings - full
    shared = _shared(context, races, left)
    ranking = max(0.0, min(RANKING * left, MOST_CHILDREN * _child_cost(context))) if "behavior" in races else 0.0
    racing = left - sum(shared.values()) - ranking
    weight = {step: 3.0 if step == "behavior" else 1.0 for step in races}
    racing = {step: racing * weight[step] / sum(weight.values()) for step in races}
    settings: dict = {}
    for step in races:
        settings.update(_race_settings(context, step, racing[step]))
    if min(n for name, n in settings.items() if name.endswith("finalists")) < config.runs + 1:
        return None
    if "behavior" in races:
        epochs = shared["behavior"] * config.epochs / COSTS["behavior"]
        warmup = min(config.warmup_epochs, epochs / 2)
        settings.update(warmup_epochs=warmup, behavior_epochs=epochs - warmup,
                        behavior_children=max(settings["finalists"], int(ranking / _child_cost(context))))
    if "mlp" in races:
        settings.update(mlp_epochs=shared["mlp"] * config.epochs / COSTS["mlp"])
        if not context.ranks_by_crosses:
            part = shared["interactions"] / _interaction_cost(context)
            settings.update(updates_per_interaction=max(1, round(config.updates_per_interaction * part)))
    parts = {"full trainings": full, **{f"shared weights, {step}": cost for step, cost in shared.items()},
             **({"ranking, behavior": ranking} if "behavior" in races else {}),
             **{f"race, {step}": cost for step, cost in racing.items()}}
    return {"settings": {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()},
            "parts": {name: round(cost, 3) for name, cost in parts.items()}}


def _races(context: Context) -> list[str]:
    schema = context.space.schema
    return [step for step, there in (("behavior", schema.behavior), ("mlp", schema.fields)) if there]


def _shared(context: Context, races: list[str], left: float) -> dict[str, float]:
    """What the shared weights of each step that there is may cost, in trainings; step 2's base is no matter of choice where
    crosses rank."""
    config = context.config
    default = {"behavior": (config.warmup_epochs + config.behavior_epochs) / config.epochs * COSTS["behavior"],
               "interactions": _interaction_cost(context), "mlp": config.mlp_epochs / config.epochs * COSTS["mlp"]}
    found = {}
    for name, share in SHARES.items():
        if ("behavior" if name == "behavior" else "mlp") in races:
            found[name] = max(LEAST_SHARED * COSTS[name], min(share * left, 2 * default[name]))
    if "interactions" in found and context.ranks_by_crosses:
        found["interactions"] = default["interactions"]
    return found


def _race_settings(context: Context, step: str, trainings: float) -> dict:
    """Finalists and rounds of a step's race that may cost so much."""
    config, together = context.config, 1.0
    if step == "mlp" and config.mlp_race_together and context.space.schema.task == "ctr":
        together = TOGETHER
    least = config.runs + (step == "mlp")  # beside the fixed MLP, which may be too large to win
    finalists, rounds = schedule(trainings / together, least, FIRST[step])
    names = ("finalists", "race_epochs") if step == "behavior" else ("mlp_finalists", "mlp_race_epochs")
    return dict(zip(names, (finalists, tuple(round(r * config.epochs, 6) for r in rounds)), strict=True))


def _interaction_cost(context: Context) -> float:
    """What step 2's cycles take by default, in trainings, about: the candidates of a later cycle are not known before."""
    config, fields = context.config, context.space.schema.num_fields
    epochs = config.interaction_warmup_epochs
    if not context.ranks_by_crosses:
        first = fields + fields * (fields - 1) // 2
        later = min(config.keep_interactions * max(1, fields) // 2, 2**min(fields, 20))
        steps = config.updates_per_interaction * (first + (config.cycles - 1) * later) / max(1, config.interactions_per_step)
        epochs += steps / context.task.steps_per_epoch
    return max(epochs, 1e-6) / config.epochs * COSTS["interactions"]


def _child_cost(context: Context) -> float:
    """What ranking one child of step 1 takes, in trainings."""
    config, data = context.config, context.task.data
    rows = min(config.validation_subset, data.size("valid"))
    scoring = SCORING if context.space.schema.task == "ctr" else SCORING_ALONE
    return max(1, rows) * scoring / max(1, data.size("train")) / config.epochs


def schedule(trainings: float, last: int, first: float) -> tuple[int, tuple[float, ...]]:
    """Finalists, and the rounds of a race of successive halving that takes so much in all; both in full trainings.

    Rounds double from ``first`` up to a whole training at most, and with half the finalists left cost alike. There are as many as leave at
    least twice ``last`` finalists in the last one, three at most. No more than ``MOST_FINALISTS`` start, whatever is left.
    """
    for rounds in (3, 2, 1):
        finalists = int(trainings / (rounds * first))
        if rounds == 1 or (finalists / 2 ** (rounds - 1) >= 2 * last and first * 2 ** (rounds - 1) <= 1):
            break
    return max(0, min(finalists, MOST_FINALISTS)), tuple(first * 2**r for r in range(rounds))


def paced(context: Context, plan: dict | None, steps: dict, step: str) -> Context:
    """The context for a step's race under a budget in time: finalists and rounds by what is left when it comes, stored once.

    ``steps``: the costs so far, as in ``metrics.json``. Other budgets keep to their plan.
    """
    if plan is None or plan["seconds_per_training"] is None:
        return context

    def decide() -> dict:
        parts, config = plan["parts"], context.config
        spent = sum(cost["seconds"] for cost in steps.values()) / plan["seconds_per_training"]
        later = config.runs * (1 + (step == "behavior" and "race, mlp" in parts)) + (step == "behavior" and config.plain_trains_fully)
        if step == "behavior" and "race, mlp" in parts:
            later += sum(parts[name] for name in ("shared weights, interactions", "shared weights, mlp", "race, mlp"))
        found = _race_settings(context, step, plan["trainings"] - spent - later)
        least = config.runs + 1
        return {name: max(least, value) if isinstance(value, int) else list(value) for name, value in found.items()}

    settings = context.scope.scope(step).result("paced", decide)
    plan.setdefault("paced", {}).setdefault(str(context.config.seed), {}).update(settings)
    finalists, rounds = (next(value for name, value in settings.items() if name.endswith(end)) for end in ("finalists", "race_epochs"))
    context.task.progress.note(f"budget {plan['asked']}: {finalists} finalists race in {STEPS[step]}, over "
                               f"{', '.join(f'{e:g}' for e in rounds)} epochs, by what is left of the time")
    return replace(context, task=replace(context.task, config=context.config.changed(**settings)))


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


def overridden(plan: dict, config: SearchConfig, default: SearchConfig) -> str:
    """The settings, ``name=value`` with commas, that differ from the defaults and that the budget does not keep; empty if there
    are none."""
    chosen, usual = config.to_dict(), default.to_dict()
    return ", ".join(f"{name}={chosen[name]}" for name, value in plan["settings"].items()
                     if chosen[name] not in (value, usual[name]))
