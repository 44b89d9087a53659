"""Model: a derived architecture with weights of its own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from . import forward
from .batch import Batch
from .errors import InputError
from .modules import (
    LocalActivation,
    MlpUnit,
    SqueezeExcite,
    layer_tensors,
    make_embedding,
    make_layer,
    make_norm,
    start_at_items,
)
from .schema import FeatureSchema
from .space import Architecture
from .space.search_space import history_width, newest_item, validate_for_schema
from .storage import load_module, save_module

DICE_MOMENTUM = 0.1


class Model(nn.Module):
    """The network of ``arch`` (paper section 2.1) and nothing else.

    ``model(batch)`` gives logits [B] (CTR) or scores [B, V] of all items (retrieval; id 0 is scored but
    never to be ranked); ``model(batch, items=[B, n])`` gives [B, n], and a function as ``items`` what it makes of the
    users' and items' vectors (``forward.item_scores``). ``dropout`` applies after each MLP layer in training mode,
    drawing from ``generator``. Raises ``InputError`` for an architecture that does
    not fit the schema. The state dict holds only keys that the architecture uses.
    """

    def __init__(self, schema: FeatureSchema, arch: Architecture, embedding_dim: int,
                 backend: str | None = None, dtype: torch.dtype = torch.float32):
        super().__init__()
        if type(embedding_dim) is not int or embedding_dim < 1:
            raise InputError(f"embedding_dim is {embedding_dim!r}, not an integer >= 1")
        if schema.behavior and not arch.behavior:
            raise InputError("architecture: no behavior blocks, though the schema has behavior fields")
        arch = validate_for_schema(arch, schema, schema.num_behavior * embedding_dim).canonical()
        self.schema, self.arch, self.embedding_dim, self.backend = schema, arch, embedding_dim, backend
        self.dropout = self.block_dropout = 0.0
        self.generator: torch.Generator | None = None

        width = schema.num_behavior * embedding_dim
        self.embedding = make_embedding(schema.num_embeddings, embedding_dim, dtype)
        self.behavior = nn.ModuleDict()
        for index, block in enumerate(arch.behavior):
            parts = {}
            if block.layer != "zero" and block.norm == "layer_norm":
                parts["norm"] = make_norm(width, dtype)
            layer = make_layer(block.layer, width, dtype)
            if layer is not None:
                parts[block.layer] = layer
            if parts:
                self.behavior[str(index)] = nn.ModuleDict(parts)
        if schema.target:
            self.pool = LocalActivation(width, dtype)
        count = schema.num_fields + len(arch.interactions)
        k0 = history_width(schema, embedding_dim) + count * embedding_dim
        self.mlp = nn.ModuleDict()
        inputs = k0
        for index, layer in enumerate(arch.mlp):
            outputs = layer.units(k0)
            self.mlp[str(index)] = MlpUnit(inputs, outputs, layer.activation == "dice", dtype)
            inputs = outputs
        if arch.shortcut == "se" and count:
            self.se = SqueezeExcite(count, embedding_dim, dtype)
            inputs += embedding_dim
        ctr = schema.task == "ctr"
        self.head = nn.Linear(inputs, 1 if ctr else embedding_dim, bias=ctr, dtype=dtype)

    def forward(self, batch: Batch, items: forward.Items = None) -> Tensor:
        return forward.run(ModelWeights(self), self.schema, self.arch, batch, items)

    def parameter_counts(self) -> tuple[int, int]:
        """Trainable parameters: all, and those outside the embedding matrix."""
        total = sum(p.numel() for p in self.parameters())
        return total, total - self.embedding.weight.numel()

    @torch.no_grad()
    def scale_products(self, factor: float) -> None:
        """Multiplies the first layer's weights of each product of order r by ``factor^(r-1)``.

        At the start embeddings are near 0.01 and a product of r of them near 0.01^r: with equal weights the gradient
        that would pull its factors apart is as small, and they move only by what other paths teach them. A factor
        below 1 / 0.01 leaves a product somewhat behind its fields. Meant for a fresh model.
        """
        first, width = self.mlp["0"].weight, self.embedding_dim
        start = first.shape[1] - len(self.arch.interactions) * width
        for place, fields in enumerate(self.arch.interactions):
            first[:, start + place * width:start + (place + 1) * width] *= factor ** (len(fields) - 1)

    def start_at_items(self, scale: float) -> None:
        """Scores items by ``scale`` times their embeddings' products with that of the newest item, as long as the blocks
        add little: ``modules.start_at_items``. Meant for a fresh retrieval model; others stay as they are."""
        start = newest_item(self.schema, self.embedding_dim)
        if start is not None:
            start_at_items(list(self.mlp.values()), self.head, start, scale)

    # ---- inheritance and statistics ------------------------------------------------------------

    def inherit(self, source: nn.Module) -> list[str]:
        """Copies every tensor of ``source`` whose name and shape this model has; returns those names.

        Used where a model exists only outside the supernet (fixed MLP widths): embedding and behaviour
        network are inherited, the rest starts fresh.
        """
        own, theirs = self.state_dict(), source.state_dict()
        kept = [k for k, v in own.items() if k.startswith(("embedding.", "behavior.", "pool."))
                and k in theirs and theirs[k].shape == v.shape]
        with torch.no_grad():
            for name in kept:
                own[name].copy_(theirs[name])
        return kept

    @torch.no_grad()
    def recompute_dice(self, batches: Iterable[Batch]) -> None:
        """Exact Dice statistics over all rows of ``batches`` (re-iterable), layer by layer.

        Layer l's statistics are taken with the layers below already at their new ones. Mean and biased
        variance are accumulated in float64.
        """
        layers = [i for i, m in enumerate(self.arch.mlp) if m.activation == "dice"]
        if not layers:
            return
        was_training = self.training
        self.eval()
        try:
            for layer in layers:
                probe = _Probe(self, layer)
                for batch in batches:
                    probe.add(batch)
                dice = self.mlp[str(layer)].dice
                mean, variance = probe.moments()
                dice.running_mean.copy_(mean)
                dice.running_var.copy_(variance)
        finally:
            self.train(was_training)

    # ---- files ---------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> None:
        """Writes ``model.safetensors`` and ``model.json`` into ``directory``, each by atomic rename."""
        save_module(directory, self, {"schema": self.schema.to_dict(), "architecture": self.arch.to_dict(),
                                      "embedding_dim": self.embedding_dim})

    @classmethod
    def load(cls, directory: str | Path, backend: str | None = None) -> Model:
        """Inverse of ``save``; executes nothing from the files. ``InputError`` names what is wrong."""
        return load_module(directory, lambda about: cls.from_description(about, backend))

    @classmethod
    def from_description(cls, about: dict, backend: str | None = None) -> Model:
        """A fresh model of the JSON that ``save`` writes beside the weights."""
        return cls(FeatureSchema.from_dict(about["schema"]), Architecture.from_dict(about["architecture"]),
                   about["embedding_dim"], backend=backend)

    def compile(self, device: str = "cpu", dtype: str = "float32", instruction_set: str | None = None,  # noqa: D417
                fold_bytes: int | None = None, graphs: int | None = None):
        """A plan of the model as it is now, for inference: a ``Plan`` on the CPU, a ``GpuPlan`` on a GPU (see there for
        what is raised; ``dtype``, ``instruction_set`` and ``fold_bytes`` are the CPU's, ``graphs`` the GPU's).

        ``torch.compile(model)`` is something else, and works as for any module."""
        from .plan import FOLD_BYTES, Plan

        if torch.device(device).type == "cuda":
            from .gpu_plan import GRAPHS, GpuPlan

            if dtype != "float32" or instruction_set is not None or fold_bytes:
                raise InputError("plans for GPUs are float32 and know neither instruction_set nor fold_bytes")
            return GpuPlan(self, device, GRAPHS if graphs is None else graphs)
        if device != "cpu":
            raise InputError(f"device {device!r}: there are plans for cpu and cuda only")
        if graphs is not None:
            raise InputError("plans for the CPU know no graphs")
        return Plan(self, dtype, instruction_set, FOLD_BYTES if fold_bytes is None else fold_bytes)


class ModelWeights:
    """A model's own tensors, as ``forward.Weights``."""

    def __init__(self, model: Model):
        self.model = model
        self.backend, self.training = model.backend, model.training
        self.dropout, self.block_dropout, self.generator = model.dropout, model.block_dropout, model.generator

    def embedding_weight(self) -> Tensor:
        return self.model.embedding.weight

    def norm(self, block: int) -> list[Tensor]:
        norm = self.model.behavior[str(block)]["norm"]
        return [norm.weight, norm.bias]

    def layer(self, block: int, name: str) -> list[Tensor]:
        parts = self.model.behavior[str(block)] if str(block) in self.model.behavior else {}
        return layer_tensors(parts[name] if name in parts else None)

    def pool_attention(self) -> list[Tensor]:
        return self.model.pool.tensors()

    def mlp(self, layer: int, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
        unit = self.model.mlp[str(layer)]
        return unit.weight, unit.bias

    def dice(self, layer: int, width: int) -> Tensor:
        dice = self.model.mlp[str(layer)].dice
        return dice.alpha if self.training else dice.stacked()

    def record_statistics(self, layer: int, mean: Tensor, variance: Tensor) -> None:
        if self.training:
            dice = self.model.mlp[str(layer)].dice
            with torch.no_grad():
                dice.running_mean.lerp_(mean, DICE_MOMENTUM)
                dice.running_var.lerp_(variance, DICE_MOMENTUM)

    def squeeze_excite(self, inputs: int) -> tuple[Tensor, Tensor, Tensor]:
        se = self.model.se
        return se.project.weight, se.squeeze.weight, se.excite.weight

    def head(self, outputs: int, shortcut: bool) -> tuple[Tensor, Tensor | None]:
        return self.model.head.weight, self.model.head.bias


class _Probe(ModelWeights):
    """Runs a model up to the pre-activation of one Dice layer and accumulates its moments."""

    class _Reached(Exception):
        pass

    def __init__(self, model: Model, layer: int):
        super().__init__(model)
        self.layer_wanted = layer
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def dice(self, layer: int, width: int) -> Tensor:
        if layer == self.layer_wanted:
            # alpha alone asks the operation for the statistics of the batch at hand.
            return self.model.mlp[str(layer)].dice.alpha
        return super().dice(layer, width)

    def record_statistics(self, layer: int, mean: Tensor, variance: Tensor) -> None:
        if layer == self.layer_wanted:
            self.batch_moments = mean.double(), variance.double()
            raise self._Reached

    def add(self, batch: Batch) -> None:
        if not len(batch):
            return
        try:
            forward.run(self, self.model.schema, self.model.arch, batch)
        except self._Reached:
            pass
        mean, variance = self.batch_moments
        # Chan's pairwise update: exact for any split of the rows into batches.
        rows = len(batch)
        total = self.count + rows
        shift = mean - self.mean
        self.squares = self.squares + variance * rows + shift.square() * (self.count * rows / total)
        self.mean = self.mean + shift * (rows / total)
        self.count = total

    def moments(self) -> tuple[Tensor, Tensor]:
        if not self.count:
            raise InputError("recompute_dice: no rows were given")
        return self.mean, self.squares / self.count
