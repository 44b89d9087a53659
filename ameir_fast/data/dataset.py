"""Dataset: rows of a prepared directory as batches, read in place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from .. import hostops
from ..batch import Batch
from ..errors import InputError
from ..negatives import item_starts, sample_negatives
from ..schema import FeatureSchema
from . import order
from .columns import Columns


class Dataset:
    """A prepared directory (format: docs/data.md), or a view of it with fewer or more fields.

    Columns are memory-mapped, so opening costs no memory and views share everything. Attributes: ``schema``
    (``FeatureSchema`` of this view), ``kind`` (what it was prepared from), ``task``, ``directory``,
    ``splits`` (``{"train": (first, last+1), …}``), ``statistics`` (content of ``statistics.json``),
    ``field_names`` (all stored fields, a view can be made of any of them), ``checksum`` (names the content).
    """

    def __init__(self, columns: Columns, schema: FeatureSchema):
        self._columns = columns
        self.schema = schema

    @classmethod
    def open(cls, directory: str | Path, verify: bool = True) -> Dataset:
        """The default view of a prepared directory.

        Raises ``InputError`` naming the file when one is missing, damaged, of another version, or (with
        ``verify``, which reads every file once) of another content than the one prepared.
        """
        columns = Columns(Path(directory), verify)
        return cls(columns, columns.default)

    # ---- what it is ---------------------------------------------------------------------------

    @property
    def kind(self) -> str:
        return self._columns.about["kind"]

    @property
    def task(self) -> str:
        return self.schema.task

    @property
    def directory(self) -> Path:
        return self._columns.directory

    @property
    def checksum(self) -> str:
        return self._columns.checksum

    @property
    def splits(self) -> dict[str, tuple[int, int]]:
        return dict(self._columns.splits)

    @property
    def statistics(self) -> dict:
        return self._columns.statistics

    @property
    def field_names(self) -> tuple[str, ...]:
        return tuple(f.name for f in self._columns.full.fields)

    def __len__(self) -> int:
        return self._columns.rows

    def __repr__(self) -> str:
        return (
            f"Dataset({str(self.directory)!r}, {self.kind}, {len(self)} rows, "
            f"{self.schema.num_fields} fields, {self.schema.num_behavior} behaviour fields)"
        )

    def size(self, split: str) -> int:
        """Number of rows of a split; ``InputError`` when there is no such split."""
        first, last = self._columns.split(split)
        return last - first

    def tokens(self, vocabulary: str) -> list | None:
        """Values of the ids of a vocabulary, ``None`` for id 0; ``None`` when the data came as ids."""
        return self._columns.tokens(vocabulary)

    def select(self, fields: list[str] | None = None, behavior: bool = True) -> Dataset:
        """A view with ``fields`` in that order (``None``: those of this view), with or without the history.

        Any stored field may be named (``field_names``). Without the history there is no target either. Raises
        ``InputError`` for a field that is not stored.
        """
        names = [f.name for f in self.schema.fields] if fields is None else list(fields)
        return Dataset(self._columns, self._columns.full.select(names, behavior))

    # ---- rows ---------------------------------------------------------------------------------

    def batch(self, split: str, rows: np.ndarray) -> Batch:
        """The rows at positions ``rows`` (integers [B], 0 is the split's first) as a batch on the CPU.

        The history is the newest ``schema.max_history`` events, oldest first. Raises ``InputError`` for a
        position outside the split, or when ``rows`` is not a list of integers.
        """
        first, last = self._columns.split(split)
        rows = np.asarray(rows)
        if rows.ndim != 1 or (rows.size and not np.issubdtype(rows.dtype, np.integer)):
            raise InputError(f"rows is {rows.dtype} of shape {rows.shape}, not integers [B]")
        rows = rows.astype(np.int64)
        wrong = (rows < 0) | (rows >= last - first)
        if wrong.any():
            raise InputError(f"row {rows[wrong][0]} is outside 0..{last - first - 1} of the {split} split")
        return self._assemble(rows + first)

    def batches(
        self,
        split: str,
        batch_size: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        limit: int | None = None,
        device: str | torch.device | None = None,
        start_batch: int = 0,
        negatives: int = 0,
    ) -> Iterator[Batch]:
        """The rows of a split, ``batch_size`` a time; the last batch holds what is left.

        Args:
            seed: ``None`` for the stored order; otherwise a permutation that is a function of (seed, epoch)
                alone.
            limit: only that many rows, a fixed pseudo-random subset that is a function of (split, limit): the
                same every time, and part of the one for a larger limit.
            device: where the tensors go; the CPU by default.
            start_batch: the first batch to give; those before it are not assembled.
            negatives: retrieval task: that many items a row in ``Batch.negatives``, none of them among the
                items of the row's user in the training rows; a function of (seed, epoch, batch).
        """
        if batch_size < 1:
            raise InputError(f"batch_size {batch_size} is not at least 1")
        if negatives and self.task != "retrieval":
            raise InputError("negatives belong to the retrieval task")
        first, _ = self._columns.split(split)
        wanted = self._positions(split, limit)
        count = self.size(split) if wanted is None else wanted.shape[0]
        shuffled = None if seed is None else order.permutation(count, int(seed), int(epoch))
        for number in range(start_batch, -(-count // batch_size)):
            start, stop = number * batch_size, min(count, (number + 1) * batch_size)
            rows = np.arange(start, stop) if shuffled is None else shuffled[start:stop].astype(np.int64)
            rows = rows if wanted is None else wanted[rows]
            batch = self._assemble(rows + first, negatives, order.mixed(int(seed or 0), int(epoch), number))
            yield batch if device is None else batch.to(device)

    def labels(self, split: str, limit: int | None = None) -> np.ndarray:
        """Labels, float32, in the order of ``batches(split, …, seed=None, limit=limit)``."""
        if self.task != "ctr":
            raise InputError("data of the retrieval task has no labels")
        first, last = self._columns.split(split)
        wanted = self._positions(split, limit)
        return np.array(
            self._columns.label[first:last] if wanted is None else self._columns.label[wanted + first]
        )

    def user_items(self) -> tuple[np.ndarray, np.ndarray]:
        """Each user's items in the training rows, histories included: what a negative must not be.

        Returns ``offsets`` int64 [U+1] and ``items`` int32, ascending and distinct within a user, without id
        0. Users are those of the rows, numbered from 0.
        """
        return self._columns.user_items

    # ---- evaluating retrieval -----------------------------------------------------------------

    def popularity(self) -> np.ndarray:
        """How many training rows have each item as the one to predict: int64 [V] by id, 0 for id 0."""
        return self._columns.popularity

    def candidates(
        self, split: str, batch_size: int, n: int, *, popular: bool = False, seed: int = 0, limit: int | None = None
    ) -> Iterator[torch.Tensor]:
        """Sampled items to rank each row's own item against: int32 [B, n] for each batch that ``batches(split,
        batch_size, limit=limit)`` gives.

        They are drawn independently, uniformly or (``popular``) in proportion to :meth:`popularity`, and are neither
        the row's own item nor any of its whole history, of which a batch may show only the newest events. A row's
        are a function of (seed, popular, row). 0 stands for no item, where a history leaves none. Raises
        ``InputError`` for data of another task.
        """
        if self.task != "retrieval":
            raise InputError("candidates belong to the retrieval task")
        columns = self._columns
        first, last = columns.split(split)
        wanted = self._positions(split, limit)
        wanted = np.arange(last - first) if wanted is None else wanted
        vocabulary = self.schema.item_vocabulary
        events = [columns.event[b.name] for b in columns.full.behavior if b.vocabulary == vocabulary]
        size = self.schema.size(vocabulary)
        starts = item_starts(self.popularity()) if popular else None
        for at in range(0, len(wanted), batch_size):
            rows = wanted[at : at + batch_size] + first
            place = np.arange(len(rows))
            own = order.user_items(place, slice(None), [], events, columns.begin[rows], columns.end[rows], size)
            drawn = sample_negatives(
                place, *own, size, n, order.mixed("candidates", int(seed), bool(popular)), columns.items[rows],
                rows=rows, starts=starts, may_be_none=True,
            )
            yield torch.from_numpy(drawn)

    # ---- inside -------------------------------------------------------------------------------

    def _positions(self, split: str, limit: int | None) -> np.ndarray | None:
        if limit is None or limit >= self.size(split):
            return None
        if limit < 1:
            raise InputError(f"limit {limit} is not at least 1")
        return self._columns.subset(split, limit)

    def _assemble(self, rows: np.ndarray, negatives: int = 0, seed: int = 0) -> Batch:
        columns, schema = self._columns, self.schema
        single = [None if f.kind == "multi_categorical" else columns.field[f.name] for f in schema.fields]
        bags = [columns.bag[f.name] for f in schema.fields if f.kind == "multi_categorical"]
        events = [columns.event[b.name] for b in schema.behavior]
        fields, bag_ids, bag_offsets, history, history_offsets = hostops.assemble(
            rows, single, bags, events, columns.begin, columns.end, schema.max_history
        )
        items = drawn = label = None
        if schema.task == "retrieval":
            items = columns.items[rows]
            if negatives:
                drawn = sample_negatives(
                    columns.row_user[rows].astype(np.int64),
                    *columns.user_items,
                    schema.size(schema.item_vocabulary),
                    negatives,
                    seed,
                    items,
                )
        else:
            label = columns.label[rows]
        tensor = torch.from_numpy
        return Batch(
            fields=tensor(fields),
            history=tensor(history) if events else None,
            history_offsets=tensor(history_offsets) if events else None,
            label=None if label is None else tensor(label),
            bag_ids=tensor(bag_ids) if bags else None,
            bag_offsets=tensor(bag_offsets) if bags else None,
            items=None if items is None else tensor(items),
            negatives=None if drawn is None else tensor(drawn),
        )
