"""Samplers draw one choice per position for each training step of a supernet."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class UniformSampler:
    """Every position's choice uniform and independent, in every draw."""

    def __init__(self, choices: Sequence[int]):
        self.choices = list(choices)

    def draw(self, generator: torch.Generator) -> tuple[int, ...]:
        return tuple(int(torch.randint(n, (), generator=generator)) for n in self.choices)


class FairSampler:
    """Every choice of every position drawn equally often.

    Each position walks through its n choices in a random order and starts over in a new one, independently
    of the other positions: after any multiple of n draws its counts are equal, so after a multiple of the
    least common multiple all positions' are.
    """

    def __init__(self, choices: Sequence[int]):
        self.choices = list(choices)
        self._orders: list[list[int]] = [[] for _ in self.choices]

    def draw(self, generator: torch.Generator) -> tuple[int, ...]:
        for order, n in zip(self._orders, self.choices, strict=True):
            if not order:
                order.extend(torch.randperm(n, generator=generator).tolist())
        return tuple(order.pop() for order in self._orders)


SAMPLERS = {"uniform": UniformSampler, "fair": FairSampler}


def make_draws(kind: str, choices: Sequence[int], draws: int, generator: torch.Generator) -> list[tuple[int, ...]]:
    """The first ``draws`` draws of a sampler: a training run's whole plan, a function of the generator's seed."""
    sampler = SAMPLERS[kind](choices)
    return [sampler.draw(generator) for _ in range(draws)]
