"""Hand-made models as rows of the table, and which rows make sense for which data."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..baselines import FM, LR, DeepFM, GRU4Rec, NextItNet, PooledDNN, Popularity, SASRec
from ..errors import InputError
from ..schema import FeatureSchema
from .context import Context
from .objective import make_objective
from .seeds import seeded_initialization
from .store import Scope
from .training import Task
from .variants import CONTROLS, DEEPFM_FOUND, FOUND, full_runs, test_row

USER_FIELD = "user"
ZERO_PATH, POPULARITY = "DIN", "POP"
_WITH_HISTORY, _RETRIEVAL = ("DNN-pool", "Wide&Deep"), ("GRU4Rec", "SASRec", "NextItNet")
_BUILDERS: dict[str, Callable[[FeatureSchema, int], nn.Module]] = {
    "DNN": PooledDNN, "DNN-pool": PooledDNN, "Wide&Deep": lambda schema, k: PooledDNN(schema, k, wide=True),
    "DeepFM": DeepFM, "FM": FM, "LR": lambda schema, k: LR(schema),
    "GRU4Rec": GRU4Rec, "SASRec": SASRec, "NextItNet": NextItNet,
}
FIXED_POINTS = (POPULARITY, *_BUILDERS, ZERO_PATH)
KNOWN = (*FOUND, DEEPFM_FOUND, *FIXED_POINTS, *CONTROLS)


def fixed_point(context: Context, name: str) -> dict:
    """A hand-made model by name. DIN is the all-zero path (without a target field there is nothing to attend to: sum
    and last pooling); DNN has no history, but the user's id where the data has it; POP is counted, not trained."""
    task, config = context.task, context.config
    scope = context.scope.scope("retrain", name)
    if name == POPULARITY:
        return scope.result("row", lambda: popularity_row(task))
    if name == ZERO_PATH:
        arch = context.behavior_child(context.zero_path())
        return full_runs(task, scope, lambda place: context.build(arch, False, place))
    if name == "DNN":
        task = without_history(task)

    def build(place: Scope) -> nn.Module:
        with seeded_initialization(config.seed, *place.names, "model"):
            model = _BUILDERS[name](task.data.schema, config.embedding_dim)
        return model.to(task.device)

    return full_runs(task, scope, build)


def popularity_row(task: Task) -> dict:
    model = Popularity(task.data.popularity()).to(task.device)
    found = task.objective.evaluate(lambda b, items: model(b, items=items), task.validation())
    return {**test_row(task, model), "valid": found[task.objective.primary], "seconds": 0.0, "device_seconds": 0.0}


def without_history(task: Task) -> Task:
    """The same data without behaviour, and with the user's id as a field where it is stored."""
    fields = [f.name for f in task.data.schema.fields]
    if USER_FIELD in task.data.field_names and USER_FIELD not in fields:
        fields = [USER_FIELD, *fields]
    data = task.data.select(fields=fields, behavior=False)
    return Task(data, make_objective(data.schema, task.config), task.config, task.progress, task.device)


def default_variants(schema: FeatureSchema) -> tuple[str, ...]:
    """The found models and the hand-made ones that the paper compares with on such data (tables 1 to 3)."""
    if schema.task == "retrieval":
        wanted = (*FOUND, POPULARITY, *_RETRIEVAL, ZERO_PATH)
    elif schema.behavior:
        wanted = (*FOUND, "DNN", *_WITH_HISTORY, ZERO_PATH)
    else:
        wanted = (DEEPFM_FOUND, *FOUND[1:], "DNN", "DeepFM")
    return tuple(name for name in wanted if lacking(schema, name) is None)


def all_variants(schema: FeatureSchema) -> tuple[str, ...]:
    """Every row that such data allows, the default ones first."""
    first = default_variants(schema)
    return (*first, *(name for name in KNOWN if name not in first and lacking(schema, name) is None))


def applicable(schema: FeatureSchema, variants: tuple[str, ...] | None) -> tuple[str, ...]:
    """``variants``, or the default ones for a schema.

    Raises ``InputError`` for a name that is unknown or that the data cannot serve."""
    if variants is None:
        return default_variants(schema)
    for name in variants:
        if name not in KNOWN:
            raise InputError(f"unknown variant {name!r}; known: {', '.join(KNOWN)}")
        what = lacking(schema, name)
        if what:
            raise InputError(f"variant {name!r} needs {what}, which this data lacks")
    return tuple(variants)


def lacking(schema: FeatureSchema, name: str) -> str | None:
    """What a variant needs and a schema has not."""
    if not schema.behavior and name in ("AMEIR-A", ZERO_PATH, *_WITH_HISTORY, *_RETRIEVAL, *CONTROLS):
        return "behavior fields"
    if not schema.fields and name in ("AMEIR-B", "AMEIR-C", DEEPFM_FOUND, "DNN", "DeepFM", "FM", "LR", *CONTROLS):
        return "fields beside the history"
    if schema.task != "ctr" and name in (DEEPFM_FOUND, "DNN", *_WITH_HISTORY, "DeepFM", "FM", "LR"):
        return "a click label"
    if schema.task != "retrieval" and name in (POPULARITY, *_RETRIEVAL):
        return "items to retrieve"
    return None
