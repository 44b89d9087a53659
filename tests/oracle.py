"""An obvious second implementation of the model (paper sections 2.1 to 2.3), written sample by sample.

No padding, no masks, no batching, nothing from the package: one row at a time over its true elements, with
PyTorch's own Conv1d / GRU / MultiheadAttention conventions. Schemas and architectures are their JSON
dictionaries, weights a dictionary with the names of a state dict, so what is tested here is the published
contract and not the package's own idea of it. Everything is differentiable, in the dtype of the weights.

``padded_behavior`` at the end is a third way for the sequence part, padded and masked, for the tests that
padding changes nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYERS = ("conv1", "conv3", "dconv3", "dconv5", "dconv7", "avg_pool3", "max_pool3", "bi_gru", "self_attn2",
          "self_attn4", "target_attn", "zero")
CONVOLUTIONS = {"conv1": (1, 1), "conv3": (3, 1), "dconv3": (3, 2), "dconv5": (5, 2), "dconv7": (7, 2)}
NORMS = ("layer_norm", "none")
BLOCK_ACTIVATIONS = ("relu", "gelu", "swish", "identity")
MLP_ACTIVATIONS = ("relu", "swish", "identity", "dice")
HIDDEN = 36  # of a local activation unit
FIXED_MLP = (200, 80)

# ---- sizes --------------------------------------------------------------------------------------


class Sizes:
    """What a schema dictionary and an embedding width imply."""

    def __init__(self, schema: dict, embedding_dim: int):
        self.K = embedding_dim
        self.N = len(schema["fields"])
        self.N_a = len(schema["behavior"])
        self.D = self.N_a * embedding_dim
        self.target = list(schema.get("target", ()))
        self.retrieval = schema["task"] == "retrieval"
        self.h_a = self.D * ((3 if self.target else 2) if self.N_a else 0)
        self.F = sum(v["size"] for v in schema["vocabularies"])

    def k0(self, m: int) -> int:
        return self.h_a + (self.N + m) * self.K


def row_offsets(schema: dict) -> dict[str, int]:
    """First embedding row of each vocabulary (section 9.1)."""
    offsets, start = {}, 0
    for vocabulary in schema["vocabularies"]:
        offsets[vocabulary["name"]] = start
        start += vocabulary["size"]
    return offsets


def item_vocabulary(schema: dict) -> str:
    return schema.get("item") or schema["behavior"][0]["vocabulary"]


def ratio_width(ratio: float, k0: int) -> int:
    """Section 9.12, half up, in integers."""
    tenths = round(ratio * 10)
    return max(1, (tenths * k0 + 5) // 10)


def mlp_widths(schema: dict, arch: dict, embedding_dim: int) -> list[int]:
    k0 = Sizes(schema, embedding_dim).k0(len(arch["interactions"]))
    return [layer["width"] if layer.get("width") is not None else ratio_width(layer["ratio"], k0)
            for layer in arch["mlp"]]


def has_se(schema: dict, arch: dict) -> bool:
    return arch.get("shortcut", "se") == "se" and len(schema["fields"]) + len(arch["interactions"]) > 0


def is_step1(arch: dict) -> bool:
    """The fixed MLP of step 1 (section 9.21): [200, 80] relu, no interactions, no shortcut."""
    return (not arch["interactions"] and arch.get("shortcut", "se") == "none"
            and [(m.get("width"), m["activation"]) for m in arch["mlp"]] == [(200, "relu"), (80, "relu")])


# ---- expected names and shapes ------------------------------------------------------------------


def _attention_shapes(prefix: str, width: int) -> dict[str, tuple]:
    return {f"{prefix}.0.weight": (HIDDEN, 4 * width), f"{prefix}.0.bias": (HIDDEN,),
            f"{prefix}.prelu.weight": (1,), f"{prefix}.1.weight": (1, HIDDEN), f"{prefix}.1.bias": (1,)}


def layer_shapes(prefix: str, layer: str, width: int) -> dict[str, tuple]:
    """Names and shapes of one layer of a block; ``prefix`` is ``behavior.{l}.{layer}``."""
    if layer in CONVOLUTIONS:
        return {f"{prefix}.weight": (width, width, CONVOLUTIONS[layer][0]), f"{prefix}.bias": (width,)}
    if layer == "bi_gru":
        half, shapes = width // 2, {}
        for suffix in ("", "_reverse"):
            shapes[f"{prefix}.weight_ih_l0{suffix}"] = (3 * half, width)
            shapes[f"{prefix}.weight_hh_l0{suffix}"] = (3 * half, half)
            shapes[f"{prefix}.bias_ih_l0{suffix}"] = (3 * half,)
            shapes[f"{prefix}.bias_hh_l0{suffix}"] = (3 * half,)
        return shapes
    if layer in ("self_attn2", "self_attn4"):
        return {f"{prefix}.in_proj_weight": (3 * width, width), f"{prefix}.in_proj_bias": (3 * width,),
                f"{prefix}.out_proj.weight": (width, width), f"{prefix}.out_proj.bias": (width,)}
    if layer == "target_attn":
        return _attention_shapes(f"{prefix}.attention", width)
    if layer in ("avg_pool3", "max_pool3", "zero"):
        return {}
    raise ValueError(layer)


def possible_layers(schema: dict, embedding_dim: int) -> list[str]:
    """Section 9.6: what the width and the target allow."""
    sizes = Sizes(schema, embedding_dim)
    out = []
    for layer in LAYERS:
        if layer in ("bi_gru", "self_attn2") and sizes.D % 2:
            continue
        if layer == "self_attn4" and sizes.D % 4:
            continue
        if layer == "target_attn" and not sizes.target:
            continue
        out.append(layer)
    return out


def model_shapes(schema: dict, arch: dict, embedding_dim: int) -> dict[str, tuple]:
    """Every key of a Model's state dict and its shape (sections 6 and 9)."""
    sizes = Sizes(schema, embedding_dim)
    shapes = {"embedding.weight": (sizes.F, sizes.K)}
    for l, block in enumerate(arch["behavior"]):
        if block["layer"] == "zero":
            continue
        if block["norm"] == "layer_norm":
            shapes[f"behavior.{l}.norm.weight"] = shapes[f"behavior.{l}.norm.bias"] = (sizes.D,)
        shapes |= layer_shapes(f"behavior.{l}.{block['layer']}", block["layer"], sizes.D)
    if sizes.N_a and sizes.target:
        shapes |= _attention_shapes("pool.attention", sizes.D)
    m = len(arch["interactions"])
    below = sizes.k0(m)
    for l, (layer, width) in enumerate(zip(arch["mlp"], mlp_widths(schema, arch, embedding_dim))):
        shapes[f"mlp.{l}.weight"], shapes[f"mlp.{l}.bias"] = (width, below), (width,)
        if layer["activation"] == "dice":
            for name in ("alpha", "running_mean", "running_var"):
                shapes[f"mlp.{l}.dice.{name}"] = (width,)
        below = width
    if has_se(schema, arch):
        squeezed = max(1, (sizes.N + m) // 2)
        shapes["se.project.weight"] = (1, sizes.K)
        shapes["se.squeeze.weight"] = (squeezed, sizes.N + m)
        shapes["se.excite.weight"] = (sizes.N + m, squeezed)
        below += sizes.K
    if sizes.retrieval:
        shapes["head.weight"] = (sizes.K, below)
    else:
        shapes["head.weight"], shapes["head.bias"] = (1, below), (1,)
    return shapes


def supernet_shapes(
    schema: dict, embedding_dim: int, blocks: int, mlp_layers: int, interactions: int
) -> dict:
    """Every key of a Supernet's state dict but ``step2.interactions.*``, which grow with the search."""
    sizes = Sizes(schema, embedding_dim)
    shapes = {"embedding.weight": (sizes.F, sizes.K)}
    for l in range(blocks if sizes.N_a else 0):
        shapes[f"behavior.{l}.norm.weight"] = shapes[f"behavior.{l}.norm.bias"] = (sizes.D,)
        for layer in possible_layers(schema, embedding_dim):
            shapes |= layer_shapes(f"behavior.{l}.{layer}", layer, sizes.D)
    if sizes.N_a and sizes.target:
        shapes |= _attention_shapes("pool.attention", sizes.D)
    k0, both = sizes.k0(interactions), sizes.N + interactions
    for l in range(mlp_layers):
        shapes[f"mlp.{l}.weight"], shapes[f"mlp.{l}.bias"] = (k0, k0), (k0,)
        for name in ("alpha", "running_mean", "running_var"):
            shapes[f"mlp.{l}.dice.{name}"] = (k0,)
    if both:
        squeezed = max(1, both // 2)
        shapes["se.project.weight"] = (1, sizes.K)
        shapes["se.squeeze.weight"], shapes["se.excite.weight"] = (squeezed, both), (both, squeezed)
    last = k0 + sizes.K  # 9.14 gives the head room for h_se whether or not this space can have it
    wide, narrow = FIXED_MLP
    shapes["step1.mlp.0.weight"], shapes["step1.mlp.0.bias"] = (wide, sizes.k0(0)), (wide,)
    shapes["step1.mlp.1.weight"], shapes["step1.mlp.1.bias"] = (narrow, wide), (narrow,)
    steps = ["step1."]
    if sizes.N:
        steps.append("step2.")
        shapes["step2.fields.weight"], shapes["step2.mlp.0.bias"] = (wide, sizes.N * sizes.K), (wide,)
        shapes["step2.mlp.1.weight"], shapes["step2.mlp.1.bias"] = (narrow, wide), (narrow,)
    for prefix, width in [("", last)] + [(step, narrow) for step in steps]:
        if sizes.retrieval:
            shapes[f"{prefix}head.weight"] = (sizes.K, width)
        else:
            shapes[f"{prefix}head.weight"], shapes[f"{prefix}head.bias"] = (1, width), (1,)
    return shapes


def is_buffer(name: str) -> bool:
    return name.endswith((".running_mean", ".running_var"))


def count_parameters(shapes: dict[str, tuple]) -> tuple[int, int]:
    """All trained numbers, and those outside the embedding."""
    total = 0
    for name, shape in shapes.items():
        if not is_buffer(name):
            count = 1
            for n in shape:
                count *= n
            total += count
    rows, columns = shapes["embedding.weight"]
    return total, total - rows * columns


# ---- parts --------------------------------------------------------------------------------------


def activate(name: str, x: Tensor) -> Tensor:
    return {"relu": torch.relu, "gelu": F.gelu, "swish": F.silu, "identity": lambda v: v}[name](x)


def activation_unit(state: dict, prefix: str, x: Tensor, t: Tensor) -> Tensor:
    """DIN's local activation unit for one element ``x [D]`` and one target ``t [D]``: a number (9.8)."""
    hidden = F.linear(torch.cat([x, t, x - t, x * t]), state[f"{prefix}.0.weight"], state[f"{prefix}.0.bias"])
    hidden = F.prelu(hidden[None], state[f"{prefix}.prelu.weight"])[0]
    return F.linear(hidden, state[f"{prefix}.1.weight"], state[f"{prefix}.1.bias"])[0]


def _part(state: dict, prefix: str) -> dict:
    return {k[len(prefix) + 1:]: v for k, v in state.items() if k.startswith(prefix + ".")}


def apply_layer(layer: str, state: dict, prefix: str, x: Tensor, target: Tensor | None) -> Tensor:
    """One layer over the ``T >= 1`` true elements ``x [T, D]`` of one row."""
    width = x.shape[1]
    if layer == "zero":
        return torch.zeros_like(x)
    if layer in CONVOLUTIONS:
        kernel, dilation = CONVOLUTIONS[layer]
        out = F.conv1d(x.T[None], state[f"{prefix}.weight"], state[f"{prefix}.bias"],
                       padding=dilation * (kernel - 1) // 2, dilation=dilation)
        return out[0].T
    if layer == "avg_pool3":
        return F.avg_pool1d(x.T[None], 3, stride=1, padding=1, count_include_pad=False)[0].T
    if layer == "max_pool3":
        return F.max_pool1d(x.T[None], 3, stride=1, padding=1)[0].T
    if layer == "bi_gru":
        gru = nn.GRU(width, width // 2, bidirectional=True, dtype=x.dtype)
        return torch.func.functional_call(gru, _part(state, prefix), (x,))[0]
    if layer in ("self_attn2", "self_attn4"):
        attention = nn.MultiheadAttention(width, int(layer[-1]), dtype=x.dtype)
        return torch.func.functional_call(attention, _part(state, prefix), (x, x, x),
                                          {"need_weights": False})[0]
    if layer == "target_attn":
        return torch.stack([activation_unit(state, f"{prefix}.attention", row, target) * row for row in x])
    raise ValueError(layer)


def behavior_blocks(state: dict, blocks: list[dict], h: Tensor, target: Tensor | None) -> Tensor:
    """Blocks over one row's ``h [T, D]``, ``T >= 1`` (section 2, equation 1)."""
    for l, block in enumerate(blocks):
        x = h
        if block["norm"] == "layer_norm" and block["layer"] != "zero":
            x = F.layer_norm(x, x.shape[1:], state[f"behavior.{l}.norm.weight"],
                             state[f"behavior.{l}.norm.bias"], eps=1e-5)
        out = apply_layer(block["layer"], state, f"behavior.{l}.{block['layer']}", x, target)
        h = activate(block["activation"], out) + h
    return h


def pool(state: dict, h: Tensor, target: Tensor | None) -> Tensor:
    """``h_a`` of one row: sum, last and, with a target, attention (zero for an empty history)."""
    parts = 2 if target is None else 3
    if h.shape[0] == 0:
        return h.new_zeros(parts * h.shape[1])
    out = [sum(h[i] for i in range(h.shape[0])), h[-1]]
    if target is not None:
        out.append(
            sum(activation_unit(state, "pool.attention", h[i], target) * h[i] for i in range(h.shape[0]))
        )
    return torch.cat(out)


def squeeze_excite(state: dict, q: Tensor) -> Tensor:
    """``h_se [K]`` of ``q [N+m, K]`` (section 2.7)."""
    v = F.linear(q, state["se.project.weight"])[:, 0]
    a = torch.sigmoid(
        F.linear(torch.relu(F.linear(v, state["se.squeeze.weight"])), state["se.excite.weight"])
    )
    return sum(a[i] * q[i] for i in range(q.shape[0]))


def dice(s: Tensor, alpha: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    p = torch.sigmoid((s - mean) / torch.sqrt(variance + 1e-8))
    return p * s + (1 - p) * alpha * s


# ---- one row's inputs ---------------------------------------------------------------------------


def field_embeddings(schema: dict, table: Tensor, batch, row: int) -> Tensor:
    """``e_b [N, K]`` of one row (9.1, 9.2)."""
    offsets = row_offsets(schema)
    multi = [i for i, f in enumerate(schema["fields"]) if f["kind"] == "multi_categorical"]
    out = []
    for i, field in enumerate(schema["fields"]):
        start = offsets[field["vocabulary"]]
        if i in multi:
            j = row * len(multi) + multi.index(i)
            ids = batch.bag_ids[int(batch.bag_offsets[j]):int(batch.bag_offsets[j + 1])].tolist()
            bag = [table[start + k] for k in ids]
            out.append(sum(bag) / len(bag) if bag else table.new_zeros(table.shape[1]))
        else:
            out.append(table[start + int(batch.fields[row, i])])
    return torch.stack(out) if out else table.new_zeros(0, table.shape[1])


def history_embeddings(schema: dict, table: Tensor, batch, row: int) -> Tensor:
    """``H_0 [T, D]`` of one row, oldest first."""
    offsets = row_offsets(schema)
    starts = [offsets[b["vocabulary"]] for b in schema["behavior"]]
    elements = batch.history[int(batch.history_offsets[row]):int(batch.history_offsets[row + 1])].tolist()
    if not elements:
        return table.new_zeros(0, len(starts) * table.shape[1])
    return torch.stack([torch.cat([table[s + k] for s, k in zip(starts, ids)]) for ids in elements])


def target_embedding(schema: dict, e_b: Tensor) -> Tensor | None:
    """``t [D]``, in the order of ``schema["target"]``; ``None`` without a target."""
    if not schema.get("target"):
        return None
    names = [f["name"] for f in schema["fields"]]
    return torch.cat([e_b[names.index(n)] for n in schema["target"]])


def row_features(schema: dict, arch: dict, state: dict, batch, row: int) -> tuple[Tensor, Tensor, Tensor]:
    """``h_a``, ``e_b [N, K]`` and ``p_b [m, K]`` of one row."""
    table = state["embedding.weight"]
    e_b = field_embeddings(schema, table, batch, row)
    h_a = table.new_zeros(0)
    if schema["behavior"]:
        t = target_embedding(schema, e_b)
        h = history_embeddings(schema, table, batch, row)
        if h.shape[0]:
            h = behavior_blocks(state, arch["behavior"], h, t)
        h_a = pool(state, h, t)
    products = []
    for fields in arch["interactions"]:
        product = e_b[fields[0]]
        for i in fields[1:]:
            product = product * e_b[i]
        products.append(product)
    p_b = torch.stack(products) if products else table.new_zeros(0, table.shape[1])
    return h_a, e_b, p_b


# ---- whole models -------------------------------------------------------------------------------


def _mlp(
    arch: dict, state: dict, rows: list[Tensor], batch_statistics: bool, seen: dict | None
) -> list[Tensor]:
    for l, layer in enumerate(arch["mlp"]):
        s = [F.linear(h, state[f"mlp.{l}.weight"], state[f"mlp.{l}.bias"]) for h in rows]
        if layer["activation"] != "dice":
            rows = [activate(layer["activation"], v) for v in s]
            continue
        if batch_statistics:
            stacked = torch.stack(s)
            mean, variance = stacked.mean(0), stacked.var(0, unbiased=False)
        else:
            mean, variance = state[f"mlp.{l}.dice.running_mean"], state[f"mlp.{l}.dice.running_var"]
        if seen is not None:
            seen[l] = (mean.detach(), variance.detach())
        rows = [dice(v, state[f"mlp.{l}.dice.alpha"], mean, variance) for v in s]
    return rows


def model_representation(schema: dict, arch: dict, state: dict, batch, *, batch_statistics: bool,
                         seen: dict | None = None) -> Tensor:
    """``h_c [B, ·]``. ``seen`` receives ``{layer: (mean, variance)}`` of the Dice layers."""
    features = [row_features(schema, arch, state, batch, b) for b in range(batch.fields.shape[0])]
    if not features:
        last = mlp_widths(schema, arch, state["embedding.weight"].shape[1])[-1]
        extra = state["embedding.weight"].shape[1] if has_se(schema, arch) else 0
        return state["embedding.weight"].new_zeros(0, last + extra)
    hidden = [torch.cat([h_a, e_b.flatten(), p_b.flatten()]) for h_a, e_b, p_b in features]
    hidden = _mlp(arch, state, hidden, batch_statistics, seen)
    if has_se(schema, arch):
        hidden = [torch.cat([h, squeeze_excite(state, torch.cat([e_b, p_b]))])
                  for h, (_, e_b, p_b) in zip(hidden, features)]
    return torch.stack(hidden)


def _head(schema: dict, weight: Tensor, bias: Tensor | None, table: Tensor, h_c: Tensor, items) -> Tensor:
    if schema["task"] == "ctr":
        return torch.stack([F.linear(h, weight, bias)[0] for h in h_c]) if len(h_c) else h_c.new_zeros(0)
    vocabulary = item_vocabulary(schema)
    start = row_offsets(schema)[vocabulary]
    size = next(v["size"] for v in schema["vocabularies"] if v["name"] == vocabulary)
    wanted = [range(size)] * len(h_c) if items is None else items.tolist()
    scores = [torch.stack([table[start + i] @ (weight @ h) for i in ids]) for h, ids in zip(h_c, wanted)]
    return torch.stack(scores) if scores else h_c.new_zeros(0, size if items is None else items.shape[1])


def model_output(schema: dict, arch: dict, state: dict, batch, *, items=None, batch_statistics: bool = False,
                 seen: dict | None = None) -> Tensor:
    """Logits ``[B]`` (ctr), scores ``[B, V]`` or ``[B, n]`` for ``items [B, n]`` (retrieval)."""
    h_c = model_representation(schema, arch, state, batch, batch_statistics=batch_statistics, seen=seen)
    return _head(schema, state["head.weight"], state.get("head.bias"), state["embedding.weight"], h_c, items)


def child_state(schema: dict, arch: dict, embedding_dim: int, super_state: dict) -> dict:
    """The Model state dict that an architecture reads from a Supernet's (9.14, 9.15, 9.18, 9.21).

    Differentiable with respect to the Supernet's weights. Dice statistics are a fresh 0 and 1.
    """
    shapes = model_shapes(schema, arch, embedding_dim)
    out = {}
    for name, shape in shapes.items():
        if is_buffer(name):
            fill = torch.zeros if name.endswith("mean") else torch.ones
            out[name] = fill(shape, dtype=super_state["embedding.weight"].dtype)
        elif is_step1(arch) and name.split(".")[0] in ("mlp", "head"):
            out[name] = super_state["step1." + name]
        elif name == "head.weight":
            width = mlp_widths(schema, arch, embedding_dim)[-1]
            whole = super_state[name]
            out[name] = whole[:, :width]
            if has_se(schema, arch):
                out[name] = torch.cat([out[name], whole[:, whole.shape[1] - embedding_dim:]], dim=1)
        elif name.split(".")[0] in ("mlp", "se"):
            out[name] = super_state[name][tuple(slice(0, n) for n in shape)]
        else:
            out[name] = super_state[name]
    return out


def supernet_output(
    schema: dict, arch: dict, embedding_dim: int, super_state: dict, batch, *, items=None
) -> Tensor:
    """``net(batch, arch)``: the child's function with Dice on the statistics of the batch at hand."""
    child = child_state(schema, arch, embedding_dim, super_state)
    return model_output(schema, arch, child, batch, items=items, batch_statistics=True)


def step1_output(schema: dict, blocks: list[dict], super_state: dict, batch, *, items=None) -> Tensor:
    """Section 4 step 1 and 9.18, from ``step1.*`` directly: ``[h_a, e_b]``, ReLU twice, linear."""
    arch, hidden = {"behavior": blocks, "interactions": []}, []
    for b in range(batch.fields.shape[0]):
        h_a, e_b, _ = row_features(schema, arch, super_state, batch, b)
        h = torch.cat([h_a, e_b.flatten()])
        for l in (0, 1):
            h = torch.relu(
                F.linear(h, super_state[f"step1.mlp.{l}.weight"], super_state[f"step1.mlp.{l}.bias"])
            )
        hidden.append(h)
    table = super_state["embedding.weight"]
    h_c = torch.stack(hidden) if hidden else table.new_zeros(0, FIXED_MLP[1])
    return _head(
        schema, super_state["step1.head.weight"], super_state.get("step1.head.bias"), table, h_c, items
    )


def step2_output(schema: dict, interaction: tuple | None, super_state: dict, batch, *, items=None) -> Tensor:
    """Section 4 step 2 and 9.18: first hidden ``ReLU(Σ W_i e_i + W_p p + b)``, no behaviour, no SE."""
    table, hidden = super_state["embedding.weight"], []
    K = table.shape[1]
    for b in range(batch.fields.shape[0]):
        e_b = field_embeddings(schema, table, batch, b)
        s = super_state["step2.mlp.0.bias"]
        for i in range(e_b.shape[0]):
            s = s + super_state["step2.fields.weight"][:, i * K:(i + 1) * K] @ e_b[i]
        if interaction is not None:
            product = torch.ones_like(e_b[0])
            for i in interaction:
                product = product * e_b[i]
            name = "_".join(str(i) for i in sorted(interaction))
            s = s + super_state[f"step2.interactions.{name}.weight"] @ product
        h = torch.relu(s)
        h = torch.relu(F.linear(h, super_state["step2.mlp.1.weight"], super_state["step2.mlp.1.bias"]))
        hidden.append(h)
    h_c = torch.stack(hidden) if hidden else table.new_zeros(0, FIXED_MLP[1])
    return _head(
        schema, super_state["step2.head.weight"], super_state.get("step2.head.bias"), table, h_c, items
    )


def dice_statistics(schema: dict, arch: dict, state: dict, batches: list) -> dict[str, Tensor]:
    """New running statistics, exact over all rows of all batches, layer by layer (9.13).

    Two plain passes for each Dice layer over every row; lower layers already use their new statistics.
    """
    state = dict(state)
    for l, layer in enumerate(arch["mlp"]):
        if layer["activation"] != "dice":
            continue
        below = {**arch, "mlp": arch["mlp"][:l]}
        rows = []
        for batch in batches:
            for b in range(batch.fields.shape[0]):
                h_a, e_b, p_b = row_features(schema, arch, state, batch, b)
                h = torch.cat([h_a, e_b.flatten(), p_b.flatten()])
                h = _mlp(below, state, [h], False, None)[0]
                rows.append(F.linear(h, state[f"mlp.{l}.weight"], state[f"mlp.{l}.bias"]))
        s = torch.stack(rows)
        state[f"mlp.{l}.dice.running_mean"] = s.mean(0)
        state[f"mlp.{l}.dice.running_var"] = s.var(0, unbiased=False)
    return {k: v for k, v in state.items() if is_buffer(k)}


# ---- losses -------------------------------------------------------------------------------------


def ctr_loss(logit: Tensor, label: Tensor) -> Tensor:
    """Binary log loss, mean over rows."""
    p = torch.sigmoid(logit)
    return -(label * torch.log(p) + (1 - label) * torch.log(1 - p)).mean()


def retrieval_loss(positive: Tensor, negatives: Tensor) -> Tensor:
    """Section 9.17 for ``positive [B]`` and ``negatives [B, n]``: mean over rows of a sum over negatives."""
    rows = [-torch.log(torch.sigmoid(s)) - sum(torch.log(1 - torch.sigmoid(x)) for x in n)
            for s, n in zip(positive, negatives)]
    return sum(rows) / len(rows)


# ---- the sequence part once more, padded and masked ---------------------------------------------


def padded_behavior(
    state: dict, blocks: list[dict], h: Tensor, mask: Tensor, target: Tensor | None
) -> Tensor:
    """``h_a [B, ·]`` from ``h [B, T, D]`` (anything where ``mask [B, T]`` is false), ``target [B, D]``."""
    lengths = mask.sum(1)
    for l, block in enumerate(blocks):
        layer, prefix = block["layer"], f"behavior.{l}.{block['layer']}"
        if layer == "zero":
            continue
        x = h
        if block["norm"] == "layer_norm":
            x = F.layer_norm(x, x.shape[2:], state[f"behavior.{l}.norm.weight"],
                             state[f"behavior.{l}.norm.bias"], eps=1e-5)
        x = x.masked_fill(~mask[..., None], 0.0)
        h = activate(block["activation"], _padded_layer(layer, state, prefix, x, mask, lengths, target)) + h
        h = h.masked_fill(~mask[..., None], 0.0)
    h = h.masked_fill(~mask[..., None], 0.0)
    width = h.shape[2]
    if h.shape[1] == 0:
        last = h.new_zeros(h.shape[0], width)
    else:
        last = h.gather(1, (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, width))[:, 0]
    parts = [h.sum(1), last * (lengths > 0)[:, None]]
    if target is not None:
        parts.append((_padded_unit(state, "pool.attention", h, target) * mask).unsqueeze(1).bmm(h)[:, 0])
    return torch.cat(parts, dim=1)


def _padded_unit(state: dict, prefix: str, x: Tensor, target: Tensor) -> Tensor:
    t = target[:, None].expand_as(x)
    hidden = F.linear(torch.cat([x, t, x - t, x * t], dim=2), state[f"{prefix}.0.weight"],
                      state[f"{prefix}.0.bias"])
    hidden = torch.where(hidden > 0, hidden, state[f"{prefix}.prelu.weight"] * hidden)
    return F.linear(hidden, state[f"{prefix}.1.weight"], state[f"{prefix}.1.bias"])[..., 0]


def _padded_layer(layer, state, prefix, x, mask, lengths, target):
    B, T, D = x.shape
    if T == 0:
        return x
    if layer in CONVOLUTIONS:
        kernel, dilation = CONVOLUTIONS[layer]
        return F.conv1d(x.transpose(1, 2), state[f"{prefix}.weight"], state[f"{prefix}.bias"],
                        padding=dilation * (kernel - 1) // 2, dilation=dilation).transpose(1, 2)
    if layer in ("avg_pool3", "max_pool3"):
        fill = 0.0 if layer == "avg_pool3" else -torch.inf
        edge = x.new_full((B, 1, D), fill)
        inner = x.masked_fill(~mask[..., None], fill)
        around = torch.stack([torch.cat([edge, inner[:, :-1]], 1), inner, torch.cat([inner[:, 1:], edge], 1)])
        if layer == "max_pool3":
            return around.amax(0).masked_fill(~mask[..., None], 0.0)
        there = F.pad(mask.to(x.dtype), (1, 1))
        count = there[:, :-2] + there[:, 1:-1] + there[:, 2:]
        return around.sum(0) / count.clamp(min=1)[..., None]
    if layer == "bi_gru":
        out = torch.zeros_like(x)
        some = lengths > 0
        if bool(some.any()):
            gru = nn.GRU(D, D // 2, bidirectional=True, batch_first=True, dtype=x.dtype)
            packed = nn.utils.rnn.pack_padded_sequence(x[some], lengths[some], batch_first=True,
                                                       enforce_sorted=False)
            ran = torch.func.functional_call(gru, _part(state, prefix), (packed,))[0]
            ran = nn.utils.rnn.pad_packed_sequence(ran, batch_first=True, total_length=T)[0]
            out = out.index_put((some.nonzero()[:, 0],), ran)
        return out
    if layer in ("self_attn2", "self_attn4"):
        heads = int(layer[-1])
        qkv = F.linear(x, state[f"{prefix}.in_proj_weight"], state[f"{prefix}.in_proj_bias"])
        q, k, v = (part.view(B, T, heads, D // heads).transpose(1, 2) for part in qkv.chunk(3, dim=2))
        scores = q @ k.transpose(2, 3) / (D // heads) ** 0.5
        # a row without elements would be a softmax over nothing; its output is dropped by the caller
        keys = mask | (lengths == 0)[:, None]
        weights = scores.masked_fill(~keys[:, None, None, :], -torch.inf).softmax(-1)
        return F.linear((weights @ v).transpose(1, 2).reshape(B, T, D), state[f"{prefix}.out_proj.weight"],
                        state[f"{prefix}.out_proj.bias"])
    if layer == "target_attn":
        return _padded_unit(state, f"{prefix}.attention", x, target)[..., None] * x
    raise ValueError(layer)


def padded_representation(
    schema: dict, arch: dict, state: dict, batch, padded: Tensor, mask: Tensor
) -> Tensor:
    """``h_a [B, ·]`` from ``batch.to_padded()``'s ids."""
    table, offsets = state["embedding.weight"], row_offsets(schema)
    starts = torch.tensor([offsets[b["vocabulary"]] for b in schema["behavior"]])
    h = table[(padded + starts).long()].flatten(2)
    rows = range(batch.fields.shape[0])
    target = None
    if schema.get("target"):
        target = torch.stack(
            [target_embedding(schema, field_embeddings(schema, table, batch, b)) for b in rows]
        )
    return padded_behavior(state, arch["behavior"], h, mask, target)
