"""The operation sets. A new operation starts with a line here (see CONTRIBUTING, "Adding an operation")."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """What a layer asks of the data: a behaviour width divisible by ``divisor``, a target."""

    divisor: int = 1
    needs_target: bool = False
    kernel: int = 0      # convolutions: taps
    dilation: int = 1


NORMS = ("layer_norm", "none")
LAYERS = {
    "conv1": Layer(kernel=1),
    "conv3": Layer(kernel=3),
    "dconv3": Layer(kernel=3, dilation=2),
    "dconv5": Layer(kernel=5, dilation=2),
    "dconv7": Layer(kernel=7, dilation=2),
    "avg_pool3": Layer(),
    "max_pool3": Layer(),
    "bi_gru": Layer(divisor=2),
    "self_attn2": Layer(divisor=2),
    "self_attn4": Layer(divisor=4),
    "target_attn": Layer(needs_target=True),
    "zero": Layer(),
}
ACTIVATIONS = ("relu", "gelu", "swish", "identity")
RATIOS = tuple(t / 10 for t in range(1, 11))
MLP_ACTIVATIONS = ("relu", "swish", "identity", "dice")
SHORTCUTS = ("se", "none")
#: Of the MLP by hand: relu, or in retrieval identity, by which users' vectors stay in the space of the items.
FIXED_ACTIVATIONS = ("relu", "identity")


def width(ratio: float, k0: int) -> int:
    """Units of an MLP layer: ``ratio`` of K0 rounded half up, at least 1 (integers, no banker's rounding)."""
    tenths = round(ratio * 10)
    return max(1, (tenths * k0 + 5) // 10)
