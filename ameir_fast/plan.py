"""Plan: a derived model packed for inference on the CPU.

One call of native code takes a batch through the whole network, tile by tile in cache; PyTorch computes nothing in it.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import native
from .batch import Batch
from .cost import forward_work
from .errors import InputError
from .forward import Items, item_scores
from .huge_pages import use_huge_pages
from .model import Model, ModelWeights
from .schema import FeatureSchema
from .space.choices import LAYERS
from .storage import load_module, save_module

DTYPES = ("float32", "bfloat16")
FOLD_BYTES = 2 * 2**20  # what stays in a core's second cache
_FOLDED_WIDTH = 8  # of embeddings, from which on a row of the table costs less than the products it replaces
_MOST_FOLDED = 64
_CPU = torch.device("cpu")
#: What native code times, before the blocks and the layers of the MLP.
_PARTS = ("order rows", "look up fields", "look up history", "pool", "products", "squeeze-and-excitation", "head")


class Plan:
    """``model`` as it is now, packed; later changes of the model do not reach it.

    ``plan(batch)`` gives what ``model(batch)`` gives in eval mode: logits float32 [B], or for retrieval scores [B, V] of
    all items, [B, n] of ``items``. The result of a row is the same, bit for bit, whatever rows share its batch and
    however many threads work (``torch.get_num_threads()``); not so retrieval's scores of all items, which PyTorch's matrix
    product makes of users' vectors. A plan may be called from several threads at once.

    Args:
        model: on the CPU.
        dtype: ``"float32"``, or ``"bfloat16"``: weights and inputs of the MLP's first layer are rounded to bfloat16 and
            summed up in float32, with AMX or AVX512_BF16 where the processor has it; everything else stays float32.
        instruction_set: one of ``instruction_sets()``; None for the best that this processor has.
        fold_bytes: most memory for tables of what ids of small vocabularies add to the sums of the MLP's first layer, which
            are then looked up and not computed (embeddings of 8 and more, the smallest vocabularies first; ``folded``
            names them). 0: none.

    Raises:
        InputError: a dtype or an instruction set that is not there, or a model that is not on the CPU.
        RuntimeError: the native code is missing; the message says why.
    """

    def __init__(self, model: Model, dtype: str = "float32", instruction_set: str | None = None,
                 fold_bytes: int = FOLD_BYTES):
        if model.embedding.weight.device.type != "cpu":
            raise InputError(f"the model is on {model.embedding.weight.device}, not on the CPU")
        self._pack(copy.deepcopy(model), dtype, instruction_set, fold_bytes)

    def _pack(self, model: Model, dtype: str, instruction_set: str | None, fold_bytes: int) -> None:
        """A model that is the plan's own from now on, not a copy of it."""
        if dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
        known = instruction_sets()
        if instruction_set is not None and instruction_set not in known:
            raise InputError(f"instruction set {instruction_set!r} is none of this processor's {', '.join(known)}")
        if not isinstance(fold_bytes, int) or isinstance(fold_bytes, bool) or fold_bytes < 0:
            raise InputError(f"fold_bytes is {fold_bytes!r}, not a number of bytes")
        self._model = model.float().eval().requires_grad_(False)
        self.schema, self.arch, self.dtype = model.schema, model.arch, dtype
        self._asked_set = instruction_set
        use_huge_pages(self._model.embedding.weight)
        self.fold_bytes = fold_bytes
        self._native = _compile(self._model, instruction_set or "", dtype == "bfloat16", fold_bytes=fold_bytes)
        self._fields = self.schema.num_fields
        self._behavior = self.schema.num_behavior
        self._bags = len(self.schema.multi_fields)
        self._outputs = self._model.head.out_features
        self._ctr = self.schema.task == "ctr"
        self._run = self._native.run

    @property
    def instruction_set(self) -> str:
        return self._native.instruction_set

    @property
    def folded(self) -> list[str]:
        """Fields whose part of the MLP's first layer is looked up."""
        return [self.schema.fields[place].name for place in _folded_fields(self._model, self.fold_bytes)]

    def __call__(self, batch: Batch, items: Items = None) -> Tensor:
        """Scores of a batch on the CPU; ``items`` of retrieval alone: int32 or int64 [B, n], local ids, or a function as
        ``Model`` takes it.

        Raises ``InputError`` for tensors of a wrong type or shape, offsets that do not fit their values, a history
        longer than ``max_history``, or an id outside its vocabulary; nothing is read outside of any table.
        """
        kept, addresses = self._addresses(batch)
        rows = kept[0].shape[0]
        if items is not None:
            check_items(self.schema, items, rows)
        # new_empty, whatever the default type and device are
        out = kept[0].new_empty(rows if self._ctr else (rows, self._outputs), dtype=torch.float32)
        self._call(self._run, rows, *addresses, out.data_ptr())
        del kept
        return out if self._ctr else item_scores(self.schema, self._model.embedding.weight, out, items)

    def score(self, user: Batch, candidates: Tensor, fields: Sequence[str] | None = None) -> Tensor:
        """Logits float32 [n] of n candidates for one user, bit for bit those of n rows that repeat the user's.

        What does not depend on the candidate is computed once: the history and every block before the first
        ``target_attn``.

        Args:
            user: one row. Its ids of the candidates' fields are not read.
            candidates: int32 [n, columns], local ids.
            fields: the categorical field of each column; by default the schema's target fields.

        Raises ``InputError`` as a call does; for a field that does not exist or is multi-categorical, or a retrieval
        model, which scores items by ``plan(batch, items)``.
        """
        names, columns = candidates_columns(self.schema, fields)
        candidates = _checked("candidates", candidates, torch.int32, len(names))
        own = _checked("fields", user.fields, torch.int32, self._fields)
        if own.shape[0] != 1:
            raise InputError(f"the user is one row, not {own.shape[0]}")
        user = replace(user, fields=own.masked_fill(torch.tensor(columns, device=_CPU) >= 0, 0))
        if not len(candidates):
            return self(user)[:0]  # whose ids are checked all the same
        kept, addresses = self._addresses(user)
        out = own.new_empty(len(candidates), dtype=torch.float32)
        self._call(self._native.rank, *addresses, candidates.data_ptr(), candidates.shape[0], len(names), columns,
                   out.data_ptr())
        del kept
        return out

    def profile(self, batch: Batch, repeats: int = 20) -> list[dict]:
        """Where the time of a call goes: of each part of the network, in order, ``part``, ``seconds`` (median of ``repeats``
        calls on this thread alone, but for PyTorch's product of scores of all items) and ``flops`` (``cost.forward_work``:
        as the layers are written, before anything is folded).

        The clock is read after every part of each group of samples, so that parts of small batches come out dearer than
        they are. Raises ``InputError`` as a call does, and for ``repeats`` below 1.
        """
        if type(repeats) is not int or repeats < 1:
            raise InputError(f"repeats is {repeats!r}, not an integer >= 1")
        kept, addresses = self._addresses(batch)
        rows, schema, k = kept[0].shape[0], self.schema, self._model.embedding_dim
        out = kept[0].new_empty((rows, self._outputs), dtype=torch.float32)
        blocks = [f"block {i}: {b.layer}" for i, b in enumerate(self.arch.behavior) if b.layer != "zero"]
        layers = [f"MLP {i}" for i in range(len(self.arch.mlp))]
        seconds: list[float] = []

        def run(*arguments):
            fault, seconds[:] = self._native.run_by_parts(*arguments)
            return fault

        taken = []
        for _ in range(repeats):
            self._call(run, rows, *addresses, out.data_ptr())
            taken.append(dict(zip([*_PARTS, *blocks, *layers], seconds, strict=True)))
            if not self._ctr:
                started = time.perf_counter()
                item_scores(schema, self._model.embedding.weight, out, None)
                taken[-1]["score all items"] = time.perf_counter() - started
        lengths = batch.lengths.numpy() if self._behavior else np.zeros(rows)
        flops = {work.part: work.flops for work in forward_work(schema, self.arch, k, lengths)}
        flops["products"] = rows * k * sum(len(fields) - 1 for fields in self.arch.interactions)
        flops["MLP 0"] = flops.pop("interactions and MLP 0") - flops["products"]
        if not self._ctr:
            items = 2 * rows * k * schema.size(schema.item_vocabulary)
            flops |= {"head": flops["score all items"] - items, "score all items": items}
        absent = {*(("order rows", "look up history", "pool") if not self._behavior else ()),
                  *(() if self.arch.interactions else ("products",)),
                  *(() if hasattr(self._model, "se") else ("squeeze-and-excitation",))}
        order = ["order rows", "look up fields", "look up history", *blocks, "pool", "products", *layers,
                 "squeeze-and-excitation", "head", *([] if self._ctr else ["score all items"])]
        return [{"part": part, "seconds": statistics.median(one[part] for one in taken), "flops": flops.get(part, 0)}
                for part in order if part not in absent]

    def __reduce__(self):
        return Plan, (self._model, self.dtype, self._asked_set, self.fold_bytes)

    def _addresses(self, batch: Batch) -> tuple[list[Tensor], list[int]]:
        """Checked tensors, to be kept until their memory has been read, and the addresses and sizes that native code
        takes."""
        fields = _checked("fields", batch.fields, torch.int32, self._fields)
        kept, at = [fields], [fields.data_ptr(), 0, 0, 0, 0, 0, 0]
        if self._behavior:
            history = _checked("history", batch.history, torch.int32, self._behavior)
            offsets = _checked("history_offsets", batch.history_offsets, torch.int64, None, fields.shape[0] + 1)
            at[1:4] = history.data_ptr(), offsets.data_ptr(), history.shape[0]
            kept += history, offsets
        if self._bags:
            bags = _checked("bag_ids", batch.bag_ids, torch.int32, None)
            offsets = _checked("bag_offsets", batch.bag_offsets, torch.int64, None, fields.shape[0] * self._bags + 1)
            at[4:] = bags.data_ptr(), offsets.data_ptr(), bags.shape[0]
            kept += bags, offsets
        return kept, at

    def _call(self, function: Callable, *arguments) -> None:
        try:
            fault = function(*arguments)
        except ValueError as error:
            raise InputError(str(error)) from None
        if fault is not None:
            self._refuse(*fault)

    def _refuse(self, row: int, column: int, found: int, history: bool) -> None:
        names, sizes = ((self.schema.behavior, self.schema.behavior_sizes) if history else
                        (self.schema.fields, self.schema.field_sizes))
        raise InputError(f"field {names[column].name!r}, row {row}: id {found} is outside 0..{sizes[column] - 1}")

    def save(self, directory: str | Path) -> None:
        """Writes ``plan.safetensors`` and ``plan.json`` into ``directory``, each by atomic rename. Weights are stored
        as the model has them and packed when they are loaded, so that every processor gets its own form."""
        save_module(directory, self._model, {"schema": self.schema.to_dict(), "architecture": self.arch.to_dict(),
                                            "embedding_dim": self._model.embedding_dim, "dtype": self.dtype,
                                            "fold_bytes": self.fold_bytes}, "plan")

    @classmethod
    def load(cls, directory: str | Path, instruction_set: str | None = None) -> Plan:
        """Inverse of ``save``; executes nothing from the files. ``InputError`` names what is wrong."""
        settings = []

        def build(about: dict) -> Model:
            settings.extend((about["dtype"], about.get("fold_bytes", FOLD_BYTES)))
            return Model.from_description(about)

        model = load_module(directory, build, "plan")
        dtype, fold_bytes = settings
        plan = cls.__new__(cls)
        plan._pack(model, dtype, instruction_set, fold_bytes)
        return plan


def instruction_sets() -> list[str]:
    """What this processor and this build can run, the best one first. Raises ``RuntimeError`` without native code."""
    module = native.plan()
    if module is None:
        raise RuntimeError(f"plans for the CPU need native code: {native.why_not('_plan')}")
    return module.instruction_sets()


def check_items(schema: FeatureSchema, items: Items, rows: int) -> None:
    """``InputError`` for what is not items of ``rows`` rows to be scored; a function is taken as it is."""
    if schema.task == "ctr":
        raise InputError("items are of retrieval; this model scores clicks")
    if not isinstance(items, Tensor):
        return
    _checked("items", items, items.dtype if items.dtype in (torch.int32, torch.int64) else torch.int64, items.shape[-1]
             if items.dim() else 0, rows, items.device)
    limit = schema.size(schema.item_vocabulary)
    bad = (items < 0) | (items >= limit)
    if bool(bad.any()):
        row, column = (int(i) for i in bad.nonzero()[0])
        raise InputError(f"items, row {row}: id {int(items[row, column])} is outside 0..{limit - 1}")


def candidates_columns(schema: FeatureSchema, fields: Sequence[str] | None) -> tuple[list[str], list[int]]:
    """Names of the candidates' fields, by default the target, and of every field which column of the candidates holds it,
    or -1."""
    if schema.task != "ctr":
        raise InputError("a retrieval model has no candidates' fields; use plan(batch, items=...)")
    if fields is None and not schema.target:
        raise InputError("the schema has no target fields, so `fields` must name the candidates' fields")
    if fields is not None and not isinstance(fields, (str, Sequence)):
        raise InputError(f"fields is {fields!r}, not names of fields")
    names = list(schema.target) if fields is None else [fields] if isinstance(fields, str) else list(fields)
    known = {f.name: i for i, f in enumerate(schema.fields) if i not in schema.multi_fields}
    for name in names:
        if name not in known:
            raise InputError(f"candidates: {name!r} is no categorical field; there are {', '.join(known)}")
    if not names or len(set(names)) < len(names):
        raise InputError(f"candidates: fields {names} are not one or more different fields")
    columns = [-1] * schema.num_fields
    for column, name in enumerate(names):
        columns[known[name]] = column
    return names, columns


def _checked(name: str, tensor: Tensor | None, dtype: torch.dtype, columns: int | None, entries: int | None = None,
             device: torch.device = _CPU) -> Tensor:
    """A tensor on ``device`` of ``entries`` (None: any number of them), or of rows of ``columns``; contiguous."""
    dims = 1 if columns is None else 2
    if tensor is None:
        raise InputError(f"{name} is missing, though the schema needs it")
    if not isinstance(tensor, Tensor):
        raise InputError(f"{name} is a {type(tensor).__name__}, not a tensor")
    # Of a call on one sample that takes 10 µs, asking for ``device.type`` three times would be one.
    there = tensor.is_cpu if device is _CPU else tensor.device.type == device.type
    if tensor.dtype is not dtype or tensor.dim() != dims or not there:
        raise InputError(f"{name} is {tensor.dtype} with {tensor.dim()} dimensions on {tensor.device}, not {dtype} "
                         f"with {dims} on {'the CPU' if device.type == 'cpu' else device}")
    shape = tensor.shape
    if columns is not None and shape[1] != columns:
        raise InputError(f"{name} has {shape[1]} columns, not {columns}")
    if entries is not None and shape[0] != entries:
        raise InputError(f"{name} has {shape[0]} entries, not {entries}")
    try:
        return tensor if tensor.is_contiguous() else tensor.contiguous()
    except RuntimeError:
        raise InputError(f"{name} is a tensor of layout {tensor.layout}, not a dense one") from None


def _compile(model: Model, instruction_set: str, half: bool, products: str = "",
             fold_bytes: int = 0):
    """The native plan of a float32 model in eval mode, whose embedding matrix it reads in place; with ``half`` the first
    layer of its MLP in bfloat16, multiplied by ``products``: ``"amx"``, ``"avx512_bf16"``, ``"none"``, or the best there is."""
    schema, weights = model.schema, ModelWeights(model)

    def arrays(tensors) -> list:
        return [t.detach().contiguous().numpy() for t in tensors]

    plan = native.plan().Plan(*arrays([model.embedding.weight]), schema.max_history, instruction_set, half, products)
    for place, (offset, size) in enumerate(zip(schema.field_offsets, schema.field_sizes, strict=True)):
        plan.add_field(offset, size, place in schema.multi_fields)
    for offset, size in zip(schema.behavior_offsets, schema.behavior_sizes, strict=True):
        plan.add_behavior(offset, size)
    if schema.target:
        plan.set_target(list(schema.target_positions), arrays(weights.pool_attention()))
    for index, block in enumerate(model.arch.behavior):
        if block.layer == "zero":
            continue
        layer = LAYERS[block.layer]
        kind = "conv" if layer.kernel else "self_attn" if block.layer.startswith("self_attn") else block.layer
        norm = weights.norm(index) if block.norm == "layer_norm" else []
        plan.add_block(kind, block.activation, arrays(norm), arrays(weights.layer(index, block.layer)), layer.dilation,
                       layer.divisor)
    plan.set_interactions([list(fields) for fields in model.arch.interactions])
    folded = _folded_fields(model, fold_bytes)
    for place in folded:
        offset, columns = schema.field_offsets[place], _columns_of(model, place)
        embedding = model.embedding.weight[offset:offset + schema.field_sizes[place]]
        plan.add_folded(place, *arrays([(embedding.double() @ model.mlp["0"].weight[:, columns].double().T).float()]))
    left_out = {column for place in folded for column in range(*_columns_of(model, place).indices(2**62))}
    for index, layer in enumerate(model.arch.mlp):
        unit = model.mlp[str(index)]
        weight = unit.weight
        if index == 0 and folded:
            weight = weight[:, [column for column in range(weight.shape[1]) if column not in left_out]]
        dice = ([unit.dice.alpha, unit.dice.running_mean, unit.dice.running_var] if layer.activation == "dice" else [])
        plan.add_dense(layer.activation, *arrays([weight, unit.bias]), arrays(dice))
    if hasattr(model, "se"):
        plan.set_shortcut(*arrays(weights.squeeze_excite(0)))
    head, bias = weights.head(0, False)
    plan.set_head(*arrays([head]), arrays([] if bias is None else [bias]))
    return plan


def _folded_fields(model: Model, budget: int) -> list[int]:
    """Positions, ascending, of the fields whose tables of the first layer's sums fit the budget together."""
    schema, width = model.schema, model.embedding_dim
    if width < _FOLDED_WIDTH:
        return []
    outputs = -(-model.mlp["0"].weight.shape[0] // 16) * 16
    found = []
    for place in sorted(set(range(schema.num_fields)) - set(schema.multi_fields), key=lambda i: schema.field_sizes[i]):
        budget -= 4 * outputs * schema.field_sizes[place]
        if budget < 0 or len(found) == _MOST_FOLDED:
            break
        found.append(place)
    return sorted(found)


def _columns_of(model: Model, place: int) -> slice:
    """A field's inputs of the first layer: h_a comes before the fields."""
    schema, width = model.schema, model.embedding_dim
    history = schema.num_behavior * width * (3 if schema.target else 2)
    return slice(history + place * width, history + (place + 1) * width)
