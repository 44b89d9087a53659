"""mlp_population: logits of many children's MLPs over one first pre-activation z_0 (inference only).

Every width is a prefix, so children that begin alike share the beginning, and of one activation all widths are stops
of one running sum:

    z_1 = b + Σ_{i < n_0} W[:, i] act(z_0)_i      kept at each n_0 that some child has
    logit = common + Σ_{i < n_1} head_i act(z_1)_i      likewise

``next_layer``: a program has the running sum of some outputs and samples for one activation of one node (a
pre-activation), adds the slice of inputs between two stops, stores, and goes on. ``logits``: a program has four running
sums, one an activation, of one node and some samples, and reads the node unit after unit: from device memory (or L2)
for the first activation and from L1 for the others. A unit is a row of samples in memory, so that reading is coalesced
and no width is padded; children are tables of integers (``_population_tree``), made on the host when a list of children
is first seen.

In memory are the nodes of one chunk for each layer but the first, at most ``SCRATCH`` numbers (or one node), so that they
stay in the L2 cache; and of children and samples nothing but the logits. Statistics of Dice are those of all samples,
taken from the nodes as they lie (``_dice.statistics``): nothing is computed twice for them. Bytes for two layers, four
activations and widths n(t): 4 B Σ_t 4 n(t) each for making nodes, their statistics and the logits, and 4 B a child; 4 B
(K0² + 4 Σ_t n(t)) multiplications, and as many exponentials as units with swish or Dice.

``children`` is best on the CPU: on a device it has to be fetched, which waits for it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._dense import weight_block
from ._dice import statistics
from ._launch import Config, Kernel, Specimen, bucket
from ._population_tree import Chunk, Layer, tree
from ._precision import dot, precision

SCRATCH = 6 << 20  # numbers of a layer's nodes; with those of the layer below, about the L2 cache of a large device


@triton.jit
def dice_units(s, alpha, mean, scale):
    return s * (alpha + tl.sigmoid((s - mean) * scale) * (1.0 - alpha))


@triton.jit
def next_layer_kernel(out, s, weight, bias, alpha, mean, scale, branches, stops, samples, s_unit, s_sample, weight_row,
                      weight_column, outputs, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr,
                      BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr):
    """out[destination + o, sample] of every stop of a branch."""
    pid = tl.program_id(0)
    sample_tiles, output_tiles = tl.cdiv(samples, BLOCK_B), tl.cdiv(outputs, BLOCK_N)
    sample = (pid // output_tiles % sample_tiles).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    output = pid % output_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    at = branches + pid // (output_tiles * sample_tiles) * 5
    act, source = tl.load(at), tl.load(at + 1).to(tl.int64)
    most = tl.load(at + 4)
    present, wanted = sample < samples, output < most
    z = tl.zeros([BLOCK_N, BLOCK_B], tl.float32)
    shift = tl.load(bias + output, wanted, other=0.0)[:, None]
    begin = 0
    last = tl.load(at + 3)
    if pid % output_tiles * BLOCK_N >= most:
        last = 0
    for stop in range(tl.load(at + 2), last):
        end = tl.load(stops + stop * 3)
        for first in range(begin, end, BLOCK_C):
            unit = first + tl.arange(0, BLOCK_C)
            own = unit < end
            h = tl.load(s + (source + unit)[:, None] * s_unit + sample[None, :] * s_sample,
                        own[:, None] & present[None, :], other=0.0)
            if act == 0:
                h = tl.maximum(h, 0.0)
            if act == 1:
                h = h * tl.sigmoid(h)
            if alpha is not None:  # noqa: SIM102 (this is known when compiling, the next is not)
                if act == 3:
                    h = dice_units(h, tl.load(alpha + unit, own, other=0.0)[:, None],
                                   tl.load(mean + source + unit, own, other=0.0)[:, None],
                                   tl.load(scale + source + unit, own, other=0.0)[:, None])
            w = weight_block(weight, output, wanted, first, end, weight_row, weight_column, BLOCK_C)
            z += dot(w, h, PRECISION)
        begin = end
        row = tl.load(stops + stop * 3 + 1).to(tl.int64) + output
        tl.store(out + row[:, None] * samples + sample[None, :], z + shift,
                 (output < tl.load(stops + stop * 3 + 2))[:, None] & present[None, :])


@triton.jit
def add_units(total, s, sample, present, head, alpha, mean, scale, source, begin, end, s_unit, s_sample,
              ACT: tl.constexpr):
    """total + Σ of head · act(s) over units from ``begin`` to ``end``."""
    for unit in tl.range(begin, end, loop_unroll_factor=4):
        value = tl.load(s + (source + unit) * s_unit + sample * s_sample, present, other=0.0)
        if ACT == 0:
            value = tl.maximum(value, 0.0)
        elif ACT == 1:
            value = value * tl.sigmoid(value)
        elif ACT == 3:
            value = dice_units(value, tl.load(alpha + unit), tl.load(mean + source + unit),
                               tl.load(scale + source + unit))
        total += tl.load(head + unit) * value
    return total


@triton.jit
def store_logits(out, total, sample, present, outputs, segment, samples, ACT: tl.constexpr):
    """Running sum of an activation, for all children that stop here with it."""
    for i in range(tl.load(segment + 1 + ACT), tl.load(segment + 2 + ACT)):
        tl.store(out + tl.load(outputs + i).to(tl.int64) * samples + sample, total, present)


@triton.jit
def logits_kernel(out, s, head, common, alpha, mean, scale, nodes, segments, outputs, samples, s_unit, s_sample,
                  BLOCK_B: tl.constexpr):
    pid, sample_tiles = tl.program_id(0), tl.cdiv(samples, BLOCK_B)
    sample = (pid % sample_tiles).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    present = sample < samples
    at = nodes + pid // sample_tiles * 7
    source = tl.load(at).to(tl.int64)
    relu = tl.load(common + sample, present, other=0.0)
    swish, identity, dice = relu, relu, relu
    begin = 0
    for i in range(tl.load(at + 1), tl.load(at + 2)):
        segment = segments + i * 6
        end = tl.load(segment)
        if begin < tl.load(at + 3):
            relu = add_units(relu, s, sample, present, head, alpha, mean, scale, source, begin, end, s_unit, s_sample, 0)
            store_logits(out, relu, sample, present, outputs, segment, samples, 0)
        if begin < tl.load(at + 4):
            swish = add_units(swish, s, sample, present, head, alpha, mean, scale, source, begin, end, s_unit, s_sample,
                              1)
            store_logits(out, swish, sample, present, outputs, segment, samples, 1)
        if begin < tl.load(at + 5):
            identity = add_units(identity, s, sample, present, head, alpha, mean, scale, source, begin, end, s_unit,
                                 s_sample, 2)
            store_logits(out, identity, sample, present, outputs, segment, samples, 2)
        if alpha is not None:  # noqa: SIM102 (this is known when compiling, the next is not)
            if begin < tl.load(at + 6):
                dice = add_units(dice, s, sample, present, head, alpha, mean, scale, source, begin, end, s_unit,
                                 s_sample, 3)
                store_logits(out, dice, sample, present, outputs, segment, samples, 3)
        begin = end


_DICE = dict.fromkeys(("alpha", "mean", "scale"), "*fp32")
_NO_DICE = dict.fromkeys(("alpha", "mean", "scale"))

NEXT_LAYER = Kernel(
    next_layer_kernel, "forward",
    {**dict.fromkeys(("out", "s", "weight", "bias"), "*fp32"), **_DICE, "branches": "*i32", "stops": "*i32",
     **dict.fromkeys(("samples", "s_unit", "s_sample", "weight_row", "weight_column", "outputs"), "i32")},
    [Config(BLOCK_N=32, BLOCK_B=32, BLOCK_C=16), Config(BLOCK_N=32, BLOCK_B=64, BLOCK_C=16, num_warps=8),
     Config(BLOCK_N=32, BLOCK_B=64, BLOCK_C=16), Config(BLOCK_N=64, BLOCK_B=32, BLOCK_C=16)],
    [Specimen("first layer", {"s_unit": 1, "weight_column": 1, "PRECISION": "ieee"}),
     Specimen("later layer", {"s_sample": 1, "weight_column": 1, "PRECISION": "ieee"}),
     Specimen("later layer without Dice", {"s_sample": 1, "weight_column": 1, **_NO_DICE, "PRECISION": "ieee"})])
LOGITS = Kernel(
    logits_kernel, "forward",
    {**dict.fromkeys(("out", "s", "head", "common"), "*fp32"), **_DICE,
     **dict.fromkeys(("nodes", "segments", "outputs"), "*i32"),
     **dict.fromkeys(("samples", "s_unit", "s_sample"), "i32")},
    [Config(BLOCK_B=128, num_warps=4), Config(BLOCK_B=128, num_warps=2), Config(BLOCK_B=64, num_warps=1),
     Config(BLOCK_B=256, num_warps=4), Config(BLOCK_B=32, num_warps=1)],
    [Specimen("one layer", {"s_unit": 1}), Specimen("more layers", {"s_sample": 1}),
     Specimen("more layers without Dice", {"s_sample": 1, **_NO_DICE})], occupancy=0.5)


def _units(layer: Layer, z: Tensor, alpha: Tensor) -> dict[str, Tensor | None]:
    """What Dice needs of the units of ``z`` [B, rows]."""
    if not layer.dice:
        return _NO_DICE
    mean, variance = statistics(z[:, :layer.dice])
    return {"alpha": alpha, "mean": mean, "scale": (variance + 1e-8).rsqrt()}


def _next_layer(chunk: Chunk, z: Tensor, weight: Tensor, bias: Tensor, units: dict) -> Tensor:
    """[B, rows] of the chunk's nodes, a unit's samples side by side."""
    samples, branches = z.shape[0], chunk.branches.shape[0]
    out = z.new_empty(chunk.rows, samples)

    def grid(blocks):
        return (branches * triton.cdiv(samples, blocks["BLOCK_B"]) * triton.cdiv(chunk.outputs, blocks["BLOCK_N"]),)

    NEXT_LAYER(grid, bucket(branches, samples, chunk.outputs), out=out, s=z, weight=weight, bias=bias, **units,
               branches=chunk.branches, stops=chunk.stops, samples=samples, s_unit=z.stride(1), s_sample=z.stride(0),
               weight_row=weight.stride(0), weight_column=weight.stride(1), outputs=chunk.outputs,
               PRECISION=precision())
    return out.t()


def forward(x: Tensor, weights: list[Tensor], biases: list[Tensor], dice: list[Tensor], head: Tensor, common: Tensor,
            children: Tensor) -> Tensor:
    samples, layers = x.shape[0], len(dice)
    out = x.new_empty(children.shape[0], samples)
    if not out.numel():
        return out
    inputs = [w.shape[1] for w in weights] + [head.numel()]
    made = [x.shape[1]] + [min(w.shape[0], b.numel()) for w, b in zip(weights, biases, strict=True)]
    limits = tuple(min(made[i], inputs[i], dice[i].numel()) for i in range(layers))
    head, common = head.contiguous(), common.contiguous()
    biases, alphas = [b.contiguous() for b in biases], [a.contiguous() for a in dice]

    def visit(index: int, layer: Layer, z: Tensor) -> None:
        """What goes on from the nodes ``z`` [B, rows]."""
        units = _units(layer, z, alphas[index])
        for chunk in layer.chunks:
            visit(index + 1, chunk.next, _next_layer(chunk, z, weights[index], biases[index], units))
        if layer.heads is not None:
            count = layer.heads.nodes.shape[0]
            LOGITS(lambda c: (count * triton.cdiv(samples, c["BLOCK_B"]),), bucket(count, samples), out=out, s=z,
                   head=head, common=common, **units, nodes=layer.heads.nodes, segments=layer.heads.segments,
                   outputs=layer.heads.outputs, samples=samples, s_unit=z.stride(1), s_sample=z.stride(0))

    visit(0, tree(children, limits, SCRATCH // samples, x.device), x)
    return out
