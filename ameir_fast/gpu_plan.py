"""GpuPlan: a derived model on a GPU, its launches captured into CUDA graphs."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from . import forward, ops
from .batch import Batch, _check_offsets
from .errors import InputError
from .forward import Inputs, Items, item_scores
from .model import Model, ModelWeights
from .plan import _checked, candidates_columns, check_items
from .storage import save_module

LARGEST = 65536  # rows of one graph; larger batches go in parts
GRAPHS = 32      # most graphs that are kept, those used last
_ANY = 2**31 - 1
_capturing = threading.Lock()  # PyTorch allows one capture at a time in a process


class GpuPlan:
    """``model`` as it is now, for inference on a GPU; later changes of the model do not reach it.

    ``plan(batch)`` gives what ``model(batch)`` gives in eval mode, on the batch's own device. Sizes of batches are rounded up
    to buckets: a graph for each is captured at its first batch, with static buffers, and replayed from then on (a batch on
    the CPU is one copy to the device and one back). Ids are checked on the device, as they are looked up. A plan may be
    called from several threads; one at a time computes.

    Args:
        model: on any device.
        device: the GPU.
        graphs: most graphs to keep; 0 launches kernel by kernel.

    Raises:
        RuntimeError: there is no such GPU, or no Triton kernels for it; the message says why.
    """

    dtype = "float32"

    def __init__(self, model: Model, device: str | torch.device = "cuda", graphs: int = GRAPHS):
        self.device = torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("plans for GPUs need one: no CUDA device is available (ameir-fast doctor says why)")
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        for name, op in ops.OPS.items():
            if op.differentiable:
                ops.resolve(name, "triton", self.device)
        self._model = copy.deepcopy(model).float().eval().requires_grad_(False).to(self.device)
        self._model.backend = "triton"
        self.schema, self.arch = model.schema, model.arch
        self.graphs = graphs
        self._weights = ModelWeights(self._model)
        self._outputs = self._model.head.out_features
        self._ctr = self.schema.task == "ctr"
        schema = self.schema
        table = lambda values, dtype: torch.tensor(values, dtype=dtype, device=self.device)
        multi = set(schema.multi_fields)  # whose columns nobody reads
        self._field_sizes = table([_ANY if i in multi else n for i, n in enumerate(schema.field_sizes)], torch.int32)
        self._field_offsets = table(schema.field_offsets, torch.int64)
        self._behavior_sizes = table(schema.behavior_sizes, torch.int32)
        self._behavior_offsets = table(schema.behavior_offsets, torch.int64)
        self._targets = table(schema.target_positions, torch.int64)
        self._bag_sizes = table([schema.field_sizes[i] for i in schema.multi_fields], torch.int32)
        self._bag_starts = table([schema.field_offsets[i] for i in schema.multi_fields], torch.int64)
        self._lock = threading.Lock()
        self._states: OrderedDict[tuple, _State] = OrderedDict()
        self._pool = None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # calls come from other threads and streams

    def __call__(self, batch: Batch, items: Items = None) -> Tensor:
        """Scores of a batch: logits [B]; of retrieval [B, V], [B, n] of ``items`` [B, n], or what a function makes of them.

        Raises ``InputError`` as ``Batch.check`` does; nothing is read outside of any table.
        """
        rows = self._check(batch)
        if items is not None:
            check_items(self.schema, items, rows)
        out = self._compute(batch)
        if self._ctr:
            return out
        if isinstance(items, Tensor):
            items = items.to(self.device)
        scores = item_scores(self.schema, self._model.embedding.weight, out.to(self.device), items)
        return scores.to(batch.device) if isinstance(scores, Tensor) else scores

    def score(self, user: Batch, candidates: Tensor, fields: Sequence[str] | None = None) -> Tensor:
        """Logits float32 [n] of n candidates for one user; arguments and errors as ``Plan.score``.

        The history and every block before the first ``target_attn`` are computed once.
        """
        names, columns = candidates_columns(self.schema, fields)
        candidates = _checked("candidates", candidates, torch.int32, len(names), device=user.device)
        rows = self._check(user)
        if rows != 1:
            raise InputError(f"the user is one row, not {rows}")
        table = user.fields.expand(len(candidates), -1).clone()
        for place, column in enumerate(columns):
            if column >= 0:
                table[:, place] = candidates[:, column]
        return torch.cat([self._compute(replace(user, fields=part), one_user=True) for part in table.split(LARGEST)])

    def save(self, directory: str | Path) -> None:
        """Writes what ``Plan.load`` and ``GpuPlan.load`` read, each file by atomic rename."""
        save_module(directory, self._model, {"schema": self.schema.to_dict(), "architecture": self.arch.to_dict(),
                                            "embedding_dim": self._model.embedding_dim, "dtype": self.dtype}, "plan")

    @classmethod
    def load(cls, directory: str | Path, device: str | torch.device = "cuda", graphs: int = GRAPHS) -> GpuPlan:
        """A plan that ``Plan.save`` or ``GpuPlan.save`` wrote; executes nothing from the files."""
        from .storage import load_module

        return cls(load_module(directory, Model.from_description, "plan"), device, graphs)

    # ---- checks ------------------------------------------------------------------------------------------

    def _check(self, batch: Batch) -> int:
        """Rows of a batch whose shapes, types and offsets fit; ids are checked where they are looked up."""
        schema, rows = self.schema, batch._check_shapes(self.schema)
        if batch.fields.is_cuda and self._partitions(batch, rows):  # else what follows names the fault
            return rows
        if schema.behavior:
            lengths = _check_offsets("history_offsets", batch.history_offsets, batch.history.shape[0], rows)
            if rows and int(lengths.max()) > schema.max_history:
                row = int(lengths.argmax())
                raise InputError(f"history of row {row} has {int(lengths[row])} elements, "
                                 f"more than max_history {schema.max_history}")
        if schema.multi_fields:
            _check_offsets("bag_offsets", batch.bag_offsets, batch.bag_ids.shape[0], rows * len(schema.multi_fields))
        return rows

    def _partitions(self, batch: Batch, rows: int) -> bool:
        """Whether all offsets are right, by one answer of the device."""
        schema, parts = self.schema, []
        if schema.behavior:
            parts.append((batch.history_offsets, len(batch.history), rows, schema.max_history))
        if schema.multi_fields:
            parts.append((batch.bag_offsets, len(batch.bag_ids), rows * len(schema.multi_fields), len(batch.bag_ids)))
        if any(len(offsets) != groups + 1 for offsets, _, groups, _ in parts):
            return False
        right = []
        for offsets, values, _, longest in parts:
            sizes = offsets.diff()
            right += [offsets[:1] == 0, offsets[-1:] == values, (sizes >= 0) & (sizes <= longest)]
        return not right or bool(torch.cat(right).all())

    # ---- computing ---------------------------------------------------------------------------------------

    def _compute(self, batch: Batch, one_user: bool = False) -> Tensor:
        """Logits [B] or users' vectors [B, K] of a checked batch; with ``one_user`` its history and bags are one row's."""
        if len(batch) > LARGEST:
            return torch.cat([self._compute(batch.slice(start, start + LARGEST))
                              for start in range(0, len(batch), LARGEST)])
        rows = len(batch)
        if not rows:
            return torch.empty((0,) if self._ctr else (0, self._outputs), device=batch.device)
        with self._lock, torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext():
            state = self._filled(batch, one_user)
            if state.graph is None:
                self._run(state)
            else:
                state.graph.replay()
            found = state.result.to(batch.device, copy=True)
            # This waits for the device: the next call, maybe on another stream, finds its buffers at rest.
            fault = int(found[-1:].view(torch.int32))
        if fault:
            _with_all_rows(batch, one_user).check(self.schema)
            raise AssertionError("the device found an id outside its vocabulary that the host does not find")
        out = found[:-1].view(-1, self._outputs)[:rows]
        return out[:, 0] if self._ctr else out

    def _filled(self, batch: Batch, one_user: bool) -> _State:
        """The bucket's buffers with the batch in them; captured if they are new."""
        sizes = _Sizes.of(batch, self.schema, one_user)
        state = self._states.pop(sizes, None)
        if state is None:
            with torch.inference_mode(False):  # buffers that calls in any mode may fill
                state = _State(sizes, self.schema, self._outputs, self.device)
        state.fill(batch)
        if state.graph is None and self.graphs and self.device.type == "cuda":  # elsewhere kernels are interpreted, or noted
            self._capture(state)
        self._states[sizes] = state
        while len(self._states) > max(1, self.graphs):
            self._states.popitem(last=False)
        return state

    def _capture(self, state: _State) -> None:
        from .kernels._plan import plan_of

        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles kernels, tunes them and fills caches, which a capture may not
            for _ in range(2):
                self._run(state)
        torch.cuda.current_stream().wait_stream(side)
        # The graph reads the tables of the interactions where they are; a cache alone may forget them.
        products = self.arch.interactions
        state.tables = plan_of(state.batch.fields, self.schema.multi_fields, [f for fields in products for f in fields],
                               [len(fields) for fields in products])
        # Graphs run one at a time and leave their results outside of the pool, so they can share its memory.
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the device while this one captures. Without a stream of its own PyTorch would take
        # one that all captures of the process share, on the device of the first.
        with _capturing, torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"):
            self._run(state)
        state.graph = graph

    @torch.inference_mode()
    def _run(self, state: _State) -> None:
        """All launches for what is in the static buffers."""
        fault = state.result[-1:].view(torch.int32)
        fault.zero_()
        inputs = self._inputs(state, fault)
        h_a = self._behavior_vector(inputs, state)
        h = self._aggregate(h_a, inputs)
        out = forward.score(self._weights, h, forward.shortcut(self._weights, self.arch, inputs), self.schema, state.batch,
                            lambda users, _: users)
        state.result[:-1].copy_(out.reshape(-1))

    def _inputs(self, state: _State, fault: Tensor) -> Inputs:
        from .kernels import plan_inputs

        schema, batch, matrix = self.schema, state.batch, self._model.embedding.weight
        rows = torch.empty(batch.fields.shape, dtype=torch.int64, device=self.device)
        plan_inputs.field_rows(batch.fields, self._field_sizes, self._field_offsets, rows, fault)
        history = target = bag_rows = None
        if schema.behavior:
            history = plan_inputs.embed_history(batch.history, self._behavior_sizes, self._behavior_offsets, matrix, fault)
            if schema.target:
                target = matrix[rows[:, self._targets]].flatten(1)
        bag_offsets = batch.bag_offsets
        if schema.multi_fields:
            bag_rows = self._bag_rows(batch, fault)
            if state.sizes.one_user:
                bag_rows, bag_offsets = _repeated_bags(bag_rows, bag_offsets, batch.fields.shape[0])
        return Inputs(batch, matrix, rows, bag_rows, bag_offsets, schema.multi_fields, history, target, schema.max_history)

    def _bag_rows(self, batch: Batch, fault: Tensor) -> Tensor:
        count = len(self.schema.multi_fields)
        bag = torch.searchsorted(batch.bag_offsets, torch.arange(len(batch.bag_ids), device=self.device), right=True) - 1
        which = bag.clamp_(min=0) % count
        bad = (batch.bag_ids < 0) | (batch.bag_ids >= self._bag_sizes[which])
        torch.maximum(fault, bad.any().to(torch.int32), out=fault)
        return self._bag_starts[which] + batch.bag_ids.masked_fill(bad, 0)

    def _behavior_vector(self, inputs: Inputs, state: _State) -> Tensor | None:
        if not state.sizes.one_user or inputs.history is None:
            return forward.behavior_vector(self._weights, self.arch.behavior, inputs)
        blocks = list(enumerate(self.arch.behavior))
        shared = next((i for i, block in blocks if block.layer == "target_attn"), len(blocks))
        x = inputs.history
        for index, block in blocks[:shared]:
            x = forward.run_block(self._weights, index, block, x, inputs)
        rows = inputs.rows.shape[0]
        if not self.schema.target:
            return forward.pool(self._weights, x, inputs)[:1].expand(rows, -1)
        # The user's history and the spare one behind it, for each candidate.
        x, offsets = _repeated(x, inputs.batch.history_offsets, rows)
        every = replace(inputs, batch=replace(inputs.batch, history_offsets=offsets),
                        target=inputs.target.repeat_interleave(2, 0))
        for index, block in blocks[shared:]:
            x = forward.run_block(self._weights, index, block, x, every)
        return forward.pool(self._weights, x, every)[::2]

    def _aggregate(self, h_a: Tensor | None, inputs: Inputs) -> Tensor:
        """h_Lc in two operations: lookup, interactions and the first layer; all that follows."""
        weights, arch = self._weights, self.arch
        layers = [self._model.mlp[str(i)] for i in range(len(arch.mlp))]
        names = [layer.activation for layer in arch.mlp]
        first = names[0] if names[0] != "dice" else "identity"
        h = ops.embedding_interactions(*inputs.lookup, arch.interactions, h_a, layers[0].weight, layers[0].bias, first,
                                       backend="triton")
        rest = ["identity" if names[0] != "dice" else "dice", *names[1:]]
        if rest == ["identity"]:
            return h
        dice = [weights.dice(i, 0) for i, name in enumerate(names) if name == "dice"]
        return ops.sliced_mlp(h, [m.weight for m in layers[1:]], [m.bias for m in layers[1:]], rest, dice,
                              backend="triton")[0]


@dataclass(frozen=True)
class _Sizes:
    """What a graph's buffers hold: rows, elements of histories, ids of bags."""

    rows: int
    elements: int
    ids: int
    one_user: bool

    @classmethod
    def of(cls, batch: Batch, schema, one_user: bool) -> _Sizes:
        count = lambda t: 0 if t is None else t.shape[0]
        return cls(rounded_up(len(batch)), rounded_up(count(batch.history)) if schema.behavior else 0,
                   rounded_up(count(batch.bag_ids)) if schema.multi_fields else 0, one_user)


class _State:
    """Static buffers of one bucket, and its graph.

    Elements beyond a batch's own belong to spare rows at the end, so that offsets partition them as in any batch.
    """

    def __init__(self, sizes: _Sizes, schema, outputs: int, device: torch.device):
        self.sizes, self.graph, self.tables = sizes, None, None
        self.max_history, self.multi = schema.max_history, len(schema.multi_fields)
        unused = sizes.elements - least_of(sizes.elements) if schema.behavior else 0  # by the smallest batch of the bucket
        spare = 0 if sizes.one_user else max(-(-unused // max(1, self.max_history)), 1 if self.multi else 0)
        self.rows = sizes.rows + spare
        histories, bags = (2, 1) if sizes.one_user else (self.rows, self.rows)
        shapes = {"history_offsets": (histories + 1,) if schema.behavior else None,
                  "bag_offsets": (bags * self.multi + 1,) if self.multi else None,
                  "fields": (self.rows, schema.num_fields),
                  "history": (sizes.elements, schema.num_behavior) if schema.behavior else None,
                  "bag_ids": (sizes.ids,) if self.multi else None}
        self.host, on_host = _packed(shapes, torch.device("cpu"), pinned=device.type == "cuda")
        self.memory, parts = _packed(shapes, device)
        self.staged, self.batch = on_host, Batch(**parts)
        self.result = torch.zeros(self.rows * outputs + 1, device=device)

    def fill(self, batch: Batch) -> None:
        """The batch's ids into the buffers, zeros behind them; offsets of spare rows go on in full histories."""
        rows, to = len(batch), self.staged if not batch.fields.is_cuda else vars(self.batch)
        _copy(to["fields"], batch.fields)
        if to.get("history") is not None:
            _copy(to["history"], batch.history)
            offsets = to["history_offsets"]
            own = batch.history_offsets.shape[0]
            offsets[:own].copy_(batch.history_offsets)
            more = torch.arange(1, offsets.shape[0] - own + 1, device=offsets.device) * self.max_history
            offsets[own:].copy_((more + batch.history.shape[0]).clamp_(max=self.sizes.elements))
        if to.get("bag_offsets") is not None:
            _copy(to["bag_ids"], batch.bag_ids)
            own = batch.bag_offsets.shape[0]
            to["bag_offsets"][:own].copy_(batch.bag_offsets)
            to["bag_offsets"][own:].fill_(batch.bag_ids.shape[0])
            if not self.sizes.one_user:  # whose bags are all there is: ids behind them are nobody's
                to["bag_offsets"][-1] = self.sizes.ids
        if to is self.staged:
            self.memory.copy_(self.host, non_blocking=True)
        assert rows <= self.sizes.rows


def rounded_up(count: int) -> int:
    """The next power of two, or from 16 on the next quarter of one: at most a quarter more."""
    if count <= 16:
        return 1 << max(0, count - 1).bit_length() if count else 0
    step = 1 << ((count - 1).bit_length() - 3)
    return -(-count // step) * step


def least_of(bucket: int) -> int:
    """The least count that is ``rounded_up`` to a bucket."""
    if bucket <= 16:
        return bucket // 2 + 1 if bucket else 0
    return bucket - (1 << ((bucket - 1).bit_length() - 3)) + 1


def _packed(shapes: dict[str, tuple | None], device: torch.device, pinned: bool = False) -> tuple[Tensor, dict]:
    """One piece of memory, and int32 or (offsets) int64 tensors of these shapes in it: one copy moves them all."""
    size_of = lambda name: 8 if name.endswith("offsets") else 4
    starts, total = {}, 0
    for name, shape in shapes.items():
        if shape is not None:
            starts[name] = total
            total += -(-size_of(name) * torch.Size(shape).numel() // 16) * 16
    memory = torch.zeros(max(16, total), dtype=torch.uint8, device=device, pin_memory=pinned)
    parts = {}
    for name, start in starts.items():
        shape = torch.Size(shapes[name])
        kind = torch.int64 if size_of(name) == 8 else torch.int32
        parts[name] = memory[start:start + size_of(name) * shape.numel()].view(kind).view(shape)
    return memory, parts


def _copy(to: Tensor, source: Tensor) -> None:
    to[:source.shape[0]].copy_(source)
    to[source.shape[0]:].zero_()


def _repeated(values: Tensor, offsets: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """One row's jagged values, ``rows`` times, and their offsets."""
    count = values.shape[0]
    starts = torch.arange(rows, device=values.device)[:, None] * count
    ends = torch.full((1,), rows * count, device=values.device)
    return values.repeat(rows, *[1] * (values.dim() - 1)), torch.cat([(starts + offsets[:-1]).flatten(), ends])


def _repeated_bags(values: Tensor, offsets: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """One row's bags, ``rows`` times: the values before the last offset, which only the device knows, without a gap."""
    own = offsets[-1:]
    place = torch.arange(rows * values.shape[0], device=values.device) % own.clamp(min=1)
    starts = torch.arange(rows + 1, device=values.device)[:, None] * own
    return values[place], torch.cat([(starts[:-1] + offsets[:-1]).flatten(), starts[-1]])


def _with_all_rows(batch: Batch, one_user: bool) -> Batch:
    """A batch of one user and many rows of fields as one that ``Batch.check`` knows: history and bags are the first's."""
    def longer(offsets: Tensor | None) -> Tensor | None:
        if offsets is None or not one_user:
            return offsets
        return torch.cat([offsets, offsets[-1:].expand((len(batch) - 1) * (len(offsets) - 1))])

    return replace(batch, label=None, history_offsets=longer(batch.history_offsets), bag_offsets=longer(batch.bag_offsets))
