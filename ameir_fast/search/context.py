"""What the steps of one search share, and how children are scored and trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .. import ops
from ..errors import InputError
from ..group import ModelGroup
from ..model import Model
from ..population import evaluate_population
from ..schema import FeatureSchema
from ..space import Architecture, SearchSpace
from ..space.architecture import ZERO, Block, MlpLayer, fixed_mlp
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

    @property
    def ranks_by_crosses(self) -> bool:
        """Whether step 2's candidates are ranked by rows (crosses.py)."""
        chosen = self.config.interaction_ranking
        if chosen is not None:
            return chosen == "crosses"
        return isinstance(self.task.objective, CtrObjective) and self.config.interaction_warmup_epochs > 0

    def zero_path(self) -> tuple[Block, ...]:
        return (ZERO,) * self.space.num_blocks

    @property
    def fixed(self) -> tuple[MlpLayer, ...]:
        """The MLP by hand of step 1, and of step 2's result."""
        return fixed_mlp(*FIXED_WIDTHS, activation=self.config.mlp_activation)

    def behavior_child(self, behavior: tuple[Block, ...]) -> Architecture:
        """Step 1's child (AMEIR-A): the fixed MLP over [h_a, e_b]."""
        return Architecture(tuple(behavior), (), self.fixed, "none")

    # ---- scores with the supernet's weights ------------------------------------------------------

    def score_children(self, archs: Sequence[Architecture], limit: int | None) -> list[dict[str, float]]:
        """Validation metrics of children with the shared weights, on so many rows or all that decide."""
        return self.score_population(archs, limit)[0]

    def score_population(self, archs: Sequence[Architecture],
                         limit: int | None, on_child: Callable[[int], None] | None = None) -> tuple[list[dict[str, float]], float]:
        """``score_children``, and how many times the work was shared (``PopulationResult.shared_work``); ``on_child`` is told
        how many are done."""
        batches = self.task.validation() if limit is None else self.task.held_out("valid", limit)
        if isinstance(self.task.objective, CtrObjective):
            found = evaluate_population(self.net, archs, batches, on_child=on_child)
            return [{"auc": float(a), "log_loss": float(b)}
                    for a, b in zip(found.auc, found.log_loss, strict=True)], found.shared_work
        self.net.eval()
        scores = []
        for arch in archs:
            scores.append(self.task.objective.evaluate(lambda b, items, arch=arch: self.net(b, arch, items), batches))
            if on_child is not None:
                on_child(len(scores))
        return scores, 1.0

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
        """Most parameters outside the embedding that step 3's result may have."""
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
            # Inherited embeddings aren't small any more, so their products need no larger weights.
            scaled = config if not inherit else config.changed(product_scale=1.0)
            model = fresh_model(self.space.schema, arch, scaled).to(self.task.device)
            if inherit:
                model.inherit(self.net)
        return model


def require_backend(config: SearchConfig, device: str) -> None:
    """``InputError`` with the reason where the backend that was asked for cannot compute on the device."""
    try:
        for name in ops.OPS:
            # In whose place something else stands (mlp_children.py, interaction_candidates.py, population.py).
            if name not in ("mlp_population", "interaction_population", "sequence_activations"):
                ops.resolve(name, config.backend, torch.device(device))
    except RuntimeError as error:
        raise InputError(f"config: {error}") from None


def fresh_supernet(space: SearchSpace, config: SearchConfig) -> Supernet:
    """A supernet at its start; PyTorch's global generator decides."""
    net = Supernet(space, config.embedding_dim, config.backend)
    if config.item_scale:
        net.start_at_items(config.item_scale)
    return net


def fresh_model(schema: FeatureSchema, arch: Architecture, config: SearchConfig) -> Model:
    """A model at its start; PyTorch's global generator decides."""
    model = Model(schema, arch, config.embedding_dim, config.backend)
    if config.product_scale != 1:
        model.scale_products(config.product_scale)
    if config.item_scale:
        model.start_at_items(config.item_scale)
    return model


def outside_embedding(model: nn.Module) -> int:
    return model.parameter_counts()[1]


def derives(arch: Architecture) -> bool:
    """Whether the supernet has weights for all of ``arch``; fixed MLPs beside step 1's start fresh."""
    return not arch.has_fixed_mlp or reads_step1(arch)


def train_model(task: Task, model: Model | ModelGroup, scope: Scope, inherit: bool = False, epochs: float | None = None,
                seeds: Scope | None = None) -> Outcome:
    """Trains a model of its own, or a group: dropout, early stop by validation, best weights kept.

    One that starts from inherited weights has a schedule of its own, shorter and gentler; ``epochs`` sets
    another length, ``seeds`` another scope to draw batches and dropout from. A group is judged by the mean over its models; each
    validation has their scores as ``models``, and the last weights stay.
    """
    config = task.config
    model.dropout, model.block_dropout = config.dropout, config.block_dropout
    if epochs is None:
        epochs = config.inherited_epochs if inherit else config.epochs
    is_group = isinstance(model, ModelGroup)

    def validate() -> dict:
        call = lambda b, items: model(b, items=items)
        if not is_group:
            return task.objective.evaluate(call, task.validation())
        found = task.objective.evaluate_group(call, task.validation())
        primary = task.objective.primary
        return {primary: sum(found) / len(found), "models": found}

    return fit(task, model, scope, total=max(1, round(epochs * task.steps_per_epoch)), seeds=seeds,
               learning_rate=config.inherited_learning_rate if inherit else config.learning_rate,
               forward=lambda step, batch, items: model(batch, items=items), validate=validate, keep_best=not is_group)
