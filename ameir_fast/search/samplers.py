"""Samplers draw one choice per position for each training step of a supernet."""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm

import torch


class UniformSampler:
    """Every position's choice uniform and independent, in every draw."""

    def __init__(self, choices: Sequence[int]):
        self.choices = list(choices)

    def draw(self, generator: torch.Generator) -> tuple[int, ...]:
        return tuple(int(torch.randint(n, (), generator=generator)) for n in self.choices)


class FairSampler:
    """Rounds in which every choice of every position is drawn equally often.

    A round has lcm(choices) draws where that is at most ``longest`` (else the largest number of choices,
    with the choices of shorter positions in shuffled turns): each position walks through its own random
    order. After any whole round the counts of a position's choices are equal.
    """

    def __init__(self, choices: Sequence[int], longest: int = 10_000):
        self.choices = list(choices)
        common = lcm(*self.choices) if self.choices else 1
        self.round = common if common <= longest else max(self.choices)
        self._orders: list[list[int]] = []
        self._next = self.round

    def draw(self, generator: torch.Generator) -> tuple[int, ...]:
        if self._next == self.round:
            self._orders = [self._shuffled(n, generator) for n in self.choices]
            self._next = 0
        index = self._next
        self._next += 1
        return tuple(order[index] for order in self._orders)

    def _shuffled(self, choices: int, generator: torch.Generator) -> list[int]:
        order: list[int] = []
        while len(order) < self.round:
            order += torch.randperm(choices, generator=generator).tolist()
        return order[:self.round]


SAMPLERS = {"uniform": UniformSampler, "fair": FairSampler}


def make_draws(kind: str, choices: Sequence[int], draws: int, generator: torch.Generator) -> list[tuple[int, ...]]:
    """The first ``draws`` draws of a sampler: a training run's whole plan, a function of the generator's seed."""
    sampler = SAMPLERS[kind](choices)
    return [sampler.draw(generator) for _ in range(draws)]
