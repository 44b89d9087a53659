"""How ranked children are chosen. A user's own search plugs in here (see README, "Your own strategy")."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import torch

Child = TypeVar("Child")


class Strategy(Protocol):
    """Proposes children to evaluate with the supernet's weights, round after round.

    A child is hashable: a tuple of ``Block`` in step 1, a tuple of ``MlpLayer`` in step 3. The driver calls
    ``propose`` until it has the number of distinct children it may rank. A strategy keeps no state of its
    own between calls: everything it knows is ``seen``, so that a resumed run proposes the same children.
    """

    def propose(self, sample: Callable[[torch.Generator], Child], mutate: Callable[[Child, torch.Generator], Child],
                seen: Mapping[Child, float], generator: torch.Generator, count: int) -> list[Child]:
        """Up to ``count`` children; those in ``seen`` (child → validation score, higher is better) are dropped.

        ``sample`` draws a child uniformly; ``mutate`` changes one position of a child.
        """
        ...


class RandomStrategy:
    """The paper's one-shot random search: uniformly drawn children."""

    def propose(self, sample, mutate, seen, generator, count):
        return [sample(generator) for _ in range(count)]


class EvolutionStrategy:
    """Tournament evolution: after a random first generation, mutations of the best of ``tournament`` drawn children."""

    def __init__(self, population: int = 64, tournament: int = 8):
        self.population, self.tournament = population, tournament

    def propose(self, sample, mutate, seen, generator, count):
        if len(seen) < self.population:
            return [sample(generator) for _ in range(count)]
        known = list(seen)
        children = []
        for _ in range(count):
            picks = torch.randint(len(known), (self.tournament,), generator=generator).tolist()
            children.append(mutate(max((known[i] for i in picks), key=seen.__getitem__), generator))
        return children


STRATEGIES = {"random": RandomStrategy, "evolution": EvolutionStrategy}
