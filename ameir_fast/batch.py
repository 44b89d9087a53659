"""Batch: rows of a data set as tensors, histories jagged (true lengths, oldest first)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .embedded import Embedded
from .errors import InputError
from .schema import FeatureSchema


@dataclass(frozen=True)
class Batch:
    """B rows.

    Shapes and types: ``fields`` int32 [B, N], local ids, 0 in the columns of multi-categorical fields;
    ``history`` int32 [ΣT, N_a] with ``history_offsets`` int64 [B+1]; ``label`` float32 [B];
    ``bag_ids`` int32 [*] with ``bag_offsets`` int64 [B·n_multi+1], row-major over (row, multi field);
    ``items`` int32 [B], the item to retrieve, ``negatives`` int32 [B, n], and what a ranking leaves out of all items,
    ``seen`` int32 [*] with ``seen_offsets`` int64 [B+1], ascending and distinct within a row (retrieval task);
    ``embedded``, the embeddings of the ids where they are looked up already (in training).
    Absent parts are ``None``.
    Lengths may be 0, and so may B.
    """

    fields: Tensor
    history: Tensor | None = None
    history_offsets: Tensor | None = None
    label: Tensor | None = None
    bag_ids: Tensor | None = None
    bag_offsets: Tensor | None = None
    items: Tensor | None = None
    negatives: Tensor | None = None
    seen: Tensor | None = None
    seen_offsets: Tensor | None = None
    embedded: Embedded | None = None

    def __len__(self) -> int:
        return self.fields.shape[0]

    @property
    def device(self) -> torch.device:
        return self.fields.device

    @property
    def lengths(self) -> Tensor | None:
        """int64 [B], the true length of each history."""
        return None if self.history_offsets is None else self.history_offsets.diff()

    def _map(self, function) -> Batch:
        parts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        embedded = parts.pop("embedded")
        return Batch(**{k: None if v is None else function(v) for k, v in parts.items()},
                     embedded=None if embedded is None else embedded.map(function))

    def to(self, device, non_blocking: bool = False) -> Batch:
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self._map(lambda t: t.pin_memory())

    def slice(self, start: int, stop: int) -> Batch:
        """Rows ``start`` to ``stop`` (exclusive), as Python slices go."""
        start, stop, _ = slice(start, stop).indices(len(self))
        stop = max(start, stop)
        history = offsets = bag_ids = bag_offsets = None
        elements = ids = slice(0)
        if self.history_offsets is not None:
            offsets = self.history_offsets[start:stop + 1]
            elements = slice(offsets[0], offsets[-1])
            history = self.history[elements]
            offsets = offsets - offsets[0]
        if self.bag_offsets is not None:
            per_row = (self.bag_offsets.shape[0] - 1) // max(1, len(self))
            bag_offsets = self.bag_offsets[start * per_row:stop * per_row + 1]
            ids = slice(bag_offsets[0], bag_offsets[-1])
            bag_ids = self.bag_ids[ids]
            bag_offsets = bag_offsets - bag_offsets[0]
        seen = seen_offsets = None
        if self.seen_offsets is not None:
            seen_offsets = self.seen_offsets[start:stop + 1]
            seen = self.seen[seen_offsets[0]:seen_offsets[-1]]
            seen_offsets = seen_offsets - seen_offsets[0]
        part = lambda t, which=slice(start, stop): None if t is None else t[which]
        of = self.embedded
        embedded = None if of is None else Embedded(part(of.fields), part(of.history, elements), part(of.bags, ids),
                                                    part(of.items))
        return Batch(self.fields[start:stop], history, offsets, part(self.label), bag_ids, bag_offsets,
                     part(self.items), part(self.negatives), seen, seen_offsets, embedded)

    def split(self, sizes: Sequence[int]) -> list[Batch]:
        """The rows in consecutive parts, as ``slice`` gives them. The gradient of ``embedded`` is put together once,
        where each slice would have one as large as the whole."""
        edges = [0, *itertools.accumulate(sizes)]
        plain = replace(self, embedded=None)
        parts = [plain.slice(a, b) for a, b in itertools.pairwise(edges)]
        if self.embedded is None:
            return parts
        count = lambda t: 0 if t is None else t.shape[0]
        embedded = self.embedded.split(sizes, [count(p.history) for p in parts], [count(p.bag_ids) for p in parts])
        return [replace(part, embedded=of) for part, of in zip(parts, embedded, strict=True)]

    def to_padded(self) -> tuple[Tensor, Tensor]:
        """History as int32 [B, T_max, N_a] (0 beyond the true length) and bool mask [B, T_max]."""
        if self.history is None:
            raise ValueError("this batch has no history")
        lengths = self.lengths
        longest = int(lengths.max()) if len(self) else 0
        mask = torch.arange(longest, device=self.device) < lengths[:, None]
        padded = self.history.new_zeros(len(self), longest, self.history.shape[1])
        padded[mask] = self.history
        return padded, mask

    def to_keyed_jagged_tensor(self, schema: FeatureSchema):
        """torchrec ``KeyedJaggedTensor`` of all fields, behaviour fields under their own names.

        Raises ``ImportError`` where torchrec is not installed.
        """
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

        keys, values, lengths = [], [], []
        ones = torch.ones(len(self), dtype=torch.int64, device=self.device)
        multi = {position: j for j, position in enumerate(schema.multi_fields)}
        for i, f in enumerate(schema.fields):
            keys.append(f.name)
            if i in multi:
                sizes = self.bag_offsets.diff().view(len(self), len(multi))[:, multi[i]]
                owner = torch.arange(len(multi), device=self.device).repeat(len(self))
                inside = owner.repeat_interleave(self.bag_offsets.diff()) == multi[i]
                values.append(self.bag_ids[inside])
                lengths.append(sizes)
            else:
                values.append(self.fields[:, i])
                lengths.append(ones)
        for j, b in enumerate(schema.behavior):
            keys.append(b.name)
            values.append(self.history[:, j])
            lengths.append(self.lengths)
        return KeyedJaggedTensor(keys=keys, values=torch.cat(values), lengths=torch.cat(lengths))

    # ---- checks ------------------------------------------------------------------------------

    def check(self, schema: FeatureSchema, on_unknown: str = "raise") -> Batch:
        """The batch itself when it fits the schema, so that no later read can leave its table.

        ``on_unknown="raise"``: an id outside its vocabulary is an ``InputError`` naming field, row and
        id; ``"map"``: it becomes id 0. A history longer than ``max_history``, offsets that do not
        partition their values, wrong shapes or types, and labels other than 0 and 1 raise in both modes.
        """
        if on_unknown not in ("raise", "map"):
            raise ValueError(f"on_unknown={on_unknown!r} is neither 'raise' nor 'map'")
        rows = self._check_shapes(schema)
        fields = _in_range(self.fields, schema.field_sizes, [f.name for f in schema.fields], on_unknown,
                           lambda r: r)
        history, bag_ids = self.history, self.bag_ids
        if schema.behavior:
            lengths = _check_offsets("history_offsets", self.history_offsets, history.shape[0], rows)
            if rows and int(lengths.max()) > schema.max_history:
                row = int(lengths.argmax())
                raise InputError(f"history of row {row} has {int(lengths[row])} elements, "
                                 f"more than max_history {schema.max_history}")
            history = _in_range(history, schema.behavior_sizes, [b.name for b in schema.behavior], on_unknown,
                                lambda t: int(torch.searchsorted(self.history_offsets, t, right=True)) - 1)
        if schema.multi_fields:
            count = len(schema.multi_fields)
            sizes = _check_offsets("bag_offsets", self.bag_offsets, bag_ids.shape[0], rows * count)
            owner = torch.arange(rows * count, device=self.device).repeat_interleave(sizes)
            limits = torch.tensor([schema.field_sizes[i] for i in schema.multi_fields], device=self.device)
            bad = (bag_ids < 0) | (bag_ids >= limits[owner % count])
            if bool(bad.any()):
                if on_unknown == "raise":
                    k = int(bad.nonzero()[0])
                    name = schema.fields[schema.multi_fields[int(owner[k]) % count]].name
                    raise InputError(f"field {name!r}, row {int(owner[k]) // count}: id {int(bag_ids[k])} is "
                                     f"outside 0..{int(limits[owner[k] % count]) - 1}")
                bag_ids = bag_ids.masked_fill(bad, 0)
        items = self.items
        if items is not None and schema.task == "retrieval":
            limit = schema.size(schema.item_vocabulary)
            items = _in_range(items[:, None], [limit], ["items"], on_unknown, lambda r: r)[:, 0]
        if self.label is not None and schema.task == "ctr":
            wrong = ~((self.label == 0) | (self.label == 1))  # NaN is neither
            if bool(wrong.any()):
                row = int(wrong.nonzero()[0])
                raise InputError(f"label of row {row} is {float(self.label[row])}, neither 0 nor 1")
        if fields is self.fields and history is self.history and bag_ids is self.bag_ids and items is self.items:
            return self
        return replace(self, fields=fields, history=history, bag_ids=bag_ids, items=items)

    def _check_shapes(self, schema: FeatureSchema) -> int:
        _check_tensor("fields", self.fields, 2, torch.int32)
        rows = self.fields.shape[0]
        if self.fields.shape[1] != schema.num_fields:
            raise InputError(f"fields has {self.fields.shape[1]} columns, the schema {schema.num_fields} fields")
        if schema.behavior:
            _check_tensor("history", self.history, 2, torch.int32)
            _check_tensor("history_offsets", self.history_offsets, 1, torch.int64)
            if self.history.shape[1] != schema.num_behavior:
                raise InputError(f"history has {self.history.shape[1]} columns, "
                                 f"the schema {schema.num_behavior} behavior fields")
        if schema.multi_fields:
            _check_tensor("bag_ids", self.bag_ids, 1, torch.int32)
            _check_tensor("bag_offsets", self.bag_offsets, 1, torch.int64)
        if self.label is not None:
            _check_tensor("label", self.label, 1, torch.float32)
            if self.label.shape[0] != rows:
                raise InputError(f"label has {self.label.shape[0]} entries for {rows} rows")
        if self.items is not None:
            _check_tensor("items", self.items, 1, torch.int32)
            if self.items.shape[0] != rows:
                raise InputError(f"items has {self.items.shape[0]} entries for {rows} rows")
        return rows


def _check_tensor(name: str, value, dims: int, dtype: torch.dtype) -> None:
    if not isinstance(value, Tensor):
        raise InputError(f"{name} is {type(value).__name__}, not a tensor, though the schema needs it")
    if value.dim() != dims or value.dtype != dtype:
        raise InputError(f"{name} is {value.dtype} with {value.dim()} dimensions, not {dtype} with {dims}")


def _check_offsets(name: str, offsets: Tensor, values: int, groups: int) -> Tensor:
    if offsets.shape[0] != groups + 1:
        raise InputError(f"{name} has {offsets.shape[0]} entries, not {groups + 1}")
    sizes = offsets.diff()
    if int(offsets[0]) != 0 or int(offsets[-1]) != values or bool((sizes < 0).any()):
        raise InputError(f"{name} does not rise from 0 to {values}")
    return sizes


def _in_range(ids: Tensor, sizes, names, on_unknown: str, row_of) -> Tensor:
    if not len(sizes) or not ids.shape[0]:
        return ids
    bad = (ids < 0) | (ids >= torch.tensor(sizes, dtype=ids.dtype, device=ids.device))
    if not bool(bad.any()):
        return ids
    if on_unknown == "map":
        return ids.masked_fill(bad, 0)
    where, column = (int(i) for i in bad.nonzero()[0])
    raise InputError(f"field {names[column]!r}, row {row_of(where)}: id {int(ids[where, column])} is outside "
                     f"0..{sizes[column] - 1}")
