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
from .ops._triton import OPERATION
from .plan import _checked, candidates_columns, check_items
from .schema import FeatureSchema
from .storage import save_module

LARGEST = 65536  # rows of one graph; larger batches go in parts
GRAPHS = 32      # most graphs that are kept, those used last
BUFFERS = 4 << 30  # bytes of their buffers, about; the last one may have more
_capturing = threading.Lock()  # PyTorch allows one capture at a time in a process


_FAULT = "the device found an id or offsets to be wrong that the host does not"


class _Fault(Exception):
    """The device found an id or offsets of a batch to be wrong."""


class GpuPlan:
    """``model`` as it is now, for inference on a GPU; later changes of the model do not reach it.

    ``plan(batch)`` gives what ``model(batch)`` gives in eval mode, on the batch's own device. Sizes of batches are rounded up
    to buckets: a graph for each is captured at its first batch, with static buffers, and replayed from then on. A batch on
    the device is one launch, which looks ids up where they lie, and one replay; a batch on the CPU one copy to the device,
    one replay and one copy back. Ids are checked on the device, as they are looked up, and offsets of a batch on the device
    too. A plan may be called from several threads; one at a time computes. Buckets used longest ago are forgotten where there
    are more than ``graphs`` or their buffers take more than 4 GiB.

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
        self._tables = _tables(self.schema, self._model.embedding.weight)
        self._head = self._model.head.weight.contiguous(), self._model.head.bias
        self._dice = [self._weights.dice(i, 0) for i, layer in enumerate(self.arch.mlp) if layer.activation == "dice"]
        self._folds: dict = {}
        self._lock = threading.Lock()
        self._states: OrderedDict[tuple, _State] = OrderedDict()
        self._pool = self._side = None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # calls come from other threads and streams

    def __call__(self, batch: Batch, items: Items = None) -> Tensor:
        """Scores of a batch: logits [B]; of retrieval [B, V], [B, n] of ``items`` [B, n], or what a function makes of them.

        Raises ``InputError`` as ``Batch.check`` does; nothing is read outside of any table.
        """
        rows = self._check(batch)
        if items is not None:
            check_items(self.schema, items, rows)
        try:
            out = self._compute(batch)
        except _Fault:
            batch.check(self.schema)
            raise AssertionError(_FAULT) from None
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
        try:
            return torch.cat([self._compute(replace(user, fields=part), one_user=True) for part in table.split(LARGEST)])
        except _Fault:
            _with_all_rows(replace(user, fields=table)).check(self.schema)
            raise AssertionError(_FAULT) from None

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
        """Rows of a batch whose shapes and types fit, and whose offsets do unless the device will check them; ids are
        checked where they are looked up."""
        schema, rows, device = self.schema, batch._check_shapes(self.schema), batch.device
        for name in ("history", "history_offsets") * bool(schema.behavior) + ("bag_ids", "bag_offsets") * bool(schema.multi_fields):
            if getattr(batch, name).device != device:
                raise InputError(f"{name} is on {getattr(batch, name).device}, but fields on {device}")
        on_device = _resident(batch)
        if on_device and 0 < rows <= LARGEST and self._right_sizes(batch, rows):
            return rows  # the device checks the rest
        if on_device and self._partitions(batch, rows):  # else what follows names the fault
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

    def _offsets(self, batch: Batch, rows: int) -> list[tuple[Tensor, int, int, int]]:
        """Offsets, and how many values they partition into how many groups of at most how many."""
        schema, found = self.schema, []
        if schema.behavior:
            found.append((batch.history_offsets, len(batch.history), rows, schema.max_history))
        if schema.multi_fields:
            found.append((batch.bag_offsets, len(batch.bag_ids), rows * len(schema.multi_fields), len(batch.bag_ids)))
        return found

    def _right_sizes(self, batch: Batch, rows: int) -> bool:
        """Whether there are as many offsets as there should be, and no more values than they can partition."""
        return all(len(offsets) == groups + 1 and values <= groups * longest
                   for offsets, values, groups, longest in self._offsets(batch, rows))

    def _partitions(self, batch: Batch, rows: int) -> bool:
        """Whether all offsets are right, by one answer of the device: of batches that go in parts."""
        if not self._right_sizes(batch, rows):
            return False
        right = []
        for offsets, values, _, longest in self._offsets(batch, rows):
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
        resident = _resident(batch)
        here = batch.to(self.device) if resident and batch.device != self.device else batch
        sizes = _Sizes.of(here, self.schema, one_user, resident)
        with self._lock, torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext():
            state = self._state(sizes)
            try:
                self._fill(state, here)
                if state.graph is None:
                    self._run(state)
                else:
                    state.graph.replay()
                found = state.result.to(batch.device, copy=True)
                # This waits for the device: the next call, maybe on another stream, finds its buffers at rest.
                fault = int(found[-1:].view(torch.int32))
                if fault:
                    state.fault.zero_().item()  # waits, too
            except BaseException:
                if self._states.pop(sizes).graph is None:  # its flag may be up, or
                    self._pool = None  # what a capture left of it unfinished
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)  # what was launched uses memory that graphs share
                raise
        if fault:
            raise _Fault
        out = found[:-1].view(-1, self._outputs)[:rows]
        return out[:, 0] if self._ctr else out

    def _state(self, sizes: _Sizes) -> _State:
        """The bucket's buffers, and those used longest ago forgotten."""
        state = self._states.pop(sizes, None)
        if state is None:
            with torch.inference_mode(False):  # buffers that calls in any mode may fill
                state = _State(sizes, self.schema, self._model.embedding_dim, self._outputs, self.device)
        self._states[sizes] = state
        while len(self._states) > max(1, self.graphs) or \
                len(self._states) > 1 and sum(one.bytes for one in self._states.values()) > BUFFERS:
            self._states.popitem(last=False)
        return state

    def _fill(self, state: _State, batch: Batch) -> None:
        """The batch in the bucket's buffers: looked up, or only copied where the graph begins with looking up."""
        if state.sizes.resident:
            self._look_up(state, batch, state.buffers)
        else:
            state.stage(batch)
        if state.graph is None and self.graphs and self.device.type == "cuda":  # elsewhere kernels are interpreted, or noted
            self._capture(state)

    def _look_up(self, state: _State, batch: Batch, into) -> None:
        from .kernels import plan_inputs

        ids = (batch.fields, batch.history, batch.history_offsets, batch.bag_ids, batch.bag_offsets)
        plan_inputs.fill(*(None if t is None or to is None else t.contiguous() for t, to in zip(ids, state.wanted, strict=True)),
                         self._tables, into, state.fault)

    def _capture(self, state: _State) -> None:
        """The graph of a bucket whose buffers are filled."""
        from .kernels._plan import plan_of

        # One stream for all captures, of another set than those that callers mostly have: what somebody else launches on it
        # meanwhile would be captured, too.
        side = self._side = self._side or torch.cuda.Stream(self.device, priority=-1)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles kernels, tunes them and fills caches, which a capture may not
            for _ in range(2):
                self._run(state)
        torch.cuda.current_stream().wait_stream(side)
        # The graph reads the tables of the interactions where they are; a cache alone may forget them.
        products = self.arch.interactions
        rows = state.result.new_empty(0, self.schema.num_fields)
        state.tables = plan_of(rows, self.schema.multi_fields, [f for fields in products for f in fields],
                               [len(fields) for fields in products])
        # Graphs run one at a time and leave their results outside of the pool, so they can share its memory, which goes with
        # the last of them.
        if self._pool is None or all(one.graph is None for one in self._states.values()):
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the device while this one captures. Without a stream of its own PyTorch would take
        # one that all captures of the process share, on the device of the first.
        with _capturing, torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"):
            self._run(state)
        state.graph = graph

    @torch.inference_mode()
    def _run(self, state: _State) -> None:
        """All launches for what is in the static buffers."""
        from .kernels import _launch, plan_head
        from .kernels._activation_unit import keeping_folds

        if state.sizes.resident:
            found = state.buffers
        else:
            found = state.new_buffers()
            self._look_up(state, state.staged, found)
        with keeping_folds(self._folds):
            inputs = self._inputs(state, found)
            h = self._aggregate(self._behavior_vector(inputs, state), inputs)
            shortcut = forward.shortcut(self._weights, self.arch, inputs)
        _launch.note(f"{OPERATION}head")
        weight, bias = self._head
        if self._ctr:
            plan_head.logits(h, shortcut, weight, bias, state.result[:-1])
        else:
            h = h if shortcut is None else torch.cat([h, shortcut], 1)
            torch.mm(h, weight.t(), out=state.result[:-1].view(-1, self._outputs))

    def _inputs(self, state: _State, found) -> Inputs:
        schema = self.schema
        bag_rows, bag_offsets = found.bag_rows, found.bag_offsets
        if schema.multi_fields and state.sizes.one_user:
            bag_rows, bag_offsets = _repeated_bags(bag_rows, bag_offsets[:-1], state.rows)
        batch = Batch(found.rows, history_offsets=found.history_offsets)  # all that the blocks read of it
        return Inputs(batch, self._tables.embedding, found.rows, bag_rows, bag_offsets, schema.multi_fields, found.x,
                      found.target, schema.max_history)

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
        arch = self.arch
        layers = [self._model.mlp[str(i)] for i in range(len(arch.mlp))]
        names = [layer.activation for layer in arch.mlp]
        first = names[0] if names[0] != "dice" else "identity"
        h = ops.embedding_interactions(*inputs.lookup, arch.interactions, h_a, layers[0].weight, layers[0].bias, first,
                                       backend="triton")
        rest = ["identity" if names[0] != "dice" else "dice", *names[1:]]
        if rest == ["identity"]:
            return h
        return ops.sliced_mlp(h, [m.weight for m in layers[1:]], [m.bias for m in layers[1:]], rest, self._dice,
                              backend="triton")[0]


@dataclass(frozen=True)
class _Sizes:
    """What a graph's buffers hold: rows, elements of histories, ids of bags; whether of one user and many candidates, and
    whether batches are on the device, so that they are looked up before the graph and not by it."""

    rows: int
    elements: int
    ids: int
    one_user: bool
    resident: bool

    @classmethod
    def of(cls, batch: Batch, schema, one_user: bool, resident: bool) -> _Sizes:
        count = lambda t: 0 if t is None else t.shape[0]
        return cls(rounded_up(len(batch)), rounded_up(count(batch.history)) if schema.behavior else 0,
                   rounded_up(count(batch.bag_ids)) if schema.multi_fields else 0, one_user, resident)


class _State:
    """Static buffers of one bucket, and its graph.

    Elements beyond a batch's own belong to spare rows at the end, so that offsets partition them as in any batch.
    """

    def __init__(self, sizes: _Sizes, schema, embedding_dim: int, outputs: int, device: torch.device):
        self.sizes, self.graph, self.tables = sizes, None, None
        self.max_history, multi = schema.max_history, len(schema.multi_fields)
        unused = sizes.elements - least_of(sizes.elements) if schema.behavior else 0  # by the smallest batch of the bucket
        spare = 0 if sizes.one_user else max(-(-unused // max(1, self.max_history)), 1 if multi else 0)
        self.rows = sizes.rows + spare
        # Of one user there are a spare history and a spare bag, whose values are nobody's.
        histories, bags = (2, multi + 1) if sizes.one_user else (self.rows, self.rows * multi)
        shapes = [(self.rows, schema.num_fields), (sizes.elements, schema.num_behavior) if schema.behavior else None,
                  (histories + 1,) if schema.behavior else None, (sizes.ids,) if multi else None,
                  (bags + 1,) if multi else None]
        self.wanted = shapes
        self._filled = {
            "rows": (torch.int64, self.rows, schema.num_fields),
            "x": (torch.float32, sizes.elements, schema.num_behavior * embedding_dim) if schema.behavior else None,
            "history_offsets": (torch.int64, histories + 1) if schema.behavior else None,
            "target": (torch.float32, self.rows, len(schema.target) * embedding_dim) if schema.target else None,
            "bag_rows": (torch.int64, sizes.ids) if multi else None, "bag_offsets": (torch.int64, bags + 1) if multi else None}
        self.result = torch.zeros(self.rows * outputs + 1, device=device)
        self.bytes = self.result.nbytes
        self.fault = self.result[-1:].view(torch.int32)  # comes back with the result
        if sizes.resident:
            self.buffers = self.new_buffers()
            self.bytes += sum(t.nbytes for t in vars(self.buffers).values() if t is not None)
        else:
            named = dict(zip(_STAGED, shapes, strict=True))
            self.host, self.on_host = _packed(named, torch.device("cpu"), pinned=device.type == "cuda")
            self.memory, parts = _packed(named, device)
            self.staged = Batch(**parts)
            self.bytes += self.memory.nbytes

    def new_buffers(self):
        """What a batch is looked up into: static for batches on the device; of a graph that looks up itself, from its pool."""
        from .kernels.plan_inputs import Buffers

        return Buffers(**{name: None if about is None else torch.empty(about[1:], dtype=about[0], device=self.result.device)
                          for name, about in self._filled.items()})

    def stage(self, batch: Batch) -> None:
        """The ids of a batch on the CPU to the device, zeros behind them; offsets of spare rows go on in full histories."""
        to = self.on_host
        _copy(to["fields"], batch.fields)
        if "history" in to:
            _copy(to["history"], batch.history)
            offsets = to["history_offsets"]
            own = batch.history_offsets.shape[0]
            offsets[:own].copy_(batch.history_offsets)
            more = torch.arange(1, offsets.shape[0] - own + 1) * self.max_history
            offsets[own:].copy_((more + batch.history.shape[0]).clamp_(max=self.sizes.elements))
        if "bag_offsets" in to:
            _copy(to["bag_ids"], batch.bag_ids)
            own = batch.bag_offsets.shape[0]
            to["bag_offsets"][:own].copy_(batch.bag_offsets)
            to["bag_offsets"][own:].fill_(batch.bag_ids.shape[0])
            to["bag_offsets"][-1] = self.sizes.ids
        self.memory.copy_(self.host, non_blocking=True)


_STAGED = ("fields", "history", "history_offsets", "bag_ids", "bag_offsets")


def _resident(batch: Batch) -> bool:
    """Whether a batch is on a GPU."""
    return batch.fields.is_cuda


def _tables(schema: FeatureSchema, embedding: Tensor):
    """What looking up needs of a schema, on the matrix's device."""
    from .kernels.plan_inputs import Tables

    def table(values: Sequence[int], dtype: torch.dtype = torch.int64) -> Tensor | None:
        return torch.tensor(values, dtype=dtype, device=embedding.device) if len(values) else None

    bags = [(schema.field_sizes[i], schema.field_offsets[i]) for i in schema.multi_fields]
    return Tables(embedding=embedding, longest=schema.max_history, targets=table(schema.target_positions, torch.int32),
                  field_sizes=table(schema.field_sizes, torch.int32), field_starts=table(schema.field_offsets),
                  behavior_sizes=table(schema.behavior_sizes, torch.int32), behavior_starts=table(schema.behavior_offsets),
                  bag_sizes=table([size for size, _ in bags], torch.int32), bag_starts=table([start for _, start in bags]))


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


def _with_all_rows(batch: Batch) -> Batch:
    """A batch of one user and many rows of fields as one that ``Batch.check`` knows: history and bags are the first's."""
    def longer(offsets: Tensor | None) -> Tensor | None:
        return None if offsets is None else torch.cat([offsets, offsets[-1:].expand((len(batch) - 1) * (len(offsets) - 1))])

    return replace(batch, label=None, history_offsets=longer(batch.history_offsets), bag_offsets=longer(batch.bag_offsets))
