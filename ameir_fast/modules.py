"""Parameter holders shared by ``Supernet`` and ``Model``.

They fix names, shapes and initial values (PyTorch's own where PyTorch has the layer); the computation is in
``forward`` and the operations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .space.choices import LAYERS

ATTENTION_HIDDEN = 36
EMBEDDING_STD = 0.01
# LayerNorm with gain 1 would lift embeddings of deviation 0.01 to unit variance, so that a block's branch
# swamps its residual; a small gain starts every block near the identity.
NORM_GAIN = 0.03


class LocalActivation(nn.Module):
    """DIN's local activation unit [x, t, x − t, x ⊙ t] → 36 → PReLU → 1. Keys ``attention.{0,prelu,1}``."""

    def __init__(self, width: int, dtype: torch.dtype | None = None):
        super().__init__()
        self.attention = nn.ModuleDict({
            "0": nn.Linear(4 * width, ATTENTION_HIDDEN, dtype=dtype),
            "prelu": nn.PReLU(dtype=dtype),
            "1": nn.Linear(ATTENTION_HIDDEN, 1, dtype=dtype),
        })

    def tensors(self) -> list[Tensor]:
        a = self.attention
        return [a["0"].weight, a["0"].bias, a["prelu"].weight, a["1"].weight, a["1"].bias]


def make_layer(name: str, width: int, dtype: torch.dtype | None = None) -> nn.Module | None:
    """The holder of a behaviour layer's weights; None for layers without any."""
    need = LAYERS[name]
    if need.kernel:
        return nn.Conv1d(width, width, need.kernel, dtype=dtype)
    if name == "bi_gru":
        return nn.GRU(width, width // 2, bidirectional=True, dtype=dtype)
    if name.startswith("self_attn"):
        return nn.MultiheadAttention(width, need.divisor, dtype=dtype)
    if name == "target_attn":
        return LocalActivation(width, dtype)
    return None


def layer_tensors(module: nn.Module | None) -> list[Tensor]:
    """The weights of a layer in the order that the operations take them."""
    if module is None:
        return []
    if isinstance(module, LocalActivation):
        return module.tensors()
    if isinstance(module, nn.MultiheadAttention):
        return [module.in_proj_weight, module.in_proj_bias, module.out_proj.weight, module.out_proj.bias]
    if isinstance(module, nn.GRU):
        return [getattr(module, f"{kind}_l0{end}") for end in ("", "_reverse")
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    return [module.weight, module.bias]


def make_norm(width: int, dtype: torch.dtype | None = None) -> nn.LayerNorm:
    norm = nn.LayerNorm(width, dtype=dtype)
    nn.init.constant_(norm.weight, NORM_GAIN)
    return norm


def make_embedding(rows: int, width: int, dtype: torch.dtype | None = None) -> nn.Embedding:
    embedding = nn.Embedding(rows, width, dtype=dtype)
    nn.init.normal_(embedding.weight, std=EMBEDDING_STD)
    return embedding


class Dice(nn.Module):
    """α per unit and the running statistics that inference uses."""

    def __init__(self, width: int, dtype: torch.dtype | None = None):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(width, dtype=dtype))
        self.register_buffer("running_mean", torch.zeros(width, dtype=dtype))
        self.register_buffer("running_var", torch.ones(width, dtype=dtype))

    def stacked(self) -> Tensor:
        """[3, n]: alpha, mean, variance, the form of fixed statistics."""
        return torch.stack([self.alpha, self.running_mean, self.running_var])


class MlpUnit(nn.Linear):
    """A linear layer with a ``dice`` child where it is needed."""

    def __init__(self, inputs: int, outputs: int, dice: bool, dtype: torch.dtype | None = None):
        super().__init__(inputs, outputs, dtype=dtype)
        if dice:
            self.dice = Dice(outputs, dtype)


class SqueezeExcite(nn.Module):
    """v [1, K], W1 [S, n], W2 [n, S] with S = max(1, n // 2), no biases."""

    def __init__(self, inputs: int, width: int, dtype: torch.dtype | None = None):
        super().__init__()
        hidden = max(1, inputs // 2)
        self.project = nn.Linear(width, 1, bias=False, dtype=dtype)
        self.squeeze = nn.Linear(inputs, hidden, bias=False, dtype=dtype)
        self.excite = nn.Linear(hidden, inputs, bias=False, dtype=dtype)


@torch.no_grad()
def start_at_items(layers: Sequence[nn.Linear], head: nn.Linear, start: int, scale: float) -> None:
    """Weights with which an MLP and a retrieval head [K, width] pass K of the inputs through: the user's vector is
    ``scale`` times inputs ``start`` to ``start + K``.

    Units come in pairs that carry x and −x, for relu(x) − relu(−x) = x, and the same holds of swish (identity doubles x at
    each layer). A leading slice of a layer keeps whole pairs, but for the last unit of an odd one, so this serves slices of
    the supernet's matrices too. A layer of fewer than 2 K units passes as many inputs as fit; units beyond the pairs start
    as they are."""
    pairs = min(head.out_features, *(layer.out_features // 2 for layer in layers))
    i = torch.arange(pairs)
    for index, layer in enumerate(layers):
        layer.weight[:2 * pairs] = 0
        layer.bias[:2 * pairs] = 0
        plus, minus = (start + i, None) if index == 0 else (2 * i, 2 * i + 1)
        layer.weight[2 * i, plus] = 1
        layer.weight[2 * i + 1, plus] = -1
        if minus is not None:
            layer.weight[2 * i, minus] = -1
            layer.weight[2 * i + 1, minus] = 1
    head.weight.zero_()
    head.weight[i, 2 * i] = scale
    head.weight[i, 2 * i + 1] = -scale


def attribute_tree(**children: nn.Module) -> nn.Module:
    """A module that only groups others under their names."""
    tree = nn.Module()
    for name, child in children.items():
        tree.add_module(name, child)
    return tree
