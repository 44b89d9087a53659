"""What a model's forward pass must do: operations and bytes of each part, and the least time that takes on a named GPU.

Nothing here is measured. Operations are two per multiply-add; bytes are what fused kernels move between device memory and a
multiprocessor when every intermediate that need not leave the chip stays there, with embedding rows rounded up to the
32-byte sectors that memory hands out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import InputError
from .schema import FeatureSchema
from .space import Architecture
from .space.choices import LAYERS

SECTOR = 32
UNIT = 36  # hidden units of the local activation unit
PRECISIONS = ("ieee", "tf32", "bf16")


@dataclass(frozen=True)
class Gpu:
    """Peak rates of a card by its maker's data sheet: bytes/s of memory, and FLOP/s of dense products in float32 (no tensor
    cores), TF32 and bfloat16 (tensor cores, no sparsity)."""

    name: str
    bandwidth: float
    ieee: float
    tf32: float
    bf16: float


GPUS = {gpu.name: gpu for gpu in (
    Gpu("a100", 2039e9, 19.5e12, 156e12, 312e12),     # A100 80GB SXM
    Gpu("h100", 3350e9, 67e12, 494.7e12, 989.4e12),   # H100 SXM
    Gpu("h200", 4800e9, 67e12, 494.7e12, 989.4e12),   # H200 SXM
    Gpu("b200", 8000e9, 75e12, 1125e12, 2250e12),     # of HGX B200
    Gpu("l4", 300e9, 30.3e12, 60e12, 121e12),
    Gpu("l40s", 864e9, 91.6e12, 183e12, 362e12),
)}


@dataclass(frozen=True)
class Work:
    """Operations and bytes of one part of a forward pass."""

    part: str
    flops: int
    bytes: int

    def seconds(self, gpu: Gpu, precision: str = "ieee") -> float:
        """The roofline: the larger of arithmetic and traffic at the card's peak rates."""
        return max(self.flops / getattr(gpu, precision), self.bytes / gpu.bandwidth)


def gpu_of(name: str) -> Gpu:
    """``InputError`` for a card that is not known."""
    if name.lower() not in GPUS:
        raise InputError(f"device {name!r}: peak rates are known of {', '.join(GPUS)}")
    return GPUS[name.lower()]


def forward_work(schema: FeatureSchema, arch: Architecture, embedding_dim: int, lengths: np.ndarray) -> list[Work]:
    """The parts of ``model(batch)`` in their order, for a batch with these history lengths (int [B]).

    Linear parts count Σ T elements, attention Σ T². Norms, activations and pools have no operations here. Bags of
    multi-categorical fields count as one id. Retrieval scores all items.
    """
    k, rows, count = embedding_dim, len(lengths), schema.num_fields + len(arch.interactions)
    row_bytes = -(-4 * k // SECTOR) * SECTOR
    d = schema.num_behavior * k
    elements = int(np.sum(lengths)) if d else 0
    work = []
    h_a = 0
    if d:
        pairs = int((np.asarray(lengths).astype(np.int64) ** 2).sum())
        ids = elements * schema.num_behavior
        work.append(Work("look up history", 0, ids * (4 + row_bytes) + 4 * elements * d))
        for index, block in enumerate(arch.behavior):
            if block.layer != "zero":
                madds, weights = _block(block.layer, d, elements, pairs)
                work.append(Work(f"block {index}: {block.layer}", 2 * madds, 4 * (2 * elements * d + weights)))
        parts = 3 if schema.target else 2
        h_a = parts * d
        madds = elements * (_unit(d) + d) if schema.target else 0
        work.append(Work("pool", 2 * madds, 4 * (elements * d + rows * (h_a + (d if schema.target else 0)))))
    k0 = h_a + count * k
    looked_up = rows * schema.num_fields * (8 + row_bytes)
    products = rows * sum(len(fields) - 1 for fields in arch.interactions) * k
    inputs = k0
    for index, layer in enumerate(arch.mlp):
        outputs = layer.units(k0)
        traffic = 4 * (rows * outputs + inputs * outputs + outputs)
        if index == 0:
            work.append(Work("interactions and MLP 0", 2 * rows * inputs * outputs + products,
                             traffic + looked_up + 4 * rows * h_a))
        else:
            work.append(Work(f"MLP {index}", 2 * rows * inputs * outputs, traffic + 4 * rows * inputs))
        inputs = outputs
    if count and arch.shortcut == "se":
        squeezed = max(1, count // 2)
        work.append(Work("squeeze-and-excitation", 2 * rows * (2 * count * k + 2 * count * squeezed),
                         looked_up + 4 * (rows * k + 2 * count * squeezed + k)))
        inputs += k
    if schema.task == "retrieval":
        items = schema.size(schema.item_vocabulary)
        work.append(Work("score all items", 2 * rows * (inputs * k + k * items),
                         4 * (rows * inputs + inputs * k + k * items + rows * items)))
    else:
        work.append(Work("head", 2 * rows * inputs, 4 * (rows * inputs + inputs + rows)))
    return work


def _unit(d: int) -> int:
    """Multiply-adds of the local activation unit for an element, as it is written and not as it is folded."""
    return UNIT * 4 * d + UNIT


def _block(layer: str, d: int, elements: int, pairs: int) -> tuple[int, int]:
    """Multiply-adds and weights of a behaviour block."""
    about = LAYERS[layer]
    if about.kernel:
        return elements * d * d * about.kernel, d * d * about.kernel + d
    if layer == "bi_gru":
        half = d // 2
        return elements * 2 * 3 * half * (d + half), 2 * 3 * half * (d + half + 2)
    if layer.startswith("self_attn"):
        return elements * 4 * d * d + pairs * 2 * d, 4 * d * d + 4 * d
    if layer == "target_attn":
        return elements * _unit(d), UNIT * 4 * d + 2 * UNIT + 2
    return 0, 0


def predict(schema: FeatureSchema, arch: Architecture, embedding_dim: int, rows: int, gpu: Gpu,
            precision: str = "ieee") -> dict:
    """A prediction for a batch of full histories on a card: of each part and of all together ``flops``, ``bytes``, the
    roofline's ``seconds``, what they are ``bound`` by and the ``launches`` of a ``GpuPlan`` for it; ``samples_per_s`` if
    nothing but the roofline cost time."""
    lengths = np.full(rows, schema.max_history if schema.behavior else 0)
    works = _of_launches(forward_work(schema, arch, embedding_dim, lengths), schema, embedding_dim, rows)
    launched = _by_part([work.part for work in works], launches(schema, arch, embedding_dim, rows))
    parts = []
    for work in works:
        bound = "arithmetic" if work.flops / getattr(gpu, precision) > work.bytes / gpu.bandwidth else "memory"
        parts.append({"part": work.part, "flops": work.flops, "bytes": work.bytes,
                      "seconds": work.seconds(gpu, precision), "bound": bound, "launches": launched[work.part]})
    total = {"part": "all", **{key: sum(part[key] for part in parts) for key in ("flops", "bytes", "seconds")}, "bound": ""}
    return {"prediction": True, "device": gpu.name, "precision": precision, "batch": rows, "parts": parts, "total": total,
            "launches": [name for part in parts for name in part["launches"]], "samples_per_s": rows / total["seconds"]}


def _of_launches(works: list[Work], schema: FeatureSchema, embedding_dim: int, rows: int) -> list[Work]:
    """The parts of a forward pass as a plan on a GPU has them: all is looked up in one launch, which also writes the rows of
    fields, 12 bytes an id, and the target's embeddings."""
    row_bytes = -(-4 * embedding_dim // SECTOR) * SECTOR
    size = rows * (12 * schema.num_fields + len(schema.target) * (4 + row_bytes + 4 * embedding_dim))
    history = [work.bytes for work in works if work.part == "look up history"]
    return [Work("look up", 0, size + sum(history)), *(work for work in works if work.part != "look up history")]


def _by_part(parts: list[str], launched: dict[str, list[str]]) -> dict[str, list[str]]:
    """The launches of each part, from those of each operation."""
    found: dict[str, list[str]] = {part: [] for part in parts}
    blocks = iter([part for part in parts if part.startswith("block ")])
    layers = [part for part in parts if part.startswith("MLP ")]
    for operation, names in launched.items():
        name = operation.split(" ")[0]
        if name == "sequence_block":
            found[next(blocks)] = names
        elif name == "sliced_mlp" and names == ["linear_kernel"] * len(layers):
            for layer, one in zip(layers, names, strict=True):
                found[layer] = [one]
        else:
            whole = {"": parts[0], "sequence_pool": "pool", "embedding_interactions": "interactions and MLP 0",
                     "sliced_mlp": layers[0] if layers else "interactions and MLP 0",
                     "squeeze_excite": "squeeze-and-excitation", "head": parts[-1]}[name]
            found[whole] = found[whole] + names
    return found


def launches(schema: FeatureSchema, arch: Architecture, embedding_dim: int, rows: int) -> dict[str, list[str]]:
    """Kernels that a ``GpuPlan`` launches for a batch of ``rows`` rows with full histories (or each part of a larger one), in
    their order, by operation (with its number behind it; ``""`` for what comes before the first, and ``"head"``): noted from
    the code that would launch them, on tensors without memory. PyTorch's own are called ``torch.<operation>``."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from .forward import item_scores
    from .gpu_plan import LARGEST, GpuPlan, _Sizes, _State
    from .kernels import _launch
    from .model import Model
    from .ops._triton import OPERATION

    noted: list[str] = []
    rows = min(rows, LARGEST)

    class Note(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if not function.is_view and not any(word in function.name() for word in ("::empty", "::new_empty", "::detach")):
                noted.append("torch." + function.name().split("::")[1].split(".")[0])
            return function(*args, **(kwargs or {}))

    with torch.device("meta"):
        model = Model(schema, arch, embedding_dim)
    with _launch.recording(noted):
        plan = GpuPlan(model, "meta")
        elements = rows * schema.max_history if schema.behavior else 0
        sizes = _Sizes(rows, elements, rows * len(schema.multi_fields), False, False)
        state = _State(sizes, schema, embedding_dim, plan._outputs, plan.device)
        plan._run(state)  # what is made once and kept
        noted.clear()
        with Note():
            plan._run(state)
            if schema.task == "retrieval":
                item_scores(schema, model.embedding.weight, torch.empty(rows, embedding_dim, device="meta"))
    found: dict[str, list[str]] = {"": []}
    for name in noted:
        if name.startswith(OPERATION):
            operation = name.removeprefix(OPERATION)
            found[operation if operation == "head" else f"{operation} {len(found)}"] = []
        else:
            found[next(reversed(found))].append(name)
    return found
