"""Step 3: the aggregation MLP (paper section 2.3)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..model import Model
from ..space import MLP_ACTIVATIONS, Architecture, MlpLayer
from ..space.choices import RATIOS
from .context import Context, outside_embedding
from .proposals import rank_children
from .race import Standing, race, spread
from .seeds import generator
from .training import fit

MONITORED = 8
#: Spaces of so many children are ranked as a whole: those of three layers where children are computed together.
TOGETHER, ALONE = 15_000, 2000


@contextmanager
def frozen(net: torch.nn.Module, prefixes: tuple[str, ...]) -> Iterator[None]:
    """Within the block, the parameters under these names are not trained."""
    held = [p for name, p in net.named_parameters() if name.startswith(prefixes)]
    for p in held:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in held:
            p.requires_grad_(True)


class MlpStep:
    """Step 3 for the found blocks and interactions."""

    def __init__(self, context: Context, behavior: tuple, interactions: tuple, name: str = "mlp"):
        self.context, self.behavior, self.interactions = context, behavior, interactions
        self.scope = context.scope.scope(name)

    def arch(self, mlp: tuple[MlpLayer, ...]) -> Architecture:
        """The complete architecture with this MLP and the SE shortcut."""
        return Architecture(self.behavior, self.interactions, tuple(mlp), "se").canonical()

    def train_supernet(self) -> dict:
        """One uniformly drawn MLP a step, on slices of the maximal matrices.

        Embedding and behaviour network are step 1's and stay as they are: what is searched is the MLP, and more
        epochs would only wear them out. The finalists' own trainings move everything.
        """
        context, config = self.context, self.context.config
        scope = self.scope.scope("train")
        total = context.epochs(config.mlp_epochs)
        draw = generator(config.seed, *scope.names, "draws")
        children = [self.arch(context.space.sample_mlp(draw)) for _ in range(total)]
        watch = generator(config.seed, *scope.names, "monitor")
        watched = [self.arch(context.space.sample_mlp(watch)) for _ in range(MONITORED)]
        context.net.dropout, context.net.block_dropout = config.dropout, config.block_dropout
        with frozen(context.net, ("embedding.", "behavior.", "pool.")):
            outcome = fit(context.task, context.net, scope, total=total, learning_rate=config.learning_rate,
                          forward=lambda step, batch, items: context.net(batch, children[step], items),
                          validate=context.monitor(watched))
        return {"train_steps": outcome.steps, "seconds": outcome.seconds,
                "device_seconds": outcome.device_seconds}

    def allowed(self, mlp: tuple[MlpLayer, ...]) -> bool:
        """Whether the complete model stays within ``max_parameters``."""
        return self._base_parameters() + self._mlp_parameters(mlp) <= self.context.max_parameters()

    def _base_parameters(self) -> int:
        if not hasattr(self, "_base"):
            one = (MlpLayer(RATIOS[0], "relu"),) * self.context.space.mlp_layers
            model = Model(self.context.space.schema, self.arch(one), self.context.config.embedding_dim)
            self._base = outside_embedding(model) - self._mlp_parameters(one)
        return self._base

    def _mlp_parameters(self, mlp: tuple[MlpLayer, ...]) -> int:
        """Weights, biases, Dice's alphas and the head's part."""
        k0 = self.context.space.k0(len(self.interactions))
        heads = 1 if self.context.space.schema.task == "ctr" else self.context.config.embedding_dim
        total, inputs = 0, k0
        for layer in mlp:
            units = layer.units(k0)
            total += units * (inputs + 1 + (layer.activation == "dice"))
            inputs = units
        return total + heads * inputs

    def _most_children(self) -> int:
        """How many children are ranked at most."""
        if self.context.config.mlp_children is not None:
            return self.context.config.mlp_children
        whole = self.context.space.size(part="mlp")
        return whole if whole <= (TOGETHER if self.context.space.schema.task == "ctr" else ALONE) else ALONE

    def rank(self) -> list[dict]:
        """All allowed children where they are few enough, else the strategy's proposals; best first."""
        context, space = self.context, self.context.space
        most = self._most_children()
        children = [m for m in space.enumerate_mlp() if self.allowed(m)] if space.size(part="mlp") <= most else []

        def mutate(child, g: torch.Generator):
            position = int(torch.randint(len(child), (), generator=g))
            ratio = RATIOS[int(torch.randint(len(RATIOS), (), generator=g))]
            act = MLP_ACTIVATIONS[int(torch.randint(len(MLP_ACTIVATIONS), (), generator=g))]
            changed = [*child[:position], MlpLayer(ratio, act), *child[position + 1:]]
            ratios = sorted((m.ratio for m in changed), reverse=True)
            return tuple(MlpLayer(r, m.activation) for r, m in zip(ratios, changed, strict=True))

        return rank_children(context, self.scope.scope("rank"), count=len(children) or most, always=children,
                             sample=space.sample_mlp, mutate=mutate, to_arch=self.arch,
                             to_json=lambda mlp: self.arch(mlp).to_dict()["mlp"], allowed=self.allowed)

    def finalists(self, ranking: list[dict]) -> list[Architecture]:
        """Spread over the ranking, the fixed MLP always among them."""
        config = self.context.config
        others = config.mlp_finalists - 1
        picks = spread(ranking, min(config.top_k, others), others)
        found = [Architecture.from_dict({**self.arch(self.context.fixed).to_dict(), "mlp": r["mlp"]}) for r in picks]
        return [*found, self.arch(self.context.fixed)]

    def hold_race(self, ranking: list[dict]) -> list[Standing]:
        return self.race_of(self.scope.scope("race"), self.finalists(ranking))

    def race_of(self, scope, archs: list[Architecture]) -> list[Standing]:
        """Step 3's race of any finalists."""
        config = self.context.config
        return race(self.context, scope, archs, config.mlp_race_epochs, config.mlp_inherit,
                    self.context.max_parameters(), config.mlp_race_together)
