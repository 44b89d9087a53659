"""SearchSpace: which architectures exist for a schema; counting, drawing, enumeration, validation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import comb

import torch

from ..errors import InputError
from ..schema import FeatureSchema
from .architecture import Architecture, Block, MlpLayer
from .choices import ACTIVATIONS, LAYERS, MLP_ACTIVATIONS, NORMS, RATIOS


@dataclass(frozen=True)
class SearchSpace:
    """The three subspaces for ``schema``: ``blocks`` L_a, ``mlp_layers`` L_c, ``interactions`` M.

    ``embedding_dim`` K is needed only to know which layers the behaviour width D = N_a·K allows;
    ``Supernet`` sets it. Without it every layer is offered.
    """

    schema: FeatureSchema
    blocks: int = 3
    mlp_layers: int = 2
    interactions: int = 5
    embedding_dim: int | None = None

    def __post_init__(self):
        for name, least in (("blocks", 0), ("mlp_layers", 1), ("interactions", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}, less than {least}")
        if self.schema.behavior and self.blocks == 0:
            raise InputError("blocks is 0, though the schema has behavior fields")

    # ---- what there is -----------------------------------------------------------------------

    @property
    def num_blocks(self) -> int:
        """L_a, or 0 without behaviour fields."""
        return self.blocks if self.schema.behavior else 0

    @property
    def behavior_width(self) -> int | None:
        """D = N_a·K where K is known."""
        return None if self.embedding_dim is None else self.schema.num_behavior * self.embedding_dim

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers a block may have here."""
        return tuple(name for name in LAYERS if self._misfit(name) is None)

    def _misfit(self, layer: str) -> str | None:
        need = LAYERS[layer]
        if need.needs_target and not self.schema.target:
            return "needs a target, and the schema has none"
        if self.behavior_width is not None and self.behavior_width % need.divisor:
            return f"needs a behaviour width divisible by {need.divisor}, and D is {self.behavior_width}"
        return None

    @cached_property
    def behavior_choices(self) -> tuple[Block, ...]:
        """Every raw choice of a block, in the order norm, layer, activation."""
        return tuple(Block(n, layer, a) for n in NORMS for layer in self.layers for a in ACTIVATIONS)

    def k0(self, interactions: int | None = None) -> int:
        """K0, the width of h_0, with the given number of interactions (default M)."""
        if self.embedding_dim is None:
            raise ValueError("K0 needs embedding_dim")
        m = self.max_interactions if interactions is None else interactions
        return history_width(self.schema, self.embedding_dim) + (self.schema.num_fields + m) * self.embedding_dim

    @property
    def num_interactions(self) -> int:
        """How many interactions of order 2 to N there are."""
        n = self.schema.num_fields
        return 2 ** n - n - 1 if n else 0

    @property
    def max_interactions(self) -> int:
        """M, or fewer where fewer exist."""
        return min(self.interactions, self.num_interactions)

    def size(self, raw: bool = False, part: str | None = None) -> int:
        """Number of architectures (canonical forms; ``raw`` counts every raw choice of a block).

        ``part`` is ``"behavior"``, ``"interactions"`` (sets of at most M) or ``"mlp"``; the default is
        their product.
        """
        kinds = len(self.layers)
        each = len(NORMS) * len(ACTIVATIONS)
        block = kinds * each if raw else (kinds - 1) * each + 1
        parts = {
            "behavior": block ** self.num_blocks,
            "interactions": sum(comb(self.num_interactions, m) for m in range(self.max_interactions + 1)),
            "mlp": comb(len(RATIOS) + self.mlp_layers - 1, self.mlp_layers) * len(MLP_ACTIVATIONS) ** self.mlp_layers,
        }
        if part is not None:
            return parts[part]
        return parts["behavior"] * parts["interactions"] * parts["mlp"]

    # ---- enumeration and drawing -------------------------------------------------------------

    def enumerate_mlp(self) -> Iterator[tuple[MlpLayer, ...]]:
        """All MLPs: ratios ascending lexicographically (non-increasing over layers), then activations."""
        for ratios in itertools.product(RATIOS, repeat=self.mlp_layers):
            if all(a >= b for a, b in itertools.pairwise(ratios)):
                for acts in itertools.product(MLP_ACTIVATIONS, repeat=self.mlp_layers):
                    yield tuple(MlpLayer(r, a) for r, a in zip(ratios, acts, strict=True))

    def enumerate_behavior(self) -> Iterator[tuple[Block, ...]]:
        """All canonical behaviour paths."""
        return itertools.product(self.distinct_blocks(), repeat=self.num_blocks)

    def distinct_blocks(self) -> list[Block]:
        """The canonical blocks, in one place of a path."""
        return sorted({Architecture(behavior=(b,)).canonical().behavior[0] for b in self.behavior_choices},
                      key=self.behavior_choices_order)

    def behavior_choices_order(self, block: Block) -> tuple[int, int, int]:
        return NORMS.index(block.norm), tuple(LAYERS).index(block.layer), ACTIVATIONS.index(block.activation)

    def sample_behavior(self, generator: torch.Generator) -> tuple[Block, ...]:
        """L_a blocks; norm, layer and activation uniform and independent."""
        draw = lambda n: int(torch.randint(n, (), generator=generator))
        return tuple(Block(NORMS[draw(len(NORMS))], self.layers[draw(len(self.layers))],
                           ACTIVATIONS[draw(len(ACTIVATIONS))]) for _ in range(self.num_blocks))

    def sample_interactions(self, generator: torch.Generator) -> tuple[tuple[int, ...], ...]:
        """M distinct interactions, uniform over all of order 2 to N."""
        found: set[tuple[int, ...]] = set()
        while len(found) < self.max_interactions:
            member = torch.randint(2, (self.schema.num_fields,), generator=generator)
            fields = tuple(member.nonzero()[:, 0].tolist())
            if len(fields) >= 2:
                found.add(fields)
        return tuple(found)

    def sample_mlp(self, generator: torch.Generator) -> tuple[MlpLayer, ...]:
        """L_c layers, uniform over the non-increasing ratio sequences and over activations."""
        # Stars and bars: a sorted subset of 10+L-1 slots minus its positions is a uniform multiset.
        slots = torch.randperm(len(RATIOS) + self.mlp_layers - 1, generator=generator)[:self.mlp_layers]
        picks = [s - i for i, s in enumerate(sorted(slots.tolist()))]
        acts = torch.randint(len(MLP_ACTIVATIONS), (self.mlp_layers,), generator=generator).tolist()
        return tuple(MlpLayer(RATIOS[p], MLP_ACTIVATIONS[a])
                     for p, a in zip(reversed(picks), acts, strict=True))

    def sample(self, generator: torch.Generator) -> Architecture:
        """A uniformly drawn architecture in canonical form."""
        return Architecture(self.sample_behavior(generator), self.sample_interactions(generator),
                            self.sample_mlp(generator)).canonical()

    # ---- validation --------------------------------------------------------------------------

    def contains(self, arch: Architecture) -> bool:
        try:
            self.validate(arch)
        except InputError:
            return False
        return True

    def validate(self, arch: Architecture) -> Architecture:
        """``arch`` itself; ``InputError`` naming the part that does not belong to this space."""
        if len(arch.behavior) != self.num_blocks:
            raise InputError(f"architecture: {len(arch.behavior)} behavior blocks, this space has {self.num_blocks}")
        if len(arch.mlp) != self.mlp_layers and not arch.has_fixed_mlp:  # whose widths are of no space
            raise InputError(f"architecture: {len(arch.mlp)} mlp layers, this space has {self.mlp_layers}")
        if len(set(arch.interactions)) > self.interactions:
            raise InputError(f"architecture: {len(arch.interactions)} interactions, "
                             f"this space has at most {self.interactions}")
        return validate_for_schema(arch, self.schema, self.behavior_width)


def validate_for_schema(arch: Architecture, schema: FeatureSchema, behavior_width: int | None) -> Architecture:
    """Checks everything that does not depend on the sizes of a search space (a ``Model`` has none)."""
    space = SearchSpace(schema)
    if arch.behavior and not schema.behavior:
        raise InputError(f"architecture: {len(arch.behavior)} behavior blocks, the schema has no behavior fields")
    for index, block in enumerate(arch.behavior):
        reason = space._misfit(block.layer)
        if reason is None and behavior_width is not None and behavior_width % LAYERS[block.layer].divisor:
            reason = (f"needs a behaviour width divisible by {LAYERS[block.layer].divisor}, "
                      f"and D is {behavior_width}")
        if reason:
            raise InputError(f"architecture: behavior block {index}: {block.layer} {reason}")
    for index, fields in enumerate(arch.interactions):
        for f in fields:
            if not 0 <= f < schema.num_fields:
                raise InputError(f"architecture: interaction {index}: field index {f} is outside "
                                 f"0..{schema.num_fields - 1} (the schema has {schema.num_fields} fields)")
        if len(set(fields)) != len(fields):
            raise InputError(f"architecture: interaction {index} repeats a field: {list(fields)}")
        if len(fields) < 2:
            raise InputError(f"architecture: interaction {index} has order {len(fields)}, not 2 or more")
    if not arch.mlp:
        raise InputError("architecture: mlp has no layer")
    for index, (a, b) in enumerate(itertools.pairwise(arch.mlp)):
        if a.ratio is not None and b.ratio is not None and b.ratio > a.ratio:
            raise InputError(f"architecture: mlp layer {index + 1} has ratio {b.ratio}, "
                             f"wider than layer {index}'s {a.ratio}")
    return arch


def history_width(schema: FeatureSchema, embedding_dim: int) -> int:
    """Width of h_a: [pool, last, attention] with a target, [pool, last] without, 0 without behaviour."""
    parts = 0 if not schema.behavior else 3 if schema.target else 2
    return parts * schema.num_behavior * embedding_dim


def newest_item(schema: FeatureSchema, embedding_dim: int) -> int | None:
    """Where the newest item's embedding starts in h_a, if the history names items to retrieve."""
    for place, field in enumerate(schema.behavior):
        if schema.task == "retrieval" and field.vocabulary == schema.item_vocabulary:
            return (schema.num_behavior + place) * embedding_dim
    return None
