"""Step 1: behaviour modelling (paper section 2.3)."""

from __future__ import annotations

import itertools

import torch

from ..batch import Batch
from ..paths import forward_children
from ..space import ACTIVATIONS, NORMS, Architecture, Block
from ..space.architecture import ZERO
from ..supernet import Supernet
from .context import Context
from .proposals import rank_children
from .race import Standing, race, spread
from .samplers import make_draws
from .seeds import generator
from .training import fit

MONITORED = 8


def train_supernet(context: Context) -> dict:
    """Warm-up on the all-zero path, then one sampled path a step, with the fixed MLP over [h_a, e_b]."""
    config, space = context.config, context.space
    scope = context.scope.scope("behavior", "train")
    warmup = context.epochs(config.warmup_epochs) if config.warmup_epochs else 0
    total = warmup + context.epochs(config.behavior_epochs)
    together = config.paths_per_step
    draws = make_draws(config.sampler, [len(NORMS), len(space.layers), len(ACTIVATIONS)] * space.num_blocks,
                       (total - warmup) * together, generator(config.seed, *scope.names, "draws"))
    plain = context.behavior_child(context.zero_path())

    def forward(step: int, batch: Batch, items):
        if step < warmup:
            return context.net(batch, plain, items)
        chosen = draws[(step - warmup) * together:(step - warmup + 1) * together]
        archs = [context.behavior_child(_blocks(space.layers, d)) for d in chosen]
        return over(context.net, archs, batch, items)

    over = forward_children if config.path_rows == "all" else over_parts
    watch = generator(config.seed, *scope.names, "monitor")
    children = [context.behavior_child(space.sample_behavior(watch)) for _ in range(MONITORED)]
    context.net.dropout, context.net.block_dropout = config.dropout, config.block_dropout
    outcome = fit(context.task, context.net, scope, total=total, learning_rate=config.learning_rate,
                  forward=forward, validate=context.monitor(children))
    return {"train_steps": outcome.steps, "seconds": outcome.seconds, "device_seconds": outcome.device_seconds}


def over_parts(net: Supernet, archs: list[Architecture], batch: Batch, items: torch.Tensor | None) -> torch.Tensor:
    """Scores of a batch whose equal parts are computed by different children: several updates of the shared
    weights' parts for the price of one step's rows."""
    if len(archs) == 1:
        return net(batch, archs[0], items)
    edges = [round(i * len(batch) / len(archs)) for i in range(len(archs) + 1)]
    sizes = [b - a for a, b in itertools.pairwise(edges)]
    pieces = [None] * len(archs) if items is None else items.split(sizes)
    return torch.cat([net(part, arch, piece)
                      for part, arch, piece in zip(batch.split(sizes), archs, pieces, strict=True) if len(part)])


def _blocks(layers: tuple[str, ...], draw: tuple[int, ...]) -> tuple[Block, ...]:
    return tuple(Block(NORMS[n], layers[la], ACTIVATIONS[a])
                 for n, la, a in zip(draw[::3], draw[1::3], draw[2::3], strict=True))


def rank(context: Context) -> list[dict]:
    """Children of the strategy by validation score, best first; the top k re-evaluated on all of validation."""
    space = context.space

    def mutate(child: tuple[Block, ...], g: torch.Generator) -> tuple[Block, ...]:
        position = int(torch.randint(len(child), (), generator=g))
        return child[:position] + (space.sample_behavior(g)[position],) + child[position + 1:]

    return rank_children(
        context, context.scope.scope("behavior", "rank"), count=context.config.behavior_children,
        always=[context.zero_path()], sample=lambda g: _canonical(space.sample_behavior(g)),
        mutate=lambda child, g: _canonical(mutate(child, g)), to_arch=context.behavior_child,
        to_json=lambda child: context.behavior_child(child).to_dict()["behavior"],
        choices=[[ZERO, *(b for b in space.distinct_blocks() if b != ZERO)]] * space.num_blocks)


def _canonical(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    return Architecture(behavior=blocks).canonical().behavior


def finalists(context: Context, ranking: list[dict]) -> list[Architecture]:
    """Spread over the ranking, the all-zero path always among them. A third comes from its top at most: on small data
    that is no better than the rest, or worse (bench/results/movielens-100k.md)."""
    config = context.config
    archs = [context.behavior_child(Architecture.from_dict(
        {"version": 1, "behavior": r["behavior"], "interactions": [], "mlp": []}).behavior)
        for r in spread(ranking, min(config.top_k, config.finalists // 3), config.finalists)]
    plain = context.behavior_child(context.zero_path())
    if plain not in archs:
        archs[-1] = plain
    return archs


def hold_race(context: Context, ranking: list[dict]) -> list[Standing]:
    return race_of(context, context.scope.scope("behavior", "race"), finalists(context, ranking))


def race_of(context: Context, scope, archs: list[Architecture]) -> list[Standing]:
    """Step 1's race of any finalists."""
    sure = context.behavior_child(context.zero_path()) if context.config.plain_trains_fully else None
    return race(context, scope, archs, context.config.race_epochs, context.config.inherit,
                in_one_pass=context.config.race_together, sure=sure)
