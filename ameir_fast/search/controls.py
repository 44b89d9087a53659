"""Controls: what a search has to beat before its gain means anything."""

from __future__ import annotations

import torch

from ..space import Architecture
from ..space.architecture import interaction_key
from .context import FIXED, Context, race, trained_finalist
from .mlp import MlpStep
from .seeds import generator
from .variants import CONTROLS, complete, test_row


def control_rows(context: Context, wanted: list[str], blocks: tuple, products: tuple) -> dict[str, dict]:
    """Rows of the wanted controls for the found blocks and interactions."""
    makers = dict(zip(CONTROLS, (without_interactions, random_interactions, inherited_din, random_children),
                      strict=True))
    return {name: makers[name](context, name, blocks, products) for name in wanted}


def without_interactions(context: Context, name: str, blocks: tuple, products: tuple) -> dict:
    """AMEIR-B with step 2's result left out."""
    return complete(context, name, Architecture(blocks, (), FIXED, "se"))


def random_interactions(context: Context, name: str, blocks: tuple, products: tuple) -> dict:
    """AMEIR-B with random interactions of the same orders."""
    g = generator(context.config.seed, *context.scope.names, name)
    return complete(context, name, Architecture(blocks, draw_like(products, context.space.schema.num_fields, g),
                                                FIXED, "se"))


def draw_like(products: tuple, fields: int, g: torch.Generator) -> tuple[tuple[int, ...], ...]:
    """Distinct random interactions with the orders of ``products``."""
    drawn: set[tuple[int, ...]] = set()
    for order in map(len, products):
        size = len(drawn)
        while len(drawn) == size:
            drawn.add(tuple(sorted(torch.randperm(fields, generator=g)[:order].tolist())))
    return tuple(sorted(drawn, key=interaction_key))


def inherited_din(context: Context, name: str, blocks: tuple, products: tuple) -> dict:
    """The all-zero path started from the supernet's weights: what inheritance alone brings."""
    return complete(context, name, context.behavior_child(context.zero_path()), inherit=True)


def random_children(context: Context, name: str, blocks: tuple, products: tuple) -> dict:
    """Random children in both races, random interactions: the same procedure without any ranking."""
    config, space = context.config, context.space
    scope = context.scope.scope("retrain", name)
    g = generator(config.seed, *scope.names)
    paths = [context.zero_path()]
    while len(paths) < min(config.finalists, space.size(part="behavior")):
        path = Architecture(behavior=space.sample_behavior(g)).canonical().behavior
        if path not in paths:
            paths.append(path)
    found = race(context, scope.scope("behavior"), [context.behavior_child(p) for p in paths], config.inherit)[0]
    step = MlpStep(context, found.arch.behavior, draw_like(products, space.schema.num_fields, g), name)
    children = [step.arch(FIXED)]
    while len(children) < config.finalists:
        mlp = space.sample_mlp(g)
        if step.allowed(mlp) and step.arch(mlp) not in children:
            children.append(step.arch(mlp))
    winner = race(context, scope.scope("mlp"), children, config.inherit)[0]

    def run() -> dict:
        model = trained_finalist(context, scope.scope("mlp"), winner, config.inherit)
        return {**test_row(context.task, model), "valid": winner.score, "seconds": winner.seconds}
    return scope.result("row", run)
