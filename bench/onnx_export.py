"""A derived model as an ONNX graph of standard operations, for ONNX Runtime as a peer.

Written node by node, since exporters know neither jagged batches nor our operations, and the peer shall get the best
graph: histories padded to the longest, GRUs as one node that knows the lengths, convolutions and pools as such. With
``lengths=False`` all histories are taken to be full and nothing is masked.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..model import Model, ModelWeights
from ..space.choices import LAYERS

OPSET = 20


def export(model: Model, lengths: bool) -> onnx.ModelProto:
    """Inputs ``fields`` int32 [B, N], ``history`` int32 [B, T, N_a] and, if ``lengths``, ``lengths`` int32 [B] (at least
    1); output ``logit`` [B]. For CTR models without multi-categorical fields."""
    schema = model.schema
    if schema.task != "ctr" or schema.multi_fields:
        raise NotImplementedError("only CTR models without multi-categorical fields are exported")
    return _Graph(model, lengths and schema.num_behavior > 0).build()


class _Graph:
    def __init__(self, model: Model, masked: bool):
        self.model, self.schema, self.weights, self.masked = model, model.schema, ModelWeights(model), masked
        self.k = model.embedding_dim
        self.d = self.schema.num_behavior * self.k
        self.nodes: list = []
        self.constants: dict[str, np.ndarray] = {}

    # ---- pieces ----------------------------------------------------------------------------------------

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes):
        names = [f"{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, value) -> str:
        value = value.detach().numpy() if hasattr(value, "detach") else np.asarray(value)
        name = f"c{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(value)
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def linear(self, x: str, weight, bias=None) -> str:
        """On the last dimension of x of any rank."""
        y = self.op("MatMul", x, self.constant(weight.detach().t()))
        return y if bias is None else self.op("Add", y, self.constant(bias))

    def activate(self, name: str, x: str) -> str:
        if name == "swish":
            return self.op("Mul", x, self.op("Sigmoid", x))
        return {"relu": lambda: self.op("Relu", x), "gelu": lambda: self.op("Gelu", x), "identity": lambda: x}[name]()

    def keep(self, x: str) -> str:
        """Zeros beyond the true lengths of x [B, T, D]."""
        return self.op("Mul", x, self.mask) if self.masked else x

    # ---- the network -----------------------------------------------------------------------------------

    def build(self) -> onnx.ModelProto:
        schema, arch = self.schema, self.model.arch
        inputs = [helper.make_tensor_value_info("fields", TensorProto.INT32, ["B", schema.num_fields])]
        self.table = self.constant(self.model.embedding.weight)
        e = self.op("Gather", self.table, self.op("Add", "fields", self.constant(np.array(schema.field_offsets, np.int32))))
        parts = []
        if schema.num_behavior:
            inputs.append(helper.make_tensor_value_info("history", TensorProto.INT32, ["B", "T", schema.num_behavior]))
            if self.masked:
                inputs.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]))
            parts.append(self.behavior(e))
        columns = [e]
        for fields in arch.interactions:
            one = [self.op("Gather", e, self.ints(f), axis=1) for f in fields]
            p = one[0]
            for other in one[1:]:
                p = self.op("Mul", p, other)
            columns.append(p)
        q = self.op("Concat", *columns, axis=1) if len(columns) > 1 else e
        parts.append(self.op("Reshape", q, self.ints(0, -1)))
        x = self.op("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
        for index, layer in enumerate(arch.mlp):
            unit = self.model.mlp[str(index)]
            x = self.op("Gemm", x, self.constant(unit.weight), self.constant(unit.bias), transB=1)
            x = self.dice(x, unit.dice) if layer.activation == "dice" else self.activate(layer.activation, x)
        if hasattr(self.model, "se"):
            x = self.op("Concat", x, self.squeeze_excite(q), axis=1)
        head = self.model.head
        y = self.op("Gemm", x, self.constant(head.weight), self.constant(head.bias), transB=1)
        self.nodes.append(helper.make_node("Squeeze", [y, self.ints(1)], ["logit"]))
        out = helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["B"])
        graph = helper.make_graph(self.nodes, "model", inputs, [out],
                                  [numpy_helper.from_array(v, n) for n, v in self.constants.items()])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
        onnx.checker.check_model(model)
        return model

    def dice(self, s: str, dice) -> str:
        scale = 1 / np.sqrt(dice.running_var.numpy().astype(np.float64) + 1e-8)
        shift = -dice.running_mean.numpy() * scale
        p = self.op("Sigmoid", self.op("Add", self.op("Mul", s, self.constant(scale.astype(np.float32))),
                                       self.constant(shift.astype(np.float32))))
        alpha = dice.alpha.detach().numpy()
        return self.op("Mul", s, self.op("Add", self.op("Mul", p, self.constant(1 - alpha)), self.constant(alpha)))

    def squeeze_excite(self, q: str) -> str:
        se = self.model.se
        z = self.op("Squeeze", self.linear(q, se.project.weight), self.ints(2))
        a = self.op("Sigmoid", self.linear(self.op("Relu", self.linear(z, se.squeeze.weight)), se.excite.weight))
        mixed = self.op("MatMul", self.op("Unsqueeze", a, self.ints(1)), q)
        return self.op("Squeeze", mixed, self.ints(1))

    def behavior(self, e: str) -> str:
        schema = self.schema
        ids = self.op("Add", "history", self.constant(np.array(schema.behavior_offsets, np.int32)))
        x = self.op("Reshape", self.op("Gather", self.table, ids), self.ints(0, 0, self.d))
        if self.masked:
            longest = self.op("Gather", self.op("Shape", "history"), self.constant(np.int64(1)))
            steps = self.op("Range", self.constant(np.int32(0)), self.op("Cast", longest, to=TensorProto.INT32),
                            self.constant(np.int32(1)))
            self.there = self.op("Less", steps, self.op("Unsqueeze", "lengths", self.ints(1)))  # [B, T]
            self.mask = self.op("Unsqueeze", self.op("Cast", self.there, to=TensorProto.FLOAT), self.ints(2))
            x = self.keep(x)
        target = None
        if schema.target:
            t = self.op("Gather", e, self.ints(*schema.target_positions), axis=1)
            target = self.op("Reshape", t, self.ints(0, 1, self.d))
        for index, block in enumerate(self.model.arch.behavior):
            if block.layer != "zero":
                x = self.block(index, block, x, target)
        parts = [self.op("ReduceSum", x, self.ints(1), keepdims=0), self.last(x)]
        if target:
            a = self.unit(x, target, self.weights.pool_attention())
            mixed = self.op("MatMul", self.op("Transpose", a, perm=[0, 2, 1]), x)
            parts.append(self.op("Squeeze", mixed, self.ints(1)))
        return self.op("Concat", *parts, axis=1)

    def last(self, x: str) -> str:
        if not self.masked:
            return self.op("Squeeze", self.op("Slice", x, self.ints(-1), self.ints(2**62), self.ints(1)), self.ints(1))
        place = self.op("Cast", self.op("Sub", "lengths", self.constant(np.int32(1))), to=TensorProto.INT64)
        return self.op("GatherND", x, self.op("Unsqueeze", place, self.ints(1)), batch_dims=1)

    def unit(self, x: str, target: str, weights) -> str:
        """The local activation unit [B, T, 1], its first layer split by input as in the reference."""
        w0, b0, slope, w1, b1 = weights
        wx, wt, wd, wp = w0.detach().split(self.d, dim=1)
        hidden = self.op("Add", self.op("Add", self.linear(x, wx + wd, b0), self.linear(target, wt - wd)),
                         self.linear(self.op("Mul", x, target), wp))
        return self.linear(self.op("PRelu", hidden, self.constant(slope)), w1, b1)

    def block(self, index: int, block, x: str, target: str | None) -> str:
        n = x
        if block.norm == "layer_norm":
            gain, shift = self.weights.norm(index)
            n = self.keep(self.op("LayerNormalization", x, self.constant(gain), self.constant(shift), axis=-1,
                                  epsilon=1e-5))
        weights = self.weights.layer(index, block.layer)
        layer = LAYERS[block.layer]
        if layer.kernel:
            pad = layer.dilation * (layer.kernel - 1) // 2
            y = self.sideways(n, lambda c: self.op("Conv", c, *map(self.constant, weights), kernel_shape=[layer.kernel],
                                                   dilations=[layer.dilation], pads=[pad, pad]))
        elif block.layer == "avg_pool3":
            y = self.average(n)
        elif block.layer == "max_pool3":
            if self.masked:
                n = self.op("Where", self.op("Unsqueeze", self.there, self.ints(2)), n, self.number(-3e38))
            y = self.sideways(n, lambda c: self.op("MaxPool", c, kernel_shape=[3], pads=[1, 1], strides=[1]))
        elif block.layer == "bi_gru":
            y = self.gru(n, weights)
        elif block.layer == "target_attn":
            y = self.op("Mul", self.unit(n, target, weights), n)
        else:
            y = self.attention(n, weights, layer.divisor)
        return self.keep(self.op("Add", x, self.activate(block.activation, y)))

    def sideways(self, x: str, inner) -> str:
        """inner on [B, D, T]."""
        return self.op("Transpose", inner(self.op("Transpose", x, perm=[0, 2, 1])), perm=[0, 2, 1])

    def average(self, x: str) -> str:
        def window(c: str, include: int) -> str:
            return self.op("AveragePool", c, kernel_shape=[3], pads=[1, 1], strides=[1], count_include_pad=include)
        if not self.masked:
            return self.sideways(x, lambda c: window(c, 0))
        share = self.sideways(self.mask, lambda c: window(c, 1))
        share = self.op("Max", share, self.number(1e-30))  # 0 / 0 beyond the end
        return self.op("Div", self.sideways(x, lambda c: window(c, 1)), share)

    def gru(self, x: str, weights) -> str:
        half = self.d // 2

        def turn(w) -> np.ndarray:  # r, z, n to ONNX's z, r, n
            r, z, n = w.detach().numpy().reshape(3, half, -1)
            return np.concatenate([z, r, n])

        w, r = (np.stack([turn(weights[4 * way + i]) for way in range(2)]) for i in range(2))
        b = np.stack([np.concatenate([turn(weights[4 * way + 2]), turn(weights[4 * way + 3])])[:, 0] for way in range(2)])
        y, _ = self.op("GRU", self.op("Transpose", x, perm=[1, 0, 2]), self.constant(w), self.constant(r),
                       self.constant(b), "lengths" if self.masked else "", outputs=2, hidden_size=half,
                       direction="bidirectional", linear_before_reset=1)
        return self.op("Reshape", self.op("Transpose", y, perm=[2, 0, 1, 3]), self.ints(0, 0, self.d))

    def attention(self, x: str, weights, heads: int) -> str:
        in_weight, in_bias, out_weight, out_bias = weights
        width = self.d // heads
        qkv = self.op("Reshape", self.linear(x, in_weight, in_bias), self.ints(0, 0, 3, heads, width))
        q, k, v = (self.op("Squeeze", one, self.ints(2))
                   for one in self.op("Split", qkv, outputs=3, axis=2, num_outputs=3))
        q, v = (self.op("Transpose", one, perm=[0, 2, 1, 3]) for one in (q, v))
        k = self.op("Transpose", k, perm=[0, 2, 3, 1])
        scores = self.op("MatMul", self.op("Mul", q, self.number(1 / math.sqrt(width))), k)
        if self.masked:
            there = self.op("Unsqueeze", self.there, self.ints(1, 2))
            scores = self.op("Where", there, scores, self.number(-3e38))
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)
        mixed = self.op("Reshape", self.op("Transpose", mixed, perm=[0, 2, 1, 3]), self.ints(0, 0, self.d))
        return self.linear(mixed, out_weight, out_bias)
