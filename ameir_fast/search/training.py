"""One training loop for everything: supernets, finalists, found models, fixed points."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from ..batch import Batch
from ..errors import InputError
from ..progress import Progress
from .config import SearchConfig
from .objective import (
    EVALUATION_BATCH,
    NEGATIVES,
    REPEATS,
    SAMPLED,
    Call,
    Objective,
    forget_some_ids,
)
from .seeds import derive_seed
from .stepper import Stepper
from .store import Scope

_filling = threading.Lock()


def ranks_seen(data) -> bool:
    """Whether a ranking of all items holds those of the user's own history: where training rows repeat items. Where
    they never do, no recommender would show them. Of other tasks, true."""
    return data.task != "retrieval" or data.repeat_share() >= REPEATS


def require_rows(data, splits: Sequence[str] | None = None) -> None:
    """Raises ``InputError`` for a split (of all by default) without rows, or whose labels are missing or all the same:
    nothing is learnt from it, or judged by it."""
    for split in splits or data.splits:
        if not data.size(split):
            raise InputError(f"{data.directory}: the {split} split is empty" + (
                "; it was prepared with --like, to be evaluated alone" if data.size("test") == len(data) else ""))
        if data.task == "ctr":
            label = data.labels(split)
            if np.isnan(label).any():
                raise InputError(f"{data.directory}: rows of the {split} split have no label")
            if label.min() == label.max():
                raise InputError(f"{data.directory}: all {len(label):,} labels of the {split} split are {label[0]:g}; "
                                 "clicks are learnt and judged by both kinds")


def ranking_of(data) -> dict[str, str]:
    """What a result says of its ranking, beside its data; nothing for other tasks."""
    if data.task != "retrieval":
        return {}
    items = data.schema.size(data.schema.item_vocabulary) - 1
    few = f", of which there are {items}, so that sampled ones repeat often" if items <= NEGATIVES else ""
    return {"ranked": ("all items" if ranks_seen(data) else "items new to the user") + few}


@dataclass
class Task:
    """What is shared by all trainings of one data view: data, objective, settings, where to report."""

    data: object                 # ameir_fast.data.Dataset
    objective: Objective
    config: SearchConfig
    progress: Progress
    device: str = "cpu"
    clock: Callable[[], float] = time.perf_counter  # seconds; trainings side by side share one (together.py)
    _cache: dict = field(default_factory=dict)

    @property
    def steps_per_epoch(self) -> int:
        return max(1, math.ceil(self.data.size("train") / self.config.batch_size))

    def validation(self) -> list[Batch]:
        """What decides between models: all of validation, or of retrieval, where every row is ranked among all items,
        a fixed part of it."""
        return self.held_out("valid", self.config.ranked_rows if self.data.task == "retrieval" else None)

    def held_out(self, split: str, limit: int | None = None) -> list[Batch]:
        """Evaluation batches in stored order, checked against the schema and kept in memory."""
        key = split, limit
        with _filling:  # by one of the trainings that may ask at the same time
            if key not in self._cache:
                self._cache[key] = [b.check(self.data.schema) for b in self.data.batches(
                    split, EVALUATION_BATCH, limit=limit, device=self.device, seen=not ranks_seen(self.data))]
        return self._cache[key]

    def test(self, call: Call, split: str) -> dict[str, float]:
        """All that the objective says of a split; sampled candidates are the same for every model and seed."""
        drawn = [self.data.candidates(split, EVALUATION_BATCH, NEGATIVES, popular=popular)
                 for popular in SAMPLED.values()] if self.data.task == "retrieval" else []
        return self.objective.test(call, self.held_out(split), zip(*drawn, strict=True))

    def training_batches(self, seed: int, start: int, stop: int):
        """Batches of training steps ``start`` to ``stop``; step s is a function of (seed, s) alone."""
        step, per_epoch = start, self.steps_per_epoch
        extra = {"negatives": self.config.negatives} if self.data.task == "retrieval" else {}
        if torch.device(self.device).type == "cuda":
            # Only there: on a CPU a batch takes a hundredth of its training step or less, and the thread would share
            # the cores. Two trainings side by side on two cores: 0.99 to 1.01 times the rate without it.
            extra.update(prefetch=2, pin_memory=True)
        while step < stop:
            epoch, skip = divmod(step, per_epoch)
            for batch in self.data.batches("train", self.config.batch_size, seed=seed, epoch=epoch,
                                           device=self.device, start_batch=skip, **extra):
                yield step, batch
                step += 1
                if step == stop:
                    return


@dataclass
class Outcome:
    """Of a training: ``score`` of the kept weights, at ``step`` of ``steps`` done, every validation's metrics.
    The seconds of one that had others beside it are its share of those that passed."""

    score: float
    step: int
    steps: int
    curve: list[dict]
    seconds: float
    device_seconds: float  # of them in forward, backward, optimizer and validation


Forward = Callable[[int, Batch, Tensor | None], Tensor]  # (step, batch, items) -> scores


def fit(task: Task, net: nn.Module, scope: Scope, *, total: int, learning_rate: float, forward: Forward,
        validate: Callable[[], dict[str, float]] | None, keep_best: bool = True,
        seeds: Scope | None = None) -> Outcome:
    """Trains ``net`` in place with Adam and one cosine schedule over ``total`` steps.

    Stops early once ``patience`` validations brought nothing better. With ``keep_best`` the weights of the best
    validation are the ones left in ``net``. Everything random is a function of the run's seed, the scope and the step, and the state
    is saved at every validation: a killed run goes on from its last one with the same result.
    """
    config, objective = task.config, task.objective
    seed = derive_seed(config.seed, *(seeds or scope).names)
    stepper = Stepper(task, net)
    optimizer = stepper.optimizer
    state = _State.load(scope, net, optimizer) or _State()
    every = max(1, round(config.evaluate_every * task.steps_per_epoch))
    net.generator = torch.Generator(next(net.parameters()).device)
    task.progress.start(scope.stage, total, done=state.step)
    clock = task.clock
    began = clock()
    net.train()
    for step, batch in task.training_batches(seed, state.step, 0 if state.stopped else total):
        net.generator.manual_seed(derive_seed(seed, step))
        batch = forget_some_ids(batch, config.unknown_rate, net.generator)
        rate = learning_rate * 0.5 * (1 + math.cos(math.pi * step / total))
        mark = clock()
        loss = stepper.step(batch, rate, lambda b, items, step=step: forward(step, b, items))
        state.step = step + 1
        state.loss_sum, state.loss_count = state.loss_sum + loss, state.loss_count + 1
        state.device_seconds += clock() - mark
        task.progress.update(state.step)
        if state.step % every == 0 or state.step == total:
            mark = clock()
            stepper.flush()
            state.record(net, loss=float(state.loss_sum) / state.loss_count, validate=validate, primary=objective.primary,
                         keep_best=keep_best)
            state.device_seconds += clock() - mark
            state.loss_sum, state.loss_count = 0.0, 0
            scope.log(total=total, **state.curve[-1],
                      seconds=round(state.seconds + clock() - began, 3))
            task.progress.update(state.step, **{k: v for k, v in state.curve[-1].items()
                                                if k != "step" and not isinstance(v, list)})
            state.stopped = validate is not None and state.bad >= config.patience and keep_best
            if state.stopped or state.step == total:
                break
            spent = clock() - began
            state.save(scope, net, optimizer, spent)
    spent = clock() - began
    state.seconds += spent
    state.save(scope, net, optimizer, 0.0)
    if keep_best and state.best:
        with torch.no_grad():
            net.load_state_dict(state.best)
    net.eval()
    outcome = Outcome(state.score, state.best_step if keep_best else state.step, state.step, state.curve,
                      state.seconds, state.device_seconds)
    task.progress.finish(_summary(outcome, objective.primary))
    return outcome


def _summary(outcome: Outcome, primary: str) -> str:
    if not math.isfinite(outcome.score):
        return f"{outcome.steps} steps"
    return f"{outcome.steps} steps, validation {primary} {outcome.score:.4f}"


@dataclass
class _State:
    """A training in progress, as it is saved."""

    step: int = 0
    score: float = -math.inf
    best_step: int = 0
    bad: int = 0
    stopped: bool = False
    seconds: float = 0.0
    device_seconds: float = 0.0
    curve: list = field(default_factory=list)
    best: dict = field(default_factory=dict)
    loss_sum: float | Tensor = 0.0  # since the last validation, which is where states are saved
    loss_count: int = 0

    NAMES = ("step", "best_step", "bad", "stopped", "seconds", "device_seconds", "curve")

    def record(self, net, loss, validate, primary, keep_best) -> None:
        entry = {"step": self.step, "loss": loss}
        if validate is not None:
            net.eval()
            found = validate()
            net.train()
            entry.update({f"valid_{k}": v for k, v in found.items()})
            if found[primary] > self.score:
                self.score, self.best_step, self.bad = found[primary], self.step, 0
                if keep_best:
                    self.best = {k: v.detach().clone() for k, v in net.state_dict().items()}
            else:
                self.bad += 1
        self.curve.append(entry)

    def save(self, scope: Scope, net, optimizer, spent: float) -> None:
        tensors = {f"net.{k}": v for k, v in net.state_dict().items()}
        tensors.update({f"best.{k}": v for k, v in self.best.items()})
        for index, values in optimizer.state_dict()["state"].items():
            tensors.update({f"adam.{index}.{k}": v for k, v in values.items()})
        about = {name: getattr(self, name) for name in self.NAMES}
        about["seconds"] = self.seconds + spent
        about["score"] = self.score if math.isfinite(self.score) else None
        scope.save_tensors("training", tensors, about)

    @classmethod
    def load(cls, scope: Scope, net, optimizer) -> _State | None:
        found = scope.load_tensors("training")
        if found is None:
            return None
        tensors, about = found
        groups: dict[str, dict] = {"net": {}, "best": {}, "adam": {}}
        for name, value in tensors.items():
            kind, rest = name.split(".", 1)
            groups[kind][rest] = value
        net.load_state_dict(groups["net"])
        moments: dict[int, dict] = {}
        for name, value in groups["adam"].items():
            index, key = name.split(".", 1)
            moments.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        score = about.pop("score")
        return cls(**about, score=-math.inf if score is None else score, best=groups["best"])
