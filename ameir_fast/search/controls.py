"""Controls: what a search has to beat before its gain means anything."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..space import Architecture
from ..space.architecture import interaction_key
from .behavior import race_of, train_supernet
from .context import Context, fresh_supernet
from .mlp import MlpStep
from .race import trained_finalist
from .seeds import generator, seeded_initialization
from .variants import CHILDREN, RANDOM, WITHOUT, complete, race_row


def control_rows(context: Context, wanted: list[str], blocks: tuple, products: tuple) -> dict[str, dict]:
    """Rows of the wanted controls of steps 2 and 3 for the found blocks and interactions."""
    makers = {WITHOUT: without_interactions, RANDOM: random_interactions, CHILDREN: random_children}
    return {name: makers[name](context, name, blocks, products) for name in wanted if name in makers}


def without_interactions(context: Context, name: str, blocks: tuple, products: tuple) -> dict:
    """AMEIR-B with step 2's result left out."""
    return complete(context, name, Architecture(blocks, (), context.fixed, "se"))


def random_interactions(context: Context, name: str, blocks: tuple, products: tuple) -> dict:
    """AMEIR-B with random interactions of the same orders."""
    g = generator(context.config.seed, *context.scope.names, name)
    return complete(context, name, Architecture(blocks, draw_like(products, context.space.schema.num_fields, g),
                                                context.fixed, "se"))


def draw_like(products: tuple, fields: int, g: torch.Generator) -> tuple[tuple[int, ...], ...]:
    """Distinct random interactions with the orders of ``products``."""
    drawn: set[tuple[int, ...]] = set()
    for order in map(len, products):
        size = len(drawn)
        while len(drawn) == size:
            drawn.add(tuple(sorted(torch.randperm(fields, generator=g)[:order].tolist())))
    return tuple(sorted(drawn, key=interaction_key))


def random_children(context: Context, name: str, blocks: tuple, products: tuple) -> dict:
    """Random children in both races, random interactions: the same procedure without any ranking."""
    config, space = context.config, context.space
    with seeded_initialization(config.seed, name):
        net = fresh_supernet(space, config).to(context.task.device)
    context = replace(context, net=net)
    train_supernet(context)  # step 1's is finished: this only reads its weights
    scope = context.scope.scope("retrain", name)
    g = generator(config.seed, *scope.names)
    paths = [context.zero_path()]
    while len(paths) < min(config.finalists, space.size(part="behavior")):
        path = Architecture(behavior=space.sample_behavior(g)).canonical().behavior
        if path not in paths:
            paths.append(path)
    found = race_of(context, scope.scope("behavior"), [context.behavior_child(p) for p in paths])[0]
    step = MlpStep(context, found.arch.behavior, draw_like(products, space.schema.num_fields, g), name)
    if config.mlp_inherit or config.inherit_retraining:  # otherwise nothing reads step 3's shared weights
        net.adopt(trained_finalist(context, scope.scope("behavior"), found))
        step.train_supernet()
    children = [step.arch(context.fixed)]
    fruitless = 0  # draws in a row that brought nothing new: fewer MLPs may be allowed than finalists wanted
    while len(children) < config.mlp_finalists and fruitless < 10_000:
        mlp = space.sample_mlp(g)
        fresh = step.allowed(mlp) and step.arch(mlp) not in children
        fruitless = 0 if fresh else fruitless + 1
        if fresh:
            children.append(step.arch(mlp))
    return race_row(context, scope.scope("mlp"), step.race_of(scope.scope("mlp"), children))
