"""Supernet: one set of weights shared by every architecture of the space (paper section 2.3)."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import forward
from .batch import Batch
from .errors import InputError
from .model import Model
from .modules import (
    LocalActivation,
    MlpUnit,
    SqueezeExcite,
    attribute_tree,
    layer_tensors,
    make_embedding,
    make_layer,
    make_norm,
    start_at_items,
)
from .reference import field_embeddings, products, relu
from .space import Architecture, MlpLayer, SearchSpace
from .space.architecture import Block, fixed_mlp
from .space.choices import FIXED_ACTIVATIONS
from .space.search_space import history_width, newest_item

FIXED_WIDTHS = (200, 80)  # the paper's pre-defined MLP of steps 1 and 2
FIXED_MLPS = tuple(fixed_mlp(*FIXED_WIDTHS, activation=a) for a in FIXED_ACTIVATIONS)


class Supernet(nn.Module):
    """All weights of ``space`` for embedding width K.

    ``net(batch, arch)`` is stateless: it computes ``arch`` from slices of the shared weights, read in place.
    Without ``arch`` the active one is used (``set_active_subnet``). MLP layers given as ratios read
    ``mlp.*``; the fixed MLP [200, 80] without interactions and shortcut reads ``step1.*``; other fixed
    widths raise ``InputError``. Dice uses the statistics of the batch at hand.
    """

    def __init__(self, space: SearchSpace, embedding_dim: int, backend: str | None = None,
                 dtype: torch.dtype = torch.float32):
        super().__init__()
        self.space = space = replace(space, embedding_dim=embedding_dim)
        self.schema = schema = space.schema
        self.embedding_dim, self.backend = embedding_dim, backend
        self.dropout = self.block_dropout = 0.0
        self.generator: torch.Generator | None = None
        self._active: Architecture | None = None

        width, k = space.behavior_width, embedding_dim
        ctr = schema.task == "ctr"
        self.embedding = make_embedding(schema.num_embeddings, k, dtype)
        self.behavior = nn.ModuleDict()
        for index in range(space.num_blocks):
            layers = {name: make_layer(name, width, dtype) for name in space.layers}
            self.behavior[str(index)] = nn.ModuleDict(
                {"norm": make_norm(width, dtype), **{n: m for n, m in layers.items() if m is not None}})
        if schema.target:
            self.pool = LocalActivation(width, dtype)
        fields, most = schema.num_fields, space.max_interactions
        k0 = space.k0()
        self.mlp = nn.ModuleDict({str(i): MlpUnit(k0, k0, True, dtype) for i in range(space.mlp_layers)})
        if fields + most:
            self.se = SqueezeExcite(fields + most, k, dtype)
        self.head = nn.Linear(k0 + k, 1 if ctr else k, bias=ctr, dtype=dtype)

        first, second = FIXED_WIDTHS
        self.step1 = attribute_tree(
            mlp=nn.ModuleDict({"0": nn.Linear(history_width(schema, k) + fields * k, first, dtype=dtype),
                               "1": nn.Linear(first, second, dtype=dtype)}),
            head=nn.Linear(second, 1 if ctr else k, bias=ctr, dtype=dtype))
        if fields:
            bias = nn.Module()
            bias.bias = nn.Parameter(torch.zeros(first, dtype=dtype))
            self.step2 = attribute_tree(
                fields=nn.Linear(fields * k, first, bias=False, dtype=dtype),
                interactions=nn.ModuleDict(),
                mlp=nn.ModuleDict({"0": bias, "1": nn.Linear(first, second, dtype=dtype)}),
                head=nn.Linear(second, 1 if ctr else k, bias=ctr, dtype=dtype))

    def start_at_items(self, scale: float) -> None:
        """``Model.start_at_items`` for the shared weights of step 1 and of the MLPs given as ratios; those of step 2 are
        left as they are."""
        start = newest_item(self.schema, self.embedding_dim)
        if start is not None:
            start_at_items(list(self.mlp.values()), self.head, start, scale)
            start_at_items(list(self.step1.mlp.values()), self.step1.head, start, scale)

    # ---- computing a child ---------------------------------------------------------------------

    def forward(self, batch: Batch, arch: Architecture | None = None, items: forward.Items = None) -> Tensor:
        if arch is None:
            arch = self.get_active_net_config()
        arch = self.check(arch)
        return forward.run(self.weights(arch), self.schema, arch, batch, items)

    def check(self, arch: Architecture) -> Architecture:
        """Canonical form of an architecture that this supernet can compute; ``InputError`` otherwise."""
        arch = self.space.validate(arch).canonical()
        if arch.has_fixed_mlp and not reads_step1(arch):
            raise InputError("architecture: the supernet has weights for MLP ratios, and for widths "
                             "[200, 80] with relu or identity, no interactions and shortcut none; other widths exist only "
                             "as a Model")
        return arch

    def weights(self, arch: Architecture) -> forward.Weights:
        """The tensors that ``arch`` reads."""
        return Step1Weights(self) if reads_step1(arch) else SupernetWeights(self)

    # ---- once-for-all's verbs --------------------------------------------------------------------

    def sample(self, generator: torch.Generator) -> Architecture:
        """A uniformly drawn architecture, canonical; changes nothing."""
        return self.space.sample(generator)

    def sample_active_subnet(self, generator: torch.Generator) -> Architecture:
        arch = self.sample(generator)
        self.set_active_subnet(arch)
        return arch

    def set_active_subnet(self, arch: Architecture) -> None:
        self._active = self.check(arch)

    def get_active_net_config(self) -> Architecture:
        if self._active is None:
            raise InputError("no active subnet: give an architecture or call set_active_subnet first")
        return self._active

    def get_active_subnet(self, preserve_weight: bool = True) -> Model:
        """The active architecture as a standalone ``Model``: with copied weights, or freshly initialised."""
        arch = self.get_active_net_config()
        if preserve_weight:
            return self.derive(arch)
        own = self.embedding.weight
        return Model(self.schema, arch, self.embedding_dim, self.backend, own.dtype).to(own.device)

    def set_max_net(self) -> None:
        """The widest child: full MLP ratios, M interactions of the lowest orders, the largest layers."""
        space = self.space
        cost = {name: sum(t.numel() for t in self._layer(0, name)) for name in space.layers} if space.num_blocks else {}
        largest = max(cost, key=cost.get) if cost else None
        pairs, order = [], 2
        while len(pairs) < space.max_interactions:
            pairs += itertools.combinations(range(self.schema.num_fields), order)
            order += 1
        self.set_active_subnet(Architecture(
            tuple(Block("layer_norm", largest, "relu") for _ in range(space.num_blocks)),
            tuple(pairs[:space.max_interactions]),
            tuple(MlpLayer(1.0, "relu") for _ in range(space.mlp_layers))))

    def _layer(self, block: int, name: str) -> list[Tensor]:
        parts = self.behavior[str(block)]
        return layer_tensors(parts[name] if name in parts else None)

    @torch.no_grad()
    def derive(self, arch: Architecture) -> Model:
        """``arch`` as a ``Model`` that starts from this supernet's weights, every tensor copied.

        Dice's running statistics are 0 and 1 until ``Model.recompute_dice``.
        """
        arch = self.check(arch)
        own = self.embedding.weight
        model = Model(self.schema, arch, self.embedding_dim, self.backend, own.dtype).to(own.device)
        model.inherit(self)
        source = self.weights(arch)
        inputs = model.mlp["0"].weight.shape[1]
        for index in range(len(arch.mlp)):
            unit = model.mlp[str(index)]
            weight, bias = source.mlp(index, unit.weight.shape[0], inputs)
            unit.weight.copy_(weight)
            unit.bias.copy_(bias)
            if hasattr(unit, "dice"):
                unit.dice.alpha.copy_(source.dice(index, unit.weight.shape[0]))
            inputs = unit.weight.shape[0]
        has_se = hasattr(model, "se")
        if has_se:
            count = self.schema.num_fields + len(arch.interactions)
            for mine, theirs in zip((model.se.project, model.se.squeeze, model.se.excite),
                                    source.squeeze_excite(count), strict=True):
                mine.weight.copy_(theirs)
        weight, bias = source.head(inputs, has_se)
        model.head.weight.copy_(weight)
        if bias is not None:
            model.head.bias.copy_(bias)
        return model

    @torch.no_grad()
    def adopt(self, model: Model) -> None:
        """Takes over a trained child's embedding and behaviour network, so that later steps build on them."""
        own, theirs = self.state_dict(), model.state_dict()
        for name, value in theirs.items():
            if name.startswith(("embedding.", "behavior.", "pool.")):
                own[name].copy_(value)

    # ---- step 2: one interaction at a time over a shared base -------------------------------------

    def add_interactions(self, candidates, generator: torch.Generator | None = None) -> None:
        """Gives every candidate (field tuples, order 1 included) a projection W_p; known ones keep theirs.

        New ones start from U(−1/√K, 1/√K), PyTorch's own for a linear layer of K inputs.
        """
        bound = self.embedding_dim ** -0.5
        for fields in candidates:
            key = interaction_name(fields)
            if key not in self.step2.interactions:
                layer = nn.Linear(self.embedding_dim, FIXED_WIDTHS[0], bias=False)
                if generator is not None:
                    with torch.no_grad():
                        layer.weight.uniform_(-bound, bound, generator=generator)
                self.step2.interactions[key] = layer.to(self.embedding.weight)

    def keep_interactions(self, candidates) -> None:
        """Forgets the projections of all other candidates."""
        kept = {interaction_name(fields) for fields in candidates}
        for key in list(self.step2.interactions):
            if key not in kept:
                del self.step2.interactions[key]

    def interaction_logit(self, batch: Batch, interaction: tuple[int, ...] | list[tuple[int, ...]] | None,
                          items: forward.Items = None) -> Tensor:
        """Step 2's forward for one candidate (or none): ``ReLU(Σ W_i e_i + W_p p + b)``, then the fixed MLP.

        A list of candidates shares the batch: each gets its own equal part of the rows, in order.
        """
        e, base = self.interaction_base(batch)
        if isinstance(interaction, tuple):
            interaction = [interaction]
        if interaction:
            sizes = [len(part) for part in torch.arange(len(batch)).tensor_split(len(interaction))]
            parts = []
            for fields, rows in zip(interaction, e.split(sizes), strict=True):
                p, = products(rows, [list(fields)])
                parts.append(F.linear(p, self.step2.interactions[interaction_name(fields)].weight))
            base = base + torch.cat(parts)
        weights = Step2Weights(self)
        h = forward.drop(weights, relu(base))
        h = forward.drop(weights, relu(self.step2.mlp["1"](h)))
        return forward.score(weights, h, None, self.schema, batch, items)

    def interaction_base(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """e_b [B, N, K] and ``Σ W_i e_i + b`` [B, 200], shared by all candidates."""
        if not hasattr(self, "step2"):
            raise InputError("step 2 needs fields, and this schema has none")
        lookup = forward.field_lookup(self.schema, self.embedding.weight, batch)
        e = field_embeddings(*lookup, list(self.schema.multi_fields))
        return e, F.linear(e.flatten(1), self.step2.fields.weight, self.step2.mlp["0"].bias)


def reads_step1(arch: Architecture) -> bool:
    """Whether the architecture is step 1's: the fixed MLP, no interactions, no shortcut."""
    return arch.mlp in FIXED_MLPS and not arch.interactions and arch.shortcut == "none"


def interaction_name(fields: tuple[int, ...]) -> str:
    return "_".join(map(str, sorted(fields)))


class SupernetWeights:
    """Slices of the supernet's maximal tensors, as ``forward.Weights``."""

    def __init__(self, net: Supernet):
        self.net = net
        self.backend, self.training = net.backend, net.training
        self.dropout, self.block_dropout, self.generator = net.dropout, net.block_dropout, net.generator

    def embedding_weight(self) -> Tensor:
        return self.net.embedding.weight

    def norm(self, block: int) -> list[Tensor]:
        norm = self.net.behavior[str(block)]["norm"]
        return [norm.weight, norm.bias]

    def layer(self, block: int, name: str) -> list[Tensor]:
        return self.net._layer(block, name)

    def pool_attention(self) -> list[Tensor]:
        return self.net.pool.tensors()

    def mlp(self, layer: int, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
        unit = self.net.mlp[str(layer)]
        return unit.weight[:outputs, :inputs], unit.bias[:outputs]

    def dice(self, layer: int, width: int) -> Tensor:
        return self.net.mlp[str(layer)].dice.alpha[:width]

    def record_statistics(self, layer: int, mean: Tensor, variance: Tensor) -> None:
        """Every child has its own statistics, so the supernet keeps none."""

    def squeeze_excite(self, inputs: int) -> tuple[Tensor, Tensor, Tensor]:
        se, hidden = self.net.se, max(1, inputs // 2)
        return se.project.weight, se.squeeze.weight[:hidden, :inputs], se.excite.weight[:inputs, :hidden]

    def head(self, outputs: int, shortcut: bool) -> tuple[Tensor, Tensor | None]:
        weight, bias = self.net.head.weight, self.net.head.bias
        if not shortcut:
            return weight[:, :outputs], bias
        return torch.cat([weight[:, :outputs], weight[:, -self.net.embedding_dim:]], 1), bias


class Step1Weights(SupernetWeights):
    """Step 1's fixed MLP and head."""

    def mlp(self, layer: int, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
        unit = self.net.step1.mlp[str(layer)]
        return unit.weight, unit.bias

    def head(self, outputs: int, shortcut: bool) -> tuple[Tensor, Tensor | None]:
        return self.net.step1.head.weight, self.net.step1.head.bias


class Step2Weights(SupernetWeights):
    """Step 2's head."""

    def head(self, outputs: int, shortcut: bool) -> tuple[Tensor, Tensor | None]:
        return self.net.step2.head.weight, self.net.step2.head.bias
