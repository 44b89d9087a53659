"""Random schemas, batches, architectures and weights for the tests, all from plain Python seeds."""

from __future__ import annotations

import random
from collections.abc import Iterable
from types import SimpleNamespace

import torch

import ameir_fast as af
from tests import oracle

# ---- schemas ------------------------------------------------------------------------------------


def make_schema(*, task="ctr", fields=4, multi=0, behavior=2, target=True, max_history=7, sizes=None,
                shared=True, item=None, seed=0) -> dict:
    """A schema dictionary. ``shared`` lets the first behaviour field use the first field's vocabulary.

    The last ``multi`` fields are multi-categorical; the target fields are the first ones, in reverse order,
    so that a wrong matching of target and behaviour fields shows.
    """
    rng = random.Random(seed)
    names = [f"f{i}" for i in range(fields)]
    vocabularies = [{"name": n, "size": rng.choice([2, 3, 5, 11])} for n in names]
    kinds = ["categorical"] * (fields - multi) + ["multi_categorical"] * multi
    data_fields = [{"name": n, "kind": k, "vocabulary": n} for n, k in zip(names, kinds)]
    data_behavior = []
    for j in range(behavior):
        name = f"history{j}"
        if shared and j == 0 and fields:
            data_behavior.append({"name": name, "vocabulary": names[0]})
        else:
            vocabularies.insert(
                rng.randrange(len(vocabularies) + 1), {"name": name, "size": rng.choice([2, 4, 7])}
            )
            data_behavior.append({"name": name, "vocabulary": name})
    has_target = target and task == "ctr" and 0 < behavior <= fields - multi
    data = {"version": 1, "task": task, "max_history": max_history if behavior else 0,
            "vocabularies": vocabularies, "fields": data_fields, "behavior": data_behavior,
            "target": names[:behavior][::-1] if has_target else []}
    if item:
        data["item"] = item
    return data


def random_schema(seed: int, *, task: str | None = None) -> tuple[dict, int]:
    """A schema dictionary and an embedding width; odd widths and missing parts included."""
    rng = random.Random(seed)
    task = task or rng.choice(["ctr", "ctr", "ctr", "retrieval"])
    behavior = rng.choice([0, 1, 2, 2, 3]) if task == "ctr" else rng.choice([1, 2])
    fields = rng.choice([1, 2, 3, 5]) if task == "ctr" else rng.choice([0, 0, 1, 3])
    if task == "ctr" and behavior == 0:
        fields = max(fields, 2)
    multi = min(fields, rng.choice([0, 0, 1, 2]))
    schema = make_schema(task=task, fields=fields, multi=multi, behavior=behavior, target=rng.random() < 0.7,
                         max_history=rng.choice([1, 4, 9]), shared=rng.random() < 0.5, seed=seed)
    return schema, rng.choice([1, 2, 3, 4, 4, 8])


# ---- batches ------------------------------------------------------------------------------------


def random_batch(schema: dict, rows: int, seed: int, *, lengths=None) -> af.Batch:
    """A ragged batch with empty and full histories and empty bags; ``lengths`` fixes the histories."""
    g = torch.Generator().manual_seed(seed)
    sizes = {v["name"]: v["size"] for v in schema["vocabularies"]}

    def ids(name: str, n: int):
        return torch.randint(sizes[name], (n,), generator=g, dtype=torch.int32)

    columns = [
        torch.zeros(rows, dtype=torch.int32)
        if f["kind"] == "multi_categorical"
        else ids(f["vocabulary"], rows)
        for f in schema["fields"]
    ]
    fields = torch.stack(columns, 1) if columns else torch.zeros(rows, 0, dtype=torch.int32)
    history = history_offsets = bag_ids = bag_offsets = None
    if schema["behavior"]:
        longest = schema["max_history"]
        if lengths is None:
            lengths = torch.randint(longest + 1, (rows,), generator=g)
            kind = torch.rand(rows, generator=g)
            lengths[kind < 0.2], lengths[kind > 0.9] = 0, longest
        lengths = torch.as_tensor(lengths, dtype=torch.int64)
        history_offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        total = int(history_offsets[-1])
        history = torch.stack([ids(b["vocabulary"], total) for b in schema["behavior"]], 1)
    multi = [f["vocabulary"] for f in schema["fields"] if f["kind"] == "multi_categorical"]
    if multi:
        counts = torch.randint(4, (rows * len(multi),), generator=g)
        bag_offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        bags = [ids(multi[k % len(multi)], int(n)) for k, n in enumerate(counts)]
        bag_ids = torch.cat(bags) if bags else torch.zeros(0, dtype=torch.int32)
    label = items = None
    if schema["task"] == "ctr":
        label = torch.randint(2, (rows,), generator=g).float()
    else:
        items = ids(oracle.item_vocabulary(schema), rows)
    return af.Batch(
        fields=fields,
        history=history,
        history_offsets=history_offsets,
        label=label,
        bag_ids=bag_ids,
        bag_offsets=bag_offsets,
        items=items,
    )


def select_rows(batch: af.Batch, rows: list[int]) -> af.Batch:
    """The given rows in the given order, with repetition (built row by row, on purpose)."""
    index = torch.tensor(rows, dtype=torch.int64)
    take = lambda t: None if t is None else t[index]
    history = offsets = bag_ids = bag_offsets = None
    if batch.history is not None:
        history, offsets = _select_groups(batch.history, batch.history_offsets, rows)
    if batch.bag_offsets is not None:
        per_row = (batch.bag_offsets.shape[0] - 1) // max(1, batch.fields.shape[0])
        groups = [r * per_row + j for r in rows for j in range(per_row)]
        bag_ids, bag_offsets = _select_groups(batch.bag_ids, batch.bag_offsets, groups)
    return af.Batch(
        fields=batch.fields[index],
        history=history,
        history_offsets=offsets,
        label=take(batch.label),
        bag_ids=bag_ids,
        bag_offsets=bag_offsets,
        items=take(batch.items),
    )


def _select_groups(values, offsets, groups):
    parts = [values[int(offsets[k]):int(offsets[k + 1])] for k in groups]
    sizes = torch.tensor([0] + [p.shape[0] for p in parts], dtype=torch.int64)
    return (torch.cat(parts) if parts else values[:0]), sizes.cumsum(0)


def strided(t: torch.Tensor | None) -> torch.Tensor | None:
    """The same values in memory that is not contiguous."""
    if t is None:
        return None
    spread = torch.stack([t, torch.full_like(t, -1)], dim=-1)
    return spread[..., 0]


# ---- architectures ------------------------------------------------------------------------------


def random_arch(schema: dict, embedding_dim: int, seed: int, *, blocks=3, mlp_layers=2, interactions=3,
                fixed_mlp=False, shortcut=None, dice=True, canonical=True) -> dict:
    """An architecture dictionary valid for the schema, from this file's own draw."""
    rng = random.Random(seed)
    layers = oracle.possible_layers(schema, embedding_dim)
    behavior = []
    for _ in range(blocks if schema["behavior"] else 0):
        block = {"norm": rng.choice(oracle.NORMS), "layer": rng.choice(layers),
                 "activation": rng.choice(oracle.BLOCK_ACTIVATIONS)}
        if canonical and block["layer"] == "zero":
            block |= {"norm": "none", "activation": "identity"}
        behavior.append(block)
    n = len(schema["fields"])
    found = set()
    if n >= 2:
        for _ in range(rng.randrange(interactions + 1)):
            found.add(tuple(sorted(rng.sample(range(n), rng.randint(2, n)))))
    activations = oracle.MLP_ACTIVATIONS if dice else oracle.MLP_ACTIVATIONS[:3]
    if fixed_mlp:
        mlp = [
            {"width": rng.choice([1, 3, 17]), "activation": rng.choice(activations)}
            for _ in range(mlp_layers)
        ]
    else:
        tenths = sorted((rng.randint(1, 10) for _ in range(mlp_layers)), reverse=True)
        mlp = [{"ratio": t / 10, "activation": rng.choice(activations)} for t in tenths]
    return {"version": 1, "behavior": behavior, "interactions": [list(i) for i in sorted(found, key=_order)],
            "mlp": mlp, "shortcut": shortcut or rng.choice(["se", "se", "none"])}


def step1_arch(behavior: list[dict]) -> dict:
    """Section 9.21: the architecture that reads ``step1.*``."""
    return {"version": 1, "behavior": behavior, "interactions": [], "shortcut": "none",
            "mlp": [{"width": 200, "activation": "relu"}, {"width": 80, "activation": "relu"}]}


def _order(fields):
    return len(fields), fields


def block(layer: str, norm: str = "layer_norm", activation: str = "relu") -> dict:
    return {"norm": norm, "layer": layer, "activation": activation}


# ---- objects of the package, with weights that hide nothing -------------------------------------


@torch.no_grad()
def randomise(module: torch.nn.Module, seed: int) -> None:
    """Weights of ordinary size, so that no part is too small to be seen in the result."""
    g = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=g, dtype=torch.float64) + 0.5)
        elif name == "embedding.weight":
            tensor.copy_(torch.randn(tensor.shape, generator=g, dtype=torch.float64))
        else:
            fan_in = tensor.shape[-1] if tensor.dim() > 1 else 4
            tensor.copy_(torch.randn(tensor.shape, generator=g, dtype=torch.float64) / max(1, fan_in) ** 0.5)


def make_model(schema: dict, arch: dict, embedding_dim: int, seed: int = 0, dtype=torch.float64) -> af.Model:
    model = af.Model(af.FeatureSchema.from_dict(schema), af.Architecture.from_dict(arch), embedding_dim).to(
        dtype
    )
    randomise(model, seed)
    return model


def make_supernet(
    schema: dict,
    embedding_dim: int,
    seed: int = 0,
    dtype=torch.float64,
    *,
    blocks=3,
    mlp_layers=2,
    interactions=3,
    backend="reference",
) -> af.Supernet:
    space = af.SearchSpace(af.FeatureSchema.from_dict(schema), blocks=blocks, mlp_layers=mlp_layers,
                           interactions=interactions)
    net = af.Supernet(space, embedding_dim, backend=backend, dtype=dtype)
    randomise(net, seed)
    return net


def leaves(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the state dict as independent leaves; parameters require gradients, buffers don't."""
    parameters = dict(module.named_parameters())
    return {name: tensor.detach().clone().requires_grad_(name in parameters)
            for name, tensor in module.state_dict().items()}


# ---- comparing ----------------------------------------------------------------------------------

TIGHT = 1e-10  # fp64, relative to the scale of what is compared


def assert_close(got: torch.Tensor, want: torch.Tensor, what: str, tolerance: float = TIGHT) -> None:
    """max |got − want| against the scale of ``want``."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    if want.numel() == 0:
        return
    assert bool(torch.isfinite(want).all()), f"{what}: the oracle's own result is not finite"
    assert bool(torch.isfinite(got).all()), f"{what}: not finite"
    error = float((got.detach() - want.detach()).abs().max())
    scale = max(1.0, float(want.detach().abs().max()))
    assert error <= tolerance * scale, f"{what}: error {error:.3g} at scale {scale:.3g}"


def assert_as_exact_as_eager(cases: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> None:
    """Of each case what is right (float64), what eager float32 makes of it, and what is tested: over all cases at most twice
    the error of eager float32, and of a single one, where luck is much, eight times."""
    ours, theirs = [], []
    for case, (want, eager, got) in enumerate(cases):
        assert got.shape == want.shape and got.dtype == torch.float32
        if not want.numel():
            continue
        assert bool(torch.isfinite(got).all()), f"case {case}: not finite"
        scale = max(1.0, float(want.abs().max()))
        mine, eagers = float((got - want).abs().max()), float((eager - want).abs().max())
        assert mine <= 8 * eagers + 2e-6 * scale, f"case {case}: {mine}, in eager mode {eagers}"
        ours.append(mine / scale)
        theirs.append(eagers / scale)
    assert sum(x * x for x in ours) ** 0.5 <= 2 * sum(x * x for x in theirs) ** 0.5


def gradients(output: torch.Tensor, tensors: dict[str, torch.Tensor], cotangent: torch.Tensor) -> dict:
    """Gradient of ``(output · cotangent).sum()`` for each tensor that requires one; zero where unused."""
    wanted = {n: t for n, t in tensors.items() if t.requires_grad}
    if not output.requires_grad:
        return {n: torch.zeros_like(t) for n, t in wanted.items()}
    found = torch.autograd.grad((output * cotangent).sum(), list(wanted.values()), allow_unused=True)
    return {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(wanted.items(), found)}


def assert_gradients(got: dict, want: dict, what: str, tolerance: float = TIGHT) -> None:
    assert got.keys() == want.keys(), f"{what}: {sorted(set(got) ^ set(want))}"
    for name, gradient in want.items():
        assert_close(got[name], gradient, f"{what}: gradient of {name}", tolerance)


def random_like(t: torch.Tensor, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(t.shape, generator=g, dtype=torch.float64).to(t.dtype)


def hand_schema() -> SimpleNamespace:
    """A small CTR schema for numbers checked by hand: rows item 0-4, rating 5-7, tag 8-11, city 12-14."""
    return SimpleNamespace(
        dict={
            "version": 1,
            "task": "ctr",
            "max_history": 3,
            "vocabularies": [
                {"name": "item", "size": 5},
                {"name": "rating", "size": 3},
                {"name": "tag", "size": 4},
                {"name": "city", "size": 3},
            ],
            "fields": [
                {"name": "item", "kind": "categorical", "vocabulary": "item"},
                {"name": "tags", "kind": "multi_categorical", "vocabulary": "tag"},
                {"name": "city", "kind": "categorical", "vocabulary": "city"},
            ],
            "behavior": [
                {"name": "history_item", "vocabulary": "item"},
                {"name": "history_rating", "vocabulary": "rating"},
            ],
            "target": ["item", "city"],
        }
    )
