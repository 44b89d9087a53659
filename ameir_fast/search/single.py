"""Training of one given architecture, and evaluation of a run's model."""

from __future__ import annotations

import time
from pathlib import Path

from ..atomic import write_json
from ..errors import InputError
from ..model import Model
from ..profile import make_engine
from ..progress import Progress
from ..schema import read_json
from ..space import Architecture
from ..space.search_space import validate_for_schema
from .config import SearchConfig
from .context import fresh_model, require_backend, train_model
from .environment import describe
from .objective import ERROR, make_objective
from .seeds import seeded_initialization
from .store import RunDirectory
from .training import Task, ranking_of, require_rows
from .variants import samples_per_second, test_row


def train(data, run_dir: str | Path, architecture: Architecture, config: SearchConfig | None = None, *,
          resume: bool = False, overwrite: bool = False, progress: Progress | None = None,
          device: str = "cpu") -> dict:
    """Trains ``architecture`` from scratch and fills the run directory; returns ``metrics.json``'s content.

    Raises ``InputError`` when the architecture does not fit the data's schema, a split of the data is empty or has labels of
    one kind, or the directory is in use.
    """
    config, progress = config or SearchConfig.for_task(data.task), progress or Progress()
    if data.schema.behavior and not architecture.behavior:
        raise InputError("architecture: no behavior blocks, though the data has behavior fields")
    architecture = validate_for_schema(architecture, data.schema,
                                       data.schema.num_behavior * config.embedding_dim).canonical()
    require_backend(config, device)
    require_rows(data)
    identity = {"version": 1, "config": config.to_dict(), "architecture": architecture.to_dict(),
                "data": {"kind": data.kind, "checksum": data.checksum}, "device": device}
    with RunDirectory(run_dir, identity, resume=resume, overwrite=overwrite) as run:
        began = time.perf_counter()
        scope = run.scope(0, "train")
        with seeded_initialization(config.seed, *scope.names, "model"):
            model = fresh_model(data.schema, architecture, config).to(device)
        task = Task(data, make_objective(data.schema, config), config, progress, device)
        outcome = train_model(task, model, scope)
        row = test_row(task, model)
        result = {
            "version": 1, "data": {"kind": data.kind, "checksum": data.checksum,
                                   "splits": {s: data.size(s) for s in data.splits}, **ranking_of(data)},
            "variants": {"model": {k: ({"mean": v, "std": 0.0, "runs": [v]} if is_metric(k) else v)
                                   for k, v in row.items()}},
            "valid": outcome.score, "steps": {"retrain": {"seconds": outcome.seconds,
                                                          "device_seconds": outcome.device_seconds}},
            "environment": describe(device, config.backend), "seconds": round(time.perf_counter() - began, 3)}
        model.save(run.path / "model")
        architecture.save(run.path / "architecture.json")
        write_json(run.path / "metrics.json", result)
    return result


def is_metric(name: str) -> bool:
    """Whether a row's entry is a metric of the test split."""
    return not name.endswith(ERROR) and (name in ("auc", "log_loss") or "@" in name)


def evaluate(run_dir: str | Path, data, split: str = "test", device: str = "cpu", engine: str = "model") -> dict:
    """Metrics of a run's model on one split of a data set, computed by the model or by its plan (``profile.ENGINES``).

    Raises ``InputError`` when the run has no model, the split does not exist, is empty or has labels of one
    kind, the data's schema is not the one the model was made for, or its ids may mean other values than those of the
    run's data.
    """
    directory = Path(run_dir) / "model"
    if not (directory / "model.json").exists():
        raise InputError(f"{run_dir}: no finished model in it (model/model.json is missing)")
    model = Model.load(directory).to(device)
    call = make_engine(model, engine, device)
    if split not in data.splits:
        raise InputError(f"split {split!r} is none of {', '.join(data.splits)}")
    if model.schema != data.schema:
        raise InputError(f"{run_dir}: its model was made for another schema than {data.directory}'s")
    _check_ids(Path(run_dir), data)
    require_rows(data, (split,))
    config = SearchConfig()
    task = Task(data, make_objective(data.schema, config), config, Progress(), device)
    result = {"split": split, "rows": data.size(split), **ranking_of(data),
              **task.test(lambda b, items: call(b, items=items), split)}
    total, outside = model.parameter_counts()
    return {**result, "engine": engine, "parameters": total, "parameters_outside_embedding": outside,
            "samples_per_s": samples_per_second(task, call)}


def _check_ids(run_dir: Path, data) -> None:
    """Raises ``InputError`` for data whose vocabularies were learnt elsewhere than in the run's data."""
    path = run_dir / "metrics.json"
    if not data.vocabularies_from or not path.exists():
        return
    about = read_json(path).get("data")
    made = about.get("checksum") if isinstance(about, dict) else None
    if made is not None and made not in data.vocabularies_from:
        raise InputError(f"{data.directory}: is not the data of {run_dir}; its vocabularies are its own, and their ids "
                         "mean other values; prepare its rows with --like")
