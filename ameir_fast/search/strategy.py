"""How ranked children are chosen. A user's own search plugs in here (see README, "Your own strategy")."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


class Expanding(Protocol):
    """A strategy may have this method as well. It is asked in place of ``propose`` where a child is one choice for each
    place, independent of the others (step 1's blocks)."""

    def expand(self, choices: Sequence[Sequence], seen: Mapping[tuple, float], generator: torch.Generator,
               budget: int) -> list[tuple]:
        """Any number of children, of which those in ``seen`` are dropped; ``budget`` are ranked in all."""
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


class BeamStrategy(RandomStrategy):
    """Step 1's best beginnings, block by block; then the surroundings of the best children.

    A beginning is scored with zero blocks in place of the rest. ``width`` of them are kept a level, and continued by every
    block; None: as many as three quarters of the budget pay for. What is left goes to all children that differ from the
    best one in one block, then from the second, and so on. Children of one round mostly share their beginnings, which makes
    them cheap (``evaluate_population``). Elsewhere it draws at random.
    """

    def __init__(self, width: int | None = None):
        self.width = width

    def expand(self, choices, seen, generator, budget):
        zero = tuple(own[0] for own in choices)
        later = sum(len(own) for own in choices[1:])
        width = self.width or max(1, (3 * budget // 4 - len(choices[0])) // max(1, later))
        kept: list[tuple] = [()]
        for level, own in enumerate(choices):
            reached = [(*prefix, choice) for prefix in kept for choice in own]
            missing = [child for child in (prefix + zero[level + 1:] for prefix in reached) if child not in seen]
            if missing:
                return _shuffled(missing, generator)
            kept = sorted(reached, key=lambda prefix, level=level: -seen[prefix + zero[level + 1:]])[:width]
        for child in sorted(seen, key=lambda c: -seen[c]):
            near = [(*child[:i], choice, *child[i + 1:]) for i, own in enumerate(choices) for choice in own]
            missing = [other for other in near if other not in seen]
            if missing:
                return _shuffled(missing, generator)
        return []


def _shuffled(children: list, generator: torch.Generator) -> list:
    """So that a budget's end cuts off any of them."""
    return [children[i] for i in torch.randperm(len(children), generator=generator).tolist()]


STRATEGIES = {"random": RandomStrategy, "evolution": EvolutionStrategy, "beam": BeamStrategy}
