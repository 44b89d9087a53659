"""The MLPs of many children as a tree of shared pre-activations, in tables that kernels read.

A *node* is a pre-activation, a *branch* one of its activations, a *stop* a number of a branch's first units: with a stop
some children go on, to a node of the next layer or, at the last layer, to their logits. Nodes of a layer lie in memory
together, unit after unit; where those of all children together would be too many, they are made and used up *chunk* by
chunk. Made on the host, once for a list of children, and kept.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

RELU, SWISH, IDENTITY, DICE = range(4)  # places in reference.mlp_population.ACTIVATIONS
KEPT = 32  # trees


@dataclass
class Heads:
    """The last layer. ``nodes``: its first unit's row, its first segment and the one after its last, and how many units
    each activation has children for. ``segments``, of units from the end of the one before to the first number: places
    in ``outputs`` where begins what stops there with each activation, and where the last one ends. ``outputs``: rows
    of the logits."""

    nodes: Tensor     # [nodes, 7]
    segments: Tensor  # [segments, 6]
    outputs: Tensor   # [children]


@dataclass
class Chunk:
    """Nodes that are made together. ``branches``: activation, the row of the source's first unit, first stop and the
    one after the last, most outputs. ``stops``: units, the row of the destination's first unit, outputs."""

    branches: Tensor  # [branches, 5]
    stops: Tensor     # [stops, 3]
    outputs: int      # of the widest node
    rows: int         # of all nodes
    next: Layer


@dataclass
class Layer:
    """Nodes of a layer that lie in memory together: ``dice``, how many of the first rows are asked for their statistics;
    and what goes on from them."""

    dice: int
    chunks: Sequence[Chunk] = ()
    heads: Heads | None = None


def tree(children: Tensor, limits: tuple[int, ...], capacity: int, device: torch.device) -> Layer:
    """The layer of the first pre-activation alone. ``limits`` are units there are in each layer; nodes of a chunk have
    at most ``capacity`` rows together, or are one."""
    return _tree(children.to("cpu", torch.int64).numpy().tobytes(), limits, capacity, device)


@functools.lru_cache(KEPT)
def _tree(numbers: bytes, limits: tuple[int, ...], capacity: int, device: torch.device) -> Layer:
    table = np.frombuffer(numbers, np.int64).reshape(-1, 2 * len(limits)).tolist()
    for child, row in enumerate(table):
        for layer, limit in enumerate(limits):
            units, act = row[2 * layer:2 * layer + 2]
            if not 0 <= act <= DICE:
                raise ValueError(f"children: child {child} has activation {act} of 4 in layer {layer}")
            if not 0 < units <= limit:
                raise ValueError(f"children: child {child} has {units} units in layer {layer} of {limit}")
    return _Builder(table, len(limits), capacity, device).layer(0, [(0, list(range(len(table))))])


class _Builder:
    def __init__(self, table: list[list[int]], layers: int, capacity: int, device: torch.device):
        self.rows, self.last, self.capacity, self.device = table, layers - 1, capacity, device

    def layer(self, layer: int, nodes: list[tuple[int, list[int]]]) -> Layer:
        """``nodes``: the row of the first unit, and the children."""
        branches = [(act, row, stops) for row, members in nodes for act, stops in self.branches(layer, members)]
        dice = max((row + stops[-1][0] for act, row, stops in branches if act == DICE), default=0)
        if layer == self.last:
            return Layer(dice, heads=self.heads(nodes))
        return Layer(dice, [self.chunk(layer, part) for part in self.parts(layer, branches)])

    def branches(self, layer: int, members: list[int]) -> Iterator[tuple[int, list[tuple[int, list[int]]]]]:
        """Activation and stops (units and children) of each branch of a node."""
        act, units = lambda child: self.rows[child][2 * layer + 1], lambda child: self.rows[child][2 * layer]
        for one, same in itertools.groupby(sorted(members, key=lambda child: (act(child), units(child))), key=act):
            yield one, [(count, list(those)) for count, those in itertools.groupby(same, key=units)]

    def parts(self, layer: int, branches: list) -> Iterator[list]:
        """Stops as (branch's activation and row, units, children, the next node's units), a chunk's at a time."""
        part, size = [], 0
        for act, row, stops in branches:
            for units, members in stops:
                outputs = max(self.rows[child][2 * layer + 2] for child in members)
                if part and size + outputs > self.capacity:
                    yield part
                    part, size = [], 0
                part.append(((act, row), units, members, outputs))
                size += outputs
        yield part

    def chunk(self, layer: int, part: list) -> Chunk:
        branches, stops, nodes, at = [], [], [], 0
        for (act, row), own in itertools.groupby(part, key=lambda stop: stop[0]):
            first = len(stops)
            for _, units, members, outputs in own:
                stops.append((units, at, outputs))
                nodes.append((at, members))
                at += outputs
            branches.append((act, row, first, len(stops), max(stop[2] for stop in stops[first:])))
        return Chunk(self.tensor(branches), self.tensor(stops), max(stop[2] for stop in stops), at,
                     self.layer(layer + 1, nodes))

    def heads(self, nodes: list[tuple[int, list[int]]]) -> Heads:
        records, segments, outputs = [], [], []
        for row, members in nodes:
            found = {act: dict(stops) for act, stops in self.branches(self.last, members)}
            first = len(segments)
            for end in sorted({units for stops in found.values() for units in stops}):
                starts = [len(outputs)]
                for act in range(4):
                    outputs += found.get(act, {}).get(end, [])
                    starts.append(len(outputs))
                segments.append((end, *starts))
            records.append((row, first, len(segments), *(max(found.get(act, {0: None})) for act in range(4))))
        records.sort(key=lambda record: -sum(record[3:]))  # so that the longest do not come last
        return Heads(self.tensor(records), self.tensor(segments), self.tensor(outputs))

    def tensor(self, rows: list) -> Tensor:
        return torch.tensor(rows, dtype=torch.int32).to(self.device)
